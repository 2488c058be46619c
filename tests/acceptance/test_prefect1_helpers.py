"""What the real Prefect 1 engine leaves behind when it is killed: its heartbeat helper, which kept a dead run alive."""

import os
import signal

import psutil

from tests.waiting import until


def processes_of(run_id):
    """Every process that has this run in its environment."""
    found = []
    for process in psutil.process_iter(["pid"]):
        try:
            if process.environ().get("PREFECT__CONTEXT__FLOW_RUN_ID") == run_id:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_killed_engines_heartbeat_helper_is_gone_and_its_run_failed(world1, tmp_path):
    flow = world1.real.register("waiting", labels=["fleet"])["waiting"]
    world1.start_poller()
    world1.start_worker("one", "fleet", options=["--env", "PREFECT__CLOUD__HEARTBEAT_MODE=process"])
    given = {"begun": str(tmp_path / "begun"), "until": str(tmp_path / "until")}
    run_id = world1.create_run(flow, labels=["fleet"], parameters=given)
    until((tmp_path / "begun").exists, 60, "the task to begin")

    def helper():
        return [one for one in processes_of(run_id) if "heartbeat" in one.cmdline()]

    (beating,) = until(helper, 30, "the heartbeat helper")
    (engine,) = [one for one in processes_of(run_id) if "execute" in one.cmdline()]
    os.kill(engine.pid, signal.SIGKILL)

    assert world1.wait_end(run_id, 20) == "Failed"
    assert not beating.is_running() or beating.status() == psutil.STATUS_ZOMBIE
    assert processes_of(run_id) == []
    assert "killed by SIGKILL" in world1.message(run_id)

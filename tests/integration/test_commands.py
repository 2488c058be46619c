"""Commands: the questions to a fleet as the installed program answers them, on a real Valkey."""

import itertools
import json
import re
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flowfleet.flow_run import FlowRun, Offer, Route
from flowfleet.ledger import Ledger, connect
from flowfleet.ledger.claims import Claim, Lease
from flowfleet.ledger.roster import RouteDue, WorkerRow
from flowfleet.monitor.snapshot import take_snapshot
from flowfleet.settings.click_options import known_keys
from tests import processes
from tests.terminal import Terminal
from tests.valkey import Valkey, free_port
from tests.waiting import SCALE, until
from tests.world import BIN

POOL = "11111111-1111-4111-8111-111111111111"
ROUTE = Route("prefect3", POOL, "default")
WIDE = {"COLUMNS": "200"}
UNKNOWN = "22222222-2222-4222-8222-222222222222"
NO_API = {"PREFECT_API_URL": "http://127.0.0.1:1/api"}


def _run(*argv, **variables):
    return processes.run(BIN / argv[0], *argv[1:], env=processes.environment() | {"COLUMNS": "80"} | variables)


def asked(code, *argv, says=(), errs=(), **variables):
    """What the command answers: it ends with this code, and these words are in its output and among its errors."""
    done = _run(*argv, **variables)
    assert done.returncode == code, done.stderr
    assert [words for words in says if words not in done.stdout] == []
    assert [words for words in errs if words not in done.stderr] == []
    return done


@pytest.fixture
def fleet_of_one(valkey, request):
    """A fleet with one idle worker of two slots, a leader, and 50 due runs."""
    name = f"commands-{abs(hash(request.node.name))}"
    ledger = connect(valkey.tcp_url, name, socket_timeout=60)
    offer = Offer(backend="prefect3", pools=("flowfleet",), pool_ids=(POOL,))
    ledger.roster.sign_on(
        WorkerRow(worker="worker@h1", nonce="n", offer=offer, routes=(ROUTE,), slots=2, version="0.1.0")
    )
    ledger.roster.know([ROUTE])
    term = ledger.gate.elect("agent", "h1", "n1", None, Lease())
    ledger.roster.note_due(term, [RouteDue(route=ROUTE, due=50, at_least=False, oldest=None, at=0.0)])
    yield ledger, {"FLOWFLEET_REDIS": valkey.tcp_url, "FLOWFLEET_FLEET": name}
    ledger.close()


def test_status_tells_50_due_runs_to_people_and_to_programs(fleet_of_one):
    _, variables = fleet_of_one
    page = asked(0, "flowfleet", "status", says=["due 50", "worker@h1"], **variables)
    form = json.loads(_run("flowfleet", "status", "--json", **variables).stdout)

    assert "\x1b" not in page.stdout
    assert max(map(len, page.stdout.splitlines())) <= 80
    assert form["counts"] == {"due": 50, "outstanding": 0, "running": 0, "free_slots": 2, "outbox": 0}
    assert form["leader"]["name"] == "agent"
    assert form["queues"][0]["held"] == {"paused": 0, "limit": 0, "unserved": 0}


def test_runs_that_wait_while_no_worker_takes_any_are_due_and_unserved(fleet_of_one):
    ledger, variables = fleet_of_one
    ledger.roster.want("worker@h1", "paused")
    said = ["due 50", "50 runs wait on flowfleet/default, which no worker takes now."]
    asked(0, "flowfleet", "status", says=said, **variables)
    (queue,) = json.loads(_run("flowfleet", "status", "--json", **variables).stdout)["queues"]
    assert (queue["due"], queue["held"]["unserved"], queue["eligible_workers"]) == (50, 50, 0)


def test_a_worker_is_listed_paused_drained_and_resumed_by_name(fleet_of_one):
    ledger, variables = fleet_of_one
    for order, state in (("pause", "paused"), ("drain", "draining"), ("resume", "active")):
        asked(0, "worker", order, "worker", "--note", "upgrade", says=["worker@h1"], **variables)
        assert take_snapshot(ledger).workers[0].state == state
    (row,) = json.loads(_run("flowfleet", "worker", "list", "--json", **variables).stdout)
    assert (row["name"], row["host"], row["slots"], row["busy"]) == ("worker", "h1", 2, 0)


def test_the_note_of_an_operator_is_seen_wherever_the_worker_is(fleet_of_one):
    ledger, variables = fleet_of_one
    asked(0, "worker", "pause", "worker", "--note", "kernel [upgrade]", **variables)
    for command in (("worker", "list"), ("flowfleet", "status")):
        asked(0, *command, says=["paused (kernel [upgrade]): worker@h1"], **variables)
        (row,) = _workers(*command, **variables)
        assert row["note"] == "kernel [upgrade]"
    asked(0, "worker", "drain", "worker", "--note", "moving", **variables)
    ledger.roster.sign_off("worker@h1", "n")
    says = "drained (moving): worker@h1; before they are started again: worker resume worker@h1"
    asked(0, "flowfleet", "status", says=[says], **variables | WIDE)
    asked(0, "worker", "resume", "worker@h1", says=["worker@h1 takes runs again when it is started."], **variables)
    assert "drained" not in asked(0, "flowfleet", "status", **variables).stdout


def _workers(*command, **variables):
    found = json.loads(_run(*command, "--json", **variables).stdout)
    return found["workers"] if isinstance(found, dict) else found


def test_status_and_list_show_the_same_workers_and_tell_stopped_from_lost(fleet_of_one):
    ledger, variables = fleet_of_one
    (row,) = ledger.roster.rows()
    for name in ("lost@h2", "stopped@h3", "past@h4"):
        ledger.roster.sign_on(replace(row, worker=name))
    ledger.roster.lapse(ledger.gate.leader().term, "lost@h2", 0)
    ledger.roster.sign_off("stopped@h3", "n")
    ledger.roster.sign_off("past@h4", "n")
    ledger.store.client.hset(ledger.store.key("worker:past@h4"), "seen", str(time.time() - 100_000))

    states = {"worker": "active", "lost": "lost", "stopped": "stopped"}
    for command in (("worker", "list"), ("flowfleet", "status")):
        assert {row["name"]: row["state"] for row in _workers(*command, **variables)} == states
        hint = "1 that stopped more than a day ago is shown by worker list --all"
        page = asked(0, *command, says=["lost@h2", "stopped@h3", hint], **variables).stdout
        assert "past@h4" not in page
    assert "past@h4" in asked(0, "worker", "list", "--all", **variables).stdout
    assert {row["name"] for row in _workers("worker", "list", "--all", **variables)} == {*states, "past"}


def test_drain_waits_for_its_workers_where_it_is_asked_to(fleet_of_one):
    ledger, variables = fleet_of_one
    ledger.roster.sign_off("worker@h1", "n")
    says = ["worker@h1 starts no runs any more", "worker@h1 has ended."]
    asked(0, "worker", "drain", "worker", "--wait", says=says, **variables)
    ledger.roster.sign_on(ledger.roster.rows()[0])
    waiting = subprocess.Popen(
        [BIN / "worker", "drain", "--all", "--wait"],
        env=processes.environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert waiting.stderr.readline() == "waiting: worker@h1 waits for its end\n"
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=30 * SCALE)
    finally:
        waiting.kill()
    assert (waiting.returncode, out) == (130, "worker@h1 takes no new runs and ends when its last one has ended.\n")
    assert err.strip() == "Not waited for any longer: the drain goes on, until worker resume takes it back."


def test_a_live_worker_is_not_forgotten_and_one_that_has_gone_is(fleet_of_one):
    ledger, variables = fleet_of_one
    stopped = threading.Event()
    beats = itertools.count(1)
    renewals = threading.Thread(target=lambda: until_set(stopped, lambda: renew(ledger, next(beats))))
    renewals.start()
    try:
        ledger.roster.sign_on(replace(ledger.roster.rows()[0], worker="gone@h2"))
        errs = ["Error: worker@h1 lives still and cannot be forgotten: stop it first, by worker drain worker@h1."]
        says = ["gone@h2 is forgotten"]
        asked(2, "worker", "forget", "worker@h1", "gone@h2", errs=errs, says=says, **variables)
    finally:
        stopped.set()
        renewals.join()
    ledger.roster.sign_off("worker@h1", "n")

    assert asked(0, "worker", "forget", "worker@h1", **variables).stdout == "worker@h1 is forgotten.\n"
    assert ledger.roster.rows() == []


def until_set(stopped: threading.Event, step: Callable[[], Any]) -> None:
    while not stopped.wait(0.1):
        step()


def renew(ledger: Ledger, beat: int) -> None:
    ledger.claims.renew("worker@h1", "n", beat, [])


def test_what_a_forgotten_worker_has_started_is_asked_about_and_given_up(fleet_of_one):
    ledger, variables = fleet_of_one
    claim = _running(ledger)
    ledger.roster.sign_off("worker@h1", "n")

    refused = asked(2, "worker", "forget", "worker@h1", errs=["1 run whose end nobody knows", "--yes"], **variables)
    assert refused.stdout == ""
    asked(0, "worker", "forget", "worker@h1", "--yes", says=["1 run of it is given up"], **variables)
    assert ledger.claims.get(claim.run_id).proof == "forgotten"


def test_a_worker_whose_row_redis_has_lost_is_forgotten_by_what_was_restored_of_it_after_a_watch(fleet_of_one):
    ledger, variables = fleet_of_one
    claim, leader = _running(ledger), ledger.gate.leader()
    ledger.store.client.delete(ledger.store.key(f"claim:{claim.run_id}"), ledger.store.key("claims"))
    run = FlowRun(run_id=claim.run_id, name="r", route=ROUTE, due=claim.due)
    assert ledger.claims.restore(leader.term, run, claim.claim, claim.call, "worker@gone").moved
    assert ledger.gate.lead(leader.term, leader.nonce, Lease(ttl_seconds=1.0))

    asked(1, "worker", "forget", "nobody@gone", errs=["worker@gone"], **variables)
    asked(2, "worker", "forget", "worker@gone", errs=["1 run whose end nobody knows"], **variables)
    says = ["worker@gone is forgotten", "1 run of it is given up"]
    asked(0, "worker", "forget", "worker@gone", "--yes", says=says, errs=["Watching worker@gone for 1 s"], **variables)
    assert ledger.claims.get(claim.run_id).proof == "forgotten"


def _running(ledger: Ledger) -> Claim:
    term = ledger.gate.elect("p", "h", uuid.uuid4().hex, ledger.gate.leader(), Lease())
    ledger.gate.open(term, ledger.gate.server())
    run = FlowRun(run_id=str(uuid.uuid4()), name="r", route=ROUTE, due=datetime.now(UTC))
    [outcome] = ledger.claims.claim(term, [run], str(uuid.uuid4()), policy="report")
    ids = (run.run_id, outcome.claim.claim)
    ledger.claims.accept(term, *ids)
    ledger.claims.take(*ids, "worker@h1", "n")
    assert ledger.claims.start(*ids, "worker@h1", "n").moved
    return outcome.claim


def test_an_unknown_worker_is_one_sentence_that_names_the_known(fleet_of_one):
    asked(1, "worker", "drain", "nobody", errs=["worker@h1"], **fleet_of_one[1])


def test_status_of_a_redis_that_is_not_there_is_one_sentence_and_4():
    done = asked(4, "flowfleet", "status", FLOWFLEET_REDIS=f"redis://:top-secret@127.0.0.1:{free_port()}/0")

    assert done.stderr.startswith("Error: Redis at redis://")
    assert "top-secret" not in done.stderr
    assert done.stdout == ""


def test_doctor_judges_redis_api_and_fleet(fleet_of_one):
    _, variables = fleet_of_one
    done = asked(5, "flowfleet", "doctor", "--json", PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api", **variables)
    verdicts = {check["name"]: check["verdict"] for check in json.loads(done.stdout)["checks"]}

    assert verdicts["api"] == "fail"
    assert verdicts["redis"] == verdicts["redis version"] == verdicts["redis eviction"] == verdicts["workers"] == "ok"
    assert verdicts["redis persistence"] == "warn"


def test_doctor_sees_a_cluster_an_eviction_policy_and_a_wrong_password():
    with Valkey.private(tcp=True, config=["--cluster-enabled", "yes"]) as server:
        asked(5, "flowfleet", "doctor", says=["Cluster"], FLOWFLEET_REDIS=server.tcp_url, **NO_API)
        asked(4, "flowfleet", "status", errs=["is a cluster, which Celery cannot use"], FLOWFLEET_REDIS=server.tcp_url)
    evicting = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]
    with Valkey.private(tcp=True, password="right-one", config=evicting) as server:
        done = asked(5, "flowfleet", "doctor", says=["fail redis eviction"], FLOWFLEET_REDIS=server.tcp_url, **NO_API)
        assert "right-one" not in done.stdout + done.stderr
        wrong = server.tcp_url.replace("right-one", "wrong-one")
        done = asked(5, "flowfleet", "doctor", says=["refuses"], FLOWFLEET_REDIS=wrong, **NO_API)
        assert "wrong-one" not in done.stdout + done.stderr


def test_config_shows_each_setting_with_its_origin_and_no_secret(tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text('fleet = "blue"\n[worker]\nslots = 7\n')
    variables = {"FLOWFLEET_KEY": "top-secret", "FLOWFLEET_REDIS": "redis://:top-secret@box/0"}
    variables["FLOWFLEET_ENV"] = "DB_PASSWORD=top-secret=1\nPLAIN=top-secret"
    says = [
        "fleet = blue  (config file fleet)",
        "slots = 7  (config file slots)",
        "log-level = ERROR  (flag --log-level)",
        "redis = redis://:***@box/0  (variable FLOWFLEET_REDIS)",
        "env = DB_PASSWORD=***, PLAIN=***  (variable FLOWFLEET_ENV)",
    ]
    done = asked(0, "flowfleet", "config", "--config", str(path), "--log-level", "error", says=says, **variables)
    assert "top-secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "argv", [["flowfleet"], ["flowfleet", "poller"], ["flowfleet", "worker"], ["poller"], ["worker"]]
)
def test_a_bare_command_is_help_and_success(argv):
    assert asked(0, *argv).stdout.startswith("Usage: ")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (UNKNOWN, "knows nothing of it"),
        ("grinning-corgi", "No run of this fleet is named 'grinning-corgi': give its name or its id"),
        ("0a1b2c", "No run of this fleet is named '0a1b2c' or has it in its id: give its whole id"),
    ],
)
def test_explain_of_an_unknown_run_is_exit_1_in_json_too_and_says_that_the_api_could_not_be_asked(
    fleet_of_one, given, words
):
    variables = {**NO_API, **fleet_of_one[1]}
    told = asked(1, "flowfleet", "explain", given, errs=[words, "The API could not be asked: "], **variables)
    assert (told.stdout, told.stderr.count("\n")) == ("", 1)
    answer = json.loads(asked(1, "flowfleet", "explain", given, "--json", **variables).stdout)
    sentence = answer.pop("sentence")
    assert answer == {"run_id": None, "given": given, "found": None}, "nobody could ask the API"
    assert sentence in told.stderr


def test_config_names_the_api_that_prefect_itself_would_find():
    lines = _run("flowfleet", "config", PREFECT_API_URL="http://:top-secret@box:4200/api").stdout.splitlines()
    (api,) = [line for line in lines if line.startswith("api = ")]

    assert "box:4200/api" in api
    assert "PREFECT_API_URL" in api
    assert "top-secret" not in api
    assert "log-level = INFO  (default)" in lines


@pytest.mark.parametrize("given", [("--api",), ()])
def test_config_shows_no_login_of_an_address(given):
    url = "http://ann:top-secret@box:4200"
    done = _run("flowfleet", "config", *(word for flag in given for word in (flag, url)), FLOWFLEET_API=url)

    assert "box:4200" in done.stdout
    assert "top-secret" not in done.stdout + done.stderr


def test_a_run_is_found_by_its_name_and_by_the_beginning_of_its_id(fleet_of_one):
    ledger, variables = fleet_of_one
    run_id = "0a1b2c3d-1111-4111-8111-111111111111"
    term = ledger.gate.elect("agent", "h1", "n1", None, Lease())
    assert ledger.gate.open(term, ledger.gate.server())
    run = FlowRun(run_id=run_id, name="calm-otter", route=ROUTE, due=datetime.now(UTC))
    (outcome,) = ledger.claims.claim(term, [run], str(uuid.uuid4()), policy="report")
    assert outcome.moved, outcome
    for given in ("calm-otter", "0a1b", run_id.upper()):
        asked(0, "flowfleet", "explain", given, "--json", says=[run_id], **variables)
    assert json.loads(_run("flowfleet", "explain", "1111-4111", "--json", **variables).stdout)["found"] is True
    asked(1, "flowfleet", "explain", "calm", errs=["Error: No run", "is named 'calm': give its name or"], **variables)


def test_an_unknown_state_is_refused_with_the_states_that_there_are(fleet_of_one):
    errs = ["--state cannot be 'nope'", "running", "ended", "--end"]
    asked(2, "flowfleet", "runs", "--state", "nope", errs=errs, **fleet_of_one[1])


@pytest.mark.parametrize("program", ["flowfleet", "poller", "worker"])
def test_each_program_tells_its_version_and_answers_to_both_spellings_of_help(program):
    assert _run(program, "--version").stdout.startswith(f"{program}, version ")
    assert _run(program, "-h").stdout == _run(program, "--help").stdout != ""


def test_a_mistyped_key_of_the_config_file_is_answered_with_the_nearest(tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text("slotz = 3\n")
    errs = ["'slotz', which does not exist: did you mean slots?"]
    assert asked(2, "flowfleet", "status", "--config", str(path), errs=errs).stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        pytest.param(
            ("--deploy", "rocket", "--ca-file", "/no/such.pem"),
            "The CA file /no/such.pem does not exist: correct --ca-file or PREFECT_API_SSL_CERT_FILE.",
            id="what is raised as a part of a sentence is printed as a whole one",
        ),
        pytest.param(("--pool", ""), "--pool cannot be empty: it must be some text.", id="an empty pool"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_before_anything_is_asked(options, error):
    assert asked(2, "worker", "start", *options, PREFECT_API_URL="http://h/api").stderr == f"Error: {error}\n"


def test_logs_looks_in_the_workers_state_folder_and_names_it_when_nothing_is_there(fleet_of_one, tmp_path):
    run_id = "22222222-2222-4222-8222-222222222222"
    folder = tmp_path / "machine" / "worker" / "runs" / f"{run_id}.claim"
    folder.mkdir(parents=True)
    (folder / "log").write_text("hello\n")
    for argv, variables in (([], {"FLOWFLEET_STATE_DIR": str(tmp_path)}), (["--state-dir", str(tmp_path)], {})):
        assert _run("flowfleet", "logs", run_id, *argv, **variables, **fleet_of_one[1]).stdout == "hello\n"
    errs = [f"is not below {tmp_path}/x/flowfleet on this host", "--state-dir"]
    asked(1, "flowfleet", "logs", run_id, errs=errs, XDG_STATE_HOME=str(tmp_path / "x"), **fleet_of_one[1])


def test_logs_finds_a_run_of_this_host_by_its_name_and_by_a_part_of_its_id_without_the_api(fleet_of_one, tmp_path):
    folder = tmp_path / "machine" / "worker" / "runs" / f"{UNKNOWN}.claim"
    folder.mkdir(parents=True)
    (folder / "log").write_text("hello\n")
    (folder / "intent.json").write_text(json.dumps({"name": "calm-otter"}))
    variables = {"FLOWFLEET_STATE_DIR": str(tmp_path), **NO_API, **fleet_of_one[1]}
    for given in ("calm-otter", UNKNOWN[:9], UNKNOWN[-8:], UNKNOWN):
        assert asked(0, "flowfleet", "logs", given, **variables).stdout == "hello\n"
    errs = ["No run of this fleet is named 'dry-dingo'", "The API could not be asked: "]
    asked(1, "flowfleet", "logs", "dry-dingo", errs=errs, **variables)


def test_doctor_without_an_api_address_checks_all_else(fleet_of_one, tmp_path):
    says = [
        "fail api: No Prefect API is set: give its address by --api",
        "ok   redis: Redis at",
        "ok   workers: 1 live",
    ]
    assert asked(5, "flowfleet", "doctor", says=says, HOME=str(tmp_path), **fleet_of_one[1]).stderr == ""


def test_on_a_terminal_the_doctor_colours_its_verdicts_and_nothing_else(fleet_of_one):
    terminal = Terminal("flowfleet", "doctor", columns=200, **NO_API, **fleet_of_one[1])
    try:
        assert terminal.process.wait(60 * SCALE) == 5
        until(lambda: "workers: 1 live" in terminal.text, 10, "the last of its checks")
        lines = terminal.text.splitlines()
    finally:
        terminal.close()
    coloured = re.compile(r"(\x1b\[3[123]m(ok|warn|fail) *\x1b\[0m)[^\x1b]*")
    assert [line for line in lines if line and not coloured.fullmatch(line)] == []
    assert any("Redis at redis://127.0.0.1" in line for line in lines)


def test_doctor_with_an_address_that_is_no_redis_still_asks_the_api():
    done = asked(5, "flowfleet", "doctor", "--redis", "redix://box/0", says=["fail api: "], **NO_API)

    assert done.stderr == ""
    assert "begins with redix://, which is not supported: use redis://HOST:PORT/DB" in " ".join(done.stdout.split())


def test_help_tells_each_commands_own_defaults():
    up, status, worker = (
        " ".join(_run(*argv, "--help").stdout.split())
        for argv in (("flowfleet", "up"), ("flowfleet", "status"), ("worker", "start"))
    )

    assert "(default: start a Prefect server)" in up
    assert "(default: start one)" in up
    assert "as Prefect's own command finds it" not in up
    assert "(default: WARNING)" in up
    assert "(default: WARNING)" in status
    assert "(default: INFO)" in worker


def test_config_shows_all_that_a_config_file_may_hold_and_where_prefects_own_key_comes_from(tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text("[flowfleet]\nworkers = 3\n")
    done = _run("flowfleet", "config", "--config", str(path), PREFECT_API_KEY="top-secret", HOME=str(tmp_path))
    shown = {line.partition(" = ")[0] for line in done.stdout.splitlines()}

    assert "key = ***  (PREFECT_API_KEY, environment)" in done.stdout
    assert "top-secret" not in done.stdout + done.stderr
    assert "workers = 3  (config file workers)" in done.stdout
    assert known_keys() - shown == {"machine-id", "boot-id"}
    assert "key = -  (default)" in _run("flowfleet", "config", HOME=str(tmp_path)).stdout


def test_config_shows_paths_as_they_will_be_wherever_it_is_asked(tmp_path):
    flow_python = tmp_path / "bin" / "python"
    flow_python.parent.mkdir()
    flow_python.write_text("#!/bin/sh\necho 3.9.1\n")
    flow_python.chmod(0o755)
    homes = {"XDG_STATE_HOME": str(tmp_path / "s"), "XDG_DATA_HOME": str(tmp_path / "d"), "HOME": str(tmp_path)}
    found = {"PATH": f"{flow_python.parent}:/usr/bin:/bin", "FLOWFLEET_BACKEND": "prefect3"}
    says = [
        f"state-dir = {tmp_path}/s/flowfleet  (default)",
        f"data-dir = {tmp_path}/d/flowfleet  (default)",
        f"python = {flow_python}  (default; prefect 3.9.1)",
    ]
    asked(0, "flowfleet", "config", says=says, **homes, **found)
    given = {"FLOWFLEET_STATE_DIR": "here", "FLOWFLEET_IMPORT_PATHS": "flows:~/more", "FLOWFLEET_CA_FILE": "ca.pem"}
    folder = Path.cwd()
    says = [
        f"state-dir = {folder}/here  (variable FLOWFLEET_STATE_DIR)",
        f"import-path = {folder}/flows, {tmp_path}/more  (",
        f"ca-file = {folder}/ca.pem  (",
    ]
    asked(0, "flowfleet", "config", says=says, **homes, **found, **given)
    none = {"FLOWFLEET_PYTHON": "/no/such/python"}
    asked(0, "flowfleet", "config", says=["python = /no/such/python  (variable FLOWFLEET_PYTHON)"], **homes, **none)


def test_config_as_json_has_values_origins_and_no_secret(tmp_path):
    variables = {"FLOWFLEET_REDIS": "redis://:top-secret@box/0", "FLOWFLEET_ENV": "DB_PASSWORD=top-secret", **NO_API}
    done = asked(0, "flowfleet", "config", "--json", PREFECT_API_KEY="top-secret", HOME=str(tmp_path), **variables)
    form = json.loads(done.stdout)
    assert list(form) == ["common", "poller", "worker", "flowfleet"]
    assert form["common"]["key"] == {"value": "***", "origin": "PREFECT_API_KEY, environment"}
    assert form["common"]["redis"] == {"value": "redis://:***@box/0", "origin": "variable FLOWFLEET_REDIS"}
    assert form["worker"]["env"]["value"] == ["DB_PASSWORD=***"]
    assert form["worker"]["cloud-logs"] == {"value": True, "origin": "default"}
    assert form["worker"]["linger"]["value"] is None
    assert form["flowfleet"]["workers"]["value"] == 1
    assert "top-secret" not in done.stdout + done.stderr


OURS = ("flowfleet", "flowfleet up", "flowfleet status", "flowfleet explain", "flowfleet leave")
HELPFUL = (*OURS, "poller", "poller start", "worker", "worker start")


@pytest.mark.parametrize("command", HELPFUL)
def test_help_shows_examples_in_80_columns_whose_flags_exist(command):
    argv = command.split()
    text = _run(*argv, "--help").stdout
    head, _, options = text.partition("Options:")
    examples = [line for line in head.splitlines() if line.startswith(f"  {command} ")]
    flags = {flag for line in examples for flag in re.findall(r" (--[a-z-]+)", line)}

    assert len(examples) >= 2
    assert max(map(len, text.splitlines())) <= 80
    assert [flag for flag in flags if len(argv) > 1 and f"{flag} " not in options.replace("\n", " ")] == []

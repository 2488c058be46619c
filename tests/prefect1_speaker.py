"""Speaker: runs in the environment of the real Prefect 1 and does there what tests ask, a line of JSON for a line.

`prefect1_client.Prefect1Client` starts one and keeps it, since each import of prefect costs half a second.
"""

import json
import os
import sys
from datetime import timedelta

import pendulum
import prefect
from prefect.run_configs import LocalRun
from prefect.serialization.state import StateSchema
from prefect.storage import Local
from prefect.utilities.storage import extract_flow_from_file

client = prefect.Client()


def create_project(name):
    return client.create_project(name)


def register(path, name, project, labels, script=False):
    flow = extract_flow_from_file(file_path=path, flow_name=name)
    if script or flow.storage is None:
        where = {"path": path, "stored_as_script": True} if script else {}
        flow.storage = Local(add_default_labels=False, **where)
    return flow.register(project, labels=labels, no_url=True)


def create_run(flow_id, labels=None, parameters=None, run_config=None, due_in=None):
    return client.create_flow_run(
        flow_id=flow_id,
        labels=labels,
        parameters=parameters,
        run_config=None if run_config is None else LocalRun(**run_config),
        scheduled_start_time=None if due_in is None else pendulum.now("utc") + timedelta(seconds=due_in),
    )


def cancel(run_id):
    return client.cancel_flow_run(run_id)


def set_state(run_id, state, version):
    result = client.set_flow_run_state(run_id, StateSchema().load(state), version=version)
    return type(result).__name__


def info(run_id):
    found = client.get_flow_run_info(run_id)
    return {"version": found.version, "state": type(found.state).__name__, "message": found.state.message}


def main():
    """Answers go to the real stdout; what prefect prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"value": globals()[asked.pop("do")](**asked)}
        except BaseException as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

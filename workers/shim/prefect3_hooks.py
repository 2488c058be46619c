"""Prefect 3 hooks: runs the hooks of a flow for the cancel or the crash of its run, whose process is gone.

    PYTHON prefect3_hooks.py cancellation|crashed

It does what a stock worker's hook process does (source: prefect 3.9.1, runner._workspace_runtime_bootstrap): it loads
the flow, and calls each hook with flow, flow run and state, whether an earlier one has failed or not. It starts in the
run's working folder, with the run's environment. Where the flow's file is there already, nothing is fetched again.

Standard library only, and prefect by its public parts: this runs in the interpreter of the flows.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    sys.path.pop(0)  # our own folder: its modules must not be found by anybody, not even by the imports below

import asyncio
import importlib
import importlib.util
import inspect
import os
import uuid

TYPE_CHECKING = False
if TYPE_CHECKING:  # the flow's Python does without typing
    from collections.abc import Callable
    from typing import Any

_ENGINE, _MODULE = "prefect3_engine.py", "flowfleet_shim_engine"


def main(hooks: str) -> int:
    """Run these hooks; 1 when the flow cannot be loaded, or one of them fails."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, os.getcwd())
    engine: Any = _beside(_ENGINE)
    # an engine would run the flow a second time: the API takes Running over Crashed
    finder: Any = engine.StepsFinder(engine.Workspace(becomes_engine=False))
    sys.meta_path.insert(0, finder)
    prefect: Any = importlib.import_module("prefect")
    assert prefect.flow, "its first use sets up the logs"
    loggers: Any = importlib.import_module("prefect.logging.loggers")
    with _client() as client:
        run: Any = client.read_flow_run(uuid.UUID(os.environ["PREFECT__FLOW_RUN_ID"]))
        deployment: Any = client.read_deployment(run.deployment_id)
    said = f"The flow could not be loaded to run its on_{hooks} hooks."
    flow = guarded(lambda: load(run, deployment), loggers.flow_run_logger(run), said)
    if flow is None:
        return 1
    failed = 0
    for hook in getattr(flow, f"on_{hooks}_hooks", None) or ():
        failed += not call(hook, flow, run, loggers.flow_run_logger(run, flow))
    return min(failed, 1)


def load(run: Any, deployment: Any) -> Any:
    """The flow of this run; its code is fetched only where it is not in this folder."""
    flows: Any = importlib.import_module("prefect.flows")
    file = (getattr(deployment, "entrypoint", None) or "").rpartition(":")[0]
    here = file.endswith(".py") and os.path.isfile(file)
    return asyncio.run(flows.load_flow_from_flow_run(flow_run=run, ignore_storage=here, use_placeholder_flow=False))


def call(hook: Callable[..., Any], flow: Any, run: Any, logger: Any) -> bool:
    """Call one hook; False when it fails."""
    name = getattr(hook, "__name__", type(hook).__name__)
    logger.info("Running hook %r in response to entering state %r", name, run.state.name)

    def run_it() -> bool:
        result = hook(flow=flow, flow_run=run, state=run.state)
        if inspect.isawaitable(result):
            asyncio.run(_awaited(result))
        return True

    if not guarded(run_it, logger, f"An error was encountered while running hook {name!r}"):
        return False
    logger.info("Hook %r finished running successfully", name)
    return True


def guarded(action: Callable[[], Any], logger: Any, said: str) -> Any:
    """What the action returns; None after a failure, which stands on the run's log page with this sentence."""
    try:
        return action()
    except Exception:  # guards the process and the other hooks against the user's code
        logger.exception(said)
        return None


async def _awaited(result: Any) -> None:
    await result


def _client() -> Any:
    orchestration: Any = importlib.import_module("prefect.client.orchestration")
    return orchestration.get_client(sync_client=True)


def _beside(name: str) -> Any:
    """The module in the file of this name beside this one; where we have no file, it was made before (from_text.py)."""
    if _MODULE in sys.modules:
        return sys.modules[_MODULE]
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    spec: Any = importlib.util.spec_from_file_location(_MODULE, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

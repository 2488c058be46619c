"""The local Prefect 1 API of the tests in a process of its own; the first line says where."""

import argparse
import signal

from tests.prefect1_api import Faults, Prefect1Api


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--like-server", action="store_true", help="the faults of the open-source Server")
    given = parser.parse_args()
    faults = Faults.like_server() if given.like_server else Faults()
    stops = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # before any thread, so that only we meet them
    with Prefect1Api(faults=faults, port=given.port) as api:
        print(api.url, flush=True)
        signal.sigwait(stops)


if __name__ == "__main__":
    main()

"""Launch waits: how long a launch, which holds a slot, waits for Redis and for the Prefect API."""

from functools import partial

from flowfleet.retry import Retry, RetrySchedule

#: for Redis: a move is repeated with the same ids, and one that was carried out is answered as moved again
LEDGER_RETRY = Retry(limit_seconds=15.0, schedule=partial(RetrySchedule, first_seconds=0.5, longest_seconds=2.0))
#: and for the API: the run is handed back to an API that is silent for so long; the leader would do so at 60 s. A
#: refused key is not waited for: it says nothing about the run
API_RETRY = Retry(
    limit_seconds=45.0,
    awaits_key=False,
    schedule=partial(RetrySchedule, first_seconds=0.5, longest_seconds=5.0),
)

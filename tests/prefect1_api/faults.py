"""Faults: what the real server does differently from what one would wish, and what lines do to answers."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partialmethod
from typing import Any, Self

#: what happens to a whole request …
_OF_REQUESTS = ("status", "status_after", "drop", "lost", "hang", "late", "held", "answer")
#: … and to one field of it
_OF_FIELDS = ("error", "error_after")


@dataclass
class Fault:
    """What goes wrong at requests with this root field ("" = any), so many times (-1 = always)."""

    field: str
    kind: str
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    message: str = "made to fail"
    code: str = "INTERNAL_SERVER_ERROR"
    released: threading.Event = field(default_factory=threading.Event)


class Faults:
    """The switches: `Prefect1Api(faults=Faults.like_server())`, `api.faults.lost("set_flow_run_states")`."""

    def __init__(self) -> None:
        #: a state with another version than the run's is refused, as Cloud does; Server ignores `version` [srv]
        self.version_lock = True
        #: "cas": Submitted goes over a scheduled state only; "memory": refused for 30 s, whatever the state is [srv]
        self.submitted = "cas"
        #: Submitted is remembered this long by "memory" [srv]
        self.submitted_seconds = 30.0
        #: so many rows are read before labels are looked at [srv]; None = all
        self.queue_window: int | None = None
        #: so many ids are returned at most [srv]; None = all
        self.queue_ids: int | None = None
        #: a comparison with null is true of every row, as in Server's Hasura: Prefect's own `get` and `describe`
        #: count on it [run]; False: such a document is refused, so that no client of ours leans on it
        self.null_is_true = False
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._released = threading.Event()

    @classmethod
    def like_server(cls) -> Self:
        """As the open-source Server of June 2023 [srv]."""
        faults = cls()
        faults.version_lock, faults.null_is_true = False, True
        faults.submitted = "memory"
        faults.queue_window, faults.queue_ids = 75, 25
        return faults

    # requests that go wrong

    def _met(self, kind: str, field: str = "", *, times: int = 1) -> None:
        self._add(Fault(field, kind, times))

    def broken(self, field: str = "", *, status: int = 500, times: int = 1, body: Any = None, **headers: str) -> None:
        """This status, and nothing is done."""
        self._add(Fault(field, "status", times, status, headers, body))

    def broken_after(self, field: str = "", *, status: int = 500, times: int = 1) -> None:
        """Done, then this status."""
        self._add(Fault(field, "status_after", times, status))

    def throttled(self, field: str = "", *, times: int = 1, retry_after: int | None = None) -> None:
        """429; the real client then sleeps three minutes [src]."""
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self._add(Fault(field, "status", times, 429, headers))

    #: the line breaks before anything is done
    dropped = partialmethod(_met, "drop")
    #: done, then the line breaks: the answer is lost after the commit
    lost = partialmethod(_met, "lost")
    #: no answer until `release`, and nothing is done
    hung = partialmethod(_met, "hang")
    #: held until `release`, then done and answered as ever: what two callers do at once can be made so
    held = partialmethod(_met, "held")
    #: held until `release`, then done, and the line breaks: a commit after the client's time-out
    late = partialmethod(_met, "late")

    def answered(self, body: Any, field: str = "", *, times: int = 1) -> None:
        """200 with this body (bytes: as they are), and nothing is done."""
        self._add(Fault(field, "answer", times, 200, body=body))

    # fields that go wrong

    def refused(self, field: str, message: str = "made to fail", *, code: str = "", times: int = 1) -> None:
        """This field is null with an error; nothing of it is done, the others are."""
        self._add(Fault(field, "error", times, message=message, code=code or "INTERNAL_SERVER_ERROR"))

    def refused_after(self, field: str, message: str = "made to fail", *, code: str = "", times: int = 1) -> None:
        """The same, though it was done."""
        self._add(Fault(field, "error_after", times, message=message, code=code or "INTERNAL_SERVER_ERROR"))

    # the end of them

    def heal(self) -> None:
        """No faults any more (the switches stay), and what was held goes on."""
        with self._lock:
            self._faults.clear()
        self.release()

    def release(self) -> None:
        """What is held now goes on: each request that has been counted."""
        with self._lock:
            released, self._released = self._released, threading.Event()
        released.set()

    def pending(self) -> int:
        """How many faults are still to be met."""
        with self._lock:
            return sum(fault.times for fault in self._faults if fault.times > 0)

    # what the API asks

    def of_request(self, fields: Iterable[str]) -> Fault | None:
        return self._take(_OF_REQUESTS, set(fields))

    def of_field(self, field: str) -> Fault | None:
        return self._take(_OF_FIELDS, {field})

    def _add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def _take(self, kinds: tuple[str, ...], fields: set[str]) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.kind in kinds and fault.times != 0 and (not fault.field or fault.field in fields):
                    fault.times -= 1
                    return replace(fault, released=self._released)
        return None

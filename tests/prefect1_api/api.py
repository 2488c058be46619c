"""Prefect1Api: the local Prefect 1 API, a real GraphQL server on loopback for tests.

What it does is what prefect 1.4.1 was seen to need and the last public Server was read to do (prefect1.md, sections 5.1
and 5.4); `test_prefect1_truth.py` and `test_prefect1_runs.py` in `tests/acceptance` hold it to that with the real
client, agent and engine.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from requests.structures import CaseInsensitiveDict

from tests.loopback import HttpError, Loopback
from tests.prefect1_api.documents import Field, Operation, operation, variables_of
from tests.prefect1_api.errors import Invalid, Refusal
from tests.prefect1_api.faults import Fault, Faults
from tests.prefect1_api.mutations import checked
from tests.prefect1_api.queries import plan
from tests.prefect1_api.rows import Rows
from tests.prefect1_api.services import Services


@dataclass(frozen=True)
class Request:
    """What came in: the root fields, and all of it."""

    fields: tuple[str, ...]
    query: str
    variables: Mapping[str, Any]
    #: whatever the case of their names
    headers: Mapping[str, str]


class Prefect1Api(Rows):
    """`with Prefect1Api() as api: api.url …`; strict, or `Prefect1Api(faults=Faults.like_server())`.

    With `key` it asks for `Authorization: Bearer KEY`, as Cloud does, and with `login` ("user:password") as a proxy
    does that stands before a server: with HTTP's own 401. `lock` keeps the tables whole; every request
    that comes whole is in `requests`, with the fault that it meets already its own.
    """

    def __init__(self, *, faults: Faults | None = None, key: str = "", port: int = 0) -> None:
        super().__init__(faults or Faults())
        self.key = key
        self.login = ""
        self.requests: list[Request] = []
        self.services = Services(self.store, self.writer, self.clock, self.lock)
        self._server = Loopback(self._serve, port=port)

    @property
    def url(self) -> str:
        return self._server.url

    def start(self) -> Self:
        self._server.start()
        return self

    def stop(self) -> None:
        self.faults.heal()
        self._server.stop()
        with self.lock:
            self.store.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def counted(self, field: str = "") -> int:
        """How many requests had this root field ("" = all)."""
        with self.lock:
            return sum(not field or field in request.fields for request in self.requests)

    # requests

    def _serve(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Any:
        if method != "POST":
            raise HttpError(405, "", body={"errors": [{"message": "GraphQL is asked by POST here"}]})
        if path.partition("?")[0] not in ("/", "/graphql"):
            raise HttpError(404, "", body={"errors": [{"message": f"no {path} here"}]})
        status, answer, more = self.answer(body, headers)
        raise HttpError(status, "", more, answer)

    def answer(self, body: Any, headers: Mapping[str, str]) -> tuple[int, Any, Mapping[str, str]]:
        """Status, body and headers of the answer; raises `BrokenPipeError` when the line is to break."""
        kept = CaseInsensitiveDict(headers.items())
        basic = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        if self.login and kept.get("Authorization") != basic:
            return 401, {"message": "log in first"}, {"WWW-Authenticate": 'Basic realm="proxy"'}
        if not isinstance(body, dict):
            return 400, {"errors": [{"message": "a request is an object"}]}, {}
        try:
            variables = variables_of(body.get("variables"))
            asked = operation(body.get("query"), variables, body.get("operationName"))
        except Invalid as error:
            return _invalid(error)
        names = tuple(dict.fromkeys(field.name for field in asked.fields))
        with self.lock:
            self.requests.append(Request(names, body["query"], variables, kept))
            # with the lock still held: whoever has seen it counted can release it
            fault = self.faults.of_request(names)
        if fault:
            return self._gone_wrong(fault, asked, kept)
        return self._done(asked, kept)

    def _gone_wrong(
        self, fault: Fault, asked: Operation, headers: Mapping[str, str]
    ) -> tuple[int, Any, Mapping[str, str]]:
        if fault.kind in ("hang", "late", "held"):
            fault.released.wait(120)  # bounded, so that no thread outlives its test by much
        if fault.kind == "held":
            return self._done(asked, headers)
        if fault.kind in ("status_after", "lost", "late"):
            self._done(asked, headers)
        if fault.kind in ("status", "status_after", "answer"):
            wrong = {"errors": [{"message": fault.message}]}
            return fault.status, wrong if fault.body is None else fault.body, fault.headers
        raise BrokenPipeError

    def _done(self, asked: Operation, headers: Mapping[str, str]) -> tuple[int, Any, Mapping[str, str]]:
        """Plan every field before the first is executed: what the schema does not have changes nothing."""
        if self.key and headers.get("Authorization") != f"Bearer {self.key}":
            wrong = {"message": "the key is unknown", "extensions": {"code": "UNAUTHENTICATED"}}
            return 200, {"errors": [wrong], "data": None}, {}
        try:
            steps = [(field, self._planned(asked.kind, field, headers)) for field in asked.fields]
        except Invalid as error:
            return _invalid(error)
        data: dict[str, Any] = {}
        errors = []
        for field, step in steps:
            try:
                data[field.alias] = self._one(field, step)
            except Refusal as refusal:
                data[field.alias] = None
                extensions = {"code": refusal.code}
                errors.append({"message": refusal.message, "path": [field.alias], "extensions": extensions})
        return 200, {"data": data, "errors": errors} if errors else {"data": data}, {}

    def _one(self, field: Field, step: Callable[[], Any]) -> Any:
        fault = self.faults.of_field(field.name)
        if fault and fault.kind == "error":
            raise Refusal(fault.message, fault.code)
        with self.lock:
            answer = step()
        if fault:
            raise Refusal(fault.message, fault.code)
        return answer

    def _planned(self, kind: str, field: Field, headers: Mapping[str, str]) -> Callable[[], Any]:
        if kind == "mutation":
            return partial(checked(field).done, self, field, headers)
        if field.name == "hello":
            return lambda: "👋"
        if field.name == "auth_info":
            tenant = headers.get("X-PREFECT-TENANT-ID") or self.tenant
            facts = {"tenant_id": tenant, "user_id": tenant, "api_token_scope": "USER"}
            if unknown := {each.name for each in field.selection} - set(facts):
                raise Invalid(f"auth_info has no {', '.join(sorted(unknown))}")
            return lambda: {each.alias: facts[each.name] for each in field.selection}
        if field.name == "get_task_run_info":
            return partial(self._task_run_info, field)
        read = plan(field, null_is_true=self.faults.null_is_true)
        if read is None:
            raise Invalid(f'Cannot query field "{field.name}" on type "Query".')
        return partial(read.run, self.store)

    def _task_run_info(self, field: Field) -> Any:
        run = self.store.get("task_run", field.arguments.get("task_run_id", ""))
        if run is None:
            raise Refusal("no such task run")
        return {each.alias: run.get(each.name) for each in field.selection}


def _invalid(error: Invalid) -> tuple[int, Any, Mapping[str, str]]:
    wrong = {"message": str(error), "extensions": {"code": "GRAPHQL_VALIDATION_FAILED"}}
    return 400, {"errors": [wrong]}, {}

"""ScriptedGraphQL: a loopback server that says what a test tells it to, and keeps what it was asked."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self

from tests.loopback import HttpError, Loopback, Page

HELLO: Mapping[str, Any] = {"data": {"hello": "👋"}}


@dataclass(frozen=True)
class Said:
    """One answer to come."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    #: no answer at all for now
    mute: bool = False
    #: the line breaks
    drop: bool = False


@dataclass(frozen=True)
class Asked:
    """One request that came."""

    method: str
    path: str
    body: Any
    headers: Mapping[str, str]

    @property
    def variables(self) -> Any:
        return json.loads(self.body["variables"])


class ScriptedGraphQL:
    """`with ScriptedGraphQL() as door`: answers are taken off `door.answers`; the last one stays."""

    def __init__(self, *answers: Said | Any) -> None:
        self.answers: list[Said] = [self._said(answer) for answer in answers or (HELLO,)]
        #: who has no such header is told UNAUTHENTICATED, as Prefect Cloud does
        self.authorization = ""
        self.asked: list[Asked] = []
        #: what certain requests are always told, by verb and path
        self.paths: dict[tuple[str, str], Said] = {}
        self._lock = threading.Lock()
        self._muted = threading.Event()
        self._server = Loopback(self.answer)

    @property
    def url(self) -> str:
        return self._server.url

    def say(self, *answers: Said | Any) -> None:
        """From now on these, and the last of them for good."""
        with self._lock:
            self.answers = [self._said(answer) for answer in answers]

    def answer(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Any:
        with self._lock:
            self.asked.append(Asked(method, path, body, dict(headers.items())))
            said = self.paths.get((method, path)) or (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        if said.mute:
            self._muted.wait(60)
        if said.mute or said.drop:
            raise BrokenPipeError
        always = (method, path) in self.paths
        if not always and self.authorization and headers.get("Authorization") != self.authorization:
            refusal = {"message": "Unauthenticated", "extensions": {"code": "UNAUTHENTICATED"}}
            return {"data": None, "errors": [refusal]}
        if said.status == HTTPStatus.OK and not said.headers:
            return said.body
        raise HttpError(said.status, "", said.headers, said.body)

    @staticmethod
    def _said(answer: Said | Any) -> Said:
        return answer if isinstance(answer, Said) else Said(answer)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._muted.set()
        self._server.stop()


def page(status: int = 200) -> Said:
    """A proxy's web page."""
    return Said(Page(b"<html>hello</html>"), status)


def error(message: str, *path: str | int, code: str | None = None) -> dict[str, Any]:
    """One entry of `errors`."""
    entry: dict[str, Any] = {"message": message}
    if path:
        entry["path"] = list(path)
    if code:
        entry["extensions"] = {"code": code}
    return entry

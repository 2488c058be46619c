"""Images: an image is brought here before its run starts, pulled once for all runs that want it at that time.

The pull policy is a list, tried in order until one of them has given an image: `always` pulls, `if-not-present` pulls
what is not here, `never` takes what is here. What is here is never taken in place of a failed pull unless the list
says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowfleet import logs
from flowfleet.errors import EngineAway, EngineRefused, NotReady, StartFailed
from flowfleet.guard import guarded
from workers.containers.engine import Engine, is_missing, refused_text
from workers.containers.image_names import ImageName, is_allowed

logger = logging.getLogger(__name__)

ALWAYS, IF_NOT_PRESENT, NEVER = "always", "if-not-present", "never"
POLICIES = (ALWAYS, IF_NOT_PRESENT, NEVER)
#: a run waits so long for its image; then it is handed back, and the pull goes on
WAIT_SECONDS = 240.0
#: one line of a pull's progress in so many seconds
SAY_SECONDS = 5.0
_LOOK_SECONDS = 0.25
_WORDS_LIMIT = 300


@dataclass
class _Progress:
    """How far the layers of an image are."""

    _done: dict[str, int] = field(default_factory=dict)
    _whole: dict[str, int] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)

    def take(self, event: Mapping[str, Any]) -> None:
        layer, status = str(event.get("id") or ""), str(event.get("status") or "")
        detail = event.get("progressDetail") or {}
        if not layer:
            return
        if status == "Downloading" and detail.get("total"):
            self._done[layer], self._whole[layer] = int(detail.get("current") or 0), int(detail["total"])
        elif status in ("Pull complete", "Already exists", "Download complete"):
            self._done[layer] = self._whole.setdefault(layer, 0)
            if status != "Download complete":
                self._ended.add(layer)
        else:
            self._whole.setdefault(layer, 0)

    def __str__(self) -> str:
        # another thread takes events meanwhile
        done, whole, ended = list(self._done.values()), list(self._whole.values()), len(self._ended)
        if not whole:
            return "nothing is told of it yet"
        mib = 1 << 20
        return f"{ended} of {len(whole)} layers, {sum(done) / mib:.0f} of {sum(whole) / mib:.0f} MiB"


@dataclass
class _Pull:
    """One pull that is under way, or has just ended."""

    name: ImageName
    progress: _Progress = field(default_factory=_Progress)
    over: threading.Event = field(default_factory=threading.Event)
    #: why it failed, in the engine's words
    failed: str | EngineAway = ""

    def end(self, failed: str | EngineAway) -> None:
        """Tell those who wait how it ended."""
        self.failed = failed
        self.over.set()


@dataclass(kw_only=True)
class Images:
    """The images of one engine."""

    engine: Engine
    #: of `--pull`; empty = each run's own policy, else Prefect's default
    policies: Sequence[str] = ()
    #: of `--allow-image`
    allowed: Sequence[str] = ()
    wait_seconds: float = WAIT_SECONDS
    clock: Callable[[], float] = time.monotonic
    _pulls: dict[tuple[str, str], _Pull] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def check(self, text: str) -> ImageName:
        """Whether a run may have this image, before any engine or registry is asked; raises `StartFailed`."""
        name = ImageName.parse(text)
        if not is_allowed(name, self.allowed):
            raise StartFailed(
                f"its image {text!r} is not allowed on this worker, whose --allow-image has {', '.join(self.allowed)}"
            )
        return name

    def bring(
        self,
        text: str,
        *,
        policy: str | None,
        credentials: Mapping[str, Any] | None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Bring the image here by the first policy that gives one.

        `policy` is what the run asks for (as `always`), `wanted` tells whether its start is still wanted. Raises
        `StartFailed` with the words of engine or registry, `EngineAway`, and `NotReady` where it takes too long.
        """
        name = self.check(text)
        reasons: list[str] = []
        policies = self._policies_of(name, policy)
        for number, each in enumerate(policies):
            here = None if each == ALWAYS else self._is_here(name)
            if here:
                if number:
                    logger.warning("image is taken as it is here", extra={"image": text, "why": "; ".join(reasons)})
                return
            if each == NEVER:
                reasons.append("it is not on this host, and its pull policy is never")
                continue
            why = self._pull(name, credentials, wanted)
            if why is None:
                return
            reasons.append(why)
        raise StartFailed(f"its image {text!r} cannot be had: {'; '.join(dict.fromkeys(reasons))}")

    def _policies_of(self, name: ImageName, policy: str | None) -> Sequence[str]:
        if self.policies == (NEVER,):
            return self.policies  # the host's own word: no registry may be asked from here
        if policy:
            return (policy,)
        return self.policies or ((ALWAYS,) if name.moves else (IF_NOT_PRESENT,))

    def _is_here(self, name: ImageName) -> bool:
        try:
            self.engine.ask(lambda client: client.api.inspect_image(name.to_pull))
        except EngineRefused as exc:
            if is_missing(exc):
                return False
            raise StartFailed(f"its image {name.text!r} cannot be looked at: {refused_text(exc)}") from exc
        return True

    # -- pulls

    def _pull(self, name: ImageName, credentials: Mapping[str, Any] | None, wanted: Callable[[], bool]) -> str | None:
        """Pull it, or wait for a pull of it that is under way; None = it is here now, else why not."""
        pull = self._join(name, credentials)
        began = self.clock()
        while not pull.over.wait(_LOOK_SECONDS):
            if not wanted():
                raise NotReady("its start is not wanted any more")
            if self.clock() - began > self.wait_seconds:
                raise NotReady(f"its image {name.text!r} is still being pulled after {self.wait_seconds:.0f} s")
        if isinstance(pull.failed, EngineAway):
            raise pull.failed
        return pull.failed or None

    def _join(self, name: ImageName, credentials: Mapping[str, Any] | None) -> _Pull:
        auth = _auth(credentials)
        # who may pull with one password need not may with another
        key = (name.to_pull, repr(sorted(auth.items())) if auth else "")
        with self._lock:
            pull = self._pulls.get(key)
            if pull is None or pull.over.is_set():
                pull = self._pulls[key] = _Pull(name)
                threading.Thread(target=self._carry_out, args=(key, pull, auth), name="pull", daemon=True).start()
            return pull

    def _carry_out(self, key: tuple[str, str], pull: _Pull, auth: Mapping[str, str] | None) -> None:
        logger.info("image is pulled", extra={"image": pull.name.text})
        threading.Thread(target=_tell_progress, args=(pull,), name="pull-progress", daemon=True).start()
        failed: str | EngineAway = "its pull met an unexpected error, which its worker has logged"
        # guards the runs that wait for it: a credential helper may raise anything
        with guarded(logger, "a pull met an unexpected error", image=pull.name.text):
            failed = self._outcome(pull, auth)
        with self._lock:
            self._pulls.pop(key, None)
        pull.end(failed)

    def _outcome(self, pull: _Pull, auth: Mapping[str, str] | None) -> str | EngineAway:
        """Pull it; why that failed, or nothing."""
        began, failed = self.clock(), ""
        try:
            with self.engine.errors():
                self._follow(pull, auth)
        except EngineAway as exc:
            return exc
        except EngineRefused as exc:
            failed = refused_text(exc)
        except _PullFailed as exc:
            failed = str(exc)
        fields = {"image": pull.name.text, "seconds": round(self.clock() - began, 1)}
        if failed:
            logger.warning("image was not pulled", extra={**fields, "error": failed})
        else:
            logger.info("image is here", extra=fields)
        return failed

    def _follow(self, pull: _Pull, auth: Mapping[str, str] | None) -> None:
        stream = self.engine.ask(
            # without `auth` the SDK takes what the Docker configuration and its credential helpers have
            lambda client: client.api.pull(pull.name.to_pull, stream=True, decode=True, auth_config=auth)
        )
        for event in stream:
            error = event.get("error") or (event.get("errorDetail") or {}).get("message")
            if error:
                raise _PullFailed(logs.redact(str(error)).strip().rstrip(".")[:_WORDS_LIMIT])
            pull.progress.take(event)


def _tell_progress(pull: _Pull) -> None:
    # by the clock, and so also where a registry has fallen silent
    while not pull.over.wait(SAY_SECONDS):
        logger.info("image is still being pulled", extra={"image": pull.name.text, "progress": str(pull.progress)})


class _PullFailed(Exception):
    """The stream of a pull ended with an error; its text is the registry's."""


def _auth(credentials: Mapping[str, Any] | None) -> dict[str, str] | None:
    """The credentials of a block, as the engine takes them; the redaction of logs knows the password from here on."""
    if not credentials or not credentials.get("username"):
        return None
    password = str(credentials.get("password") or "")
    logs.keep_secret(password)
    return {"username": str(credentials["username"]), "password": password}

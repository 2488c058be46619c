"""Error answers: what an error of the client library means for us: wait and ask again, or use another Redis.

A Redis that has once done what we ask and now answers with an error (a replica, a full disk, too few replicas, other
rights) cannot do it now: that is waited for. Only before the first good answer can an error mean that this Redis is not
usable at all.
"""

import re
import ssl

import redis

from flowfleet.errors import LedgerUnavailable, LedgerUnusable, LoginRefused

#: the codes of errors for which the client library has a class; some of these classes lose the code of their answer
_CODES: tuple[tuple[type[redis.exceptions.RedisError], str], ...] = (
    (redis.exceptions.AuthenticationError, "NOAUTH"),
    (redis.exceptions.NoPermissionError, "NOPERM"),
    (redis.exceptions.ReadOnlyError, "READONLY"),
    (redis.exceptions.OutOfMemoryError, "OOM"),
    (redis.exceptions.ExecAbortError, "EXECABORT"),
    (redis.exceptions.ClusterDownError, "CLUSTERDOWN"),
    (redis.exceptions.ClusterCrossSlotError, "CROSSSLOT"),
    (redis.exceptions.MovedError, "MOVED"),
    (redis.exceptions.TryAgainError, "TRYAGAIN"),
)
_CODE = re.compile(r"[A-Z][A-Z0-9]{2,}(?= |$)")
#: what Redis 6.2 puts before an error inside a script, whose own code follows (source: a 6.2.14, recorded)
_WRAPPED = re.compile(r"Error running script \(call to \w+\): @user_script: ?\d+: (?:@user_script: ?\d+: )?-?")
#: how an error of the script itself begins: ours, and no answer about what Redis can do now
_SCRIPT_FAULT = re.compile(r"user_script: ?\d+: |Error compiling script")
#: how servers tell, without a code, that a user may run a script but not a command in it: Redis 7 and Valkey, Redis 6.2
_NO_RIGHT = ("ACL failure in script", "The user executing the script")
#: the code of a right that our user lacks, and those that are about the login itself
_LACKING = "NOPERM"
REFUSED = ("NOAUTH", "WRONGPASS", _LACKING)
#: how the text of such an answer names the command, which may be one of a script
_COMMAND = re.compile(r"the '([\w|-]+)' command")
#: what else it may be about: what cannot be done, and the right for it
_PATTERNS = {"key": ("use the keys of the fleet", "~flowfleet:*"), "channel": ("use its channels", "&flowfleet:*")}
_CLUSTER = ("MOVED", "CROSSSLOT")
#: how a server without the database of our address answers, and one that has only the first, being a cluster
_NO_DATABASE, _ONE_DATABASE = "DB index", "SELECT is not allowed in cluster mode"
#: what a usable server may answer at the very first question
_NOT_NOW = ("MISCONF", "BUSY", "NOREPLICAS", "UNKILLABLE", "READONLY", "OOM", "CLUSTERDOWN", "MASTERDOWN", "UNBLOCKED")


def answer_of(exc: redis.exceptions.RedisError) -> tuple[str, str]:
    """The code of an error answer and its text: the code is its first word, by the protocol of Redis.

    An answer without a word of its own has the code ERR.
    """
    text = _WRAPPED.sub("", " ".join(str(exc).split()), count=1)[:200] or type(exc).__name__
    code = next((code for kind, code in _CODES if isinstance(exc, kind)), None)
    if code is None and text.startswith(_NO_RIGHT):
        code = _LACKING
    found = _CODE.match(text)
    if code is None:
        return (found[0] if found else "ERR"), text
    return code, text if found else f"{code} {text}"


def ledger_error(
    exc: redis.exceptions.RedisError, address: str, *, answered: bool
) -> LedgerUnavailable | LedgerUnusable:
    """Our error for an error of the client library; `answered` says that this Redis has once done what we ask."""
    code, text = answer_of(exc)
    if not isinstance(exc, redis.exceptions.ResponseError | redis.exceptions.AuthenticationError):
        return LedgerUnavailable(f"Redis at {address} does not answer ({_silence(exc) or _inside(text)})")
    if code == "ERR" and _SCRIPT_FAULT.match(text):
        return LedgerUnusable(f"Redis at {address} {_sentence(code, text, wait=False)}")
    wait = answered or code in _NOT_NOW
    kind = LedgerUnusable if not wait else LoginRefused if code in REFUSED else LedgerUnavailable
    return kind(f"Redis at {address} {_sentence(code, text, wait=wait)}")


def _inside(text: str) -> str:
    """A sentence of the client library as a part of ours."""
    return text[:1].lower() + text[1:].rstrip(".") if text[1:2].islower() else text


def _silence(exc: BaseException | None) -> str:
    """Why there was no answer, in the words of the system below the client library; empty where it has none."""
    while exc is not None:
        if isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError):
            return "no answer in time" if isinstance(exc, TimeoutError) else (exc.strerror or "").lower()
        exc = exc.__cause__ or exc.__context__
    return ""


def _sentence(code: str, text: str, *, wait: bool) -> str:
    if code == _LACKING:
        return _lacks(text)
    if code in REFUSED:
        return f"refuses our password or user ({text}); set the right one in FLOWFLEET_REDIS"
    if _NO_DATABASE in text:
        return f"has no such database ({text}); correct its number in FLOWFLEET_REDIS (most servers have 0 to 15)"
    if code in _CLUSTER or _ONE_DATABASE in text:
        return "is a cluster, which Celery cannot use; give a standalone server"
    if code == "CLUSTERDOWN":
        return f"has lost its primary ({text})"
    return f"cannot do it now ({text})" if wait else f"does not understand us ({text}); is it Redis 6.2 or newer?"


def _lacks(text: str) -> str:
    """The right that our user lacks, by the text of the answer; no Redis before 7.2 names a command of a script."""
    command = _COMMAND.search(text)
    if command:
        what, right = f"run the command {command[1]}", f"+{command[1]}"
    else:
        about = next((word for word in _PATTERNS if word in text), None)
        what, right = _PATTERNS[about] if about else ("run a command of our scripts", "the rights of a fleet")
    return f"does not let our user {what} ({text}); give it {right}, as in the ACL line of docs/several-machines.md"

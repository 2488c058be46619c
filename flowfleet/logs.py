"""Logs: text for people and JSON for programs, run id and claim on every line that has them, secrets redacted."""

import json
import logging
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO
from urllib.parse import quote

from flowfleet.log_lines import LoggedEvent, takes_colours
from flowfleet.printable import printable

#: below DEBUG: with the lines of the libraries that we stand on
TRACE, _TRACE_LEVEL = "TRACE", 5
MASK = "***"
#: shorter "secrets" would redact half of every line
_SHORTEST_SECRET = 4
#: the part between scheme and host of an address, up to the last @ before the path
# the scheme is bounded in length, since flows print lines of a megabyte without a break
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30}://)(?P<user>[^\s/:@]*)(?::[^\s/]*)?@")
_AUTHORIZATION = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
#: the loggers of the product's three packages
_OWN_LOGGERS = ("flowfleet", "poller", "workers")
#: the attributes of every log record; all others came by `extra`
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "data"}
#: fields that come first in JSON, and last in text
_IDS = ("run_id", "claim")
_FIRST = (*_IDS, "worker", "route")
#: the level from which a library is heard below TRACE
_LIBRARIES = dict.fromkeys(
    ("celery", "kombu", "amqp", "vine", "billiard", "redis", "asyncio", "docker", "requests"), logging.WARNING
)
#: and those of a Celery worker, which in any process is ours: what it says of runs and outages, our own lines say
_CELERY_WORKER = {
    **dict.fromkeys(("celery.worker", "celery.app.trace"), logging.ERROR),
    "celery.worker.consumer.consumer": logging.CRITICAL,
}


class Redactor:
    """Redactor of known secrets, and of the credentials in any address, known or not."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: tuple[str, ...] = ()
        # launches learn secrets of blocks at the same time, in threads of their own
        self._keeping = threading.RLock()
        for secret in secrets:
            self.keep(secret)

    def keep(self, secret: str) -> None:
        """Redact this secret too from now on, also in its percent-encoded form."""
        forms = {form for form in (secret, quote(secret, safe="")) if len(form) >= _SHORTEST_SECRET}
        with self._keeping:
            # longest first: a secret that contains another must not leave its rest behind
            self._secrets = tuple(sorted({*self._secrets, *forms}, key=len, reverse=True))

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        text = _USERINFO.sub(_masked_userinfo, text)
        return _AUTHORIZATION.sub(lambda found: f"{found[1]} {MASK}", text)


def _masked_userinfo(found: re.Match[str]) -> str:
    if ":" not in found[0][len(found["scheme"]) :]:
        # one word before the @: a lone user name is harmless, but a token stands in the same place
        return f"{found['scheme']}{MASK}@"
    return f"{found['scheme']}{found['user']}:{MASK}@"


def redact_url(url: str) -> str:
    """The address without its credentials, for messages and answers."""
    return _USERINFO.sub(_masked_userinfo, url)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The fields that were given by `extra`, run id and claim first."""
    given = {name: value for name, value in vars(record).items() if name not in _STANDARD and value is not None}
    first = {name: given.pop(name) for name in _FIRST if name in given}
    return {**first, **given}


def iso(moment: float) -> str:
    """A moment in unix seconds as ISO 8601 text in UTC."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Formatter(logging.Formatter):
    """Base of both formats: the traceback, and the redactor."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self.redact = redact

    def trace(self, record: logging.LogRecord) -> str:
        """The traceback, and the stack if one was asked for."""
        parts = []
        if record.exc_info and record.exc_info[0] is not None:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(record.stack_info)
        return "\n".join(parts)


class TextFormatter(_Formatter):
    """Lines of text: `2026-01-31T12:00:00.000Z INFO    calm-otter: run started  pid=7 run_id=… claim=…`.

    The subject is the run's name, or else the part of ours that speaks.
    """

    def __init__(self, redact: Redactor, *, coloured: bool = False) -> None:
        super().__init__(redact)
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        """The event, and the traceback below it if there is one."""
        fields = _told_fields(record)
        run_name = fields.pop("run_name", None)
        # secrets are gone before a line break can part them
        texts = {name: self._clean(_field(name, self._redacted(value))) for name, value in fields.items()}
        line = LoggedEvent(
            at=iso(record.created),
            level=record.levelname,
            subject=self._clean(str(run_name)) if run_name else _own_name(record.name),
            said=self._clean(record.getMessage()),
            fields=[text for name, text in texts.items() if name not in _IDS],
            ids=[texts[name] for name in _IDS if name in texts],
        )
        text, trace = line.laid_out(coloured=self._coloured), self.redact(self.trace(record))
        return f"{text}\n{trace}" if trace else text

    def _redacted(self, value: Any) -> Any:
        # before it is quoted: a secret with a quote in it looks different afterwards
        return self.redact(value) if isinstance(value, str) else value

    def _clean(self, text: str) -> str:
        return printable(self.redact(text))


def _own_name(logger: str) -> str:
    """The words of a logger's name that tell our parts apart; a library's name stays whole."""
    package, last = logger.partition(".")[0], logger.rpartition(".")[2]
    if package not in _OWN_LOGGERS:
        return logger
    return package.removesuffix("s") if last in ("cli", "service") else last.replace("_", " ")


class JsonFormatter(_Formatter):
    """One JSON object a line: at, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, Any] = {
            "at": iso(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        trace = self.trace(record)
        if trace:
            line["trace"] = trace
        return json.dumps(self._cleaned(line), ensure_ascii=False, default=str)

    def _cleaned(self, value: Any) -> Any:
        # redacted before the JSON is written: a secret with a quote in it looks different afterwards
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, Mapping):
            return {str(key): self._cleaned(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._cleaned(item) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        return self.redact(str(value))


def _told_fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a line of text: its run's name, what the message does not say itself, and the ids at the end."""
    fields = fields_of(record)
    if "neighbour" in fields and record.getMessage().startswith(str(fields["neighbour"])):
        del fields["neighbour"]
    ids = {name: fields.pop(name) for name in _IDS if name in fields}
    name = {"run_name": fields.pop("run_name")} if "run_name" in fields else {}
    return {**name, **fields, **ids}


def _field(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{name}={value:.3f}".rstrip("0").rstrip(".")
    text = str(value)
    if not text or re.search(r'[\s"=]', text):
        text = json.dumps(text, ensure_ascii=False)
    return f"{name}={text}"


def configure(
    level: str, style: str = "text", *, secrets: Iterable[str] = (), stream: TextIO | None = None
) -> logging.Handler:
    """Send all logs of this process to `stream` (stderr), in one format; a second call replaces the first."""
    redact = Redactor(secrets)
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    coloured = takes_colours(handler.stream)
    handler.setFormatter(JsonFormatter(redact) if style == "json" else TextFormatter(redact, coloured=coloured))
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old.formatter, _Formatter):
            root.removeHandler(old)
    root.addHandler(handler)
    _set_levels(level, joined=False)
    # a line for each connection of the HTTP pool says nothing to an operator
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    # a line of a .env that is no setting is nobody's fault, and the file is read again and again
    logging.getLogger("dotenv").setLevel(logging.ERROR)
    return handler


def join(level: str, style: str = "text", *, secrets: Iterable[str] = (), also: str = "") -> None:
    """Set up the logs of a Python program that we are a part of, unless the program has done that by itself.

    Its own handlers then get each line of ours once, with the fields in the text and without secrets, from `level` on;
    `also` names a further logger whose lines are ours. The program's own lines and levels stay as they are.
    """
    handlers = logging.getLogger().handlers
    if not handlers:
        configure(level, style, secrets=secrets)
    elif next(_redactors(), None) is None:
        redact = Redactor(secrets)
        for handler in handlers:
            handler.setFormatter(_ForProgram(handler.formatter or logging.Formatter(), redact, also))
        set_level(level)
        if also:
            logging.getLogger(also).setLevel(level)


class _ForProgram(logging.Formatter):
    """The format of a handler of the program, which knows neither our fields nor our secrets: we see to both."""

    def __init__(self, within: logging.Formatter, redact: Redactor, also: str) -> None:
        super().__init__()
        self.redact = redact
        self._within = within
        self._also = also

    def format(self, record: logging.LogRecord) -> str:
        """The text of the program's own format; of our lines with the fields, and redacted."""
        if record.name != self._also and record.name.partition(".")[0] not in (*_OWN_LOGGERS, "celery"):
            return self._within.format(record)
        fields = " ".join(printable(_field(name, value)) for name, value in _told_fields(record).items())
        whole = {"msg": f"{record.getMessage()}{'  ' if fields else ''}{fields}", "args": None}
        return self.redact(self._within.format(logging.makeLogRecord({**vars(record), **whole})))


def set_level(level: str) -> None:
    """Log from this level on; also for a level that is known only after `configure` or `join`.

    Libraries are heard from their own least level on, and at TRACE whole.
    """
    _set_levels(level, joined=any(_of_program()))


def _set_levels(level: str, *, joined: bool) -> None:
    logging.addLevelName(_TRACE_LEVEL, TRACE)
    for name in _OWN_LOGGERS if joined else ("",):
        logging.getLogger(name).setLevel(level)
    for name, least in (_CELERY_WORKER if joined else _LIBRARIES | _CELERY_WORKER).items():
        logging.getLogger(name).setLevel(logging.NOTSET if level == TRACE else max(least, level_number(level)))


def level_number(level: str) -> int:
    """The number of a level, for libraries that do not know TRACE."""
    return _TRACE_LEVEL if level == TRACE else logging.getLevelNamesMapping()[level]


def keep_secret(secret: str | None) -> None:
    """Redact a secret that was found later, for example the key in Prefect's own profile; None does nothing."""
    if secret:
        for redactor in _redactors():
            redactor.keep(secret)


def redact(text: str) -> str:
    """Redact text for people in the same way as the log lines of this process."""
    return next(_redactors(), Redactor())(text)


def _redactors() -> Iterator[Redactor]:
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    yield from (formatter.redact for formatter in formatters if isinstance(formatter, _Formatter))
    yield from (formatter.redact for formatter in _of_program())


def _of_program() -> Iterator[_ForProgram]:
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    return (formatter for formatter in formatters if isinstance(formatter, _ForProgram))

"""Errors: the tree of everything that flowfleet raises on purpose.

FleetError                      one sentence, and the exit code of a command that ends with it
├── SettingsError               a setting, flag, variable or file that cannot be used           (exit 2)
├── ApiError                    the Prefect API                                                (exit 3)
│   ├── ApiUnavailable          no answer, or one that says "later": ask again
│   │   ├── ApiMaintenance      an answer that says so: waited for without end
│   │   └── KeyRefused          401 or 403: says nothing about a run, asked again each 60 s
│   └── ApiRejected             a definite no: asking again will not help
│       ├── AlreadyClaimed      somebody else has this run
│       └── RunGone             the run (or its deployment) does not exist any more
├── LedgerError                 Redis                                                          (exit 4)
│   ├── LedgerUnavailable       no answer, or one that says "not now": wait and ask again
│   │   └── LoginRefused        our user, password or rights, by a Redis that took them before
│   ├── LedgerBehind            it has lost what this worker knows, and is told again with the next renewal
│   └── LedgerUnusable          at the start, waiting cannot cure it: refused password, a cluster, too old
├── BadMessage                  a message that is not ours, broken, too large, or of another version
├── EngineError                 the container engine of this host                              (exit 6)
│   ├── EngineAway              no answer: wait and ask again; says nothing about any container
│   └── EngineRefused           a definite no, in the engine's own words
└── DeployError                 a run that could not be started
    ├── UnsupportedRun          it asks for what this fleet cannot do (also a ValueError)
    ├── NotReady                what it needs is not there yet (its image): it is handed back
    ├── StartFailed             no such interpreter, no permission
    │   └── FolderMissing       its working folder does not exist on this host (also a ValueError)
    └── UserCodeFailed          what the user has written to deploy it has raised; the text is the user's own
"""


class FleetError(Exception):
    """An error that one sentence can tell; `exit_code` is that of a command that ends with it."""

    exit_code = 1


class SettingsError(FleetError):
    """A setting cannot be used; the sentence names the setting, the value and the remedy."""

    exit_code = 2


class ApiError(FleetError):
    """The Prefect API did not do what was asked."""

    exit_code = 3


class ApiUnavailable(ApiError):
    """The API gave no answer, or one that means "later"; whether the request was carried out is unknown."""

    def __init__(
        self,
        sentence: str,
        *,
        answered: bool = False,
        timed_out: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(sentence)
        #: True: the API answered, though with nothing that can be used. It may fail for this one request only, so the
        #: next request is worth sending now
        self.answered = answered
        #: True: the API has taken the request, and has not answered in time. It may be slow for this one request only
        self.timed_out = timed_out
        #: how long the API itself asks us to wait; None: it does not say
        self.retry_after_seconds = retry_after_seconds


class ApiMaintenance(ApiUnavailable):
    """The API says that it is in maintenance: it is waited for without end, and its silence counts from the end on."""


class KeyRefused(ApiUnavailable):
    """The API refused our credentials (401, 403); this says nothing about any run."""


class ApiRejected(ApiError):
    """The API refused the request definitely; asking again will not help."""


class AlreadyClaimed(ApiRejected):
    """Somebody else has claimed this run."""


class RunGone(ApiRejected):
    """The run, or what it needs (its deployment), does not exist at the API any more."""


class LedgerError(FleetError):
    """Redis did not do what was asked."""

    exit_code = 4


class LedgerUnavailable(LedgerError):
    """Redis does not answer, or cannot do it now; whether the last request was carried out is unknown."""


class LedgerBehind(LedgerError):
    """Redis answers, and has lost what this worker knows: the next renewal tells it again."""


class LoginRefused(LedgerUnavailable):
    """Redis refuses our user or password, or a right of theirs, and had taken them before: they may be changed back."""


class LedgerUnusable(LedgerError):
    """This Redis cannot be used, and waiting will not change it."""


class BadMessage(FleetError):
    """The message must not be acted on: not ours, broken, too large, or of another version."""


class EngineError(FleetError):
    """The container engine of this host did not do what was asked."""

    exit_code = 6


class EngineAway(EngineError):
    """The container engine gives no answer; whether the last request was carried out is unknown."""


class EngineRefused(EngineError):
    """The container engine has said no, in words of its own; `status` is that of its answer."""

    def __init__(self, words: str, *, status: int) -> None:
        super().__init__(words)
        self.status = status


class DeployError(FleetError):
    """A run could not be started."""


class UnsupportedRun(DeployError, ValueError):
    """The run asks for something that this fleet cannot do."""


class NotReady(DeployError):
    """What the run needs is not there yet and may come: nothing is wrong with the run, which is handed back."""


class StartFailed(DeployError):
    """User code certainly did not begin; the sentence says why."""


class UserCodeFailed(DeployError):
    """The user's own code for deploying the run has raised; the text is what it said, and people are told just that."""


class FolderMissing(StartFailed, ValueError):
    """The run's working folder does not exist on this host."""

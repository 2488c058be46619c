"""Own variables: the variables by which Prefect's own settings would be found by another user, or on another host."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flowfleet.api.connect import PrefectValues
from flowfleet.api.prefect1 import access as access1
from flowfleet.api.prefect1.settings import Prefect1Settings
from flowfleet.api.prefect3.access import home_of
from flowfleet.api.prefect3.settings import prefect_settings
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import Found
from flowfleet.settings.option import Option, options_of

#: settings of Prefect 3 that say where the API is and who asks, and whether each is a secret
_PREFECT3 = {
    "PREFECT_API_URL": False,
    "PREFECT_API_KEY": True,
    "PREFECT_API_AUTH_STRING": True,
    "PREFECT_API_SSL_CERT_FILE": False,
    "PREFECT_API_TLS_INSECURE_SKIP_VERIFY": False,
    "PREFECT_CLIENT_CUSTOM_HEADERS": True,
}
#: settings of Prefect 1's agent, which are no secrets
_PREFECT1_AGENT = ("NAME", "LABELS", "LEVEL", "AGENT_ADDRESS")


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One variable of a unit."""

    name: str
    #: may be a secret, so `repr` does not show it
    value: str = field(repr=False)
    secret: bool
    #: the option of ours that it sets; None = it is Prefect's, or the system's
    option: Option | None = None


def own_variables(settings: CommonSettings, environ: Mapping[str, str], folder: Path) -> Iterator[Variable]:
    """What Prefect's own settings say of the API, also by files and profiles; what ours say already is left out.

    Raises `SettingsError` for a file that is broken.
    """
    home = home_of(environ)
    covered = {"PREFECT_API_URL"} if settings.api else set()
    if settings.key or settings.token or environ.get(options_of(type(settings))["key"].file_variable):
        covered |= {"PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"}
    backend = PrefectValues(settings, environ).backend
    if backend != "prefect1":
        found = prefect_settings(environ, folder, home)
        for name in found.keys() & (_PREFECT3.keys() - covered):
            value = str(folder / found[name].value) if name.endswith("_FILE") else found[name].value
            yield Variable(name=name, value=value, secret=_PREFECT3[name] or has_login(value))
    if backend == "prefect1" or any(name.startswith("PREFECT__") for name in environ):
        yield from _of_prefect1(settings, Prefect1Settings(environ, home), known=backend == "prefect1")


def _of_prefect1(settings: CommonSettings, found: Prefect1Settings, *, known: bool) -> Iterator[Variable]:
    url = settings.api or access1.found_url(found).value
    own: Callable[[str], Found | None] = access1.layer(found, url)
    backend = found.get("backend") if found.given("backend") else None
    values = {
        "PREFECT__BACKEND": backend,
        "PREFECT__CLOUD__API": None if settings.api or not (known or found.names_an_api) else own("api"),
        "PREFECT__CLOUD__API_KEY": None if settings.key or settings.token else own("key"),
        "PREFECT__CLOUD__TENANT_ID": None if settings.tenant_id else own("tenant_id"),
        **{f"PREFECT__CLOUD__AGENT__{name}": found.get(f"cloud.agent.{name.lower()}") for name in _PREFECT1_AGENT},
    }
    for name, value in values.items():
        if value is not None:
            yield Variable(
                name=name, value=str(value.value), secret=name.endswith("_KEY") or has_login(str(value.value))
            )


def has_login(url: str) -> bool:
    """Whether this address may have a login in it; a token can stand where others have a user's name."""
    return "@" in url or "password=" in url

"""Prefect server: a Prefect 3 server of our own, on SQLite, with its home in the data folder."""

from collections.abc import Mapping
from importlib import metadata

from flowfleet.errors import SettingsError
from flowfleet.local.child import Part, console_script
from flowfleet.local.data_folder import DataFolder, is_free

NAME = "server"
#: the first start makes the database, which takes long on a slow disk
READY_SECONDS = 240.0
HOST = "127.0.0.1"


def prefect_command() -> str:
    """The path of the `prefect` program; raises `SettingsError` with the remedy when there is none of version 3."""
    found = console_script("prefect")
    remedy = "pip install 'flowfleet[demo]', or give the address of a running one with --api"
    if found is None:
        raise SettingsError(f"There is no Prefect server to start, since prefect is not installed: {remedy}.")
    try:
        version = metadata.version("prefect")
    except metadata.PackageNotFoundError:
        # the program is of another environment on PATH: its version shows when it starts
        return found
    if not version.startswith("3."):
        raise SettingsError(f"There is no Prefect 3 server to start, since prefect is version {version}: {remedy}.")
    return found


def choose_port(folder: DataFolder, wanted: int | None) -> int:
    """The wanted port, or for None the server's last port or a free one; raises `SettingsError` for one in use."""
    if wanted is None:
        return folder.port(NAME)
    if not is_free(wanted):
        raise SettingsError(f"Port {wanted} is in use: stop what listens there, or choose another with --port.")
    return wanted


def environment(folder: DataFolder, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of our server and of all that belongs to it: without the user's own Prefect settings."""
    env = {name: value for name, value in environ.items() if not name.startswith("PREFECT_")}
    return env | {
        "PREFECT_HOME": str(folder.path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def start(folder: DataFolder, environ: Mapping[str, str], port: int) -> Part:
    """Start the server; it is ready when its API answers at `/health`."""
    home = folder.path / "prefect"
    home.mkdir(exist_ok=True, mode=0o700)
    env = environment(folder, environ) | {
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        # without it the UI in the browser would look for the API at Prefect's usual port
        "PREFECT_UI_API_URL": api_url(port),
        "TMPDIR": str(folder.scratch),
    }
    argv = [prefect_command(), "server", "start", "--host", HOST, "--port", str(port)]
    return Part.start(NAME, folder, argv, env=env, cwd=home, grace=15.0, whole_group=True)


def api_url(port: int) -> str:
    """The API's address at this port."""
    return f"http://{HOST}:{port}/api"

"""Settings as Prefect's own command finds them: the same folders and variables read by both, value by value."""

import importlib.util
import json
import subprocess
import sys

import pytest

from flowfleet.api.prefect3.settings import prefect_settings
from tests import processes
from tests.needs import need
from tests.waiting import SCALE

ASK = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from prefect.settings.models.root import Settings
answers = {}
for case in json.load(sys.stdin):
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ.update(case["environ"])
    os.chdir(case["folder"])
    found = Settings()
    secret = lambda value: value.get_secret_value() if value else None
    answers[case["name"]] = {
        "PREFECT_API_URL": found.api.url,
        "PREFECT_API_KEY": secret(found.api.key),
        "PREFECT_API_AUTH_STRING": secret(found.api.auth_string),
        "PREFECT_LOGGING_LEVEL": found.logging.level,
        "headers": found.client.custom_headers,
    }
json.dump(answers, sys.stdout)
"""
PROFILES = """
active = "one"
[profiles.one]
PREFECT_API_URL = "http://one/api"
PREFECT_API_KEY = "key one"
PREFECT_LOGGING_LEVEL = "ERROR"
[profiles.two]
PREFECT_API_URL = "http://two/api"
PREFECT_CLIENT_CUSTOM_HEADERS = '{"X-Two": "2"}'
"""
PREFECT_TOML = """
[api]
url = "http://toml/api"
[logging]
level = "WARNING"
[client.custom_headers]
X-Toml = "t"
"""
PYPROJECT = """
[tool.prefect.api]
url = "http://pyproject/api"
auth_string = "py:project"
"""
DOTENV = """# a comment
PREFECT_API_URL="http://dotenv/api" # why
export PREFECT_API_AUTH_STRING='a:b#c'
PREFECT_LOGGING_LEVEL = CRITICAL   # spaced
OTHER=1
"""
FILES = {"prefect.toml": PREFECT_TOML, "pyproject.toml": PYPROJECT, ".env": DOTENV}

CASES: dict[str, tuple[list[str], dict[str, str]]] = {
    "nothing": ([], {}),
    "active profile": ([], {"with": "profiles"}),
    "named profile": ([], {"with": "profiles", "PREFECT_PROFILE": "two"}),
    "unknown profile": ([], {"with": "profiles", "PREFECT_PROFILE": "three"}),
    "pyproject over profile": (["pyproject.toml"], {"with": "profiles"}),
    "prefect.toml over pyproject": (["prefect.toml", "pyproject.toml"], {"with": "profiles"}),
    ".env over all files": ([".env", "prefect.toml", "pyproject.toml"], {"with": "profiles"}),
    "environment over all": ([".env", "prefect.toml"], {"with": "profiles", "PREFECT_API_URL": "http://env/api"}),
    "headers by variable": ([], {"PREFECT_CLIENT_CUSTOM_HEADERS": '{"X-Env": "e"}', "PREFECT_API_KEY": "k"}),
    "profiles path in .env": (["path.env"], {}),
    "profiles path by variable": ([], {"with": "profiles", "PREFECT_PROFILES_PATH": "other.toml"}),
}


def lay_out(folder, files, environ, home):
    folder.mkdir()
    for name in files:
        if name == "path.env":
            (folder / ".env").write_text(f"PREFECT_PROFILES_PATH={home / 'other.toml'}\n")
        else:
            (folder / name).write_text(FILES[name])
    if "PREFECT_PROFILES_PATH" in environ:
        environ["PREFECT_PROFILES_PATH"] = str(home / "other.toml")
    (home / "other.toml").write_text('active = "x"\n[profiles.x]\nPREFECT_API_URL = "http://other/api"\n')
    if environ.pop("with", None):
        (home / ".prefect").mkdir(exist_ok=True)
        (home / ".prefect" / "profiles.toml").write_text(PROFILES)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What Prefect finds and what we find, for each case; one process asks Prefect for all."""
    need(importlib.util.find_spec("prefect") is not None, "prefect itself to compare with: install the extra demo")
    root = tmp_path_factory.mktemp("settings")
    cases, ours = [], {}
    for number, (name, (files, extra)) in enumerate(CASES.items()):
        home, folder, environ = root / f"home{number}", root / f"case{number}", dict(extra)
        home.mkdir()
        lay_out(folder, files, environ, home)
        # both ways of naming the user's own place, since Prefect reads its default place only once
        environ["PREFECT_HOME"] = str(home / ".prefect")
        cases.append({"name": name, "folder": str(folder), "environ": environ})
        ours[name] = prefect_settings(environ, folder, home)
    env = processes.environment() | {"HOME": str(root)}
    asked = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps(cases),
        env=env,
        capture_output=True,
        text=True,
        timeout=120 * SCALE,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr[-2000:]
    return json.loads(asked.stdout), ours


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"])
def test_both_find_the_same_address_and_credentials(answers, case, name):
    theirs, ours = answers
    assert (ours[case][name].value if name in ours[case] else None) == theirs[case][name]


@pytest.mark.parametrize("case", CASES)
def test_both_find_the_same_other_settings(answers, case):
    theirs, ours = answers
    found = ours[case]
    level = found["PREFECT_LOGGING_LEVEL"].value if "PREFECT_LOGGING_LEVEL" in found else "INFO"
    headers = found["PREFECT_CLIENT_CUSTOM_HEADERS"].value if "PREFECT_CLIENT_CUSTOM_HEADERS" in found else "{}"
    assert level == theirs[case]["PREFECT_LOGGING_LEVEL"]
    assert json.loads(headers) == theirs[case]["headers"]

"""Units: what `install` prints is read back as supervisor and systemd read it, and means what was asked for."""

import configparser
import getpass
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import poller.cli
import workers.cli
from flowfleet.commands import units
from flowfleet.settings.classes import PollerSettings, WorkerSettings
from flowfleet.settings.click_options import taken_flags
from flowfleet.settings.layers import resolve

PARTS = {
    "worker": (workers.cli.cli, workers.cli.start, WorkerSettings),
    "poller": (poller.cli.program, poller.cli.start, PollerSettings),
}
NASTY = (
    "plain",
    "two words",
    "100% %(here)s %h %%",
    "$HOME ${X} $$",
    'it\'s "quoted"',
    "back\\slash\\n",
    "a #no comment ;none",
    "-x",
    ";",
    "é ü 日本 ~/x",
    "a,b",
)


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch, tmp_path):
    """An environment that says nothing to a unit."""
    for name in [name for name in os.environ if name.startswith(("FLOWFLEET_", "PREFECT_")) or "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    for name in ("SSL_CERT_FILE", "DOCKER_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def install(part, kind, *words):
    done = CliRunner().invoke(PARTS[part][0], ["install", "--for", kind, *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def read(text):
    """A file of supervisor, by configparser with the choices of supervisor's own reader (source: supervisor 4.2)."""
    reader = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    reader.read_string(text)
    return reader


def program(text):
    """The command of supervisor's program and its environment."""
    reader = read(text)
    (name,) = [name for name in reader.sections() if name.startswith("program:")]
    values = {key: value % {"here": "wrong"} for key, value in reader[name].items()}
    return shlex.split(values["command"]), values


def directives(text):
    """The directives of a service file."""
    lines = [line for line in text.splitlines() if line and line[0] not in "#["]
    return dict(line.split("=", 1) for line in lines)


def lines_of(text, name):
    """The values of a directive of a service file that may stand there several times."""
    return [line.removeprefix(f"{name}=") for line in text.splitlines() if line.startswith(f"{name}=")]


def systemd_words(command):
    """The words of ExecStart, by systemd.service(5) and systemd.syntax(7)."""
    words, word, quoted, place = [], None, False, 0
    while place < len(command):
        sign = command[place]
        if sign == "\\":
            place += 1
            word = (word or "") + command[place]
        elif sign == '"':
            quoted, word = not quoted, word or ""
        elif sign == " " and not quoted:
            words, word = [*words, word], None
        else:
            word = (word or "") + sign
        place += 1
    words = [each for each in [*words, word] if each is not None]
    assert not quoted
    assert not re.search(r"(?<!%)(%%)*%(?!%)", command.replace("%%", "")), "a specifier"
    assert all(not re.search(r"\$", each.replace("$$", "")) for each in words[1:]), "a variable"
    return [each.replace("%%", "%").replace("$$", "$") for each in words]


def shell_variables(text, folder):
    """The variables of an environment file; of quotes and backslashes systemd thinks as a shell does."""
    path = folder / "environment"
    path.write_text(text)
    names = re.findall(r"^(FLOWFLEET_\w+)=", text, re.MULTILINE)
    said = subprocess.run(
        ["sh", "-c", f'. "{path}"; ' + "".join(f'printf "%s\\0" "${name}";' for name in names)],
        capture_output=True,
        check=True,
        env={},
    )
    return dict(zip(names, said.stdout.decode().split("\0"), strict=False))


def settings_of(part, words, environ, config):
    """What the part itself makes of this command line."""
    _, start, cls = PARTS[part]
    assert words[1] == "start"
    context = start.make_context("start", list(words[2:]))
    flags = taken_flags(cls, dict(context.params))
    return resolve(cls, flags, environ, config)


def as_started(part, kind, words, folder):
    """The settings of the part that this unit starts."""
    unit, secrets = install(part, kind, *words), install(part, kind, "--secrets", *words)
    if kind == "systemd":
        command = systemd_words(directives(unit)["ExecStart"])
        own = dict(systemd_words(line)[0].split("=", 1) for line in lines_of(unit, "Environment"))
        return settings_of(part, command, own | shell_variables(secrets, folder), {})
    command, values = program(unit)
    own = dict(re.findall(r'(\w+)="(.*?)"(?:,|$)', values.get("environment", "")))
    if secrets:
        assert own.pop("FLOWFLEET_CONFIG") == f"/etc/flowfleet/{part}.toml"
    return settings_of(part, command, own, tomllib.loads(secrets).get(part, {}))


@pytest.mark.parametrize("kind", ["systemd", "supervisor"])
def test_a_worker_is_started_with_the_very_values_that_were_given(kind, tmp_path):
    words = ["-f", "--no-cloud-logs", "--no-hostname-label", "-c", "3"]
    words += [word for value in NASTY for word in ("-l", value, "-p", value, "-e", f"A={value}")]
    words += ["-k", "k$ey'\"\\ #;%s`", "-r", "redis://:p%40w$@host:1/0", "--tenant-id", "t t", "--agent-config-id", "c"]
    words += ["-a", "http://host:4200", "--python", "/a b/python"]
    settings = as_started("worker", kind, words, tmp_path)
    assert settings.labels == NASTY
    assert settings.import_paths == tuple(str(Path.cwd() / value) for value in NASTY)
    assert settings.env == tuple(f"A={value}" for value in NASTY)
    assert (settings.key, settings.redis) == ("k$ey'\"\\ #;%s`", "redis://:p%40w$@host:1/0")
    assert (settings.tenant_id, settings.agent_config_id, settings.api) == ("t t", "c", "http://host:4200")
    assert (settings.show_flow_logs, settings.cloud_logs, settings.hostname_label) == (True, False, False)
    assert (settings.slots, str(settings.python), settings.on_stop) == (3, "/a b/python", "detach")


@pytest.mark.parametrize("kind", ["systemd", "supervisor"])
def test_a_poller_is_started_with_the_very_values_that_were_given(kind, tmp_path):
    words = ["--require-api", "--lease-seconds", "30", "-a", "http://user:secret@host:4200"]
    words += [word for value in NASTY for word in ("-l", value)]
    settings = as_started("poller", kind, words, tmp_path)
    assert settings.labels == NASTY
    assert settings.require_api
    assert settings.lease.ttl_seconds == 30
    assert settings.api == "http://user:secret@host:4200"


@pytest.mark.parametrize("kind", ["systemd", "supervisor"])
@pytest.mark.parametrize("part", ["worker", "poller"])
def test_no_secret_stands_in_a_unit(part, kind):
    words = ["-k", "sek-1", "-t", "sek-2", "-r", "redis://:sek-3@h/0", "-a", "http://u:sek-4@h"]
    if part == "worker":
        words += ["-e", "A=sek-5"]
    text = install(part, kind, *words)
    assert "sek" not in text
    assert "--secrets" in text
    assert "install -D -m 600" in text
    secrets = install(part, kind, "--secrets", *words)
    assert len(set(re.findall(r"sek-\d", secrets))) == (5 if part == "worker" else 4)


def test_options_come_in_the_order_of_the_reference_and_are_never_glued():
    words = ["--agent-config-id", "C", "--tenant-id", "T", "-p", "/x", "-p", "/y"]
    words += ["-l", "b", "-l", "a", "-f", "-k", "K"]
    command, _ = program(install("worker", "supervisor", *words))
    assert command[2:] == [
        *("--show-flow-logs", "--label", "b", "--label", "a", "--import-path", "/x", "--import-path", "/y"),
        *("--tenant-id", "T", "--agent-config-id", "C", "--on-stop", "detach"),
    ]


@pytest.mark.parametrize("part", ["worker", "poller"])
def test_a_unit_starts_the_console_script_by_its_absolute_path_and_as_me(part, monkeypatch):
    facts = directives(install(part, "systemd"))
    command, values = program(install(part, "supervisor"))
    assert Path(command[0]).is_absolute()
    assert Path(command[0]).name == part
    assert systemd_words(facts["ExecStart"])[:2] == command[:2]
    assert "WorkingDirectory" not in facts
    assert "directory" not in values
    assert facts["User"] == values["user"] == getpass.getuser()
    # a worker that was drained and a poller after `flowfleet leave` have ended in order, and stay down
    assert (facts["Restart"], values["autorestart"]) == ("on-failure", "unexpected")
    assert (facts["RestartPreventExitStatus"], values["exitcodes"]) == ("2 7", "0,7")
    assert (values["stopasgroup"], values["killasgroup"], values["stopsignal"]) == ("false", "false", "TERM")
    assert directives(install(part, "systemd", "--run-as", "flows"))["User"] == "flows"
    monkeypatch.setattr(units.sys, "executable", "/no/such/python")
    assert Path(units.program_path(part)).is_absolute()


def test_a_worker_that_detaches_leaves_its_runs_to_go_on():
    facts = directives(install("worker", "systemd"))
    assert (facts["KillMode"], facts["OOMPolicy"]) == ("process", "continue")
    assert (facts["Delegate"], facts["DelegateSubgroup"]) == ("memory cpu", "worker"), "each run gets a control group"
    assert facts["ExecStart"].endswith("start --on-stop detach --state-dir /var/lib/flowfleet")
    assert (facts["StateDirectory"], facts["StateDirectoryMode"]) == ("flowfleet", "0700")


@pytest.mark.parametrize("mode", ["wait", "cancel"])
def test_a_worker_that_does_not_detach_gets_the_time_that_its_runs_get(mode):
    words = ["--on-stop", mode, "--stop-grace", "100"]
    facts = directives(install("worker", "systemd", *words))
    _, values = program(install("worker", "supervisor", *words))
    assert facts["KillMode"] == "mixed"
    assert "detach" not in facts["ExecStart"]
    assert int(facts["TimeoutStopSec"]) == int(values["stopwaitsecs"]) > 200


def test_a_name_with_blanks_is_given_whole_and_is_none_in_the_name_of_the_unit():
    text = install("worker", "systemd", "--name", "my agent", "-k", "sek")
    assert "/etc/systemd/system/flowfleet-worker-my-agent.service" in text
    assert "EnvironmentFile=/etc/flowfleet/worker-my-agent.env" in text
    assert '"my agent"' in text


def test_two_workers_of_one_host_get_units_of_two_names():
    text = install("worker", "systemd", "--name", "second", "-k", "sek")
    assert lines_of(text, "EnvironmentFile") == ["-/etc/flowfleet.env", "/etc/flowfleet/worker-second.env"]
    assert "flowfleet-worker-second.service" in text
    assert read(install("worker", "supervisor", "--name", "second"))["program:flowfleet-worker-second"]


def test_secrets_of_a_worker_with_a_config_file_go_there():
    command, values = program(text := install("worker", "supervisor", "--config", "/x/f.toml", "-k", "sek"))
    assert command[-2:] == ["--config", "/x/f.toml"]
    assert "environment" not in values
    assert "to add to /x/f.toml" in text


ENVIRONMENT = {
    "FLOWFLEET_REDIS": "redis://10.0.0.5:6379/0",
    "FLOWFLEET_REDIS_PASSWORD_FILE": "/etc/flowfleet.redis",
    "FLOWFLEET_FLEET": "night",
    "FLOWFLEET_POOLS": "a b,100% %h",
    "FLOWFLEET_LABELS": "of the environment",
    "FLOWFLEET_STATE_DIR": "records",
    "FLOWFLEET_KEY": "sek-1",
    "PREFECT_API_URL": "http://10.0.0.4:4200/api",
}


@pytest.mark.parametrize("kind", ["systemd", "supervisor"])
def test_a_unit_carries_what_the_environment_says_and_no_flag_does(kind, tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    unit = install("worker", kind, "-l", "of the flag")
    assert "sek" not in unit
    assert "PREFECT_API_URL=http://10.0.0.4:4200/api" in unit.replace('"', "")
    monkeypatch.setenv("FLOWFLEET_REDIS_PASSWORD_FILE", "")  # this file is the service's to read
    settings = as_started("worker", kind, ["-l", "of the flag"], tmp_path)
    assert (settings.redis, settings.fleet, settings.key) == ("redis://10.0.0.5:6379/0", "night", "sek-1")
    assert (settings.pools, settings.labels) == (("a b", "100% %h"), ("of the flag",))
    assert settings.state_dir == Path.cwd() / "records", "a service starts in another folder"
    assert "FLOWFLEET_REDIS_PASSWORD_FILE=/etc/flowfleet.redis" in unit.replace('"', "")
    assert "FLOWFLEET_LABELS" not in unit
    assert "StateDirectory=" not in unit


def test_a_unit_knows_the_api_of_a_profile_which_the_user_of_the_service_does_not_have(tmp_path, monkeypatch):
    profiles = tmp_path / "home" / ".prefect" / "profiles.toml"
    profiles.parent.mkdir(parents=True)
    far = 'PREFECT_API_URL = "http://far/api"\nPREFECT_API_KEY = "sek-2"\n'
    profiles.write_text(f'active = "far"\n[profiles.far]\n{far}')
    text = install("poller", "systemd")
    assert lines_of(text, "Environment") == ['"PREFECT_API_URL=http://far/api"']
    assert "Secrets (PREFECT_API_KEY) are not in this text" in text
    assert install("poller", "systemd", "--secrets") == 'PREFECT_API_KEY="sek-2"\n'
    assert "PREFECT_API_KEY must be set where supervisord itself is started" in install("poller", "supervisor")
    assert lines_of(install("poller", "systemd", "-a", "http://near/api", "-k", "mine"), "Environment") == []
    # Prefect 1's own variables, and a way round a proxy
    monkeypatch.setenv("PREFECT__BACKEND", "server")
    monkeypatch.setenv("PREFECT__CLOUD__API", "http://one:4200")
    monkeypatch.setenv("PREFECT__CLOUD__API_KEY", "sek-3")
    monkeypatch.setenv("no_proxy", "one")
    profiles.unlink()
    text = install("worker", "systemd")
    assert lines_of(text, "Environment") == [
        '"PREFECT__BACKEND=server"',
        '"PREFECT__CLOUD__API=http://one:4200"',
        '"no_proxy=one"',
    ]
    assert install("worker", "systemd", "--secrets") == 'PREFECT__CLOUD__API_KEY="sek-3"\n'


@pytest.mark.parametrize("kind", ["systemd", "supervisor"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLOWFLEET_ENV", "DATABASE_URL=postgres://user:sek-1@db/x"),
        ("FLOWFLEET_ENV", "HOOK=https://hooks.example.com/services/sek-1"),
        ("FLOWFLEET_KEY", "https://sek-1"),
        ("FLOWFLEET_API", "https://sek-1@api.example.com/api"),
        ("PREFECT_API_URL", "https://sek-1@api.example.com/api"),
        ("FLOWFLEET_REDIS", "redis://:sek-1@box/0"),
        ("FLOWFLEET_REDIS", "redis://sek-1@box/0"),
        ("FLOWFLEET_REDIS", "redis://box/0?password=sek-1"),
        ("https_proxy", "http://sek-1@proxy:3128"),
    ],
)
def test_no_secret_of_the_environment_stands_in_a_unit(name, value, kind, monkeypatch):
    monkeypatch.setenv(name, value)
    assert "sek-1" not in install("worker", kind)
    assert "sek-1" in install("worker", "systemd", "--secrets")


def test_a_unit_names_a_working_directory_and_a_config_file_where_it_is_told_to(monkeypatch):
    monkeypatch.setenv("FLOWFLEET_CONFIG", "fleet.toml")
    text = install("worker", "systemd", "--working-directory", "flows", "--python", "venv/bin/python")
    assert directives(text)["WorkingDirectory"] == str(Path.cwd() / "flows")
    command = systemd_words(directives(text)["ExecStart"])
    assert command[command.index("--config") + 1] == str(Path.cwd() / "fleet.toml")
    assert command[command.index("--python") + 1] == str(Path.cwd() / "venv/bin/python")
    _, values = program(install("worker", "supervisor", "--working-directory", "/srv"))
    assert values["directory"] == "/srv"


@pytest.mark.parametrize(
    ("words", "engine"),
    [
        ([], ""),
        (["--deploy", "docker"], " docker.service"),
        (["--deploy", "docker", "-b", "unix:///run/podman/podman.sock"], " podman.socket"),
        (["--deploy", "docker", "-b", "tcp://far:2376"], ""),
    ],
)
def test_a_worker_of_containers_is_started_after_the_engine_of_its_host(words, engine):
    facts = directives(install("worker", "systemd", *words))
    assert facts["Wants"] == facts["After"] == f"network-online.target{engine}"


@pytest.mark.parametrize(("name", "value"), [("FLOWFLEET_VOLUMES", "a:/a\nb:/b"), ("FLOWFLEET_POOLS", 'a ;"b"')])
def test_a_variable_that_a_unit_cannot_hold_is_one_sentence(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    done = CliRunner().invoke(workers.cli.cli, ["install", "--for", "supervisor"])
    assert done.exit_code != 0
    assert name in str(done.exception)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-l", "a\nb"], "has a control character"),
        (["-e", "A=1\nB=2", "--secrets"], "--env A has a line break"),
        (["-e", "A"], "it must be NAME=VALUE"),
        (["-c", "0"], "--slots cannot be '0'"),
    ],
)
def test_what_a_unit_cannot_hold_is_one_sentence(words, says):
    done = CliRunner().invoke(workers.cli.cli, ["install", "--for", "systemd", *words])
    assert done.exit_code != 0
    assert says in str(done.exception)


def test_the_whole_of_the_nasty_values_passes_systemds_own_reader(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("this machine has no systemd-analyze")
    words = [word for value in NASTY for word in ("-l", value)]
    path = tmp_path / "flowfleet-worker.service"
    path.write_text(install("worker", "systemd", *words))
    said = subprocess.run([analyze, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False)
    # a systemd before 254 says that it leaves one line out, and goes on without
    told = [line for line in said.stderr.splitlines() if "'DelegateSubgroup'" not in line]
    assert (said.returncode, said.stdout, told) == (0, "", [])


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "several-machines.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"    (worker|poller) (install --for (\w+) [^\n]*)\n\n```ini\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: f"{shown[0]} {shown[2]}")
def test_the_documents_show_exactly_what_the_command_prints(shown, monkeypatch):
    part, command, _, text = shown
    monkeypatch.setattr("flowfleet.commands.install.program_path", "/opt/flowfleet/bin/{}".format)
    done = CliRunner().invoke(PARTS[part][0], command.partition(" |")[0].split(), catch_exceptions=False)
    assert done.output == text


def test_the_documents_show_a_unit_of_a_worker_and_one_of_a_poller():
    assert [(part, kind) for part, _, kind, _ in SHOWN] == [("worker", "systemd"), ("poller", "systemd")]

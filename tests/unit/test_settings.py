"""Settings: each rung of the ladder, wrong values, that no secret shows, and what an API has no use for."""

import logging
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flowfleet.api.unused import tell_unused
from flowfleet.commands import program
from flowfleet.errors import SettingsError
from flowfleet.settings.classes import LEASE_MARGIN_SECONDS, PollerSettings, UpSettings, WorkerSettings
from flowfleet.settings.click_options import options, read_config
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import refresh, resolve, secrets_of
from flowfleet.settings.option import options_of
from workers.runs.leases import MARGIN_SECONDS


@pytest.mark.parametrize(
    ("cls", "flags", "environ", "backend", "told"),
    [
        (WorkerSettings, {"pool": ("p",)}, {}, "prefect1", ["--pool"]),
        (WorkerSettings, {}, {"FLOWFLEET_WORK_QUEUES": "q"}, "prefect1", ["--work-queue"]),
        (PollerSettings, {"pool": ("p",), "work-queue": ("q",)}, {}, "prefect1", ["--pool", "--work-queue"]),
        (WorkerSettings, {"label": ("l",), "hostname-label": False}, {}, "prefect3", ["--label", "--hostname-label"]),
        (PollerSettings, {"label": ("l",)}, {}, "prefect3", ["--label"]),
        (WorkerSettings, {"label": ("l",)}, {}, "prefect1", []),
        (WorkerSettings, {"pool": ("p",)}, {}, "prefect3", []),
    ],
)
def test_what_was_given_for_the_other_api_is_named(caplog, cls, flags, environ, backend, told):
    settings = resolve(cls, flags, environ, {})
    with caplog.at_level(logging.WARNING):
        tell_unused(settings, backend)
    assert [record.setting for record in caplog.records] == told
    assert all(record.use_instead and record.given_by for record in caplog.records)


CLASSES = (CommonSettings, PollerSettings, WorkerSettings, UpSettings)


def test_each_rung_beats_the_ones_below(tmp_path):
    """Flag, variable, secret file, config file, machine, default."""
    key_file = tmp_path / "key"
    key_file.write_text("from-file\n")
    rungs = [
        ({"key": "from-flag"}, {}, {}, "from-flag", "flag"),
        ({}, {"FLOWFLEET_KEY": "from-variable"}, {}, "from-variable", "variable"),
        ({}, {"FLOWFLEET_KEY_FILE": str(key_file)}, {}, "from-file", "secret-file"),
        ({}, {}, {"key": "from-config"}, "from-config", "config"),
    ]
    for start in range(len(rungs)):
        flags, environ, config = {}, {}, {}
        for rung in rungs[start:]:
            flags |= rung[0]
            environ |= rung[1]
            config |= rung[2]
        settings = resolve(CommonSettings, flags, environ, config)

        assert settings.key == rungs[start][3]
        assert settings.origins["key"].kind == rungs[start][4]
    assert resolve(CommonSettings, {}, {}, {}).key is None


def test_machine_facts_stand_above_the_default_and_below_all_else():
    facts = {"slots": 6, "host": "h1"}
    assert resolve(WorkerSettings, {}, {}, {}, facts).slots == 6
    assert resolve(WorkerSettings, {}, {}, {"slots": 3}, facts).slots == 3
    assert resolve(WorkerSettings, {}, {}, {}, facts).origins["slots"].kind == "machine"
    assert resolve(CommonSettings, {}, {}, {}, facts).host == "h1"


def test_lists_come_from_flags_variables_and_toml_and_values_of_env_may_hold_commas():
    assert resolve(WorkerSettings, {"pool": ("a", "b")}, {"FLOWFLEET_POOLS": "c"}, {}).pools == ("a", "b")
    assert resolve(WorkerSettings, {}, {"FLOWFLEET_POOLS": "c, d"}, {}).pools == ("c", "d")
    assert resolve(WorkerSettings, {}, {}, {"pool": ["e"]}).pools == ("e",)
    assert resolve(WorkerSettings, {"pool": ()}, {}, {}).pools == ("flowfleet",)
    assert resolve(CommonSettings, {}, {"FLOWFLEET_FLEET": ""}, {}).fleet == "default", "empty: not given"
    assert resolve(WorkerSettings, {}, {"FLOWFLEET_ENV": "A=1,2\nB=3"}, {}).env == ("A=1,2", "B=3")


def test_values_of_env_never_show():
    with pytest.raises(SettingsError, match=r"^FLOWFLEET_ENV cannot be \*\*\*: it must be NAME=VALUE") as caught:
        resolve(WorkerSettings, {}, {"FLOWFLEET_ENV": "A=1\nthe second line of a secret"}, {})
    assert "second line" not in str(caught.value)
    assert "hunter2" not in repr(resolve(WorkerSettings, {"env": ("A=hunter2",)}, {}, {}))


def test_parts_of_the_lease_are_options_of_their_own():
    settings = resolve(PollerSettings, {"lease-seconds": "9"}, {"FLOWFLEET_ADOPT_GRACE": "7.5"}, {"renew-seconds": 1})
    assert (settings.lease.ttl_seconds, settings.lease.grace_seconds, settings.lease.renew_seconds) == (9.0, 7.5, 1.0)


@pytest.mark.parametrize(("ttl", "renew"), [("14", "5"), ("3.5", "0.5"), ("3", "0.1")])
def test_a_lease_that_renewals_cannot_keep_is_refused(ttl, renew):
    with pytest.raises(SettingsError) as caught:
        resolve(PollerSettings, {"lease-seconds": ttl}, {"FLOWFLEET_RENEW_SECONDS": renew}, {})
    assert caught.value.exit_code == 2
    words = (f"--lease-seconds {ttl} is too short for --renew-seconds {renew}", "three renewals", "3 seconds more")
    assert all(word in str(caught.value) for word in words)


def test_the_shortest_leases_that_renewals_can_keep_are_taken():
    for ttl, renew in (("15", "5"), ("3.6", "0.5")):
        assert resolve(PollerSettings, {"lease-seconds": ttl, "renew-seconds": renew}, {}, {}).lease
    assert LEASE_MARGIN_SECONDS == MARGIN_SECONDS


@pytest.mark.parametrize(
    ("cls", "flags", "environ", "config", "words"),
    [
        (WorkerSettings, {"slots": "0"}, {}, {}, ("--slots", "'0'", "1 up")),
        (WorkerSettings, {}, {"FLOWFLEET_SLOTS": "many"}, {}, ("FLOWFLEET_SLOTS", "'many'")),
        (WorkerSettings, {}, {}, {"slots": True}, ("slots in the config file", "True")),
        (WorkerSettings, {"env": ("NOVALUE",)}, {}, {}, ("--env", "NAME=VALUE")),
        (WorkerSettings, {"on-stop": "drop"}, {}, {}, ("--on-stop", "detach")),
        (WorkerSettings, {"keep-logs-size": "big"}, {}, {}, ("--keep-logs-size", "500M")),
        (WorkerSettings, {"memory": "1K"}, {}, {}, ("--memory", "'1K'", "at least 6M")),
        (WorkerSettings, {"user": "a:b:c"}, {}, {}, ("--user", "'a:b:c'", "USER:GROUP")),
        (PollerSettings, {"lease-seconds": "nan"}, {}, {}, ("--lease-seconds",)),
        (PollerSettings, {}, {"FLOWFLEET_REQUIRE_API": "perhaps"}, {}, ("FLOWFLEET_REQUIRE_API", "true or false")),
        (CommonSettings, {"fleet": "a b"}, {}, {}, ("--fleet", "'a b'")),
        (CommonSettings, {}, {"FLOWFLEET_KEY_FILE": "/does/not/exist"}, {}, ("FLOWFLEET_KEY_FILE", "/does/not/exist")),
        (CommonSettings, {"backend": "prefect2"}, {}, {}, ("--backend", "prefect3")),
        (UpSettings, {"port": "70000"}, {}, {}, ("--port", "65535")),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_source_value_and_remedy(cls, flags, environ, config, words):
    with pytest.raises(SettingsError) as caught:
        resolve(cls, flags, environ, config)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 2


def test_sizes_are_read_with_their_units():
    assert resolve(WorkerSettings, {"keep-logs-size": "2G"}, {}, {}).keep_logs_bytes == 2 << 30
    assert resolve(WorkerSettings, {"keep-logs-size": "10 MiB"}, {}, {}).keep_logs_bytes == 10 << 20


@pytest.mark.parametrize(
    ("address", "password", "whole"),
    [
        ("redis://box:6379/1", "p@ss/word", "redis://:p%40ss%2Fword@box:6379/1"),
        ("redis://:in@box/0", "apart", "redis://:in@box/0"),
    ],
)
def test_a_password_apart_goes_into_the_address_percent_encoded_where_none_is(address, password, whole):
    for flags, environ in (({"redis": address}, {}), ({}, {"FLOWFLEET_REDIS": address})):
        environ["FLOWFLEET_REDIS_PASSWORD"] = password
        assert resolve(CommonSettings, flags, environ, {}).redis == whole


@pytest.fixture
def files(tmp_path):
    """Writes secrets into files, and returns the variables that name them."""

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        return {f"FLOWFLEET_{name.upper()}_FILE": str(tmp_path / name) for name in texts}

    return write


def test_secret_files_are_read_again(files):
    settings = resolve(CommonSettings, {}, files(key="first", redis="redis://:one@box/0"), {})
    files(key="second", redis="redis://:two@box/0")
    assert (refresh(settings).key, refresh(settings).redis) == ("second", "redis://:two@box/0")


@pytest.mark.parametrize(
    ("given", "renewed"),
    [
        ("redis://box/0", "redis://:two@box/0"),
        ("redis://bob@box/0", "redis://bob:two@box/0"),
        ("redis+socket:///run/s", "redis+socket://:two@/run/s"),
        ("redis://:own@box/0", "redis://:own@box/0"),
    ],
)
def test_a_password_file_that_is_replaced_changes_the_password_only(files, given, renewed):
    settings = resolve(CommonSettings, {}, {"FLOWFLEET_REDIS": given, **files(redis_password="one")}, {})
    files(redis_password="two")
    assert refresh(settings).redis == renewed
    assert refresh(refresh(settings)).redis == renewed


def test_only_the_secrets_that_are_asked_for_are_read_again(files):
    environ = files(key="key-one", page_token="token-one")
    settings = resolve(CommonSettings, {}, environ, {})
    Path(environ["FLOWFLEET_KEY_FILE"]).unlink()
    files(page_token="token-two")
    assert refresh(settings, ["page_token"]).page_token == "token-two"


def test_a_password_is_known_as_a_secret_in_the_form_of_the_address_and_as_it_is_sent_and_no_secret_shows():
    settings = resolve(CommonSettings, {"redis": "redis://:p%40ss%2fword@box/0"}, {}, {})
    assert set(secrets_of(settings)) == {"p%40ss%2fword", "p@ss/word"}
    flags, environ = {"key": "kkkk-secret", "token": "tttt-secret"}, {"FLOWFLEET_REDIS": "redis://:rrrr-secret@box"}
    assert "secret" not in repr(resolve(CommonSettings, flags, environ, {}))


@pytest.mark.parametrize("cls", CLASSES)
def test_every_option_has_its_own_variable_flag_and_help_which_names_the_variable(cls):
    here = list(options_of(cls).values())
    flags = [flag for option in here for flag in option.flags]
    for each in ([option.key for option in here], [option.variable for option in here], flags):
        assert len(set(each)) == len(each)
    text = " ".join(CliRunner().invoke(_command(cls, []), ["--help"], terminal_width=200).output.split())
    for option in here:
        assert option.variable.startswith("FLOWFLEET_"), option
        assert option.help
        assert not option.flags or f"[{option.variable}]" in text, option


def test_config_file_has_a_top_level_for_all_and_a_table_for_one(tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text('fleet = "blue"\n[worker]\nslots = 2\n[poller]\nmax_polls = 5\n')
    assert read_config(str(path), "worker") == {"fleet": "blue", "slots": 2}
    assert read_config(str(path), "poller") == {"fleet": "blue", "max-polls": 5}


@pytest.mark.parametrize(
    ("text", "word"),
    [("flet = 1", "'flet'"), ("[server]\na = 1", "[server]"), ("not toml", "valid TOML"), ("[worker]\nx = 1", "'x'")],
)
def test_a_wrong_config_file_is_one_sentence(tmp_path, text, word):
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_config(str(path), "worker")
    assert word in str(caught.value)
    assert str(path) in str(caught.value)


def _command(cls, seen):
    @click.command()
    @options(cls, command="worker")
    def command(settings):
        seen.append(settings)

    return command


def test_the_command_gets_one_frozen_instance(monkeypatch, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("slots = 9\n")
    monkeypatch.setenv("FLOWFLEET_FLEET", "green")
    seen = []
    arguments = ["--pool", "a", "--pool", "b", "--no-cloud-logs", "-f", "--config", str(path), "-E"]
    result = CliRunner().invoke(_command(WorkerSettings, seen), arguments)
    assert result.exit_code == 0, result.output
    (settings,) = seen
    assert (settings.pools, settings.fleet, settings.slots) == (("a", "b"), "green", 9)
    assert (settings.cloud_logs, settings.show_flow_logs, settings.task_events) == (False, True, True)
    assert settings.host


def test_up_offers_no_option_that_it_would_ignore():
    result = CliRunner().invoke(_command(UpSettings, []), ["--help"])
    for flag in ("--name", "--backend", "--tenant-id"):
        assert f"{flag} " not in result.output
    assert CliRunner().invoke(_command(UpSettings, []), ["--name", "mine"]).exit_code == 2


def test_help_promises_nothing_that_this_version_does_not_do():
    text = {option.key: option.help for option in options_of(PollerSettings).values()}
    assert not [key for key, words in text.items() if "not judged yet" in words or "only records it" in words]
    assert "no worker here can take" in text["cloud-logs"]


@pytest.mark.parametrize(
    ("arguments", "code", "start"),
    [
        (["--slots", "zero"], 2, "Error: --slots cannot be 'zero'"),
        (["--nothing"], 2, "Error: No such option"),
        (["--config", "/none.toml"], 2, "Error: The config file /none.toml"),
    ],
)
def test_errors_leave_by_one_door(capsys, arguments, code, start):
    assert program.run(_command(WorkerSettings, []), arguments, name="worker") == code
    captured = capsys.readouterr()
    assert captured.err.startswith(start)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_unexpected_error_ends_with_1_and_a_trace_without_secrets(capsys):
    @click.command()
    @options(CommonSettings)
    def command(settings):
        raise RuntimeError(f"no luck with {settings.key}")

    assert program.run(command, ["--key", "very-secret-key"]) == 1
    text = capsys.readouterr().err
    assert "no luck with ***" in text
    assert "very-secret-key" not in text


@pytest.mark.parametrize(
    ("labels", "hostname", "shown"),
    [
        ((), True, ("h",)),
        ((), False, ()),
        (("b", "a", "b"), True, ("a", "b", "h")),
        (("z", "h", "a"), True, ("a", "h", "z")),
        (("é ü", "a,b", "with space"), False, ("a,b", "with space", "é ü")),
    ],
)
def test_labels_are_those_of_the_reference_agent(labels, hostname, shown):
    """Sorted, each once, then the host's name unless it is there or not wanted."""
    settings = resolve(WorkerSettings, {"label": labels, "hostname-label": hostname}, {}, {}, {"host": "h"})
    assert settings.agent_labels == shown


@pytest.mark.parametrize("label", ["", "  ", "x" * 256])
@pytest.mark.parametrize("cls", [WorkerSettings, PollerSettings])
def test_a_label_that_prefect_1_cannot_have_is_one_sentence(cls, label):
    with pytest.raises(SettingsError, match=r"--label cannot be .*: it must be some text of at most 255 characters"):
        resolve(cls, {"label": ("a", label)}, {}, {})
    assert resolve(cls, {"label": ("x" * 255,)}, {}, {}).labels == ("x" * 255,)

"""`worker start` at a Prefect 1 API as a process of its own: labels, agent configs, a sentence for what is wrong."""

from contextlib import closing

import pytest

from flowfleet.ledger import connect
from tests.integration.test_worker_process import ready, start
from tests.world import World


def python(folder, version):
    """A program that answers as an interpreter with this prefect."""
    path = folder / f"python-{version}" / "python"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def fleet(valkey, tmp_path, api):
    made = World(tmp_path, api.url, valkey.tcp_url)
    made.env |= {
        "PREFECT_API_URL": None,
        "PREFECT__CLOUD__API": api.url,
        "PREFECT__BACKEND": "server",
        "FLOWFLEET_HOST": "this-host",
        "FLOWFLEET_PYTHON": str(python(tmp_path, "1.4.1")),
    }
    yield made
    made.close()


def offer_of(fleet):
    with closing(connect(fleet.redis_url, fleet.fleet)) as ledger:
        (row,) = ledger.roster.rows()
    return row.offer.labels, row.offer.tenant, row.offer.deploy


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ([], ("this-host",)),
        (["--no-hostname-label"], ()),
        (["-l", "b", "-l", "a", "-l", "b"], ("a", "b", "this-host")),
        (["-l", "this-host", "-l", "é, ü"], ("this-host", "é, ü")),
        (["--no-hostname-label", "-l", "x" * 200], ("x" * 200,)),
    ],
)
def test_a_worker_signs_on_with_the_labels_of_the_reference(fleet, api, options, labels):
    ready(fleet, *options)

    assert offer_of(fleet) == (labels, api.tenant, "process")


def test_an_agent_config_wins_over_flags_and_says_so(fleet, api):
    config = api.add_agent_config({"labels": ["of-the-api"], "hostname_label": False, "colour": "red"})
    worker = ready(fleet, "--agent-config-id", config, "-l", "mine", "-f")
    text = worker.text()

    assert offer_of(fleet)[0] == ("of-the-api",)
    losing = [line for line in text.splitlines() if "the agent config wins" in line]
    assert len(losing) == 1
    assert "--label" in losing[0]
    assert "colour" in text


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["-l", ""], 2, "--label cannot be empty"),
        (["-l", "x" * 256], 2, "at most 255 characters"),
        (["-e", "secret"], 2, "it must be NAME=VALUE"),
        (["--agent-config-id", "00000000-0000-4000-8000-000000000000"], 3, "has no agent config 00000000"),
        (["--agent-config-id", "CONFIG"], 2, "has labels 'x', which must be a list"),
        (["--python", "PYTHON3"], 2, "has prefect 3.4.1, which does not fit an API of Prefect 1"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_the_documented_code(fleet, api, tmp_path, options, code, says):
    config = api.add_agent_config({"labels": "x"})
    words = {"CONFIG": config, "PYTHON3": str(python(tmp_path, "3.4.1"))}
    worker = start(fleet, *(words.get(word, word) for word in options))

    assert worker.wait(30) == code
    text = worker.text()
    assert says in text
    assert "Traceback" not in text
    assert "secret" not in text
    assert [line for line in text.splitlines() if line.startswith("Error")] == text.splitlines()[-1:]


def test_a_host_that_has_only_prefect_3_says_so(fleet, tmp_path):
    found = python(tmp_path, "3.4.1")
    worker = start(fleet, FLOWFLEET_PYTHON="", PATH=str(found.parent))

    assert worker.wait(30) == 2
    text = worker.text()
    assert f"{found} has prefect 3.4.1, which does not fit an API of Prefect 1" in text
    assert "--python" in text

"""What people read of a fleet at Prefect 1: labels instead of pools, in tables, explanations and checks."""

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from flowfleet.api import traits
from flowfleet.api.backlog import Place, Rival, UnfitRun
from flowfleet.errors import ApiRejected, ApiUnavailable, KeyRefused
from flowfleet.flow_run import Offer, Route
from flowfleet.monitor.doctor import CheckStatus, api_checks, fleet_checks, rival_checks
from flowfleet.monitor.explain import explain
from flowfleet.monitor.status import status
from tests.unit.test_status import AT, FULL, _printed, _row, _snapshot, _state

TENANT = "77777777-7777-4777-8777-777777777777"
LONG = tuple(f"label-{number:03}" for number in range(40))


def worker(*labels, name="worker@host-1", tenant=TENANT, **more):
    return replace(_row(name, **more), offer=Offer(backend="prefect1", labels=labels, tenant=tenant), routes=())


def snapshot(*labels, rows, **more):
    """A fleet with one queue: that of these labels."""
    found = _snapshot(rows=rows, **more)
    return replace(found, queues=(replace(found.queues[0], route=Route.of_labels(TENANT, labels)),))


def due(*labels):
    return _state(scheduled=AT - 9), Place(route=Route.of_labels(TENANT, labels), pool="")


def test_the_page_fits_80_columns_with_long_labels():
    rows = [worker(*LONG), worker("x", name="worker@" + "h" * 90)]
    text = _printed(status(snapshot(*LONG, rows=rows, due=50)))
    assert max(map(len, text.splitlines())) <= 80
    assert "label-000,label-001" in text


def test_the_json_form_has_labels_and_routes_and_a_queue_is_called_by_its_labels():
    form = snapshot("x", "a, b", rows=[worker("a, b", "x"), worker(name="plain@host-2")]).to_json()
    assert [each["labels"] for each in form["workers"]] == [["a, b", "x"], []]
    assert [each["pools"] for each in form["workers"]] == [[], []]
    assert Route.parse(form["queues"][0]["route"]).labels == ("a, b", "x")

    table = snapshot("a, b", "x", rows=[worker()])
    assert table.route_name(table.queues[0].route) == "a, b,x"
    assert table.route_name(Route.of_labels(TENANT, [])) == "(no labels)"


@pytest.mark.parametrize(
    ("asks", "rows", "words"),
    [
        (
            ("x", "y"),
            [worker("x"), worker("z", name="b@h")],
            "no live worker of the fleet default has the labels [x, y]; live ones have: [x], [z].",
        ),
        (("gpu",), [worker()], "no live worker of the fleet default has the label [gpu]; live ones have: []."),
        (("x",), [worker("x", live=False)], "has the label [x]; none lives for its tenant."),
        (("x",), [worker("x", tenant=TENANT[::-1])], "has the label [x]; none lives for its tenant."),
        (
            (),
            [worker("host-1")],
            (
                "and has no labels: such a run goes only to a worker without labels (worker start "
                "--no-hostname-label), and no live one of the fleet default is without; live ones have: [host-1]."
            ),
        ),
        (("x",), [worker("x", wanted="paused")], "no worker that has the label [x] takes new runs: worker@host-1 (pa"),
        (("x",), [worker("x", "y")], "will be claimed at the next poll: nothing hinders it."),
    ],
)
def test_an_explanation_names_the_labels_that_lack(asks, rows, words):
    state, place = due(*asks)
    explanation = explain("r", snapshot(*asks, rows=rows), None, state, place)
    assert words in explanation.sentence
    assert explanation.evidence["place"] == {"labels": list(asks), "paused": None, "limit": None}


@pytest.mark.parametrize(("asks", "end"), [(("x",), "5 runs are due with the label [x]."), ((), "due without labels.")])
def test_a_full_worker_is_named_by_the_labels_too(asks, end):
    state, place = due(*asks)
    full = snapshot(*asks, rows=[worker(*asks)], claims=FULL, due=5)
    sentence = explain("r", full, None, state, place).sentence
    assert "all 4 slots of the workers that serve it are taken" in sentence
    assert sentence.endswith(end)


def test_what_the_api_cannot_hand_out_is_said_first():
    state, place = due("x")
    held = replace(place, limit="asks for a container (DockerRun), and no live worker starts any")
    assert "and asks for a container" in explain("r", snapshot("x", rows=[worker("x")]), None, state, held).sentence


def test_runs_due_for_labels_that_nobody_serves_are_named_by_the_checks():
    found = snapshot("x", "y", rows=[worker("z")], due=3, eligible=0)
    (check,) = [check for check in fleet_checks(found) if check.name == "unserved"]
    assert "Runs are due on [x, y], which no active worker serves." in check.found


class Api(SimpleNamespace):
    """What the checks of labels ask."""

    backend = "prefect1"
    traits = traits.of(backend)

    @property
    def backlog(self):
        return self

    def rivals(self, offers):
        return [one for one in self.others if one.labels not in [each.labels for each in offers]]

    def unserved(self, offers):
        return self.nobodys


def rival(name="agent", seconds=12):
    seen = datetime.fromtimestamp(AT - seconds, UTC)
    return Rival(name=name, type="LocalAgent", labels=("x", "y"), seen=seen)


def checks(others=(), nobodys=(), rows=None):
    api = Api(others=list(others), nobodys=list(nobodys))
    return list(rival_checks(api, snapshot("x", rows=[worker("x")] if rows is None else rows), lambda: AT))


def test_a_foreign_agent_with_our_labels_is_warned_of():
    (check,) = checks([rival()])
    assert check.verdict == CheckStatus.WARN
    assert check.found == (
        "The agent agent (LocalAgent) with labels [x, y] asked for runs 12s ago "
        "and takes the same runs without this fleet's ledger."
    )
    assert check.remedy.startswith("Stop it, or give it other labels")


def test_many_foreign_agents_are_counted_and_the_pollers_own_of_a_worker_that_left_is_no_stranger():
    assert [check.verdict for check in checks()] == [CheckStatus.OK]
    found = checks([rival(str(number)) for number in range(8)])
    assert len(found) == 6
    assert found[-1].found == "3 more executors take the same runs."

    left = replace(rival(), labels=("x", "z"))
    rows = [worker("x"), worker("x", "z", live=False)]
    assert [check.verdict for check in checks([left], rows=rows)] == [CheckStatus.OK]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ApiUnavailable("no answer"), "Start the API, or correct --api."),
        (KeyRefused("it refuses our credentials: set KEY"), ""),
        (ApiRejected("it has no tenant: correct --tenant-id"), ""),
    ],
)
def test_an_error_with_a_remedy_of_its_own_gets_no_second_one(error, remedy):
    def probe():
        raise error

    (check,) = api_checks(probe)
    assert (check.verdict, check.remedy) == (CheckStatus.FAIL, remedy)


def test_runs_that_no_agent_can_take_are_told():
    lone = [UnfitRun(run_id=str(n), name=f"wolf-{n}", reason="No agent has the label [gpu].") for n in range(3)]
    check = checks(nobodys=lone)[-1]
    assert (check.name, check.verdict) == ("labels", CheckStatus.WARN)
    assert check.found == (
        "The run wolf-0 is due and no agent can take it: No agent has the label [gpu]. "
        "2 more are due that no agent can take."
    )


def test_a_fleet_without_workers_has_no_rivals():
    assert checks([rival()], rows=[worker("x", live=False)]) == []


def test_another_worker_of_a_pool_is_warned_of_and_the_fleet_itself_is_none():
    class Pools(Api):
        backend = "prefect3"
        traits = traits.of(backend)

        def rivals(self, offers):
            seen = datetime.fromtimestamp(AT - 12, UTC)
            return [Rival(name=name, type="worker", pool="flowfleet", seen=seen) for name in self.others]

    own = ["flowfleet-default", "flowfleet-default worker@host-1 (cut off from Redis)"]
    (check,) = rival_checks(Pools(others=own, nobodys=[]), _snapshot(), lambda: AT)
    assert (check.verdict, check.found) == (CheckStatus.OK, "No other executor takes the runs of this fleet.")
    found = list(rival_checks(Pools(others=[*own, "stock", "flowfleet-default2"], nobodys=[]), _snapshot(), lambda: AT))
    assert [(check.name, check.verdict) for check in found] == [("rivals", CheckStatus.WARN)] * 2
    assert found[0].found == (
        "The worker stock is online in the pool flowfleet, last seen 12s ago, and takes runs of it too."
    )
    assert "the server lets one of them win" in found[0].remedy


def test_rivals_that_cannot_be_asked_for_are_no_failure():
    class Away(Api):
        def rivals(self, offers):
            raise ApiUnavailable("no answer")

    (check,) = rival_checks(Away(), snapshot("x", rows=[worker("x")]))
    assert (check.verdict, check.found) == (CheckStatus.WARN, "Other executors could not be asked for: no answer")

"""Answers that settle nothing: what the client makes of null states, broken lines, 503s and refused keys."""

import threading
import uuid
from collections.abc import Iterator

import pytest

from flowfleet.api.client import Mark, StateType, Verdict
from flowfleet.api.prefect3.client import Prefect3
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiRejected, ApiUnavailable, KeyRefused
from flowfleet.flow_run import FlowRun, Offer, claim_id
from tests.lawless_api import LawlessApi

MARK = Mark(fleet="test", worker="w@h")
BULK = "bulk_set_state"


class Asked:
    """An API, a client that does not wait between its tries, and runs to claim."""

    def __init__(self, api: LawlessApi) -> None:
        self.api = api
        # its clock stands: neither a slow answer nor a slow test ages what it has read
        session = Session(Address(url=api.api_url), pause=lambda _: None, clock=lambda: 1000.0)
        self.client = Prefect3(session, clock=lambda: 1000.0)
        api.add_pool()
        self.offer = self.client.presence.resolve(Offer(backend="prefect3", pools=("flowfleet",)), create=True)
        self.call = str(uuid.uuid4())

    def runs(self, number: int = 1) -> list[FlowRun]:
        for _ in range(number):
            self.api.add_run()
        return [run for due in self.client.backlog.due([self.offer], within_seconds=1, limit=200) for run in due.runs]

    def claim(self, runs: list[FlowRun]) -> set[Verdict]:
        return {answer.verdict for answer in self.client.claims.claim(runs, self.call, MARK).values()}


@pytest.fixture(params=[True, False], ids=["honest", "lawless"])
def asked(request: pytest.FixtureRequest) -> Iterator[Asked]:
    with LawlessApi(honest=request.param) as api:
        yield Asked(api)


@pytest.fixture
def honest() -> Iterator[Asked]:
    with LawlessApi(honest=True) as api:
        yield Asked(api)


def test_a_null_abort_of_a_claim_that_was_made_is_settled_as_ours(asked):
    runs = asked.runs(3)
    asked.api.fail(BULK, "null_abort_after")
    assert asked.claim(runs) == {Verdict.ACCEPTED}


def test_a_null_abort_of_a_claim_that_was_not_made_is_settled_as_refused(asked):
    runs = asked.runs(3)
    asked.api.fail(BULK, "null_abort")
    assert asked.claim(runs) == {Verdict.REFUSED}
    assert {asked.api.state(run.run_id)["name"] for run in runs} == {"Scheduled"}


def test_a_null_abort_that_cannot_be_read_up_stays_unsure(asked):
    runs = asked.runs()
    asked.api.fail(BULK, "null_abort_after")
    asked.api.fail("flow_runs/filter", times=-1)
    assert asked.claim(runs) == {Verdict.UNSURE}
    asked.api.heal()
    assert asked.client.claims.settle(runs[0].run_id, asked.call).verdict is Verdict.ACCEPTED


def test_a_run_that_the_answer_leaves_out_is_refused_only_after_a_look(honest):
    first, second = honest.runs(2)
    honest.claim([first])
    honest.client.claims.claim([second], str(uuid.uuid4()), MARK)
    answers = honest.client.claims.claim([first, second], honest.call, MARK)
    assert answers[first.run_id].verdict is Verdict.ACCEPTED, "our own claim of before"
    assert answers[second.run_id].verdict is Verdict.REFUSED


def test_a_line_that_breaks_after_the_claim_was_made_is_ours_by_the_repeat(honest):
    """The session asks again by itself: the second answer leaves the run out, and the look shows our id."""
    runs = honest.runs()
    honest.api.fail(BULK, "drop_after")
    assert honest.claim(runs) == {Verdict.ACCEPTED}
    assert honest.api.history(runs[0].run_id) == ["Scheduled", "Submitted"]


def test_503_to_the_end_leaves_a_claim_unsure(asked):
    runs = asked.runs(2)
    asked.api.fail(BULK, times=-1)
    assert asked.claim(runs) == {Verdict.UNSURE}


def test_a_refused_key_says_nothing_about_any_run(asked):
    (run,) = asked.runs()
    asked.api.fail("flow_runs", times=-1, status=401)
    for ask in (
        lambda: asked.client.claims.claim([run], asked.call, MARK),
        lambda: asked.client.claims.settle(run.run_id, asked.call),
        lambda: asked.client.claims.launching(run.run_id, asked.call, claim_id(asked.call, run.run_id), MARK),
        lambda: asked.client.ends.hand_back(run.run_id, asked.call, run.due, MARK, "drill"),
        lambda: asked.client.ends.report(run.run_id, StateType.CRASHED, "x", MARK),
        lambda: asked.client.ends.states([run.run_id]),
    ):
        with pytest.raises(KeyRefused):
            ask()


def test_a_null_abort_of_the_launch_is_settled_by_reading(asked):
    (run,) = asked.runs()
    asked.claim([run])
    claim = claim_id(asked.call, run.run_id)
    asked.api.fail(BULK, "null_abort")
    assert asked.client.claims.launching(run.run_id, asked.call, claim, MARK).verdict is Verdict.UNSURE
    asked.api.fail(BULK, "null_abort_after")
    assert asked.client.claims.launching(run.run_id, asked.call, claim, MARK).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize("fault", ["drop_after", "null_abort_after"])
def test_a_hand_back_and_an_end_whose_answer_was_lost_are_known_as_ours(honest, fault):
    one, two = honest.runs(2)
    honest.claim([one, two])
    honest.api.fail(BULK, fault)
    assert honest.client.ends.hand_back(one.run_id, honest.call, one.due, MARK, "drill").verdict is Verdict.ACCEPTED
    honest.api.fail(BULK, fault)
    assert honest.client.ends.report(two.run_id, StateType.CRASHED, "it ended", MARK).verdict is Verdict.ACCEPTED
    assert honest.api.history(one.run_id) == ["Scheduled", "Submitted", "Scheduled"]
    assert honest.api.history(two.run_id) == ["Scheduled", "Submitted", "Crashed"]


def test_the_lawless_api_lets_two_claimers_have_one_run():
    """That is what it is for: whoever leans on the server's lock fails here."""
    with LawlessApi() as api:
        asked = Asked(api)
        (run,) = asked.runs()
        for _ in range(2):
            answer = asked.client.claims.claim([run], str(uuid.uuid4()), MARK)[run.run_id]
            assert answer.verdict is Verdict.ACCEPTED
        assert api.history(run.run_id) == ["Scheduled", "Submitted", "Submitted"]


def test_the_honest_one_does_not(honest):
    (run,) = honest.runs()
    verdicts = [honest.client.claims.claim([run], str(uuid.uuid4()), MARK)[run.run_id].verdict for _ in range(2)]
    assert verdicts == [Verdict.ACCEPTED, Verdict.REFUSED]


def test_a_server_without_bulk_claims_is_refused_with_its_version(honest):
    honest.api.fail(BULK, status=405)
    with pytest.raises(ApiRejected, match=r"has version 3\.8\.8, which cannot claim runs in bulk.*upgrade"):
        honest.client.probe()


def test_what_answers_404_is_no_prefect_api(honest):
    stranger = Prefect3(Session(Address(url=honest.api.api_url.removesuffix("/api") + "/other")))
    with pytest.raises(ApiRejected, match=r"is not a Prefect 3 API: it answers 404.*usually ends in /api"):
        stranger.probe()


def test_more_than_ten_runs_are_no_claim(honest):
    with pytest.raises(ValueError, match="at most 10"):
        honest.client.claims.claim(honest.runs(11), honest.call, MARK)


def test_idle_polling_is_one_request_per_pool(honest):
    honest.client.backlog.due([honest.offer], within_seconds=60, limit=50)
    before = honest.api.counted()
    for _ in range(5):
        honest.client.backlog.due([honest.offer, honest.offer], within_seconds=60, limit=50)
    assert honest.api.counted() - before == 5


def test_what_a_run_costs_in_requests(honest):
    """Claim, job (of a known deployment), launch, infrastructure mark: four."""
    first, second = honest.runs(2)
    honest.api.runs[second.run_id]["deployment_id"] = honest.api.runs[first.run_id]["deployment_id"]
    honest.client.jobs.job(first.run_id)
    before = honest.api.counted()
    honest.claim([second])
    honest.client.jobs.job(second.run_id)
    honest.client.claims.launching(second.run_id, honest.call, claim_id(honest.call, second.run_id), MARK)
    honest.client.claims.started(second.run_id, MARK, 1)
    assert honest.api.counted() - before == 4


def test_a_deleted_pool_holds_up_no_other(honest):
    """Workers may go on offering a pool that somebody has deleted."""
    honest.api.add_pool("other")
    both = honest.client.presence.resolve(Offer(backend="prefect3", pools=("flowfleet", "other")), create=False)
    run = honest.api.add_run("other")
    del honest.api.pools["flowfleet"]
    (found,) = honest.client.backlog.due([both], within_seconds=1, limit=5)
    assert [each.run_id for each in found.runs] == [run]
    (counted,) = honest.client.backlog.count_due([both])
    assert counted.due == 1


def test_many_threads_claim_through_one_client(honest):
    """The supervisor, the tasks and the outbox of a worker share one client."""
    runs = honest.runs(60)
    batches = [runs[start : start + 5] for start in range(0, 60, 5)]
    verdicts: list[Verdict] = []

    def claim(batch: list[FlowRun]) -> None:
        call = str(uuid.uuid4())
        verdicts.extend(answer.verdict for answer in honest.client.claims.claim(batch, call, MARK).values())
        for run in batch:
            claimed = claim_id(call, run.run_id)
            honest.client.jobs.job(run.run_id)
            verdicts.append(honest.client.claims.launching(run.run_id, call, claimed, MARK).verdict)

    threads = [threading.Thread(target=claim, args=(batch,)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [Verdict.ACCEPTED] * 120


@pytest.mark.parametrize(("status", "silent"), [(503, True), (504, True), (500, False)])
def test_no_answer_at_all_is_told_apart_from_one_that_settles_nothing(asked, status, silent):
    (run,) = asked.runs()
    asked.api.fail("flow_runs", times=-1, status=status)
    for answer in (
        asked.client.claims.claim([run], asked.call, MARK)[run.run_id],
        asked.client.claims.settle(run.run_id, asked.call),
        asked.client.ends.hand_back(run.run_id, asked.call, run.due, MARK, "drill"),
    ):
        assert answer.verdict is Verdict.UNSURE
        assert bool(answer.silence) is silent


# --- what is no answer of Prefect's


@pytest.mark.parametrize("status", [200, 404])
def test_once_proven_a_proxys_page_is_no_fact_about_anything(asked, status):
    (run,) = asked.runs()
    asked.claim([run])  # by a client that has found its pool, as a worker does
    asked.api.fail("", "page", times=-1, status=status)
    for ask in (
        lambda: asked.client.backlog.due([asked.offer], within_seconds=1, limit=5),
        lambda: asked.client.presence.resolve(asked.offer, create=False),
        lambda: asked.client.ends.states([run.run_id]),
        lambda: asked.client.jobs.job(run.run_id),
        lambda: asked.client.presence.offline("flowfleet", "f"),
    ):
        with pytest.raises(ApiUnavailable, match="is not there now"):
            ask()
    answer = asked.client.claims.settle(run.run_id, asked.call)
    assert (answer.verdict, answer.gone, bool(answer.silence)) == (Verdict.UNSURE, False, True)
    answer = asked.client.ends.hand_back(run.run_id, asked.call, run.due, MARK, "drill")
    assert (answer.verdict, answer.gone, bool(answer.silence)) == (Verdict.UNSURE, False, True)


def test_one_that_was_only_probed_is_proven_too(honest):
    client = Prefect3(Session(Address(url=honest.api.api_url), pause=lambda _: None))
    client.probe()
    honest.api.fail("", "page", times=-1, status=404)
    with pytest.raises(ApiUnavailable, match="is not there now"):
        client.presence.resolve(honest.offer, create=False)


def test_prefects_own_404_is_believed(asked):
    asked.client.probe()
    assert asked.client.claims.settle(str(uuid.uuid4()), asked.call).gone


@pytest.mark.parametrize("body", [None, {}, [], 7, "x", [None], [{}], {"results": None}, {"state": "x", "id": 1}])
def test_json_of_the_wrong_shape_says_nothing_and_breaks_nothing(asked, body):
    (run,) = asked.runs()
    asked.claim([run])
    asked.api.fail("", "json", times=-1, body=body)
    claim = claim_id(asked.call, run.run_id)
    for answer in (
        asked.client.claims.claim([run], asked.call, MARK)[run.run_id],
        asked.client.claims.settle(run.run_id, asked.call),
        asked.client.claims.launching(run.run_id, asked.call, claim, MARK),
        asked.client.ends.hand_back(run.run_id, asked.call, run.due, MARK, "drill"),
        asked.client.ends.report(run.run_id, StateType.CRASHED, "x", MARK),
    ):
        # of a list of runs the empty one is a right answer: they are gone
        assert answer.verdict is Verdict.UNSURE or (body == [] and answer.gone)
        assert answer.silence is None
    with pytest.raises(ApiUnavailable):
        asked.client.jobs.job(run.run_id)


@pytest.mark.parametrize("body", [None, 7, "", {}, [None], [{}], {"id": 1}])
def test_a_list_of_the_wrong_shape_is_no_list(asked, body):
    asked.api.fail("", "json", times=-1, body=body)
    for ask in (
        lambda: asked.client.backlog.due([asked.offer], within_seconds=1, limit=5),
        lambda: asked.client.unfinished(MARK),
        lambda: asked.client.ends.states(["x"]),
    ):
        with pytest.raises(ApiUnavailable, match="is no such thing"):
            ask()

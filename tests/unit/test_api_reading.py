"""Answers that settle nothing: what the client makes of null states, broken lines, 503s and refused keys."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from flowfleet.api.client import Answer, Mark, StateType, Verdict
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
        clock = {"clock": lambda: 1000.0, "boot_clock": lambda: 1000.0}
        session = Session(Address(url=api.api_url), pause=lambda _: None, **clock)
        self.client = Prefect3(session, clock=lambda: 1000.0)
        api.add_pool()
        self.offer = self.client.presence.resolve(Offer(backend="prefect3", pools=("flowfleet",)), create=True)
        self.call = str(uuid.uuid4())

    def runs(self, number: int = 1) -> list[FlowRun]:
        for _ in range(number):
            self.api.add_run()
        return self.listed()

    def listed(self) -> list[FlowRun]:
        return [run for due in self.client.backlog.due([self.offer], within_seconds=1, limit=200) for run in due.runs]

    def due(self) -> list[str]:
        """The runs that the API hands out now."""
        return [run.run_id for run in self.listed()]

    def claim(self, runs: list[FlowRun]) -> set[Verdict]:
        return {answer.verdict for answer in self.client.claims.claim(runs, self.call, MARK).values()}

    def claim_one(self, run: FlowRun, call: str | None = None) -> Answer:
        return self.client.claims.claim([run], call or self.call, MARK)[run.run_id]

    def settle(self, run: FlowRun) -> Answer:
        return self.client.claims.settle(run.run_id, self.call)

    def launch(self, run: FlowRun, call: str | None = None) -> Answer:
        call = call or self.call
        return self.client.claims.launching(run.run_id, call, claim_id(call, run.run_id), MARK)

    def hand_back(self, run: FlowRun) -> Answer:
        return self.client.ends.hand_back(run.run_id, self.call, run.due, MARK, "drill")

    def report(self, run: FlowRun) -> Answer:
        return self.client.ends.report(run.run_id, StateType.CRASHED, "it ended", MARK)

    def run_again(self, run: FlowRun) -> Answer:
        return self.client.ends.run_again(run.run_id, claim_id(self.call, run.run_id), "it is started again", MARK)


@pytest.fixture(params=[True, False], ids=["honest", "lawless"])
def asked(request: pytest.FixtureRequest) -> Iterator[Asked]:
    with LawlessApi(honest=request.param) as api:
        yield Asked(api)


@pytest.fixture
def honest() -> Iterator[Asked]:
    with LawlessApi(honest=True) as api:
        yield Asked(api)


@pytest.mark.parametrize(
    ("fault", "verdict", "state"),
    [
        pytest.param({"kind": "null_abort_after"}, Verdict.ACCEPTED, "Submitted", id="null abort of one that was made"),
        pytest.param({"kind": "null_abort"}, Verdict.REFUSED, "Scheduled", id="null abort of one that was not made"),
        pytest.param({"times": -1}, Verdict.UNSURE, "Scheduled", id="503 to the end"),
    ],
)
def test_a_claim_without_a_clear_answer_is_settled_by_a_look(asked, fault, verdict, state):
    runs = asked.runs(3)
    asked.api.fail(BULK, **fault)
    assert asked.claim(runs) == {verdict}
    assert {asked.api.state(run.run_id)["name"] for run in runs} == {state}


def test_a_null_abort_that_cannot_be_read_up_stays_unsure(asked):
    (run,) = asked.runs()
    asked.api.fail(BULK, "null_abort_after")
    asked.api.fail("flow_runs/filter", times=-1)
    assert asked.claim_one(run).verdict is Verdict.UNSURE
    asked.api.heal()
    assert asked.settle(run).verdict is Verdict.ACCEPTED


def test_a_line_that_breaks_after_the_claim_was_made_is_ours_by_the_repeat(honest):
    """The session asks again by itself: the second answer leaves the run out, and the look shows our id."""
    runs = honest.runs()
    honest.api.fail(BULK, "drop_after")
    assert honest.claim(runs) == {Verdict.ACCEPTED}
    assert honest.api.history(runs[0].run_id) == ["Scheduled", "Submitted"]


@pytest.mark.parametrize("ask", [Asked.claim_one, Asked.settle, Asked.launch, Asked.hand_back, Asked.report])
def test_a_refused_key_says_nothing_about_any_run(asked, ask):
    (run,) = asked.runs()
    asked.api.fail("flow_runs", times=-1, status=401)
    with pytest.raises(KeyRefused):
        ask(asked, run)
    with pytest.raises(KeyRefused):
        asked.client.ends.states([run.run_id])


def test_a_null_abort_of_the_launch_is_settled_by_reading(asked):
    (run,) = asked.runs()
    asked.claim([run])
    for fault, verdict in (("null_abort", Verdict.UNSURE), ("null_abort_after", Verdict.ACCEPTED)):
        asked.api.fail(BULK, fault)
        assert asked.launch(run).verdict is verdict


@pytest.mark.parametrize("fault", ["drop_after", "null_abort_after"])
@pytest.mark.parametrize(("write", "state"), [(Asked.hand_back, "Scheduled"), (Asked.report, "Crashed")])
def test_a_hand_back_and_an_end_whose_answer_was_lost_are_known_as_ours(honest, fault, write, state):
    (run,) = honest.runs()
    honest.claim([run])
    honest.api.fail(BULK, fault)
    assert write(honest, run).verdict is Verdict.ACCEPTED
    assert honest.api.history(run.run_id) == ["Scheduled", "Submitted", state]


@pytest.fixture
def retrying(honest: Asked) -> FlowRun:
    """A run of a deployment with retries: after its first failure its own process runs it once more."""
    (run,) = honest.runs()
    honest.claim([run])
    honest.launch(run)
    honest.api.runs[run.run_id]["empirical_policy"] = {"retries": 3, "retry_delay": 7, "retry_type": "in_process"}
    for state in (("RUNNING", None), ("SCHEDULED", "AwaitingRetry"), ("RUNNING", "Retrying")):
        honest.api.write(run.run_id, *state)
    return run


def test_a_run_that_was_lost_while_its_own_process_tried_it_again_is_handed_out_anew(honest, retrying):
    """With the retry in its process still noted the server hands it to nobody, and it stays Scheduled for ever."""
    for _ in range(2):
        assert honest.run_again(retrying).verdict is Verdict.ACCEPTED
    assert honest.due() == [retrying.run_id]
    policy = honest.api.runs[retrying.run_id]["empirical_policy"]
    assert policy == {"retries": 3, "retry_delay": 7, "retry_type": None}, "all else stays as the deployment has it"


@pytest.mark.parametrize("where", [BULK, "PATCH"])
def test_a_crash_between_the_two_writes_that_start_a_run_again_leaves_it_to_be_started_again(honest, retrying, where):
    honest.api.fail(where, times=-1)
    assert honest.run_again(retrying).verdict is Verdict.UNSURE
    assert honest.api.state(retrying.run_id)["name"] == "Retrying", "never Scheduled where nobody gets it"
    honest.api.heal()
    assert honest.run_again(retrying).verdict is Verdict.ACCEPTED
    assert honest.due() == [retrying.run_id]


def test_what_was_read_long_ago_does_not_take_a_retry_from_the_process_that_has_the_run_since(honest, retrying):
    """A frozen leader: meanwhile the run was started again, and waits in its new process for its next try."""
    boot = [0.0]

    def somebody_else_has_it() -> None:
        if not boot[0]:
            boot[0] = 600.0
            for state in (("CRASHED", None), ("SCHEDULED", "Scheduled"), ("PENDING", None), ("RUNNING", None)):
                honest.api.write(retrying.run_id, *state)
            honest.api.write(retrying.run_id, "SCHEDULED", "AwaitingRetry")

    frozen = Session(Address(url=honest.api.api_url), boot_clock=lambda: boot[0])
    client = Prefect3(frozen, between=somebody_else_has_it)
    claim = claim_id(honest.call, retrying.run_id)
    assert client.ends.run_again(retrying.run_id, claim, "it is started again", MARK).verdict is Verdict.REFUSED
    assert honest.due() == []


@pytest.mark.parametrize("honest", [True, False])
def test_the_lawless_api_lets_two_claimers_have_one_run_and_the_honest_one_does_not(honest):
    """That is what it is for: whoever leans on the server's lock fails here."""
    with LawlessApi(honest=honest) as api:
        asked = Asked(api)
        (run,) = asked.runs()
        verdicts = [asked.claim_one(run, str(uuid.uuid4())).verdict for _ in range(2)]
        assert verdicts == [Verdict.ACCEPTED, Verdict.REFUSED if honest else Verdict.ACCEPTED]
        assert api.history(run.run_id) == ["Scheduled", *["Submitted"] * (1 if honest else 2)]


def test_a_server_without_bulk_claims_and_what_answers_404_are_refused_with_the_remedy(honest):
    honest.api.fail(BULK, status=405)
    with pytest.raises(ApiRejected, match=r"has version 3\.8\.8, which cannot claim runs in bulk.*upgrade"):
        honest.client.probe()

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
    honest.launch(second)
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

    def claim(start: int) -> list[Verdict]:
        call, batch = str(uuid.uuid4()), runs[start : start + 5]
        answers = [*honest.client.claims.claim(batch, call, MARK).values()]
        for run in batch:
            honest.client.jobs.job(run.run_id)
            answers.append(honest.launch(run, call))
        return [answer.verdict for answer in answers]

    with ThreadPoolExecutor(12) as threads:
        verdicts = [verdict for batch in threads.map(claim, range(0, 60, 5)) for verdict in batch]
    assert verdicts == [Verdict.ACCEPTED] * 120


@pytest.mark.parametrize(("status", "silent"), [(503, True), (504, True), (500, False)])
@pytest.mark.parametrize("ask", [Asked.claim_one, Asked.settle, Asked.hand_back])
def test_no_answer_at_all_is_told_apart_from_one_that_settles_nothing(asked, ask, status, silent):
    (run,) = asked.runs()
    asked.api.fail("flow_runs", times=-1, status=status)
    answer = ask(asked, run)
    assert (answer.verdict, bool(answer.silence)) == (Verdict.UNSURE, silent)


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
    for answer in (asked.settle(run), asked.hand_back(run)):
        assert (answer.verdict, answer.gone, bool(answer.silence)) == (Verdict.UNSURE, False, True)


def test_one_that_was_only_probed_is_proven_too(honest):
    client = Prefect3(Session(Address(url=honest.api.api_url), pause=lambda _: None))
    client.probe()
    honest.api.fail("", "page", times=-1, status=404)
    with pytest.raises(ApiUnavailable, match="is not there now"):
        client.presence.resolve(honest.offer, create=False)


@pytest.mark.parametrize("body", [None, {}, [], 7, "x", [None], [{}], {"results": None}, {"state": "x", "id": 1}])
def test_json_of_the_wrong_shape_says_nothing_and_breaks_nothing(asked, body):
    (run,) = asked.runs()
    asked.claim([run])
    asked.api.fail("", "json", times=-1, body=body)
    for ask in (asked.claim_one, asked.settle, asked.launch, asked.hand_back, asked.report):
        answer = ask(run)
        # of a list of runs the empty one is a right answer: they are gone
        assert answer.verdict is Verdict.UNSURE or (body == [] and answer.gone)
        assert answer.silence is None
    with pytest.raises(ApiUnavailable):
        asked.client.jobs.job(run.run_id)


@pytest.mark.parametrize("body", [None, {}, [], 7, "x", [None], {"id": 1}])
def test_a_place_of_the_wrong_shape_is_no_place(asked, body):
    (run,) = asked.runs()
    asked.api.fail("GET /work_pools/flowfleet", "json", times=-1, body=body)
    with pytest.raises(ApiUnavailable, match="for where a run waits"):
        asked.client.backlog.place(run.run_id)


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

"""Run log: lines of ours at the API, all at once or, with `--no-cloud-logs`, none."""

import pytest

from workers.reporting.run_log import RunLog


class FakeApi:
    def __init__(self):
        self.lines = []

    def log(self, lines):
        self.lines += [line.message for line in lines]


class FakeJobs:
    def __init__(self):
        self.jobs = []

    def post(self, job, *, after=0.0):
        self.jobs.append(job)


@pytest.mark.parametrize(("enabled", "sent"), [(True, ["one", "two"]), (False, [])])
def test_lines_are_sent_together_or_not_at_all(enabled, sent):
    api, background = FakeApi(), FakeJobs()
    run_log = RunLog(api, background, enabled=enabled)
    run_log.say("r", "one")
    run_log.say("r", "two")
    assert len(background.jobs) == (1 if enabled else 0)
    for job in background.jobs:
        job()
    assert api.lines == sent

"""Run log: lines of ours at the API, all at once or, with `--no-cloud-logs`, none."""

from types import SimpleNamespace

import pytest

from workers.reporting.run_log import RunLog


@pytest.mark.parametrize(("enabled", "sent"), [(True, ["one", "two"]), (False, [])])
def test_lines_are_sent_together_or_not_at_all(enabled, sent):
    lines, jobs = [], []
    api = SimpleNamespace(log=lines.extend)

    def post(job, *, after):
        jobs.append(job)

    run_log = RunLog(api, SimpleNamespace(post=post), enabled=enabled)
    run_log.say("r", "one")
    run_log.say("r", "two")
    assert len(jobs) == (1 if enabled else 0)
    for job in jobs:
        job()
    assert [line.message for line in lines] == sent

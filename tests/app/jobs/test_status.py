"""The transition table."""

import pytest

from app.jobs.status import TRANSITIONS, JobStatus, may_move


def test_every_status_has_a_row() -> None:
    assert set(TRANSITIONS) == set(JobStatus)


def test_a_succeeded_job_is_final() -> None:
    assert not any(may_move(JobStatus.SUCCEEDED, target) for target in JobStatus)


def test_cancelling_ends_in_cancelled_only() -> None:
    assert [t for t in JobStatus if may_move(JobStatus.CANCELLING, t)] == [JobStatus.CANCELLED]


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED])
def test_an_ended_job_moves_by_resume_only(status: JobStatus) -> None:
    assert status.is_terminal
    assert [t for t in JobStatus if may_move(status, t)] == [JobStatus.QUEUED]


def test_every_status_can_be_reached_and_left_as_drawn() -> None:
    reached = {target for targets in TRANSITIONS.values() for target in targets}
    assert reached == set(JobStatus)
    assert [s for s in JobStatus if not TRANSITIONS[s]] == [JobStatus.SUCCEEDED]

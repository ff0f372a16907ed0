"""What a job's status can be and how it moves. Pure: no database, no clock.

                 claim                      publish
    queued ───────────────▶ running ──────────────────▶ succeeded
     │  ▲                    │ │ │
     │  │  release, retry    │ │ │   error, attempts exhausted
     │  └────────────────────┘ │ └────────────────────▶ failed
     │                         │ cancel
     │                         ▼
     │                     cancelling
     │ cancel                  │ trainer stopped, or its worker died
     │                         ▼
     ├────────────────────▶ cancelled
     │ waited too long
     └────────────────────▶ failed

    failed, cancelled ──resume──▶ queued

A worker that takes over a job whose lease ran out moves it from running to running: same status, next attempt. When
none does between two sweeps, it moves from running to queued, where it holds up nobody: it may be too large for them.
A cancel that meets any other ending of the attempt wins: cancelling leads to cancelled and nowhere else.
"""

from collections.abc import Mapping
from enum import StrEnum


class JobStatus(StrEnum):
    """The coarse state of a job. The fine grain of ``running`` is ``progress.phase``."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Nothing happens to the job any more unless a person resumes it."""
        return self in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}

    @property
    def is_held(self) -> bool:
        """A worker holds the job, or held it when its lease ran out."""
        return self in {JobStatus.RUNNING, JobStatus.CANCELLING}


TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELLING, JobStatus.SUCCEEDED, JobStatus.FAILED}
    ),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELLED: frozenset({JobStatus.QUEUED}),
}
"""From each status, the statuses it may move to."""


def may_move(current: JobStatus, target: JobStatus) -> bool:
    """Whether the move is one of the diagram's."""
    return target in TRANSITIONS[current]

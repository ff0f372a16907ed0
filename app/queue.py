"""Telling workers that a job waits. The ledger is the queue; what is sent here is a hint (app/jobs/hint.py)."""

from typing import Protocol

from app.jobs.hint import HintSender


class TaskQueue(Protocol):
    """Where a committed job is announced."""

    def send(self, job_id: str) -> bool:
        """Tell the workers. True: nothing is owed any more. False: the broker did not take it, which is logged and
        left to the sweeper. Never raises for a broker that is down, and takes seconds at most."""
        ...

    def is_reachable(self) -> bool:
        """Whether a message sent now would be taken."""
        ...

    def close(self) -> None:
        """Drop the connections."""
        ...


class LedgerOnlyQueue:
    """No broker: workers ask the ledger on their own."""

    def send(self, job_id: str) -> bool:  # noqa: ARG002 - there is nobody to tell
        """Nothing is sent, nothing is owed."""
        return True

    def is_reachable(self) -> bool:
        """There is nothing to reach."""
        return True

    def close(self) -> None:
        """Nothing to drop."""


class CeleryTaskQueue(HintSender):
    """A Celery broker: Redis or RabbitMQ."""

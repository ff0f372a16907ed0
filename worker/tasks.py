"""The doorway from Celery: checks the hint, wakes the supervisor.

A hint names a job, but hints come in the order they were sent, and whose turn it is the ledger knows (decision 011):
whoever is woken asks for any job, and goes on until there is none.
"""

import time
from collections.abc import Callable

import structlog
from celery import Celery

from app.jobs.errors import LedgerUnavailable
from app.jobs.hint import TASK_NAME, is_job_id
from worker.supervisor import Supervisor

_log = structlog.get_logger(__name__)

PASS_ON_AFTER_S = 0.2


def run_all(supervisor: Supervisor) -> int:
    """Run jobs one after the other while there are any; returns how many. Raises `LedgerUnavailable`."""
    num_run = 0
    while supervisor.run_one():
        num_run += 1
    return num_run


def register(celery: Celery, supervisor: Supervisor, send_hint: Callable[[str], bool]) -> None:
    """Have ``celery`` hand the hints it receives to ``supervisor``; ``send_hint`` passes on those it cannot take."""

    @celery.task(name=TASK_NAME, ignore_result=True, acks_late=False, max_retries=0)  # type: ignore[untyped-decorator]
    def adapt(job_id: object = None, *_: object, **__: object) -> None:
        if not isinstance(job_id, str) or not is_job_id(job_id):
            _log.warning("hint_forged")
            return
        try:
            if run_all(supervisor):
                return
        except LedgerUnavailable as e:
            _log.warning("ledger_unavailable", job_id=job_id, error=str(e)[:300])  # the sweeper sends another hint
            return
        if supervisor.stopping:
            # Celery goes on receiving for a moment after it was told to stop. Without this, the hint about the very
            # job that this worker has just given back would end here, and the job wait for the next one.
            time.sleep(PASS_ON_AFTER_S)
            _log.info("hint_passed_on", job_id=job_id, sent=send_hint(job_id))
        else:
            _log.info("hint_dropped", job_id=job_id)  # doubled or late

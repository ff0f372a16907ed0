"""What takes protections out of a worker, for negative controls: flags of tests/support/worker_main.py.

- ``--no-fence``: whoever knows a job's id may write to it.
- ``--no-guard``: a claim takes a job that is held, too.
- ``--no-beats``: nothing extends a lease.
- ``--no-sweeper``: nobody ends what the dead left, nor sends hints that are owed.
- ``--no-obedience``: a cancel is not heard of.
- ``--no-overdue``: training goes on when the lease could not be extended in time.
- ``--no-database-clock``: leases end by this process's clock.
- ``--no-asking``: the worker takes jobs on hints alone.
- ``--no-resend``: nobody sends the hints that are owed.
- ``--acks-late``: a hint is acknowledged when the job is done, as Celery can.
- ``--visibility-timeout=S``: when Redis' unacknowledged messages are delivered again.
- ``--patient``: it waits for Redis as long as Redis takes.
- ``--listen-once``: what ends Celery ends the worker.
- ``--any-message``: Celery takes messages as it does by itself.
- ``--pickle``: and those that are pickled.
"""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery
from celery.worker.consumer import Consumer
from sqlalchemy import BindParameter, ColumnElement, literal, select
from sqlalchemy.orm import Session

from app.jobs import claims
from app.jobs.claims import ClaimStore
from app.jobs.hint import TASK_NAME
from app.tables import Job, UtcDateTime
from worker import __main__ as program
from worker.embedded import EmbeddedWorker
from worker.link import LedgerLink
from worker.supervisor import Supervisor
from worker.sweeper import Sweeper


def take_away(flags: Sequence[str]) -> None:
    """Patch this process."""
    for flag in flags:
        name, _, value = flag.partition("=")
        if name == "--visibility-timeout":
            often = {"unacked_restore_interval": 0.2, "unacked_restore_throttle": 1}  # looks for them
            _configure(broker_transport_options={"visibility_timeout": float(value), **often})
        else:
            _TAKE_AWAY[name]()


def _no_fence() -> None:
    ClaimStore._fence = lambda _, claim: (Job.id == claim.job_id,)  # type: ignore[assignment,misc,return-value]


def _no_guard() -> None:
    def unfinished() -> ColumnElement[bool]:
        return Job.status.in_(["queued", "running"])

    def next_job(session: Session, *_: Any, **__: Any) -> str | None:
        return session.scalar(select(Job.id).where(unfinished()))

    claims.is_claimable, claims.next_job = unfinished, next_job


def _no_beats() -> None:
    LedgerLink._beat = lambda _: time.monotonic()  # type: ignore[method-assign]


def _no_sweeper() -> None:
    Sweeper.sweep = lambda _: None  # type: ignore[method-assign]


def _no_obedience() -> None:
    LedgerLink._heed = lambda *_: None  # type: ignore[method-assign]


def _no_overdue() -> None:
    LedgerLink.overdue = False  # type: ignore[assignment,method-assign]


def _no_database_clock() -> None:
    def now_plus(delta: timedelta) -> BindParameter[datetime]:
        return literal(datetime.now(UTC) + delta, UtcDateTime())

    claims.now_plus = now_plus  # type: ignore[assignment]


def _no_asking() -> None:
    EmbeddedWorker._run = lambda _: None  # type: ignore[method-assign]


def _no_resend() -> None:
    Sweeper._resend = lambda *_: None  # type: ignore[method-assign]


def _acks_late() -> None:
    _configure(task_acks_late=True)
    register = program.register

    def register_late(celery: Celery, *arguments: Any) -> None:
        register(celery, *arguments)
        celery.tasks[TASK_NAME].acks_late = True

    program.register = register_late


def _patient() -> None:
    _configure(broker_transport_options={})


def _listen_once() -> None:
    def listen(celery: Celery, supervisor: Supervisor) -> int:
        worker = celery.Worker(without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True)
        worker.start()
        return int(worker.exitcode or 0)

    program._listen = listen


def _any_message() -> None:
    _configure(worker_consumer=Consumer)


def _pickle() -> None:
    _configure(accept_content=["json", "pickle"])


def _configure(**settings: Any) -> None:
    make = program.make_celery

    def make_otherwise(*arguments: Any) -> Celery:
        celery = make(*arguments)
        celery.conf.update(settings)
        return celery

    program.make_celery = make_otherwise


_TAKE_AWAY: dict[str, Callable[[], None]] = {
    "--no-fence": _no_fence,
    "--no-guard": _no_guard,
    "--no-beats": _no_beats,
    "--no-sweeper": _no_sweeper,
    "--no-obedience": _no_obedience,
    "--no-overdue": _no_overdue,
    "--no-database-clock": _no_database_clock,
    "--no-asking": _no_asking,
    "--no-resend": _no_resend,
    "--acks-late": _acks_late,
    "--patient": _patient,
    "--listen-once": _listen_once,
    "--any-message": _any_message,
    "--pickle": _pickle,
}

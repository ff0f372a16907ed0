"""``python -m worker``: takes jobs until SIGTERM, SIGINT or SIGHUP; has them checkpointed, gives them back, exits 0.

With a broker (``MUST_BROKER_URL``) it is a Celery worker, without one it asks the ledger itself. A second signal
ends it at once, and its trainers with it; their jobs are then recovered by their leases.
"""

import gc
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import structlog
from celery import Celery, signals
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from app.config import Settings
from app.database import make_engine, make_sessionmaker, migrate
from app.jobs.fleet import Presence
from app.jobs.hint import HintSender
from app.jobs.ledger import Ledger
from app.log import configure_logging
from app.storage import make_storage
from worker.celery_app import keep_logging_as_it_is, make_celery, make_worker
from worker.devices import Devices, Owned
from worker.embedded import EmbeddedWorker
from worker.housekeeper import Housekeeper
from worker.stop_signal import StopSignal
from worker.supervisor import Supervisor, SupervisorOptions
from worker.sweeper import Sweeper
from worker.tasks import register

_log = structlog.get_logger("worker")

LISTEN_AGAIN_S = 5.0


def main(settings: Settings | None = None, **overrides: Any) -> int:
    """Run a worker in this process until it is told to stop. Returns the exit code.

    ``overrides`` are fields of `SupervisorOptions` that no setting covers, such as the ``trainer`` to run.
    """
    configure_logging()
    settings = settings or Settings()
    engine = make_engine(settings.resolved_database_url)
    _migrate(engine)
    sessions = make_sessionmaker(engine)
    ledger = Ledger(
        sessions,
        max_running_jobs_per_tenant=settings.max_running_jobs_per_tenant,
        max_log_bytes=settings.max_job_log_bytes,
    )
    storage = make_storage(settings.resolved_storage_url, settings.data_dir.absolute() / "cache")
    supervisor = Supervisor(ledger=ledger, storage=storage, options=_options(settings, overrides))
    housekeeper = Housekeeper(
        sessions=sessions,
        storage=storage,
        runs_dir=settings.runs_dir,
        interval=settings.housekeeping_interval,
        blob_grace=settings.blob_grace,
        history_retention=settings.history_retention,
    )
    _log.info("worker_started", owner=supervisor.owner, broker=settings.broker_url is not None)
    housekeeper.start()
    if settings.broker_url is None:
        code = _run_embedded(settings, ledger, supervisor)
    else:
        code = _run_celery(settings, ledger, supervisor)
    housekeeper.stop()
    engine.dispose()
    _log.info("worker_stopped", exit_code=code)
    return code


def _options(settings: Settings, overrides: Mapping[str, Any]) -> SupervisorOptions:
    options = SupervisorOptions(
        models=settings.models,
        runs_dir=settings.runs_dir,
        checkpoint_interval=settings.checkpoint_interval,
        lease=settings.lease,
        stall_timeout=settings.stall_timeout,
        silence_timeout=settings.silence_timeout,
        stop_grace=settings.stop_grace,
        num_slots=settings.worker_concurrency,
        devices=Devices(Owned.parse(settings.worker_gpus)),
    )
    return replace(options, **overrides)


def _presence(settings: Settings, supervisor: Supervisor) -> Presence:
    devices = supervisor.devices
    return Presence(
        owner=supervisor.owner,
        num_slots=devices.num_jobs_at_most(settings.worker_concurrency),
        num_gpus=devices.most_for_a_job,
    )


def _migrate(engine: Engine) -> None:
    """Until the database answers: a worker may be started before it."""
    while True:
        try:
            return migrate(engine)
        except OperationalError as e:
            _log.warning("database_unavailable", error=str(e)[:300])
            time.sleep(2)


def _run_embedded(settings: Settings, ledger: Ledger, supervisor: Supervisor) -> int:
    sweeper = Sweeper(
        ledger,
        interval=settings.sweep_interval,
        runs_dir=settings.runs_dir,
        checkpoint_retention=settings.checkpoint_retention,
        presence=_presence(settings, supervisor),
    )
    worker = EmbeddedWorker(supervisor, concurrency=settings.worker_concurrency, poll_interval=settings.poll_interval)
    stop = StopSignal()
    sweeper.start()
    worker.start()
    stop.wait()
    _log.info("worker_stopping")
    worker.stop()
    sweeper.stop()
    return 0


def _run_celery(settings: Settings, ledger: Ledger, supervisor: Supervisor) -> int:
    celery = make_celery(settings)
    sender = HintSender(celery.conf.broker_url)
    register(celery, supervisor, sender.send)
    keep_logging_as_it_is()
    sweeper = Sweeper(
        ledger,
        interval=settings.sweep_interval,
        runs_dir=settings.runs_dir,
        checkpoint_retention=settings.checkpoint_retention,
        presence=_presence(settings, supervisor),
        send_hint=sender.send,
    )
    # A hint may have woken a worker that had no room for the job, and the next one is sent long after.
    asking = EmbeddedWorker(supervisor, concurrency=settings.worker_concurrency, poll_interval=settings.sweep_interval)

    # Celery calls this inside its own signal handler, in the main thread, which uses none of the supervisor's locks.
    def on_shutdown(*, sig: str, **_: Any) -> None:
        signal.signal(signal.Signals[sig], signal.SIG_DFL)  # the next one ends us; Celery would not hear it
        supervisor.stop()

    signals.worker_shutting_down.connect(on_shutdown, weak=False)
    sweeper.start()
    asking.start()
    code = _listen(celery, supervisor)
    asking.stop()
    sweeper.stop()
    sender.close()
    return code


def _listen(celery: Celery, supervisor: Supervisor) -> int:
    """Hear hints until told to stop. Returns the exit code.

    Celery waits for a broker that is away, but other things end it: a Redis that is full, a message that is none. It is
    started anew then; jobs at work go on meanwhile, and the worker asks for others by itself.
    """
    while True:
        worker = make_worker(celery)
        worker.start()  # returns after a warm shutdown, when the last job was given back
        if supervisor.stopping:
            return int(worker.exitcode or 0)
        _log.error("hints_not_heard", listens_again_in_s=LISTEN_AGAIN_S)
        del worker
        gc.collect()  # it holds descriptors in cycles
        if supervisor.wait_until_stopping(LISTEN_AGAIN_S):
            return 0


if __name__ == "__main__":
    sys.exit(main())

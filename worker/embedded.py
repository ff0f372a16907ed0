"""Threads that ask the ledger for work by themselves: all there is without a broker, and what a broker's hints miss."""

from collections.abc import Sequence
from datetime import timedelta
from threading import Event, Thread

import structlog

from app.jobs.errors import LedgerUnavailable
from worker.supervisor import Supervisor

_log = structlog.get_logger(__name__)


class EmbeddedWorker:
    """``concurrency`` threads between `start` and `stop`, each with one job at a time."""

    def __init__(self, supervisor: Supervisor, *, concurrency: int, poll_interval: timedelta) -> None:
        self._supervisor = supervisor
        self._poll_s = poll_interval.total_seconds()
        self._stopping = Event()
        # Daemons: a trainer's life hangs on its thread's, so leaving without `stop` leaves nothing running.
        self._threads: Sequence[Thread] = [
            Thread(target=self._run, name=f"slot-{n}", daemon=True) for n in range(concurrency)
        ]

    def start(self) -> None:
        """Begin to take jobs."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take no more jobs, have those at work checkpointed and given back, and wait for that."""
        self._stopping.set()
        self._supervisor.stop()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._supervisor.run_one():
                    continue
            except LedgerUnavailable as e:
                _log.warning("ledger_unavailable", error=str(e)[:300])
            except Exception:  # noqa: BLE001 - a job that cannot be read must not cost the slot
                _log.exception("slot_failed")
            self._stopping.wait(self._poll_s)

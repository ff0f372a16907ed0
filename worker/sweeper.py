"""Housekeeping that every worker does, any number at a time: dead workers' jobs, unsent hints, old folders and keys."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

import structlog

from app.jobs.errors import LedgerUnavailable
from app.jobs.fleet import Presence
from app.jobs.ledger import Ledger
from app.jobs.status import JobStatus
from worker import runs

_log = structlog.get_logger(__name__)

PATIENCE = timedelta(seconds=15)
TIDY_INTERVAL = timedelta(minutes=10)


class Sweeper:
    """A thread between `start` and `stop`."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        interval: timedelta,
        runs_dir: Path,
        checkpoint_retention: timedelta = timedelta(days=7),
        presence: Presence | None = None,
        send_hint: Callable[[str], bool] | None = None,
    ) -> None:
        """``checkpoint_retention``: how long those of unfinished jobs are kept. ``presence`` is told with each sweep.
        ``send_hint`` tells the broker of a job id and returns whether it took it; None without a broker."""
        self._ledger = ledger
        self._interval_s = interval.total_seconds()
        self._runs_dir = runs_dir
        self._checkpoint_retention = checkpoint_retention
        self._presence = presence
        self._send_hint = send_hint
        self._silent: tuple[str, ...] = ()
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin, with a sweep at once."""
        self._thread.start()

    def stop(self) -> None:
        """End; waits for a sweep that is under way."""
        self._stopping.set()
        self._thread.join()
        if self._presence is not None:
            with suppress(LedgerUnavailable):
                self._ledger.check_out(self._presence.owner)

    def sweep(self) -> None:
        """One round. Raises `LedgerUnavailable`."""
        if self._presence is not None:
            self._ledger.check_in(self._presence, timedelta(seconds=3 * self._interval_s) + PATIENCE)
        swept = self._ledger.sweep(self._silent)
        self._silent = swept.silent
        for job_id in swept.failed:
            _log.warning("job_failed", job_id=job_id, error="worker_lost")
        for job_id in swept.expired:
            _log.info("job_failed", job_id=job_id, error="pending_too_long")
        for job_id in swept.requeued:
            _log.warning("job_requeued", job_id=job_id, error="worker_lost")
        for job_id in swept.cancelled:
            _log.info("job_cancelled", job_id=job_id)
        if self._send_hint is not None:
            self._resend(self._send_hint)

    def tidy(self) -> None:
        """Remove expired Idempotency-Keys, and the checkpoints of jobs that are done with them: of workers that died
        between the end of a job and its clean-up, and of unfinished jobs that nobody resumed.

        Raises `LedgerUnavailable`."""
        self._ledger.forget_idempotency_keys()
        job_ids = sorted(set(runs.jobs_with_checkpoints(self._runs_dir)))
        for job_id in runs.done_with(self._ledger, job_ids, self._is_done):
            runs.discard_job(self._runs_dir, job_id)
            _log.info("run_folder_removed", job_id=job_id)

    def _is_done(self, status: JobStatus, finished_ago: timedelta) -> bool:
        return runs.may_discard(status, finished_ago, self._checkpoint_retention)

    def _resend(self, send: Callable[[str], bool]) -> None:
        sent = []
        for job_id in self._ledger.unsent():
            if self._stopping.is_set() or not send(job_id):
                break  # the broker is down; the next round tries again
            sent.append(job_id)
        if sent:
            self._ledger.mark_notified(sent)
            _log.info("hints_sent", num_jobs=len(sent))

    def _run(self) -> None:
        tidy_at = time.monotonic() + self._interval_s
        while not self._stopping.is_set():
            try:
                self.sweep()
                if time.monotonic() >= tidy_at:
                    tidy_at = time.monotonic() + TIDY_INTERVAL.total_seconds()
                    self.tidy()
            except LedgerUnavailable as e:
                _log.warning("ledger_unavailable", error=str(e)[:300])
            except Exception:  # noqa: BLE001 - whatever it is, dead workers' jobs are looked for again
                _log.exception("sweep_failed")
            # Spread out, so that many workers do not sweep in step.
            self._stopping.wait(self._interval_s * random.uniform(0.8, 1.2))

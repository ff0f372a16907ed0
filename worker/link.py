"""A held job's line to the ledger: beats and reports out, cancellation and loss in, on a thread of its own.

Nothing that the supervisor does (downloads, uploads, waiting for a trainer) delays a beat.
"""

import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace
from datetime import timedelta
from threading import Event, Thread
from types import TracebackType

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.jobs.errors import LeaseLost, LedgerUnavailable
from app.jobs.ledger import Ledger
from app.jobs.messages import Beat, Claim, Report
from worker.job_log import JobLog
from worker.relay import Relay

_log = structlog.get_logger(__name__)

MAX_BEAT_INTERVAL = timedelta(seconds=3)
"""However long the lease: each beat also asks whether to cancel, and people wait for that."""
MAX_LAST_REPORTS = 20
"""Once the attempt is over: what a trainer left running may go on talking."""
REPORT_INTERVAL = timedelta(seconds=1)


class LedgerLink:
    """Runs between ``with`` and its end. Its flags only ever turn true; ``on_change`` is called when one does."""

    def __init__(
        self,
        ledger: Ledger,
        claim: Claim,
        relay: Relay,
        job_log: JobLog,
        *,
        lease: timedelta,
        claimed_at: float,
        on_change: Callable[[], None],
    ) -> None:
        """``claimed_at``: what `time.monotonic` said just before the claim was made."""
        self._ledger = ledger
        self._claim = claim
        self._relay = relay
        self._job_log = job_log
        self._lease = lease
        self._on_change = on_change
        self._interval_s = min(lease / 4, MAX_BEAT_INTERVAL).total_seconds()
        self._done = Event()
        self._thread = Thread(target=copy_context().run, args=(self._run,), name="ledger-link", daemon=True)
        self.expires_at = claimed_at + lease.total_seconds()
        """On `time.monotonic`: past this, another worker may hold the job. Counted from before the database was
        asked, so never later than the lease's true end."""
        self.cancel_requested = False
        self.runtime_exceeded = claim.runtime_exceeded
        self.lost = False

    @property
    def overdue(self) -> bool:
        """The lease ran out unrenewed, for all we know."""
        return time.monotonic() > self.expires_at

    def __enter__(self) -> "LedgerLink":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop beating, and send what is left to report if the ledger answers. May be called again."""
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        next_beat = time.monotonic()
        tick_s = min(self._interval_s / 2, REPORT_INTERVAL.total_seconds())
        while not self.lost:
            finishing = self._done.wait(tick_s)
            try:
                self._report()
                for _ in range(MAX_LAST_REPORTS if finishing else 0):
                    if not self._report(finishing=True):
                        break
                if not finishing and time.monotonic() >= next_beat:
                    next_beat = self._beat() + self._interval_s
            except LedgerUnavailable as e:
                left_s = round(self.expires_at - time.monotonic(), 1)
                _log.warning("ledger_unavailable", error=str(e)[:300], lease_left_s=left_s)
            except LeaseLost:
                self.lost = True
                self._on_change()
            if finishing:
                return

    def _report(self, *, finishing: bool = False) -> bool:
        """Tell the ledger what is new; returns whether there was anything."""
        lines = self._job_log.hand_out(at_once=finishing)
        report = self._relay.hand_out()
        if report is None and not lines:
            return False
        report = report or Report()
        try:
            self._heed(self._ledger.report(self._claim, replace(report, log=lines)))
        except LedgerUnavailable:
            self._relay.put_back(report)
            raise
        except SQLAlchemyError:
            _log.exception("report_refused")  # a defect of ours; it must not cost the job its beats
        self._job_log.confirm()
        return True

    def _beat(self) -> float:
        asked_at = time.monotonic()
        self._heed(self._ledger.beat(self._claim, self._lease))
        self.expires_at = asked_at + self._lease.total_seconds()
        return asked_at

    def _heed(self, beat: Beat) -> None:
        if beat.cancel_requested and not self.cancel_requested:
            self.cancel_requested = True
            self._on_change()
        if beat.runtime_exceeded and not self.runtime_exceeded:
            self.runtime_exceeded = True
            self._on_change()

"""Housekeeping that may take long, on a thread of its own: garbage among the blobs, old history, old folders.

What is everybody's is one worker's at a time, whoever finds it due; what lies on a worker's own disk is its own.
"""

import random
from datetime import timedelta
from itertools import takewhile
from pathlib import Path
from threading import Event, Thread

import structlog
from sqlalchemy.orm import Session, sessionmaker

from app.exceptions import Unavailable
from app.housekeeping import history
from app.housekeeping.chores import ChoreList
from app.housekeeping.garbage import GarbageCollector
from app.housekeeping.history import History
from app.jobs.errors import LedgerUnavailable
from app.jobs.ledger import Ledger
from app.jobs.status import JobStatus
from app.storage import BlobStore
from worker import runs

_log = structlog.get_logger(__name__)

GARBAGE = "garbage"
LONGEST_PAUSE = timedelta(minutes=1)
ABANDONED_AFTER = timedelta(hours=24)
"""Longer than any upload takes: what then lies in staging is of a process that was killed."""


class Housekeeper:
    """A thread between `start` and `stop`."""

    def __init__(
        self,
        *,
        sessions: sessionmaker[Session],
        storage: BlobStore,
        runs_dir: Path,
        interval: timedelta,
        blob_grace: timedelta,
        history_retention: timedelta,
    ) -> None:
        """See app/config.py for each."""
        self._storage = storage
        self._runs_dir = runs_dir
        self._interval = interval
        self._history_retention = history_retention
        self._chores = ChoreList(sessions)
        self._ledger = Ledger(sessions)
        self._garbage = GarbageCollector(sessions=sessions, storage=storage, grace=blob_grace)
        self._history = History(sessions, retention=history_retention)
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Begin to look, now and then, what is due."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is under way ends early."""
        self._stopping.set()
        self._thread.join()

    def do_what_is_due(self) -> None:
        """The chores of all workers that are due. Raises the storage's errors and the database's."""
        if self._chores.take(GARBAGE, every=self._interval):
            _log.info("garbage_collected", **vars(self._garbage.collect(stop=self._stopping.is_set)))
        if self._chores.take(history.CHORE, every=self._interval):
            _log.info("history_forgotten", **vars(self._history.forget(stop=self._stopping.is_set)))

    def clean_own_disk(self) -> None:
        """Remove what killed uploads left here, and the folders of jobs that finished long ago."""
        num_batches = self._storage.remove_abandoned(ABANDONED_AFTER)
        if num_batches:
            _log.info("abandoned_uploads_removed", num_batches=num_batches)
        job_ids = takewhile(lambda _: not self._stopping.is_set(), runs.jobs_with_folders(self._runs_dir))
        for job_id in runs.done_with(self._ledger, job_ids, self._is_old):
            runs.discard_folder(self._runs_dir, job_id)
            _log.info("run_folder_removed", job_id=job_id)

    def _is_old(self, status: JobStatus, finished_ago: timedelta) -> bool:
        return status.is_terminal and finished_ago > self._history_retention

    def _run(self) -> None:
        pause_s = min(self._interval, LONGEST_PAUSE).total_seconds()
        own_s = 0.0
        # Spread out, so that many workers do not look in step.
        while not self._stopping.wait(waited_s := pause_s * random.uniform(0.8, 1.2)):
            try:
                self.do_what_is_due()
                own_s += waited_s
                if own_s >= self._interval.total_seconds():
                    own_s = 0.0
                    self.clean_own_disk()
            except (LedgerUnavailable, Unavailable) as e:
                _log.warning("housekeeping_interrupted", error=str(e)[:300])
            except Exception:  # noqa: BLE001 - what a storage of somebody else's may raise is anything
                _log.exception("housekeeping_failed")

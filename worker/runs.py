"""Folders of jobs on disk: ``RUNS/JOB/attempt-N/…``.

Each attempt writes its own folder only, so that a zombie's trainer cannot spoil its successor's. A folder outlives
its attempt for the checkpoints in it, and the job for its log.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from app.batches import batches
from app.jobs.ledger import Ledger
from app.jobs.status import JobStatus

_JOBS_AT_ONCE = 500
_ATTEMPT = re.compile(r"attempt-(\d{1,9})")


@dataclass(frozen=True)
class RunFolder:
    """What one attempt has on disk."""

    root: Path
    """``RUNS/JOB/attempt-N``"""

    @property
    def spec(self) -> Path:
        """The trainer's instructions."""
        return self.root / "spec.json"

    @property
    def log(self) -> Path:
        """What the trainer wrote to stdout and stderr."""
        return self.root / "trainer.log"

    @property
    def images(self) -> Path:
        """The data set, for as long as the attempt runs."""
        return self.root / "images"

    @property
    def checkpoints(self) -> Path:
        """The trainer's own; it alone knows what is in it."""
        return self.root / "checkpoints"

    @property
    def output(self) -> Path:
        """Where the trainer puts the bundle."""
        return self.root / "output"


def open_run(runs_dir: Path, job_id: str, attempt: int) -> RunFolder:
    """Make the folders of a new attempt."""
    run = RunFolder(runs_dir / job_id / f"attempt-{attempt}")
    for leftover in (run.images, run.output):  # of a history that a restored backup has forgotten
        shutil.rmtree(leftover, ignore_errors=True)
    for folder in (run.images, run.checkpoints, run.output):
        folder.mkdir(parents=True, exist_ok=True)
    return run


def earlier_checkpoints(runs_dir: Path, job_id: str, attempt: int) -> list[Path]:
    """Checkpoint folders of attempts before ``attempt``, newest attempt first."""
    found = [(n, path / "checkpoints") for n, path in _attempts(runs_dir / job_id) if n < attempt]
    return [path for _, path in sorted(found, reverse=True) if path.is_dir()]


def discard_workspace(run: RunFolder) -> None:
    """Remove what only a running attempt needs."""
    for folder in (run.images, run.output):
        shutil.rmtree(folder, ignore_errors=True)


def discard_job(runs_dir: Path, job_id: str) -> None:
    """Remove all that a finished job left, except its logs."""
    for _, attempt in _attempts(runs_dir / job_id):
        for path in attempt.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif not path.name.startswith("trainer.log"):
                path.unlink(missing_ok=True)


def jobs_with_checkpoints(runs_dir: Path) -> list[str]:
    """Ids of jobs that still occupy more than their logs."""
    return [path.parent.parent.name for path in runs_dir.glob("job_*/attempt-*/checkpoints")]


def discard_folder(runs_dir: Path, job_id: str) -> None:
    """Remove all that a finished job left, logs included."""
    shutil.rmtree(runs_dir / job_id, ignore_errors=True)


def jobs_with_folders(runs_dir: Path) -> Iterator[str]:
    """Ids of jobs that left anything, in no order."""
    with suppress(FileNotFoundError):
        yield from (path.name for path in runs_dir.iterdir() if path.name.startswith("job_"))


def done_with(ledger: Ledger, job_ids: Iterable[str], is_done: Callable[[JobStatus, timedelta], bool]) -> Iterator[str]:
    """Those jobs that are done, by their status and how long ago they finished. Raises `LedgerUnavailable`.

    Each is looked at once more right before it is yielded: the caller takes its time with every one, and one behind may
    have been resumed meanwhile.
    """
    for some in batches(job_ids, _JOBS_AT_ONCE):
        for job_id, seen in ledger.statuses(some).items():
            if is_done(*seen) and is_done(*ledger.statuses([job_id])[job_id]):
                yield job_id


def may_discard(status: JobStatus, finished_ago: timedelta, retention: timedelta) -> bool:
    """Whether nobody will want the job's checkpoints again. ``retention``: how long they wait for a resume."""
    if status is JobStatus.SUCCEEDED:
        return True
    return status.is_terminal and finished_ago > retention


def _attempts(job_folder: Path) -> list[tuple[int, Path]]:
    if not job_folder.is_dir():
        return []
    matches = [(_ATTEMPT.fullmatch(path.name), path) for path in job_folder.iterdir()]
    return [(int(match[1]), path) for match, path in matches if match]

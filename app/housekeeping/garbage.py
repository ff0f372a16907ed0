"""Blobs that nothing refers to. Why none is lost that somebody needs is in docs/decisions/014-garbage-and-backups.md.

clock ──▶ names of old blobs ──▶ those no row refers to ──▶ no hold? ──▶ looked at once more, and removed
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session, sessionmaker

from app.batches import batches
from app.database import read_only
from app.housekeeping.holds import is_held
from app.housekeeping.references import BLOB_REFERENCES, BlobReferences
from app.storage import BlobStore

_ASKED_AT_ONCE = 5000
_REMOVED_AT_ONCE = 500


@dataclass(kw_only=True)
class Garbage:
    """What a collection found so far."""

    num_stored: int = 0
    num_young: int = 0
    """Stored within the grace period: not asked about."""
    num_orphans: int = 0
    """Old, and nothing refers to them."""
    num_removed: int = 0
    held: bool = False
    """It ended early, for somebody needs all blobs to stay."""


class GarbageCollector:
    """Any number may run at once, beside uploads, workers and whoever deletes. Needs little memory, however much
    there is."""

    def __init__(self, *, sessions: sessionmaker[Session], storage: BlobStore, grace: timedelta) -> None:
        self._sessions = sessions
        self._storage = storage
        self._grace = grace

    def collect(self, *, dry_run: bool = False, stop: Callable[[], bool] = lambda: False) -> Garbage:
        """Go through all blobs once; ``stop`` is asked now and then whether to end early.

        Raises the storage's errors and the database's; what was removed until then was garbage.
        """
        found = Garbage()
        self._storage.recover()
        # Read before any row is: a blob whose row is committed later was stored after this, or is referred to.
        before = self._storage.clock() - self._grace
        for names in batches(self._orphans(found, before, stop), _REMOVED_AT_ONCE):
            found.num_orphans += len(names)
            if dry_run:
                continue
            with read_only(self._sessions) as session:
                found.held = is_held(session)
            if found.held:
                break
            for name in names:
                if stop():
                    return found
                found.num_removed += self._storage.discard(name, unless_stored_since=before)
        return found

    def _orphans(self, found: Garbage, before: datetime, stop: Callable[[], bool]) -> Iterator[str]:
        names = self._old(found, before, stop)
        for references in BLOB_REFERENCES:
            names = self._without(references, names)
        return names

    def _old(self, found: Garbage, before: datetime, stop: Callable[[], bool]) -> Iterator[str]:
        for name, stored_at in self._storage.stored():
            found.num_stored += 1
            if stored_at < before:
                yield name
            else:
                found.num_young += 1
            if found.num_stored % _ASKED_AT_ONCE == 0 and stop():
                return

    def _without(self, references: BlobReferences, names: Iterable[str]) -> Iterator[str]:
        for batch in batches(names, _ASKED_AT_ONCE):
            with read_only(self._sessions) as session:
                needed = references.among(session, set(batch))
            yield from (name for name in batch if name not in needed)

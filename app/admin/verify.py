"""Whether all that the service keeps is there and fits together: the database, its rows, the blobs they refer to.

It may run beside the service. Each question is asked of one state of the database, and what is answered by a change
since is not told.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeAlias

from sqlalchemy import Engine, Table, and_, select, text
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app.admin import contradictions
from app.admin.problems import Problem, Tell
from app.database import make_sessionmaker, read_only, revisions, take_any_time
from app.exceptions import Unavailable
from app.housekeeping.garbage import GarbageCollector
from app.housekeeping.references import BLOB_REFERENCES, BlobReferences
from app.storage import BlobStore
from app.tables import Base

_BLOB_CODES = {"artifact_missing": "blob_missing", "artifact_corrupt": "blob_damaged"}
_OWNERS_SHOWN = 3

Check: TypeAlias = Callable[[Session], Iterator[Problem]]


@dataclass(kw_only=True)
class Verified:
    """What was looked at."""

    num_problems: int = 0
    num_checked: int = 0
    """Blobs whose bytes were read."""
    num_stored: int = 0
    num_orphans: int = 0
    """Blobs that nothing refers to any more, and that the next collection removes: no problem."""


class Verifier:
    """Reads everything and changes nothing."""

    def __init__(self, *, engine: Engine, storage: BlobStore, blob_grace: timedelta) -> None:
        self._engine = engine
        self._sessions: sessionmaker[Session] = make_sessionmaker(engine)
        self._storage = storage
        self._garbage = GarbageCollector(sessions=self._sessions, storage=storage, grace=blob_grace)

    def verify(self, tell: Tell) -> Verified:
        """Check everything; each problem is told as it is found. Raises when the database or the storage cannot be
        reached."""
        verified = Verified()

        def count(problem: Problem) -> None:
            verified.num_problems += 1
            tell(problem)

        found, head = revisions(self._engine)
        if found != head:
            count(
                Problem(
                    code="wrong_revision", subject="schema", detail=f"is at revision {found}; this code is for {head}"
                )
            )
            return verified
        for name, check in self._checks():
            for problem in _readable(name, self._asked(check)):
                count(problem)
        for references in BLOB_REFERENCES:
            for problem in _readable("blobs", self._blobs(references, verified)):
                count(problem)
        for problem in _readable("garbage", self._count_garbage(verified)):
            count(problem)
        return verified

    def _asked(self, check: Check) -> Iterator[Problem]:
        with read_only(self._sessions) as session:
            take_any_time(session)
            yield from check(session)

    def _count_garbage(self, verified: Verified) -> Iterator[Problem]:
        garbage = self._garbage.collect(dry_run=True)
        verified.num_stored, verified.num_orphans = garbage.num_stored, garbage.num_orphans
        yield from ()

    @staticmethod
    def _checks() -> Iterator[tuple[str, Check]]:
        yield "database", _broken_database
        for table in Base.metadata.sorted_tables:
            yield table.name, partial(_unreadable_rows, table=table)
        yield "references", _broken_references
        for rule in contradictions.RULES:
            yield rule.code, partial(contradictions.broken_rules, rule=rule)
        yield "history", contradictions.broken_histories
        yield "bundles", contradictions.broken_bundles

    def _blobs(self, references: BlobReferences, verified: Verified) -> Iterator[Problem]:
        after: str | None = ""
        while after is not None:
            with read_only(self._sessions) as session:
                names, after = references.page(session, after)
            for name in names:
                verified.num_checked += 1
                try:
                    self._storage.verify(name)
                except ValueError:
                    yield self._problem("blob_without_name", name, "is no sha256")
                except Unavailable as e:
                    if self._is_needed(name):
                        yield self._problem(_BLOB_CODES.get(e.code, "blob_unreadable"), name, e.detail)

    def _is_needed(self, name: str) -> bool:
        """What was removed while it was looked at is missed by nobody."""
        with read_only(self._sessions) as session:
            return any(references.among(session, {name}) for references in BLOB_REFERENCES)

    def _problem(self, code: str, name: str, detail: str) -> Problem:
        with read_only(self._sessions) as session:
            owners = [
                owner
                for references in BLOB_REFERENCES
                for owner in references.owners(session, name, limit=_OWNERS_SHOWN + 1)
            ]
        shown = ", ".join(owners[:_OWNERS_SHOWN]) + (" and others" if len(owners) > _OWNERS_SHOWN else "")
        return Problem(code=code, subject=name, detail=f"{detail} It is of {shown}.")


def _readable(name: str, problems: Iterator[Problem]) -> Iterator[Problem]:
    """The problems; and one more when the database cannot read what they are looked for in."""
    try:
        yield from problems
    except OperationalError:
        raise  # it does not answer at all
    except DatabaseError as e:
        yield Problem(code="database_unreadable", subject=name, detail=str(e.orig)[:300])
    except ValueError as e:  # of a cell, when it is no JSON or no time
        yield Problem(code="database_unreadable", subject=name, detail=f"a row cannot be read: {e}"[:300])


def _broken_database(session: Session) -> Iterator[Problem]:
    """What the database itself says of its files and rules."""
    if session.get_bind().dialect.name == "sqlite":
        for (line,) in session.execute(text("PRAGMA integrity_check")):
            if line != "ok":
                yield Problem(code="database_damaged", subject="database", detail=line)
        return
    unchecked = "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE NOT convalidated"
    for table, name in session.execute(text(unchecked)):
        yield Problem(code="constraint_not_valid", subject=table, detail=f"{name} was never checked on all rows")
    invalid = "SELECT indrelid::regclass::text, indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    for table, name in session.execute(text(invalid)):
        yield Problem(code="index_not_valid", subject=table, detail=f"{name} is not in use")


def _unreadable_rows(session: Session, table: Table) -> Iterator[Problem]:
    """Reads all rows of a table; what cannot be read raises."""
    for _ in session.execute(select(table).execution_options(yield_per=1000)):
        pass
    yield from ()


def _broken_references(session: Session) -> Iterator[Problem]:
    """Rows that refer to rows that are not there: possible where the rule was switched off."""
    for table in Base.metadata.sorted_tables:
        for key in table.foreign_key_constraints:
            parent = key.referred_table.alias()
            pairs = [(element.parent, parent.c[element.column.name]) for element in key.elements]
            query = (
                select(*table.primary_key.columns, *key.columns)
                .outerjoin(parent, and_(*(child == there for child, there in pairs)))
                .where(*(child.is_not(None) for child, _ in pairs), pairs[0][1].is_(None))
            )
            num_keys = len(table.primary_key.columns)
            for row in session.execute(query.execution_options(yield_per=1000)):
                named = ", ".join(
                    f"{column.name} {value}" for column, value in zip(key.columns, row[num_keys:], strict=True)
                )
                yield Problem(
                    code="reference_to_nothing",
                    subject=":".join(str(part) for part in row[:num_keys]),
                    detail=f"of {table.name}: there is no {key.referred_table.name} of {named}",
                )

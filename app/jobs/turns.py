"""Whose turn it is: the job that a worker gets next (docs/decisions/011).

Priority, then the tenant with the fewest running jobs and of those the one whose last turn is longest ago, then age.
Reads only; the caller makes the claim in the same transaction, and has made sure that it is the only one that claims.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, and_, func, literal_column, or_, select
from sqlalchemy.orm import Session, aliased

from app.database import now_utc
from app.tables import Job

# In words of their own, for a bound parameter would hide from both databases that the partial indexes have the rows.
_QUEUED: ColumnElement[str] = literal_column("'queued'")
_RUNNING: ColumnElement[str] = literal_column("'running'")

# Made once: each is a copy of all the table's columns, and idle workers ask every second.
_ALIASES = tuple(aliased(Job) for _ in range(6))


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a worker can take, and what its operator allows. None: no limit."""

    num_gpus: int | None = None
    """Free in the worker."""
    max_running_per_tenant: int | None = None


def next_job(session: Session, terms: Terms, *, but: Collection[str] = ()) -> str | None:
    """Id of the job whose turn it is, ``but`` for some; None when there is none."""
    dropped = select(Job.id).where(is_dropped(), *_fits(Job, terms), Job.id.not_in(but))
    dropped = dropped.order_by(Job.priority.desc(), Job.created_at, Job.id).limit(1)
    return session.scalar(dropped) or session.scalar(next_queued(terms, but=but))


def is_this_ones_turn(session: Session, job_id: str, terms: Terms) -> bool:
    """Whether a worker may have this very job now, whatever goes before it."""
    if session.scalar(select(Job.id).where(Job.id == job_id, *_fits(Job, terms), is_claimable())) is None:
        return False
    if terms.max_running_per_tenant is None:
        return True
    row = session.execute(select(Job.tenant, Job.lease_until.is_not(None)).where(Job.id == job_id)).one()
    return bool(row[1]) or num_running(session, row[0]) < terms.max_running_per_tenant


def num_running(session: Session, tenant: str) -> int:
    """How many of a tenant's jobs workers hold."""
    query = select(func.count()).select_from(Job).where(Job.tenant == tenant, Job.lease_until.is_not(None))
    return session.scalar(query) or 0


def standing(tenant: SQLColumnExpression[str]) -> tuple[Select[int], Select[datetime | None]]:
    """How many jobs of a tenant run, and when its last turn was: queries to correlate with what has the column."""
    held, past = _ALIASES[:2]
    return (
        select(func.count()).where(held.tenant == tenant, held.lease_until.is_not(None)),
        select(func.max(past.claimed_at)).where(past.tenant == tenant),
    )


def next_queued(terms: Terms, *, but: Collection[str] = ()) -> Select[str]:
    """The query for the queued job whose turn it is. Steps from tenant to tenant and looks at the first job of each."""
    waiting = tenants_waiting()
    first, best = _ALIASES[2:4]
    # Two steps, for the index ascends: the highest priority, then the oldest job of it.
    priority = (
        select(best.priority)
        .where(*_startable(best, terms, but), best.tenant == waiting.c.tenant)
        .order_by(best.priority.desc())
        .limit(1)
    )
    head = (
        select(first.id)
        .where(
            *_startable(first, terms, but),
            first.tenant == waiting.c.tenant,
            first.priority == priority.correlate(waiting).scalar_subquery(),
        )
        .order_by(first.created_at, first.id)
        .limit(1)
    )
    held_now, last_turn = standing(waiting.c.tenant)
    heads = (
        select(
            head.correlate(waiting).scalar_subquery().label("id"),
            held_now.correlate(waiting).scalar_subquery().label("num_running"),
            last_turn.correlate(waiting).scalar_subquery().label("last_turn"),
        )
        .where(waiting.c.tenant.is_not(None))
        .cte("heads")
        .prefix_with("MATERIALIZED")  # or each use of a column asks for it again
    )
    # Not joined with the jobs: PostgreSQL takes a recursion for many rows, and would read the whole table to join them.
    query = select(heads.c.id).where(heads.c.id.is_not(None))
    if terms.max_running_per_tenant is not None:
        query = query.where(heads.c.num_running < terms.max_running_per_tenant)
    urgency, age = (
        select(column).where(Job.id == heads.c.id).correlate(heads).scalar_subquery()
        for column in (Job.priority, Job.created_at)
    )
    fairly = (heads.c.num_running, heads.c.last_turn.asc().nulls_first())
    return query.order_by(urgency.desc(), *fairly, age, heads.c.id).limit(1)


def tenants_waiting() -> Any:
    """A recursive CTE of the tenants that have queued jobs, found by jumps through the index; its last row is NULL."""
    here, later = _ALIASES[4:]
    waiting = select(func.min(here.tenant).label("tenant")).where(is_queued(here)).cte("waiting", recursive=True)
    following = select(func.min(later.tenant)).where(is_queued(later), later.tenant > waiting.c.tenant)
    return waiting.union_all(
        select(following.correlate(waiting).scalar_subquery()).where(waiting.c.tenant.is_not(None))
    )


def is_queued(job: type[Job] = Job) -> ColumnElement[bool]:
    """It waits for a worker."""
    return job.status == _QUEUED


def is_due(job: type[Job] = Job) -> ColumnElement[bool]:
    """Queued, and not told to wait any longer."""
    return and_(is_queued(job), job.available_at <= now_utc())


def is_silent() -> ColumnElement[bool]:
    """Its worker has not been heard of for longer than its lease."""
    return and_(Job.status == _RUNNING, Job.lease_until < now_utc())


def is_dropped() -> ColumnElement[bool]:
    """Its worker died, and attempts are left."""
    return and_(is_silent(), attempts_left())


def is_claimable() -> ColumnElement[bool]:
    """A worker may have it."""
    return or_(is_due(), is_dropped())


def attempts_left() -> ColumnElement[bool]:
    """Another attempt may begin."""
    return Job.attempt - Job.attempts_forgiven < Job.max_attempts


def _startable(job: type[Job], terms: Terms, but: Collection[str]) -> tuple[ColumnElement[bool], ...]:
    return (is_due(job), *_fits(job, terms), *((job.id.not_in(but),) if but else ()))


def _fits(job: type[Job], terms: Terms) -> tuple[ColumnElement[bool], ...]:
    return () if terms.num_gpus is None else (job.num_gpus <= terms.num_gpus,)

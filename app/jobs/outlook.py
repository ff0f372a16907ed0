"""What a waiting job can expect: how many go before it, when it may start, and why it waits (docs/decisions/011).

The arithmetic is pure; `OutlookStore` asks for what it needs, one count per tenant and the few jobs that run.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from sqlalchemy import and_, case, func, or_, select
from sqlalchemy.orm import Session

from app.database import now_utc
from app.jobs.fleet import FleetStore
from app.jobs.messages import Outlook, Waiting
from app.jobs.turns import is_due, is_queued, num_running, standing
from app.tables import Job

NUM_RECENT = 20
"""Finished jobs whose median duration is taken for a job's that says nothing yet."""
MAX_TURNS = 1000
"""Further ahead no start is estimated."""

SCHEDULED = Waiting(code="scheduled", message="It starts at not_before or later.")
RETRYING = Waiting(code="retrying", message="Its last attempt failed; the next one begins after a pause.")
TENANT_LIMIT = Waiting(code="tenant_limit", message="As many of your jobs run as may; it starts when one of them ends.")
NO_WORKERS = Waiting(code="no_workers", message="No worker has been seen lately.")
TOO_MANY_GPUS = Waiting(
    code="too_many_gpus", message="No worker that has been seen lately has as many GPUs as the job asks for."
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A tenant's part of the queue, as far as it may go before a certain job."""

    num_running: int
    last_turn: datetime | None
    num_higher: int = 0
    """Queued jobs of higher priority."""
    num_equal: int = 0
    """Queued jobs of the same priority; of the job's own tenant, those before it."""
    oldest: datetime | None = None
    """When the oldest of the same priority was accepted."""


def position(mine: Line, others: Sequence[Line], limit: int | None = None) -> int:
    """How many claims it takes until it is the job's turn, if nothing comes, ends or fails: 1 is next.

    Exact among jobs of one priority. ``limit`` bounds the running jobs of each tenant.
    """

    def room(line: Line, taken: int = 0) -> int:
        return MAX_JOBS if limit is None else max(0, limit - line.num_running - taken)

    higher_of = [min(line.num_higher, room(line)) for line in (mine, *others)]
    before = sum(higher_of) + mine.num_equal
    # Claims go to the tenant with the fewest running jobs, so tenants rise level by level, and at each level in the
    # order in which they reached it. This is the level from which the job itself is claimed.
    start = mine.num_running + higher_of[0]
    level = start + mine.num_equal
    for line, higher in zip(others, higher_of[1:], strict=True):
        begins = line.num_running + higher
        first = begins > start or (begins == start and _turn_key(line, higher) < _turn_key(mine, higher_of[0]))
        before += max(0, min(level - begins + first, line.num_equal, room(line, higher)))
    return before + 1


def estimated_start(
    place: int, now: datetime, num_slots: int, finishes: Sequence[datetime | None], typical: timedelta | None
) -> datetime | None:
    """When a slot is free for the job at a place, from when the running jobs end; None when that is not known."""
    num_free = max(0, num_slots - len(finishes))
    if place <= num_free:
        return now
    if place - num_free > MAX_TURNS:
        return None
    ends = [max(now, end) for end in finishes if end is not None]
    heapq.heapify(ends)
    if typical is not None:
        for _ in range(min(num_free, place)):
            heapq.heappush(ends, now + typical)
    elif num_free:
        return None  # those before it start now, and nobody knows for how long
    start = None
    for _ in range(place - num_free):
        if not ends:
            return None
        start = heapq.heappop(ends)
        if typical is not None:
            heapq.heappush(ends, start + typical)
    return start


MAX_JOBS = 2**31


def _turn_key(line: Line, num_higher: int) -> tuple[bool, bool, Any]:
    if line.last_turn is None:
        return num_higher > 0, False, (line.oldest is None, line.oldest)
    return num_higher > 0, True, line.last_turn


class OutlookStore:
    """Asks on one session."""

    def __init__(self, session: Session, *, max_running_per_tenant: int | None) -> None:
        self._session = session
        self._limit = max_running_per_tenant

    def of(self, job_id: str) -> Outlook:
        """The outlook of a job; of one that is not queued there is none."""
        job = self._session.execute(
            select(
                Job.id,
                Job.tenant,
                Job.priority,
                Job.created_at,
                Job.num_gpus,
                (Job.available_at > now_utc()).label("is_told_to_wait"),
                (Job.not_before > now_utc()).label("is_scheduled"),
                now_utc().label("now"),
            ).where(Job.id == job_id, is_queued())
        ).one_or_none()
        if job is None:
            return Outlook()
        workers = FleetStore(self._session).present()
        most_gpus = max((worker.num_gpus for worker in workers), default=None)
        if (hindrance := self._hindrance(job, most_gpus)) is not None:
            return Outlook(waiting=hindrance)
        lines = self._lines(job, most_gpus)
        mine = lines.pop(job.tenant, None)
        if mine is None:
            return Outlook()  # a worker has taken it between two questions
        place = position(mine, list(lines.values()), self._limit)
        if not workers:
            return Outlook(queue_position=place, waiting=NO_WORKERS)
        num_slots = sum(
            worker.num_slots if job.num_gpus == 1 else min(worker.num_slots, worker.num_gpus // job.num_gpus)
            for worker in workers
        )
        typical = self._typical_duration()
        return Outlook(
            queue_position=place,
            estimated_start_at=(
                estimated_start(place, job.now, num_slots, self._finishes(typical), typical)
                if self._all_run_on(job.num_gpus)
                else None  # what comes free is not what it needs: half a slot, or two
            ),
        )

    def _hindrance(self, job: Any, most_gpus: int | None) -> Waiting | None:
        """Why the job may not start, whoever's turn it is."""
        if job.is_told_to_wait:
            return SCHEDULED if job.is_scheduled else RETRYING
        if most_gpus is not None and job.num_gpus > most_gpus:
            return TOO_MANY_GPUS
        if self._limit is not None and num_running(self._session, job.tenant) >= self._limit:
            return TENANT_LIMIT
        return None

    def _lines(self, job: Any, most_gpus: int | None) -> dict[str, Line]:
        """The line of each tenant that has jobs which are due."""
        held_now, last_turn = standing(Job.tenant)
        equal = Job.priority == job.priority
        older = or_(Job.created_at < job.created_at, and_(Job.created_at == job.created_at, Job.id < job.id))
        counted = case((Job.tenant == job.tenant, and_(equal, older)), else_=equal)
        query = (
            select(
                Job.tenant,
                held_now.correlate(Job).scalar_subquery(),
                last_turn.correlate(Job).scalar_subquery(),
                func.sum(case((Job.priority > job.priority, 1), else_=0)),
                func.sum(case((counted, 1), else_=0)),
                func.min(case((equal, Job.created_at))),
            )
            .where(is_due(), Job.priority >= job.priority)
            .group_by(Job.tenant)
        )
        if most_gpus is not None:
            query = query.where(Job.num_gpus <= most_gpus)
        return {
            tenant: Line(
                num_running=running, last_turn=last, num_higher=int(higher), num_equal=int(same), oldest=oldest
            )
            for tenant, running, last, higher, same, oldest in self._session.execute(query)
        }

    def _all_run_on(self, num_gpus: int) -> bool:
        """The running jobs have so many GPUs each."""
        others = select(Job.id).where(Job.lease_until.is_not(None), Job.num_gpus != num_gpus).limit(1)
        return self._session.scalar(others) is None

    def _finishes(self, typical: timedelta | None) -> list[datetime | None]:
        """When each running job is expected to end."""
        rows = self._session.execute(
            select(Job.estimated_finish_at, Job.claimed_at).where(Job.lease_until.is_not(None))
        ).all()
        return [
            finish or (claimed + typical if typical is not None and claimed is not None else None)
            for finish, claimed in rows
        ]

    def _typical_duration(self) -> timedelta | None:
        query = select(Job.running_s).where(Job.status == "succeeded", Job.finished_at.is_not(None), Job.running_s > 0)
        found = self._session.scalars(query.order_by(Job.finished_at.desc()).limit(NUM_RECENT)).all()
        return timedelta(seconds=median(found)) if found else None

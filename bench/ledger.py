"""What a long history costs the ledger: ``python -m bench.ledger``.

Two tables of jobs in each database: a queue beside a few jobs that have ended, and the same beside 100,000 of them, all
with their events. Both are asked in turns in one run: how many jobs a second workers claim and finish, and how long
``GET /jobs/{id}`` takes over a socket. The last column is what counts: the long table's figure over the short one's.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.orm import Session, sessionmaker

from app.database import make_engine, make_sessionmaker, migrate
from app.ids import new_id
from app.jobs.ledger import Ledger
from app.jobs.messages import JobError
from app.jobs.status import JobStatus
from app.tables import Job, JobEvent
from bench.figures import percentile
from tests.support.jobs import add_job
from tests.support.service import Service, running_service
from tests.support.services import postgres_database

RESULTS = Path(__file__).parent / "results" / "ledger.md"
NUM_TENANTS = 50
NUM_QUEUED = 2_000
NUM_LEFT_ALONE = 200
"""Of the queued, for `GET`: their tenants have a turn after all others."""
EVENTS_OF_ENDED = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCEEDED)
FEW_ENDED = 200
ROWS_AT_ONCE = 5_000
LEASE = timedelta(minutes=10)
NOTHING = JobError(code="internal_error", message="Measured.")


@dataclass(kw_only=True)
class Table:
    """A database of jobs, open in every way that is measured."""

    num_ended: int
    ledger: Ledger
    client: httpx.Client
    ended: Sequence[str]
    queued: Sequence[str]
    claims_s: dict[int, list[float]] = field(default_factory=dict)
    """Claims a second by number of workers, one figure a round."""
    reads_ms: dict[str, list[float]] = field(default_factory=dict)
    """Milliseconds of each `GET`, by what was read."""


def fill(engine: Engine, sessions: sessionmaker[Session], *, num_ended: int) -> tuple[list[str], list[str]]:
    """Jobs that have ended, with their events, and queued ones; returns the ids of the former and of some latter."""
    template = add_job(sessions, classes=[{"name": name, "prompts": []} for name in ("cat", "dog")])
    with sessions() as session:
        row = dict(session.execute(select(Job.__table__).where(Job.id == template)).mappings().one())
    ended, queued, left_alone = ([new_id("job") for _ in range(num)] for num in (num_ended, NUM_QUEUED, NUM_LEFT_ALONE))
    now = row["created_at"]
    finished = {"status": "succeeded", "attempt": 1, "notify_at": None, "started_at": now, "claimed_at": now}
    _insert(engine, Job, ({**row, **finished, "id": i, "finished_at": now, "tenant": _tenant(i)} for i in ended))
    _insert(engine, Job, ({**row, "id": i, "tenant": _tenant(i)} for i in queued))
    _insert(engine, Job, ({**row, "id": i, "tenant": "patient", "priority": -1} for i in left_alone))
    _insert(engine, JobEvent, (_status_event(i, status, now) for i in ended for status in EVENTS_OF_ENDED))
    _insert(engine, JobEvent, (_status_event(i, JobStatus.QUEUED, now) for i in (*queued, *left_alone)))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    return ended, left_alone


def _tenant(job_id: str) -> str:
    return f"tenant-{hash(job_id) % NUM_TENANTS}"


def _status_event(job_id: str, status: JobStatus, at: object) -> dict[str, Any]:
    data = {"status": status.value, "message": "Measured.", "attempt": 1}
    return {"job_id": job_id, "at": at, "type": "status", "data": data}


def _insert(engine: Engine, table: type[Job] | type[JobEvent], rows: Iterator[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        while some := list(islice(rows, ROWS_AT_ONCE)):
            connection.execute(insert(table.__table__), some)


def measure_claims(table: Table, num_workers: int, num_claims: int) -> None:
    """Workers take and fail jobs as fast as they can."""

    def work(worker: int) -> None:
        for _ in range(num_claims // num_workers):
            claim = table.ledger.claim(f"worker-{worker}", LEASE)
            if claim is None:
                raise RuntimeError("the queue is too short")
            table.ledger.fail(claim, NOTHING)

    started = time.perf_counter()
    with ThreadPoolExecutor(num_workers) as threads:
        list(threads.map(work, range(num_workers)))
    took_s = time.perf_counter() - started
    table.claims_s.setdefault(num_workers, []).append(num_claims / took_s)


def measure_reads(table: Table, num_reads: int, generator: random.Random) -> None:
    """Read jobs one after the other."""
    for what, ids in (("ended", table.ended), ("queued", table.queued)):
        for job_id in generator.choices(ids, k=num_reads):
            started = time.perf_counter()
            table.client.get(f"/jobs/{job_id}").raise_for_status()
            table.reads_ms.setdefault(what, []).append((time.perf_counter() - started) * 1000)


@contextmanager
def opened(url: str, folder: Path, *, num_ended: int) -> Iterator[Table]:
    """A filled database with an API on it."""
    engine = make_engine(url)
    migrate(engine)
    sessions = make_sessionmaker(engine)
    ended, queued = fill(engine, sessions, num_ended=num_ended)
    with running_service(folder, {"MUST_DATABASE_URL": url, "MUST_DEFAULT_MODEL": "tiny-clip"}) as service:
        yield _table(service, Ledger(sessions), num_ended, ended, queued)
    engine.dispose()


def _table(service: Service, ledger: Ledger, num_ended: int, ended: list[str], queued: list[str]) -> Table:
    return Table(num_ended=num_ended, ledger=ledger, client=service.client, ended=ended, queued=queued)


def measure(database: str, sizes: Sequence[int], *, rounds: int, num_claims: int, num_reads: int) -> list[Table]:
    """Tables of these sizes in one kind of database, asked in turns."""
    generator = random.Random(0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        tables = []
        for size in sizes:
            url = f"sqlite:///{folder / f'{size}.db'}"
            if database == "postgresql":
                url = stack.enter_context(postgres_database())
            tables.append(stack.enter_context(opened(url, folder / f"{size}", num_ended=size)))
        for n in range(rounds):
            for table in tables if n % 2 else reversed(tables):
                measure_claims(table, 1, num_claims)
                measure_claims(table, 4, num_claims)
                measure_reads(table, num_reads, generator)
    return tables


def report(database: str, short: Table, long: Table) -> str:
    """Markdown, one line a measure: the short table, the long one, and the ratio."""
    measures: list[tuple[str, Callable[[Table], float]]] = [
        *((f"claims a second, {n} at a time", lambda t, n=n: statistics.median(t.claims_s[n])) for n in (1, 4)),
        *(
            (f"GET {what} job, ms, {name}", lambda t, what=what, share=share: percentile(t.reads_ms[what], share))
            for what in ("ended", "queued")
            for name, share in (("median", 0.5), ("p95", 0.95))
        ),
    ]
    head = f"| {database} | {short.num_ended:,} ended | {long.num_ended:,} ended | ratio |\n|---|---|---|---|\n"
    lines = [f"| {name} | {of(short):.1f} | {of(long):.1f} | {of(long) / of(short):.2f} |\n" for name, of in measures]
    return head + "".join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--claims", type=int, default=200)
    parser.add_argument("--reads", type=int, default=150)
    parser.add_argument("--keep", action="store_true", help="write the tables to the results file too")
    a = parser.parse_args()
    if 2 * a.rounds * a.claims > NUM_QUEUED:
        parser.error(f"at most {NUM_QUEUED} claims in all")
    tables = []
    for database in a.databases:
        short, long = measure(database, [FEW_ENDED, a.jobs], rounds=a.rounds, num_claims=a.claims, num_reads=a.reads)
        tables.append(report(database, short, long))
        print(tables[-1], flush=True)
    if a.keep:
        RESULTS.write_text("\n".join(tables), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m bench.chaos``: a storm of faults over a service at work, and what it left.

An API and workers as processes of their own, with trainers that train nothing; a user who submits jobs all the time
and asks again, with the same Idempotency-Key, when there is no answer. Workers, trainers and the API are killed,
frozen and told to stop, connections of the database cut, messages of the broker lost and doubled. Then everything is
let to end and counted. The exit status is 1 when a job was lost, published otherwise than once, or is not as it must
be.

``--keep`` writes the result to the results file instead of an earlier one of the same stack; ``--report`` prints from
there.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from app.database import make_engine, make_sessionmaker, migrate, read_only
from app.storage import make_storage
from bench.chaos.audit import audit, recoveries
from bench.chaos.report import Result, tables
from bench.chaos.storm import LEASE_S, SWEEP_S, Storm
from tests.support.services import RABBITMQ_URL, postgres_database, rabbitmq_queue, redis_database
from tests.support.stacks import Stack

RESULTS = Path(__file__).parent.parent / "results" / "chaos.jsonl"
STACKS = ("embedded", "redis", "rabbitmq")


@contextmanager
def opened(name: str, folder: Path) -> Iterator[Stack]:
    """A stack by its name: SQLite alone, or PostgreSQL with a broker."""
    if name == "embedded":
        yield Stack(database_url=f"sqlite:///{folder / 'must.db'}", broker_url=None, queue="must")
        return
    with postgres_database() as database_url:
        if name == "redis":
            with redis_database() as broker_url:
                yield Stack(database_url=database_url, broker_url=broker_url, queue="must")
        else:
            with rabbitmq_queue() as queue:
                yield Stack(database_url=database_url, broker_url=RABBITMQ_URL, queue=queue)


def run(name: str, *, seconds: float, num_workers: int, seed: int) -> Result:
    """One storm over a fresh service."""
    with TemporaryDirectory() as temporary, opened(name, Path(temporary)) as stack:
        engine = make_engine(stack.database_url)
        migrate(engine)
        sessions = make_sessionmaker(engine)
        storm = Storm(stack, sessions, Path(temporary), num_workers=num_workers, seed=seed)
        try:
            storm.start()
            storm.rage(seconds)
            exit_codes = storm.end()
            left = storm.trainers_left()
        finally:
            storm.close()
        with read_only(sessions) as session:
            counted = audit(session, make_storage(str(storm.data_dir / "blobs"), Path(temporary)), storm.accepted)
            recovered = recoveries(session, storm.faults)
        engine.dispose()
    return Result(
        stack=name,
        seed=seed,
        seconds=seconds,
        num_workers=num_workers,
        lease_s=LEASE_S,
        sweep_s=SWEEP_S,
        faults=dict(Counter(fault.kind for fault in storm.faults)),
        audit=counted,
        recoveries=recovered,
        exit_codes=exit_codes,
        trainers_left=len(left),
    )


def read_results(path: Path) -> list[Result]:
    """What was kept."""
    if not path.exists():
        return []
    return [Result.parse(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def keep(path: Path, result: Result) -> None:
    """Write a result in the place of an earlier one."""
    kept = [*(r for r in read_results(path) if r.stack != result.stack), result]
    kept.sort(key=lambda r: STACKS.index(r.stack))
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in kept), encoding="utf-8")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", nargs="+", default=["embedded", "redis"], choices=STACKS)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    a = parser.parse_args()
    if a.report:
        print(tables(read_results(a.results)))
        return 0
    results = []
    for name in a.stacks:
        results.append(run(name, seconds=a.seconds, num_workers=a.workers, seed=a.seed))
        print(tables(results[-1:]), "\n", flush=True)
        if a.keep:
            keep(a.results, results[-1])
    return 0 if all(result.is_clean for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())

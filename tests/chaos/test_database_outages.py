"""A PostgreSQL that goes away, throws everybody off or is full, under an API and a worker that stay."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app.database import make_engine, make_sessionmaker, migrate
from app.jobs.status import JobStatus
from tests.chaos.test_workers import steps_of, wait_until, wait_until_training
from tests.support.jobs import add_job, read_job
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.service import running_service
from tests.support.workers import WorkerProcess, is_running, wait_for

Sessions = sessionmaker[Session]

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One for this file, with our tables."""
    with postgres_server() as server:
        engine = make_engine(server.url)
        migrate(engine)
        engine.dispose()
        yield server


@pytest.fixture
def sessions(server: PostgresServer) -> Iterator[Sessions]:
    engine = make_engine(server.url)
    yield make_sessionmaker(engine)
    engine.dispose()


@pytest.fixture
def start_worker(server: PostgresServer, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """A worker that asks the ledger itself."""
    workers: list[WorkerProcess] = []

    def start(*arguments: str, **settings: str) -> WorkerProcess:
        where = {"MUST_DATABASE_URL": server.url}
        workers.append(WorkerProcess(f"worker-{len(workers)}", tmp_path, where, *arguments, **settings))
        workers[-1].wait_until_ready()
        return workers[-1]

    yield start
    for worker in workers:
        worker.end()


@pytest.fixture(scope="module")
def client(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of an API on the server."""
    with running_service(tmp_path_factory.mktemp("api"), {"MUST_DATABASE_URL": server.url}) as service:
        yield service.client


def is_away(answer: httpx.Response) -> bool:
    """Whether it says that the database is away, in the form that was promised."""
    if answer.status_code == httpx.codes.OK:
        return False
    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "database_unavailable"
    assert int(answer.headers["Retry-After"]) > 0
    return True


def test_a_restart_shorter_than_the_lease_costs_no_job_its_worker(
    server: PostgresServer, client: httpx.Client, sessions: Sessions, start_worker: Callable[..., WorkerProcess]
) -> None:
    job_id = add_job(sessions, max_attempts=1, classes=[{"name": "cat"}], hyperparameters={"steps": 300, "step_ms": 20})
    worker = start_worker(lease="PT120S")
    wait_until_training(sessions, job_id)
    assert not is_away(client.get(f"/jobs/{job_id}"))
    server.stop()
    wait_for(lambda: is_away(client.get(f"/jobs/{job_id}")), what="the API to notice")
    assert client.get("/health/live").status_code == httpx.codes.OK
    wait_for(lambda: worker.events("ledger_unavailable"), what="the worker to notice")
    server.start()
    wait_for(lambda: not is_away(client.get(f"/jobs/{job_id}")), what="the API to recover")
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    assert read_job(sessions, job_id).attempt == 1
    assert len(worker.events("trainer_started")) == 1


@pytest.mark.parametrize("pings", [True, False])
def test_connections_that_were_all_ended_are_replaced(server: PostgresServer, *, pings: bool) -> None:
    """The control: a pool that does not look first hands out a dead one."""
    engine = make_engine(server.url) if pings else create_engine(server.url)
    with engine.connect(), engine.connect(), engine.connect():
        pass
    assert server.terminate_backends() >= 3
    with ExitStack() as stack:
        if not pings:
            stack.enter_context(pytest.raises(OperationalError))
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()


def test_an_api_and_a_worker_whose_connections_were_ended_go_on(
    server: PostgresServer, client: httpx.Client, sessions: Sessions, start_worker: Callable[..., WorkerProcess]
) -> None:
    job_id = add_job(sessions, max_attempts=1, classes=[{"name": "cat"}], hyperparameters={"steps": 100, "step_ms": 20})
    worker = start_worker(lease="PT120S")
    for _ in range(5):
        server.terminate_backends()
        is_away(client.get(f"/jobs/{job_id}"))  # it may have been at work on it; then it says so
        assert not is_away(client.get(f"/jobs/{job_id}"))
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    assert len(worker.events("trainer_started")) == 1


def test_an_api_that_gets_no_connection_says_so_and_recovers(
    server: PostgresServer, client: httpx.Client, sessions: Sessions
) -> None:
    """Others have taken them all, and the API's own were ended."""
    job_id = add_job(sessions, classes=[{"name": "cat"}])
    greedy = create_engine(server.url, pool_size=0, max_overflow=-1)
    with ExitStack() as held:

        def take_all() -> bool:
            try:
                while True:
                    held.enter_context(greedy.connect())
            except OperationalError:
                return True

        server.terminate_backends()
        take_all()
        wait_for(lambda: is_away(client.get(f"/jobs/{job_id}")), what="the API to notice")
        assert client.get("/health/live").status_code == httpx.codes.OK
    greedy.dispose()
    wait_for(lambda: not is_away(client.get(f"/jobs/{job_id}")), what="the API to recover")


@pytest.mark.parametrize("stops", [True, False])
def test_a_trainer_stops_at_a_checkpoint_when_the_outage_outlasts_the_lease(
    server: PostgresServer,
    sessions: Sessions,
    start_worker: Callable[..., WorkerProcess],
    tmp_path: Path,
    *,
    stops: bool,
) -> None:
    """And resumes from it. The control trains on, for all it knows beside another worker."""
    last = 400
    script = {"steps": last, "step_ms": 20, "crash_at": {str(last): "fatal"}}  # what has succeeded is tidied up
    job_id = add_job(sessions, max_attempts=1, hyperparameters=script)
    worker = start_worker(*([] if stops else ["--no-overdue"]), lease="PT4S")
    wait_until_training(sessions, job_id)
    trainer = worker.trainer_pid()
    server.stop()
    wait_for(lambda: not is_running(trainer), what="the trainer's end")
    (done,) = steps_of(tmp_path, job_id)
    server.start()
    if not stops:
        assert len(done) == last - 1
        return
    assert 0 < len(done) < last - 1
    wait_until(sessions, job_id, JobStatus.FAILED)
    assert read_job(sessions, job_id).attempt == 1, "the outage was not its fault"
    assert [int(step) for attempt in steps_of(tmp_path, job_id) for step in attempt] == list(range(1, last))

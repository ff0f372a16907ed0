"""A service under jobs and faults: real processes, a user who submits without end, and somebody who breaks things.

What is broken follows from a seed; when it is felt depends on the machine.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import httpx
from celery import Celery
from sqlalchemy import ColumnElement, Row, Select, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from app.database import read_only
from app.jobs.hint import TASK_NAME
from app.tables import Job
from tests.support.service import Service
from tests.support.stacks import Stack
from tests.support.tiny import make_images
from tests.support.workers import WorkerProcess, is_running, wait_for

LEASE_S = 3.0
SWEEP_S = 0.5
SETTINGS = {
    "lease": f"PT{LEASE_S}S",
    "sweep_interval": f"PT{SWEEP_S}S",
    "silence_timeout": "PT6S",
    "max_attempts": "100",  # a storm hits some job again and again, and each blow is an attempt
}
MEAN_CALM_S = 3.0
"""Between two faults."""
NUM_WAITING = 4
"""Queued jobs that the user sees to."""
NUM_IMAGES = 20
ENOUGH_S = 300.0
"""For all that is still queued when the storm is over."""
HELD = ("running", "cancelling")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that was broken."""

    kind: str
    at: datetime
    jobs: Mapping[str, int] = field(default_factory=dict)
    """Those that were running there, each with its attempt."""
    back_after_s: float | None = None
    """What was hit answered again after that time; None where the jobs tell."""


class Storm:
    """Between `start` and `end`; `rage` in between."""

    def __init__(
        self, stack: Stack, sessions: sessionmaker[Session], folder: Path, *, num_workers: int, seed: int
    ) -> None:
        self._stack, self._sessions, self._folder = stack, sessions, folder
        self._num_workers, self._seed = num_workers, seed
        self._dice = random.Random(seed)
        self._num_started = 0
        self._workers: list[WorkerProcess] = []
        self._thawing: list[tuple[float, int]] = []
        self._over = Event()
        self._retired: list[WorkerProcess] = []
        self._threads = ThreadPoolExecutor(2)
        self._user: Future[None] | None = None
        self._api_is_back: Future[None] | None = None
        self.faults: list[Fault] = []
        self.accepted: dict[str, str] = {}
        """Names of the jobs that were submitted -> ids."""

    @property
    def data_dir(self) -> Path:
        """Of API and workers."""
        return self._folder / "service" / "data"

    def start(self) -> None:
        """Bring everything up and begin to submit."""
        names = {f"MUST_{name.upper()}": value for name, value in SETTINGS.items()}
        self._service = Service(
            self._folder / "service", {**self._stack.settings, **names, "MUST_DEFAULT_MODEL": "tiny-clip"}
        )
        self._service.wait_until_ready()
        images = make_images(self._folder / "images", NUM_IMAGES)
        made = self._service.client.post("/datasets", files=[("images", (p.name, p.read_bytes())) for p in images])
        self._dataset_id = made.raise_for_status().json()["id"]
        for _ in range(self._num_workers):
            self._start_worker().wait_until_ready()
        self._user = self._threads.submit(self._submit_on)

    def rage(self, seconds: float) -> None:
        """Break something every now and then."""
        until = time.monotonic() + seconds
        kinds = self._kinds()
        while (left_s := until - time.monotonic()) > 0:
            time.sleep(min(left_s, self._dice.expovariate(1 / MEAN_CALM_S)))
            self._thaw()
            kind = self._dice.choices(list(kinds), weights=[weight for weight, _ in kinds.values()])[0]
            found = kinds[kind][1]()
            if found is not None:
                self.faults.append(found)

    def end(self) -> list[int]:
        """Stop breaking, let all jobs end, stop the workers gracefully. Returns the exit codes of all that were told to
        stop. Raises what the user met that is no answer, and when the API did not come back."""
        self._thaw(everything=True)
        self._over.set()
        for thread in (self._user, self._api_is_back):
            if thread is not None:
                thread.result(ENOUGH_S)  # what went wrong there goes wrong here
        wait_for(lambda: self._num(Job.finished_at.is_(None)) == 0, timeout_s=ENOUGH_S, what="all jobs to end")
        for worker in self._workers:
            worker.send(signal.SIGTERM)
        return [_exit_code(worker) for worker in (*self._retired, *self._workers)]

    def close(self) -> None:
        """Be rid of all processes."""
        self._over.set()
        for worker in (*self._retired, *self._workers):
            worker.end()
        self._service.close()
        self._threads.shutdown()

    def trainers_left(self) -> list[int]:
        """Processes of trainers that still run."""
        return [pid for pid in _processes() if str(self._folder).encode() in _command(pid) and is_running(pid)]

    # What can be broken, each with its weight.

    def _kinds(self) -> dict[str, tuple[float, Callable[[], Fault | None]]]:
        kinds: dict[str, tuple[float, Callable[[], Fault | None]]] = {
            "worker killed": (3, self._kill_worker),
            "worker frozen": (2, self._freeze_worker),
            "worker told to stop": (2, self._stop_worker),
            "trainer killed": (3, self._kill_trainer),
            "trainer frozen": (1, self._freeze_trainer),
            "API killed": (1, self._kill_api),
        }
        if self._stack.database_url.startswith("postgresql"):
            kinds["connections cut"] = (2, self._cut_connections)
        if self._stack.broker_url is not None:
            kinds |= {"messages lost": (2, self._lose_messages), "messages doubled": (1, self._double_messages)}
        return kinds

    def _kill_worker(self) -> Fault:
        worker = self._dice.choice(self._workers)
        fault = self._felt("worker killed", worker)
        worker.send(signal.SIGKILL)
        worker.wait()
        self._replace(worker)
        return fault

    def _freeze_worker(self) -> Fault:
        """Its trainers run on. It comes back before the end of its lease, or long after."""
        worker = self._dice.choice(self._workers)
        fault = self._felt("worker frozen", worker)
        worker.send(signal.SIGSTOP)
        self._thawing.append((time.monotonic() + LEASE_S * self._dice.uniform(0.3, 2.5), worker.process.pid))
        return fault

    def _stop_worker(self) -> Fault:
        worker = self._dice.choice(self._workers)
        fault = self._felt("worker told to stop", worker)
        worker.send(signal.SIGCONT)
        worker.send(signal.SIGTERM)
        self._retired.append(worker)
        self._replace(worker)
        return fault

    def _kill_trainer(self) -> Fault | None:
        return self._signal_trainer("trainer killed", signal.SIGKILL)

    def _freeze_trainer(self) -> Fault | None:
        return self._signal_trainer("trainer frozen", signal.SIGSTOP)

    def _signal_trainer(self, kind: str, number: signal.Signals) -> Fault | None:
        worker = self._dice.choice(self._workers)
        # Not what is about to become one: until its exec, whoever forks it stands still with it.
        trainers = [pid for pid in _children(worker.process.pid) if str(self._folder).encode() in _command(pid)]
        if not trainers:
            return None
        fault = self._felt(kind, worker)
        with suppress(ProcessLookupError):
            os.kill(self._dice.choice(trainers), number)
        return fault

    def _kill_api(self) -> None:
        """What else is broken meanwhile is broken without it."""
        if self._api_is_back is not None and not self._api_is_back.done():
            return
        if self._api_is_back is not None:
            self._api_is_back.result()
        at, started = datetime.now(UTC), time.monotonic()
        self._service.kill_api()
        self._service.start_api()

        def wait() -> None:
            self._service.wait_until_ready()
            self.faults.append(Fault(kind="API killed", at=at, back_after_s=time.monotonic() - started))

        self._api_is_back = self._threads.submit(wait)

    def _cut_connections(self) -> Fault:
        fault = self._felt("connections cut", *self._workers)
        with self._sessions() as session:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            session.execute(text(f"{others} AND pid <> pg_backend_pid()"))
        return fault

    def _lose_messages(self) -> Fault:
        at = datetime.now(UTC)
        with self._broker() as celery:
            channel = celery.connection_for_write().default_channel
            with suppress(*celery.connection_for_write().channel_errors):  # no queue yet: nothing to lose
                channel.queue_purge(self._stack.queue)
        return Fault(kind="messages lost", at=at)

    def _double_messages(self) -> Fault:
        at = datetime.now(UTC)
        known = list(self.accepted.values())
        with self._broker() as celery:
            for job_id in self._dice.choices(known, k=20) if known else []:
                celery.send_task(TASK_NAME, args=[job_id], queue=self._stack.queue)
        return Fault(kind="messages doubled", at=at)

    @contextmanager
    def _broker(self) -> Iterator[Celery]:
        with Celery(broker=self._stack.broker_url, set_as_current=False) as celery:
            yield celery

    # What runs.

    def _start_worker(self) -> WorkerProcess:
        worker = WorkerProcess(
            f"worker-{self._num_started}",
            self._folder,
            {**self._stack.settings, "TEST_TRAINER": "bench.chaos.trainer", "PYTHONFAULTHANDLER": "1"},
            data_dir=str(self.data_dir),
            **SETTINGS,
        )
        self._num_started += 1
        self._workers.append(worker)
        return worker

    def _replace(self, worker: WorkerProcess) -> None:
        self._workers.remove(worker)
        self._start_worker()

    def _thaw(self, *, everything: bool = False) -> None:
        due = [pid for at, pid in self._thawing if everything or at <= time.monotonic()]
        self._thawing = [(at, pid) for at, pid in self._thawing if pid not in due]
        running = {worker.process.pid for worker in self._workers}
        for pid in due:
            if pid in running:
                os.kill(pid, signal.SIGCONT)

    def _felt(self, kind: str, *workers: WorkerProcess) -> Fault:
        owners = [event["owner"] for worker in workers for event in worker.events("worker_started")]
        query = select(Job.id, Job.attempt).where(Job.owner.in_(owners), Job.status.in_(HELD))
        return Fault(kind=kind, at=datetime.now(UTC), jobs={row.id: row.attempt for row in self._ask(query)})

    def _submit_on(self) -> None:
        number = 0
        while not self._over.is_set():
            if self._num(Job.status == "queued") < NUM_WAITING:
                self._submit(number)
                number += 1
            self._over.wait(0.1)

    def _submit(self, number: int) -> None:
        """Ask until there is an answer, as a client does."""
        name = f"job {number}"
        wish = {"dataset_id": self._dataset_id, "classes": ["0", "1"], "name": name, "seed": self._seed + number}
        key = {"Idempotency-Key": f"{self._seed}-{number}"}
        with httpx.Client(base_url=self._service.client.base_url, timeout=30) as client:
            while name not in self.accepted:
                with suppress(httpx.TransportError):
                    reply = client.post("/jobs", json=wish, headers=key)
                    if reply.status_code == httpx.codes.ACCEPTED:
                        self.accepted[name] = reply.json()["id"]
                        return
                    if reply.status_code not in {httpx.codes.CONFLICT, httpx.codes.SERVICE_UNAVAILABLE}:
                        raise RuntimeError(f"{reply.status_code} {reply.text}")
                time.sleep(0.2)

    def _num(self, which: ColumnElement[bool]) -> int:
        return int(self._ask(select(func.count()).select_from(Job).where(which))[0][0])

    def _ask(self, query: Select[Any]) -> Sequence[Row[Any]]:
        while True:
            with suppress(DBAPIError), read_only(self._sessions) as session:  # our connections are cut too
                return session.execute(query).all()


def _exit_code(worker: WorkerProcess) -> int:
    """0 as well for one that was told while it started: it ends by the signal and has had no job."""
    try:
        code = worker.wait(timeout_s=180)
        return 0 if code == -signal.SIGTERM and not worker.events("job_claimed") else code
    except subprocess.TimeoutExpired as e:
        worker.send(signal.SIGABRT)  # its stacks go to its log
        worker.wait()
        raise RuntimeError(f"A worker that was told to stop did not end.\n{worker.log_path.read_text()[-8000:]}") from e


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _command(pid: int) -> bytes:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _children(pid: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    return []

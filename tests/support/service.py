"""The whole service as a user has it: an API and workers as processes of their own, reached over a socket."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.support.workers import wait_for


def free_port() -> int:
    """A port of the loopback interface that nobody uses now, and that the kernel gives to nobody who asks for any."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)  # below the ephemeral ports of Linux and of others
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Service:
    """An API on a free port; workers are started and killed at will."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MUST_")}
        self.data_dir = folder / "data"
        self._environment = {**inherited, "MUST_DATA_DIR": str(self.data_dir), **settings}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._port = free_port()
        self._api = self.start_api()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=30)

    def start_api(self) -> subprocess.Popen[bytes]:
        """Start the API; again, once it has died, at the same address."""
        api = "tests.support.api_main" if "TEST_QUEUE" in self._environment else "app.main"
        address = ("--host", "127.0.0.1", "--port", str(self._port), "--timeout-keep-alive", "300")
        self._api = self._start("api", "-m", "uvicorn", f"{api}:create_app", "--factory", *address)
        return self._api

    def kill_api(self) -> None:
        """SIGKILL, and be sure that it is gone."""
        self._api.kill()
        self._api.wait()

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process

    def wait_until_ready(self) -> None:
        """The API answers and says that it can work."""

        def ready() -> bool:
            assert self._api.poll() is None, self.logs()
            try:
                return self.client.get("/health/ready").status_code == httpx.codes.OK
            except httpx.TransportError:
                return False

        wait_for(ready, timeout_s=180, what="the API")

    def start_worker(self) -> subprocess.Popen[bytes]:
        """A worker process."""
        return self._start("worker", "-m", "worker")

    def wait_for_job(self, job_id: str, *, timeout_s: float = 180) -> dict[str, Any]:
        """The job once it has ended."""

        def ended() -> dict[str, Any] | None:
            job: dict[str, Any] = self.client.get(f"/jobs/{job_id}").json()
            return job if job["status"] in {"succeeded", "failed", "cancelled"} else None

        return wait_for(ended, timeout_s=timeout_s, what=f"{job_id}\n{self.logs()}") or {}

    def logs(self) -> str:
        """The end of every process's log."""
        return "\n".join(f"--- {p.name}\n{p.read_text()[-2000:]}" for p in sorted(self._folder.glob("*.log")))

    def close(self) -> None:
        """Stop everything that was started here."""
        self.client.close()
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def running_service(folder: Path, settings: Mapping[str, str]) -> Iterator[Service]:
    """A service that is ready, without a worker yet."""
    service = Service(folder, settings)
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.close()

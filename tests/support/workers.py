"""Real worker processes for tests, and bounded waits."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], *, timeout_s: float = 60, what: str = "it") -> T:
    """The condition's first true value. Fails after ``timeout_s``, which is long, for the machine may be busy: what a
    test waits for must not come about by itself meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.02)
    return value


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class WorkerProcess:
    """One ``python -m worker`` with short times and the scripted trainer."""

    def __init__(self, name: str, folder: Path, where: Mapping[str, str], *arguments: str, **settings: str) -> None:
        """``where``: variables that name the database and the broker; ``settings``: others, without their prefix."""
        self.log_path = folder / f"{name}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MUST_")} | {
            **where,
            "MUST_DATA_DIR": str(folder),
            "MUST_MODELS": '{"tiny-clip": "local-dir:/nowhere"}',
            "MUST_LEASE": "PT2S",
            "MUST_SWEEP_INTERVAL": "PT0.3S",
            "MUST_POLL_INTERVAL": "PT0.1S",
            "MUST_STOP_GRACE": "PT5S",
            **{f"MUST_{k.upper()}": v for k, v in settings.items()},
        }
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.worker_main", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_until_ready(self) -> None:
        """It has opened the database and begins to take jobs."""

        def ready() -> bool:
            assert self.process.poll() is None, self.log_path.read_text()[-3000:]
            return bool(self.events("worker_started"))

        wait_for(ready, timeout_s=60, what="a worker to start")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log lines of one event."""
        whole = self.log_path.read_text().rpartition("\n")[0]  # the last line may be under way
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def trainer_pid(self) -> int:
        """Waits until it has started a trainer."""
        return int(wait_for(lambda: self.events("trainer_started"), what="a trainer")[-1]["trainer_pid"])

    def send(self, number: signal.Signals) -> None:
        """A signal to the worker alone."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 60) -> int:
        """Its exit code."""
        return self.process.wait(timeout=timeout_s)

    def end(self) -> None:
        """However it is, be rid of it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=60)

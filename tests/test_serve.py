"""``must serve``: both programs start together and stop together."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.service import free_port
from tests.support.tiny import make_base
from tests.support.workers import is_running, wait_for


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_starts_together_stops_together(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MUST_")} | {
        "MUST_DATA_DIR": str(tmp_path / "data"),
        "MUST_MODELS": f'{{"tiny": "{make_base(tmp_path / "base")}"}}',
    }
    with (tmp_path / "log").open("wb") as log:
        serve = subprocess.Popen(
            [sys.executable, "-m", "app.cli.main", "serve", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        ready = f"http://127.0.0.1:{port}/health/ready"

        def is_ready() -> bool:
            assert serve.poll() is None, (tmp_path / "log").read_text()
            try:
                return httpx.get(ready).status_code == httpx.codes.OK
            except httpx.TransportError:
                return False

        wait_for(is_ready, timeout_s=180, what="the API")
        assert f"http://127.0.0.1:{port}/docs" in (tmp_path / "log").read_text()
        started = children(serve.pid)
        assert len(started) == 2

        os.kill(started[1], signal.SIGKILL)  # the worker: it is started again
        wait_for(lambda: set(children(serve.pid)) - set(started), what="a new worker")
        started = children(serve.pid)
        wait_for(lambda: "worker_started" in (tmp_path / "log").read_text(), what="the worker")

        serve.send_signal(number)
        assert serve.wait(timeout=60) == 0
        assert not any(is_running(pid) for pid in started)
    finally:
        if serve.poll() is None:
            serve.kill()

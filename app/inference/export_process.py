"""Exports in a process of their own: what they take of memory and of the interpreter's lock is not the API's."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from threading import Lock

import structlog

from app.exceptions import Conflict, ServiceError, Unavailable

_log = structlog.get_logger(__name__)

TIMEOUT = timedelta(minutes=15)
_NICE = 10
_USAGE = 64
"""The exit status of must_core's command line for what it can put into words: ``code (param): message``."""
_TOLD = re.compile(r"([a-z_]+)(?: \([a-z_]+\))?: (.+)")
_UNAVAILABLE = {
    "artifact_corrupt": ("artifact_corrupt", "The classifier's files are damaged."),
    "weights_unavailable": ("weights_unavailable", "The base model's weights are not at hand here."),
    "unknown_model": ("weights_unavailable", "The base model's weights are not at hand here."),
}


class ExportProcess:
    """Runs ``must_core export``, one at a time."""

    def __init__(self, *, timeout: timedelta = TIMEOUT) -> None:
        self._timeout = timeout
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def run(self, arguments: Sequence[str]) -> None:
        """Export, behind whatever answers requests; raises `Unavailable`, and `Conflict` ``not_exportable``."""
        process = self._start([sys.executable, "-m", "must_core", "export", *arguments])
        with process:
            try:
                _, told = process.communicate(timeout=self._timeout.total_seconds())
            except subprocess.TimeoutExpired as e:
                process.kill()
                raise Unavailable("export_failed", "The export took too long.") from e
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            _log.warning("export_failed", status=process.returncode, told=told[-2000:])
            raise refusal(process.returncode, told)

    def close(self) -> None:
        """End what runs; nothing is started from now on."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def _start(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        # Settings hold secrets, and the GPU is for answers.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MUST_")}
        with self._lock:
            if self._closed:
                raise Unavailable("export_failed", "The service is about to stop.")
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment | {"CUDA_VISIBLE_DEVICES": ""},
            )
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICE)
            return self._process


def refusal(status: int, told: str) -> ServiceError:
    """What an exit status and the last line on stderr mean to whoever asked for the export."""
    last = (told.strip().splitlines() or [""])[-1]
    found = _TOLD.fullmatch(last) if status == _USAGE else None
    if found is None:
        if status == _USAGE and "No space left on device" in last:
            return Unavailable("storage_full", "The storage is full.", retry_after_s=30)
        return Unavailable("export_failed", "The export failed.")
    code, message = found.groups()
    if code in _UNAVAILABLE:
        return Unavailable(*_UNAVAILABLE[code])
    return Conflict("not_exportable", message)

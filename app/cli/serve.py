"""Runs several of our programs as one: all start, all stop, and one that dies is started again."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType

import structlog

logger = structlog.get_logger(__name__)

_RESTART_AFTER_S = 1.0
_QUICK_DEATHS_ALLOWED = 5


@dataclass
class Program:
    """One program, as arguments to this Python."""

    name: str
    arguments: Sequence[str]
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    quick_deaths: int = field(default=0, init=False)
    started_at: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Start the process; a session of its own keeps a terminal's Ctrl-C from reaching it twice."""
        self.started_at = time.monotonic()
        self.process = subprocess.Popen([sys.executable, *self.arguments], start_new_session=True)

    @property
    def status(self) -> int | None:
        """The exit status, None while it runs."""
        return None if self.process is None else self.process.poll()

    def restart(self) -> None:
        """Start again after an unexpected end."""
        short_lived = time.monotonic() - self.started_at < 10
        self.quick_deaths = self.quick_deaths + 1 if short_lived else 0
        logger.warning("program_ended", program=self.name, status=self.status, quick_deaths=self.quick_deaths)
        time.sleep(_RESTART_AFTER_S)
        self.start()


def run_together(programs: Sequence[Program], *, stop_within: timedelta) -> int:
    """Run until SIGINT, SIGTERM or SIGHUP, then ask all to stop and wait; returns 0, or 1 when one keeps dying."""
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)  # the terminal was closed
    failed = False
    for program in programs:
        program.start()
    while not stopping and not failed:
        time.sleep(0.1)
        for program in programs:
            if program.status is not None and not stopping:
                program.restart()
                failed = program.quick_deaths >= _QUICK_DEATHS_ALLOWED
    _stop_all(programs, stop_within)
    return int(failed)


def _stop_all(programs: Sequence[Program], stop_within: timedelta) -> None:
    for program in programs:
        if program.process is not None and program.status is None:
            program.process.terminate()
    deadline = time.monotonic() + stop_within.total_seconds()
    for program in programs:
        if program.process is None:
            continue
        try:
            program.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("program_killed", program=program.name)
            program.process.kill()

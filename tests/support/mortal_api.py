"""An API that may die, and is started again whenever it does: ``python -m tests.support.mortal_api PORT FILE PID …``.

Each API is a fork of a process that has imported everything, so that a start costs no import. ``FILE`` may hold a point
of tests/support/failpoints.py, ``PID`` gets the number of the API's process; the rest are protections to take away.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.support.service import Service
from tests.support.workers import wait_for

PR_SET_PDEATHSIG = 1


class MortalService(Service):
    """A service whose API is started again by itself."""

    def __init__(self, folder: Path, settings: Mapping[str, str], *taken_away: str) -> None:
        """``taken_away``: names of `TAKEN_AWAY`."""
        self._failpoint = folder / "failpoint"
        self._pid_file = folder / "pid"
        self._taken_away = taken_away
        super().__init__(folder, settings)

    def start_api(self) -> subprocess.Popen[bytes]:
        """Start the process that starts the API."""
        arguments = (str(self._port), str(self._failpoint), str(self._pid_file), *self._taken_away)
        return self._start("api", "-m", "tests.support.mortal_api", *arguments)

    def die_at(self, point: str) -> None:
        """Have the API kill itself when it gets there."""
        whole = self._failpoint.with_suffix(".new")
        whole.write_text(point)
        whole.rename(self._failpoint)

    def wait_until_reborn(self) -> None:
        """The API died at the point that was asked for, and there is another that can work."""
        wait_for(lambda: not self._failpoint.exists(), what="the API to die")
        self.wait_until_ready()

    def kill_api(self) -> None:
        """SIGKILL, whatever it is doing."""
        os.kill(int(self._pid_file.read_text()), signal.SIGKILL)


@contextmanager
def mortal_service(folder: Path, settings: Mapping[str, str], *taken_away: str) -> Iterator[MortalService]:
    """A service that is ready, without a worker yet."""
    service = MortalService(folder, settings, *taken_away)
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.close()


def main(port: int, failpoint: Path, pid_file: Path, *taken_away: str) -> NoReturn:
    """Runs until SIGTERM."""
    # Not on top: decoding processes import this module, and are to be small.
    import uvicorn  # noqa: PLC0415

    from tests.support import api_main, failpoints  # noqa: PLC0415

    failpoints.shorten_locks()
    failpoints.install(failpoint)
    for each in taken_away:
        failpoints.TAKEN_AWAY[each]()
    current = 0

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        if current:
            os.kill(current, signal.SIGTERM)
            os.waitpid(current, 0)
        os._exit(0)

    while True:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        current = os.fork()
        if current == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            uvicorn.run(api_main.create_app, factory=True, host="127.0.0.1", port=port)
            os._exit(0)
        pid_file.write_text(str(current))
        signal.signal(signal.SIGTERM, stop)
        os.waitpid(current, 0)
        current = 0


if __name__ == "__main__":
    port, failpoint, pid_file, *taken_away = sys.argv[1:]
    main(int(port), Path(failpoint), Path(pid_file), *taken_away)

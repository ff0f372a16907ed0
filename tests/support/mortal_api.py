"""An API that may die, and is started again whenever it does: ``python -m tests.support.mortal_api PORT FILE PID …``.

Each API is a fork of a process that listens and has imported everything, so that a start is quick. ``FILE`` may hold a
point of tests/support/failpoints.py and a signal; ``PID`` gets the number of the newest API's process; the rest are
protections to take away.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
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

    def die_at(self, point: str, by: signal.Signals = signal.SIGKILL) -> None:
        """Have the API kill itself when it gets there; by SIGSTOP, freeze."""
        whole = self._failpoint.with_suffix(".new")
        whole.write_text(f"{point} {by.value}")
        whole.rename(self._failpoint)

    def wait_until_reached(self) -> None:
        """The API came to the point that was asked for."""
        wait_for(lambda: not self._failpoint.exists(), what="the API to get there")

    def wait_until_reborn(self) -> None:
        """The API died at the point that was asked for, and there is another that can work."""
        self.wait_until_reached()
        self.wait_until_ready()

    def start_another(self) -> None:
        """A second API at the same address, which gets the requests that a frozen first does not take."""
        self._api.send_signal(signal.SIGUSR1)
        self.wait_until_ready()

    def pid(self) -> int:
        """Of the API that was started last."""
        return int(self._pid_file.read_text())

    def kill_api(self) -> None:
        """SIGKILL, whatever it is doing."""
        os.kill(self.pid(), signal.SIGKILL)


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
    listening = socket.create_server(("127.0.0.1", port))
    children: set[int] = set()

    def start(*_: object) -> None:
        if (pid := os.fork()) == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            uvicorn.run(api_main.create_app, factory=True, fd=listening.fileno())
            os._exit(0)
        children.add(pid)
        pid_file.write_text(str(pid))

    def stop(*_: object) -> NoReturn:
        for pid in children:
            for number in (signal.SIGTERM, signal.SIGCONT):
                os.kill(pid, number)
        for _ in children:
            os.wait()
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR1, start)
    start()
    while True:
        children.discard(os.wait()[0])
        start()


if __name__ == "__main__":
    port, failpoint, pid_file, *taken_away = sys.argv[1:]
    main(int(port), Path(failpoint), Path(pid_file), *taken_away)

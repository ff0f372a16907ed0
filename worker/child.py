"""The trainer's side of the protocol: reports and beats out, the wish to stop in, no life without the supervisor.

A rank of several (worker/ranks.py) has torchrun's agent for a parent, and the supervisor for that one's.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from types import FrameType

from worker.exec_shim import PR_SET_PDEATHSIG
from worker.protocol import AGENT_PID_VARIABLE, REPORT_FD_VARIABLE, AnyReport, BeatReport, format_report

ORPHANED = 99
"""Exit code after the supervisor died. Nobody is left to read it."""
BEAT_INTERVAL_S = 2.0


class TrainerLink:
    """A trainer's connection to its supervisor. Make one in the main thread, before anything slow.

    It beats from then on. Without ``MUST_REPORT_FD`` in the environment (a trainer started by hand) it does not,
    reports go to stderr, and stdin is left alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        number = os.environ.get(REPORT_FD_VARIABLE)
        is_rank = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if is_rank and number is not None:
            self._fd = _opened_by_agent(number)
        else:
            self._fd = sys.stderr.fileno() if number is None else int(number)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if number is not None:
            os.set_inheritable(self._fd, False)  # data-loading children must not keep it open
            threading.Thread(target=_die_with_parent, name="parent-watch", daemon=True).start()
            # One rank is enough, and the others' beats could come in the middle of a long line of its.
            if os.environ.get("RANK", "0") == "0":
                threading.Thread(target=self._beat, name="beat", daemon=True).start()

    @property
    def stop_requested(self) -> bool:
        """The supervisor asked to stop: write a checkpoint after this step and exit with ``ExitCode.STOPPED``."""
        return self._stop.is_set()

    def send(self, report: AnyReport) -> None:
        """Report to the supervisor. When nobody reads any more, this process ends."""
        content = format_report(report)
        with self._lock:
            try:
                while content:
                    content = content[os.write(self._fd, content) :]
            except BrokenPipeError:
                os._exit(ORPHANED)

    def _beat(self) -> None:
        while True:
            self.send(BeatReport())
            time.sleep(BEAT_INTERVAL_S)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the handler's signature
        self._stop.set()


def _opened_by_agent(number: str) -> int:
    """The report pipe, which torchrun's agent holds open and does not hand on. Ends this process with the agent, too:
    it puts its ranks into sessions of their own, where nobody's kill of a group reaches them."""
    agent = os.environ.get(AGENT_PID_VARIABLE)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if str(os.getppid()) != agent:  # it died before we asked to be told, and that number is another process's by now
        os._exit(ORPHANED)
    try:
        return os.open(f"/proc/{agent}/fd/{number}", os.O_WRONLY)
    except OSError:
        os._exit(ORPHANED)  # the agent is going


def _die_with_parent() -> None:
    # The kernel kills us when the supervisor's thread dies, on Linux. This end of file arrives everywhere.
    while os.read(0, 4096):
        pass
    os._exit(ORPHANED)

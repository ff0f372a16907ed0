"""Being told to stop: SIGTERM, SIGINT, or SIGHUP when the terminal is closed."""

import os
import signal
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignal:
    """The first of these signals to this process; the next one ends it at once. For the main thread."""

    def __init__(self) -> None:
        self._told, tell = os.pipe()
        os.set_blocking(tell, False)
        # The kernel may hand a signal to any thread, as it does right after SIGCONT. Python's handlers run in the main
        # thread alone, and nothing would wake that; what is written here is written by the thread that got it.
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        for number in STOPS:
            signal.signal(number, _end_us_next_time)

    def wait(self) -> None:
        """Return when told."""
        while os.read(self._told, 1)[0] not in STOPS:
            pass


def _end_us_next_time(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the handler's signature
    signal.signal(number, signal.SIG_DFL)

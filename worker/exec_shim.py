"""Runs in the child between fork and the trainer: ties its life to its parent's, lowers its priority, becomes it.

``python -I -S exec_shim.py PARENT_PID NICE PROGRAM ARGUMENT…``. A program of its own because nothing else is safe to
run between fork and exec in a process with threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Never returns."""
    parent, nice, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(parent):  # it died before we asked to be told
            os._exit(1)
    os.nice(int(nice))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # a mask outlives exec, and SIGTERM must get through
    os.execv(command[0], command)  # noqa: S606 - this is what we are for


if __name__ == "__main__":
    main()

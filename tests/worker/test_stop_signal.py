"""Signals that the kernel hands to another thread than the one that waits."""

import signal
import subprocess
import sys

HEARD = """
import signal, sys, threading, time
from worker.stop_signal import StopSignal
wait = StopSignal().wait
"""
UNHEARD = """
import os, signal, sys, threading, time
told, tell = os.pipe()
signal.signal(signal.SIGTERM, lambda *_: os.write(tell, b"x"))
wait = lambda: os.read(told, 1)
"""
TO_ANOTHER_THREAD = """
def get_it():
    sys.stdin.readline()
    time.sleep(0.5)  # the main thread waits by then
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    print("got it", flush=True)
    threading.Event().wait()
threading.Thread(target=get_it, daemon=True).start()
wait()
"""


def ends(program: str, *, within_s: float) -> bool:
    """Whether a process ends when one of its threads gets the signal while the main thread waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", program + TO_ANOTHER_THREAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    try:
        return process.wait(within_s) == 0
    except subprocess.TimeoutExpired:
        assert process.stdout.readline() == "got it\n"
        return False
    finally:
        process.kill()
        process.wait()


def test_it_is_heard_whichever_thread_gets_it() -> None:
    assert ends(HEARD, within_s=60)


def test_control_without_the_descriptor_it_is_not_heard() -> None:
    assert not ends(UNHEARD, within_s=3)


def test_the_second_ends_the_process() -> None:
    program = HEARD + "print('ready', flush=True)\nwait()\nprint('told', flush=True)\nthreading.Event().wait()"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in ("ready\n", "told\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM

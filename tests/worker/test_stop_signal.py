"""A signal that comes right after a process was let go on, which the kernel may hand to any of its threads."""

import signal
import subprocess
import sys

import pytest

HEARD = """
import threading
from worker.stop_signal import StopSignal
stop = StopSignal()
wait = stop.wait
"""
UNHEARD = """
import os, signal, threading
told, tell = os.pipe()
signal.signal(signal.SIGTERM, lambda *_: os.write(tell, b"x"))
wait = lambda: os.read(told, 1)
"""
REST = """
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
wait()
"""
NUM_TRIES = 20


def num_deaf(program: str) -> int:
    """How many of some processes do not end when they are told as soon as they are let go on."""
    deaf = 0
    for _ in range(NUM_TRIES):
        process = subprocess.Popen([sys.executable, "-c", program + REST], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        while "T (stopped)" not in open(f"/proc/{process.pid}/status").read():  # noqa: PTH123, SIM115
            pass
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(2 if program == UNHEARD else 60)
        except subprocess.TimeoutExpired:
            deaf += 1
            process.kill()
            process.wait()
        if deaf and program == UNHEARD:
            break
    return deaf


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's choice of a thread is Linux's")
def test_it_is_heard_whichever_thread_gets_it() -> None:
    assert num_deaf(HEARD) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's choice of a thread is Linux's")
def test_control_without_the_descriptor_it_is_not_always_heard() -> None:
    assert num_deaf(UNHEARD) == 1


def test_the_second_ends_the_process() -> None:
    program = HEARD + "print('ready', flush=True)\nwait()\nprint('told', flush=True)\nthreading.Event().wait()"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in ("ready\n", "told\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM

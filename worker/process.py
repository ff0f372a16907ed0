"""One trainer process: started, listened to, stopped, reaped, with everything it started.

The trainer leads a session and process group of its own. On Linux the kernel kills it when the thread that started
it dies, so `Trainer` belongs to a thread that outlives it; everywhere, the end of its stdin tells it the same.
"""

import os
import re
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from pathlib import Path
from typing import IO

from app.jobs.messages import LogStream
from worker.kernel_kills import kernel_kills
from worker.protocol import MAX_LINE_BYTES, REPORT_FD_VARIABLE

SHIM = Path(__file__).with_name("exec_shim.py")
NICE = 10
"""The API of an embedded service shares the machine, and answers within milliseconds."""
MAX_LOG_BYTES = 2 * 1024**2
"""A trainer's log is cut in two files of at most this size; the older half goes when both are full."""
DRAIN_S = 5.0
PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TZDIR|TMPDIR|TEMP|TMP|XDG_\w+|VIRTUAL_ENV|CONDA_PREFIX|PYTHON\w*"
    r"|(?:CUDA|NVIDIA|NCCL|CUDNN|CUBLAS|HIP|HSA|ROCR|ROCM|OMP|GOMP|KMP|MKL|OPENBLAS|MALLOC)_\w+"
    r"|(?:GLOO|TORCH|PYTORCH|TORCHINDUCTOR|TORCHELASTIC|TRITON|HF|TRANSFORMERS|TOKENIZERS|SSL_CERT)_\w+"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|DYLD_\w+|LIBRARY_PATH|CPATH|CPLUS_INCLUDE_PATH|CC|CXX"
    r"|(?:https?|all|no)_proxy|(?:HTTPS?|ALL|NO)_PROXY|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
)
"""Variables that a trainer gets: what Python, torch, its compilers and the download of weights read.

It reads files that strangers sent, and all else that it needs is in its spec. Settings, and what opens databases and
storage, are the supervisor's alone."""


class Trainer:
    """A running trainer. ``on_line`` gets each report line, ``on_output`` what it writes to stdout and stderr, piece by
    piece; ``on_exit`` is called once. All are called on other threads."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log_path: Path,
        on_line: Callable[[bytes], None],
        on_exit: Callable[[], None],
        on_output: Callable[[LogStream, bytes], None] = lambda stream, chunk: None,  # noqa: ARG005
        devices: Mapping[str, str] | None = None,
    ) -> None:
        """Start it. ``devices``: the environment that shows it its GPUs, if it is not to see this process's. Raises
        `OSError` when the machine has no room for a process."""
        self._kernel_kills = kernel_kills()
        report_read, report_write = os.pipe()
        environment = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
        environment |= {
            **(devices or {}),
            REPORT_FD_VARIABLE: str(report_write),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",  # a segfault leaves its stack in the log
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(SHIM), str(os.getpid()), str(NICE), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(report_write,),
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            os.close(report_read)
            raise
        finally:
            os.close(report_write)
        self._exited = threading.Event()
        output, errors = self._process.stdout, self._process.stderr
        assert output is not None and errors is not None  # noqa: S101, PT018 - we asked for pipes
        streams = {LogStream.STDOUT: output, LogStream.STDERR: errors}
        self._pumps = [
            _start("trainer-reports", _pump_lines, os.fdopen(report_read, "rb"), on_line),
            _start("trainer-log", _pump_output, streams, log_path, on_output),
        ]
        self._waiter = _start("trainer-wait", self._wait, on_exit)

    @property
    def pid(self) -> int:
        """Its process id, also that of its group."""
        return self._process.pid

    @property
    def exited(self) -> bool:
        """It has ended; `finish` tells how."""
        return self._exited.is_set()

    @property
    def may_have_run_out_of_memory(self) -> bool:
        """The kernel has killed a process for want of memory since this one started, or does not say."""
        return self._kernel_kills is None or kernel_kills() != self._kernel_kills

    def ask_to_stop(self) -> None:
        """Ask for a checkpoint and an end. Its own children are its own business."""
        self._signal(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it and all that it started, now. Works on a stopped process too."""
        self._signal(-self._process.pid, signal.SIGKILL)

    def finish(self) -> int:
        """After its exit: end what it left behind, hear its last reports, forget it. Returns the exit code, negative
        for the number of the signal that it died of. Kills it first if it still runs."""
        self.kill()
        self._waiter.join()
        for pump in self._pumps:
            pump.join(DRAIN_S)  # bounded: something may have left the group and hold the pipes open
        code = self._process.wait()  # only now is the id free for another process
        if self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def _signal(self, target: int, number: signal.Signals) -> None:
        if self._process.returncode is None:  # not reaped, so the id is still its own
            try:
                os.kill(target, number)
            except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
                return

    def _wait(self, on_exit: Callable[[], None]) -> None:
        # WNOWAIT leaves it unreaped: its id, and so its group's, stays its own until `finish`.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self._exited.set()
        on_exit()


def _start(name: str, target: Callable[..., None], *arguments: object) -> threading.Thread:
    # In a copy of the caller's context: what its log lines carry, these carry too.
    thread = threading.Thread(target=copy_context().run, args=(target, *arguments), name=name, daemon=True)
    thread.start()
    return thread


def _pump_lines(stream: IO[bytes], on_line: Callable[[bytes], None]) -> None:
    with stream:
        while line := stream.readline(MAX_LINE_BYTES):
            whole = line.endswith(b"\n")
            if whole:
                on_line(line)
            while not whole and (rest := stream.readline(MAX_LINE_BYTES)):  # too long: skip the rest of it
                whole = rest.endswith(b"\n")


def _pump_output(
    streams: Mapping[LogStream, IO[bytes]], path: Path, on_output: Callable[[LogStream, bytes], None]
) -> None:
    size = path.stat().st_size if path.exists() else 0
    with ExitStack() as opened, selectors.DefaultSelector() as selector:
        for name, stream in streams.items():
            selector.register(opened.enter_context(stream), selectors.EVENT_READ, name)
        while selector.get_map():
            for key, _ in selector.select():
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                    continue
                on_output(key.data, chunk)
                size = _append(path, chunk, size)


def _append(path: Path, chunk: bytes, size: int) -> int:
    """Add to the log file; returns its size. A full disk must not block the trainer's output, nor end it."""
    try:
        if size + len(chunk) > MAX_LOG_BYTES:
            path.replace(path.with_name(path.name + ".1"))
            size = 0
        with path.open("ab") as log:
            log.write(chunk)
    except OSError:
        return size
    return size + len(chunk)

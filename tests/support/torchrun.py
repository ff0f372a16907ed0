"""Starting several ranks on this machine, as torchrun does."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Threads that do not spin, and restarts that find each other (docs/decisions/008)."""


def command(program: Sequence[str], *options: str) -> list[str]:
    """The command line of torchrun for a Python program (``-m``, module, arguments)."""
    return [sys.executable, "-m", "torch.distributed.run", *options, *program]


def start(
    program: Sequence[str], *, processes: int, restarts: int = 0, hosts: int = 1, host: int = 0, port: int = 0
) -> "subprocess.Popen[str]":
    """Start one host's ranks; with several hosts, each is an agent of its own that meets the others at ``port``."""
    options = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    if hosts == 1:
        options += ["--standalone", "--local-addr=127.0.0.1"]
    else:
        options += [
            f"--nnodes={hosts}", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test",
            f"--rdzv-conf=is_host={int(host == 0)}", "--local-addr=127.0.0.1",
        ]  # fmt: skip
    return subprocess.Popen(
        command(program, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **ENVIRONMENT},
    )


def finished(process: "subprocess.Popen[str]", *, within_s: float = 240) -> str:
    """Wait for the end; returns what was printed and fails when the exit status is not 0."""
    try:
        printed, _ = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, printed
    return printed

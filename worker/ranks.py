"""``python -m worker.ranks N GRACE PROGRAM ARGUMENT…``: one trainer on several GPUs, as N ranks of a program.

Takes the trainer's place under the supervisor: SIGTERM reaches every rank, which then has GRACE seconds to end, and it
ends as the first failed rank did, by the same exit status or signal. torchrun's agent starts the ranks, and ends all
when one fails; it starts none again, for the ledger counts attempts and the next goes on from a checkpoint.
"""

import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from worker.protocol import AGENT_PID_VARIABLE, ExitCode

_HERE = "127.0.0.1"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status, or dies of the signal that a rank died of."""
    num_ranks, grace_s, program = int(arguments[0]), int(arguments[1]), list(arguments[2:])
    # Ranks that compute on a CPU share it; left alone, each would use all of it.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_ranks)))
    os.environ[AGENT_PID_VARIABLE] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # else it leaves a folder of its own in /tmp
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint=f"{_HERE}:0",
        local_addr=_HERE,
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=grace_s,
    )
    try:
        elastic_launch(config, program[0])(*program[1:])
    except SignalException:
        return ExitCode.STOPPED
    except ChildFailedError as e:
        return _end_as(e.get_first_failure()[1].exitcode)
    return ExitCode.DONE


def _end_as(code: int) -> int:
    if code >= 0:
        return code
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)  # the agent handles some itself
    os.kill(os.getpid(), -code)
    return ExitCode.TRANSIENT  # it was one that nobody dies of


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How an attempt ended, and what becomes of the job. Pure: exit code, reports and our own doings in, verdict out."""

import signal
from dataclasses import dataclass
from enum import Enum, auto

from app.jobs.messages import JobError
from worker.protocol import ErrorReport, ExitCode, ResultReport


class Interruption(Enum):
    """Why we ended a trainer, by rising urgency."""

    SHUTDOWN = auto()
    """This worker is to stop."""
    OVERDUE = auto()
    """The ledger was silent for longer than the lease."""
    OUT_OF_TIME = auto()
    """The job has run for as long as it may."""
    CANCEL = auto()
    """The user's wish."""
    STALLED = auto()
    """The trainer made no progress for too long, however it beat."""
    SILENT = auto()
    """The trainer gave no sign of life for too long."""
    LOST = auto()
    """The job is somebody else's."""


class Ending(Enum):
    """What to tell the ledger."""

    PUBLISH = auto()
    RELEASE = auto()
    CANCEL = auto()
    RETRY = auto()
    FAIL = auto()
    ABANDON = auto()
    """Nothing: the job is not ours."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """An ending, with the reason where it has one."""

    ending: Ending
    error: JobError | None = None


MAX_RUNTIME_EXCEEDED = JobError(
    code="max_runtime_exceeded",
    message="The job has run for as long as it was allowed to. Resumed, it goes on from its last checkpoint.",
    param="max_runtime_s",
)
STALLED = JobError(code="trainer_stalled", message="The training stopped making progress.")
SILENT = JobError(code="trainer_unresponsive", message="The training process stopped answering.")
NO_RESULT = JobError(code="internal_error", message="The training ended without a result.")
INTERNAL = JobError(code="internal_error", message="Something went wrong that is not your fault.")


def judge(  # noqa: PLR0911 - a decision table
    code: int,
    *,
    interruption: Interruption | None,
    result: ResultReport | None,
    error: ErrorReport | None,
    out_of_memory: bool = True,
) -> Outcome:
    """What an exit means. ``code`` is negative for the number of a signal, like in `subprocess`. ``out_of_memory``: a
    SIGKILL that we did not send may have been the kernel's."""
    if interruption is Interruption.LOST:
        return Outcome(ending=Ending.ABANDON)
    if interruption is Interruption.CANCEL:
        return Outcome(ending=Ending.CANCEL)
    if code in {ExitCode.DONE, ExitCode.STOPPED} and result is not None:
        # It finished while being asked to stop: finished is finished. Several ranks' agent then says that it stopped.
        return Outcome(ending=Ending.PUBLISH)
    stopped = interruption in {Interruption.SHUTDOWN, Interruption.OVERDUE, Interruption.OUT_OF_TIME}
    if error is not None and not (stopped and error.kind == "transient"):
        return Outcome(
            ending=Ending.RETRY if error.kind == "transient" else Ending.FAIL,
            error=JobError(code=error.code, message=error.message, param=error.param),
        )
    if interruption is Interruption.STALLED:
        return Outcome(ending=Ending.RETRY, error=STALLED)
    if interruption is Interruption.SILENT:
        return Outcome(ending=Ending.RETRY, error=SILENT)
    if interruption is Interruption.OUT_OF_TIME:
        return Outcome(ending=Ending.FAIL, error=MAX_RUNTIME_EXCEEDED)
    if stopped:
        return Outcome(ending=Ending.RELEASE)  # also when it had to be killed: the stop was not its fault
    return _accident(code, out_of_memory=out_of_memory)


def _accident(code: int, *, out_of_memory: bool) -> Outcome:
    if code == -signal.SIGKILL and out_of_memory:
        error = JobError(code="worker_out_of_memory", message="The training ran out of memory and was killed.")
        return Outcome(ending=Ending.RETRY, error=error)
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        error = JobError(code="worker_lost", message=f"The training process died ({name}).")
        return Outcome(ending=Ending.RETRY, error=error)
    if code in {ExitCode.DONE, ExitCode.FATAL, ExitCode.USAGE}:
        return Outcome(ending=Ending.FAIL, error=NO_RESULT if code == ExitCode.DONE else INTERNAL)
    error = JobError(code="worker_lost", message=f"The training process ended unexpectedly (exit code {code}).")
    return Outcome(ending=Ending.RETRY, error=error)

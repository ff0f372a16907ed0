"""What the end of a trainer means."""

import signal
from pathlib import Path

import pytest

from worker.outcome import Ending, Interruption, judge
from worker.protocol import ErrorReport, ResultReport

RESULT = ResultReport(bundle_dir=Path("/b"), metrics={})
E = Ending


def error(kind: str) -> ErrorReport:
    return ErrorReport(kind=kind, code="c", message="m")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "interruption", "result", "report", "ending", "told"),
    [
        (0, None, RESULT, None, E.PUBLISH, None),
        (0, Interruption.SHUTDOWN, RESULT, None, E.PUBLISH, None),
        (0, Interruption.OVERDUE, RESULT, None, E.PUBLISH, None),
        (0, Interruption.STALLED, RESULT, None, E.PUBLISH, None),
        (3, Interruption.SHUTDOWN, RESULT, None, E.PUBLISH, None),
        (3, Interruption.OUT_OF_TIME, RESULT, None, E.PUBLISH, None),
        (3, Interruption.CANCEL, RESULT, None, E.CANCEL, None),
        (3, Interruption.LOST, RESULT, None, E.ABANDON, None),
        (-9, Interruption.SHUTDOWN, RESULT, None, E.RELEASE, None),
        (0, Interruption.CANCEL, RESULT, None, E.CANCEL, None),
        (0, Interruption.LOST, RESULT, None, E.ABANDON, None),
        (1, None, RESULT, None, E.RETRY, "worker_lost"),
        (0, None, None, None, E.FAIL, "internal_error"),
        (3, Interruption.SHUTDOWN, None, None, E.RELEASE, None),
        (3, Interruption.OVERDUE, None, None, E.RELEASE, None),
        (3, Interruption.CANCEL, None, None, E.CANCEL, None),
        (3, None, None, None, E.RETRY, "worker_lost"),
        (-9, Interruption.SHUTDOWN, None, None, E.RELEASE, None),
        (-9, Interruption.STALLED, None, None, E.RETRY, "trainer_stalled"),
        (-9, None, None, None, E.RETRY, "worker_out_of_memory"),
        (-9, Interruption.SILENT, None, None, E.RETRY, "trainer_unresponsive"),
        (-9, Interruption.CANCEL, None, None, E.CANCEL, None),
        (-9, Interruption.LOST, None, None, E.ABANDON, None),
        (-signal.SIGSEGV, None, None, None, E.RETRY, "worker_lost"),
        (-99, None, None, None, E.RETRY, "worker_lost"),
        (64, None, None, error("usage"), E.FAIL, "c"),
        (70, None, None, error("fatal"), E.FAIL, "c"),
        (75, None, None, error("transient"), E.RETRY, "c"),
        (-11, None, None, error("fatal"), E.FAIL, "c"),
        (64, Interruption.SHUTDOWN, None, error("usage"), E.FAIL, "c"),
        (75, Interruption.SHUTDOWN, None, error("transient"), E.RELEASE, None),
        (70, Interruption.CANCEL, None, error("fatal"), E.CANCEL, None),
        (0, Interruption.OUT_OF_TIME, RESULT, None, E.PUBLISH, None),
        (3, Interruption.OUT_OF_TIME, None, None, E.FAIL, "max_runtime_exceeded"),
        (-9, Interruption.OUT_OF_TIME, None, None, E.FAIL, "max_runtime_exceeded"),
        (75, Interruption.OUT_OF_TIME, None, error("transient"), E.FAIL, "max_runtime_exceeded"),
        (70, Interruption.OUT_OF_TIME, None, error("fatal"), E.FAIL, "c"),
        (70, None, None, None, E.FAIL, "internal_error"),
        (75, None, None, None, E.RETRY, "worker_lost"),
    ],
)
def test_verdicts(  # noqa: PLR0917 - a table
    code: int,
    interruption: Interruption | None,
    result: ResultReport | None,
    report: ErrorReport | None,
    ending: Ending,
    told: str | None,
) -> None:
    outcome = judge(code, interruption=interruption, result=result, error=report)
    assert outcome.ending is ending
    assert (outcome.error.code if outcome.error else None) == told


@pytest.mark.parametrize(("code", "told"), [(-9, "worker_lost"), (-11, "worker_lost"), (0, "internal_error")])
def test_no_kill_is_the_kernels_when_it_killed_nobody(code: int, told: str) -> None:
    outcome = judge(code, interruption=None, result=None, error=None, out_of_memory=False)
    assert outcome.error is not None
    assert outcome.error.code == told

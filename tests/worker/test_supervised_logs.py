"""From a trainer's stdout and stderr to the job's log, with a real child process and a real ledger."""

import os
import signal
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker
from structlog.testing import capture_logs

from app.database import now_plus
from app.jobs.claims import ClaimStore
from app.jobs.errors import LedgerUnavailable
from app.jobs.ledger import Ledger
from app.jobs.messages import LogEntry, LogStream
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.tables import Job
from tests.support.jobs import add_job, read_job
from tests.support.supervision import running, training
from tests.support.workers import wait_for
from worker import process
from worker.supervisor import Supervisor

Supervise = Callable[..., Supervisor]
Sessions = sessionmaker[Session]


def log_of(sessions: Sessions, job_id: str) -> list[LogEntry]:
    with sessions() as session, session.begin():
        return list(JobStore(session).log(job_id))


def texts(sessions: Sessions, job_id: str) -> list[str]:
    return [entry.text for entry in log_of(sessions, job_id)]


def script(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", textwrap.dedent(code)


def test_last_words_of_every_attempt_are_in_the_log(supervise: Supervise, sessions: Sessions) -> None:
    job_id = add_job(sessions, max_attempts=2, hyperparameters={"steps": 3, "crash_at": {"3": "signal 11"}})
    supervisor = supervise()
    assert supervisor.run_one()
    assert supervisor.run_one()
    assert read_job(sessions, job_id).status is JobStatus.FAILED
    said = [(entry.attempt, entry.stream) for entry in log_of(sessions, job_id) if entry.text == "about to die"]
    assert said == [(1, LogStream.STDOUT), (2, LogStream.STDOUT)]


def test_the_log_can_be_read_while_the_job_runs(supervise: Supervise, sessions: Sessions) -> None:
    code = """
        import sys, time
        print("here", flush=True)
        sys.stdin.read()
    """
    job_id = add_job(sessions)
    supervisor = supervise(trainer=script(code), stop_grace=timedelta(0))
    with running(supervisor):
        wait_for(lambda: texts(sessions, job_id) == ["here"], what="the line")
        assert read_job(sessions, job_id).status is JobStatus.RUNNING
        supervisor.stop()


@pytest.mark.parametrize("fence", ["fenced", "unfenced"])
def test_a_trainer_whose_job_was_taken_over_adds_nothing(
    supervise: Supervise, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, fence: str
) -> None:
    """Unfenced is the negative control."""
    code = """
        import time
        for n in range(2000):
            print(n, flush=True)
            time.sleep(0.1)
    """
    if fence == "unfenced":
        monkeypatch.setattr(ClaimStore, "_fence", lambda _, claim: (Job.id == claim.job_id,))
    job_id = add_job(sessions)
    supervisor = supervise(trainer=script(code), stop_grace=timedelta(0))
    with running(supervisor):
        wait_for(lambda: texts(sessions, job_id), what="a line")
        with sessions() as session, session.begin():
            session.execute(update(Job).values(lease_until=now_plus(timedelta(seconds=-1))))
            assert ClaimStore(session).take("heir", timedelta(seconds=60), job_id) is not None
            before = JobStore(session).log(job_id)
        if fence == "unfenced":
            wait_for(lambda: len(log_of(sessions, job_id)) > len(before), what="the zombie's line")
            supervisor.stop()
    if fence == "fenced":
        assert log_of(sessions, job_id) == before


ODD = rb"""
import os, sys
os.write(1, b"caf\xc3\xa9 \xff\xfe\n\x1b[31mred\x1b[0m \x1b]0;title\x07 \x00 \xe2\x80\xae\n")
os.write(2, ("reading " + os.getcwd() + "/data/x.bin with " + os.environ["HF_TOKEN"] + "\n").encode())
os.write(2, b'{"event": "resumed", "step": 12, "level": "info", "job_id": "job_1"}\n')
def inner(): raise RuntimeError("inner thing")
inner()
"""


def test_odd_output_is_shown_harmlessly_and_traces_go_to_the_operator(
    supervise: Supervise, sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_do_not_tell")
    (tmp_path / "odd.py").write_bytes(ODD)
    job_id = add_job(sessions)
    with capture_logs() as logs:
        assert supervise(trainer=(sys.executable, str(tmp_path / "odd.py"))).run_one()
    shown = texts(sessions, job_id)
    assert set(shown) == {
        "café \ufffd\ufffd",
        "red \\x1b]0;title\\x07 \\x00 \\u202e",
        "reading [path]/x.bin with ***",
        "info: resumed step=12",
        next(text for text in shown if text.startswith("a traceback of RuntimeError is left out")),
    }
    (told,) = [line["traceback"] for line in logs if line["event"] == "trainer_traceback"]
    assert "RuntimeError: inner thing" in told
    raw = (tmp_path / "runs" / job_id / "attempt-1" / "trainer.log").read_bytes()
    assert b"inner thing" in raw, "the operator has all of it, as written"
    assert b"\xff\xfe" in raw


@pytest.mark.slow
def test_a_gigabyte_on_stdout_costs_neither_the_job_nor_the_disk_nor_the_ledger(
    supervise: Supervise, sessions: Sessions, tmp_path: Path
) -> None:
    job_id = add_job(sessions, hyperparameters={"steps": 2, "crash_at": {"1": "say 1024"}})
    limit = 128 * 1024
    assert supervise(Ledger(sessions, max_log_bytes=limit), stall_timeout=timedelta(seconds=100)).run_one()
    assert read_job(sessions, job_id).status is JobStatus.SUCCEEDED
    files = list((tmp_path / "runs" / job_id / "attempt-1").glob("trainer.log*"))
    assert sum(path.stat().st_size for path in files) <= 2 * process.MAX_LOG_BYTES
    found = log_of(sessions, job_id)
    assert sum(len(entry.text) for entry in found) < limit
    assert found[0].text == "lorem ipsum"
    assert any("bytes of output are not kept" in entry.text for entry in found)


def test_an_outage_of_the_ledger_loses_no_line_and_doubles_none(supervise: Supervise, sessions: Sessions) -> None:
    code = """
        import time
        for n in range(60):
            print(n, flush=True)
            time.sleep(0.1)
    """

    class Forgetful(Ledger):
        """Every other report is written, and its answer lost."""

        calls = 0

        def report(self, *arguments: Any) -> Any:
            answer = super().report(*arguments)
            self.calls += 1
            if self.calls % 2:
                raise LedgerUnavailable("the answer is lost")
            return answer

    job_id = add_job(sessions)
    assert supervise(Forgetful(sessions), trainer=script(code)).run_one()
    shown = [int(text) for text in texts(sessions, job_id) if text.isdigit()]
    assert shown == sorted(set(shown))
    assert shown[:40] == list(range(40))


def test_progress_is_not_needed_to_see_the_log_of_a_cancelled_job(supervise: Supervise, sessions: Sessions) -> None:
    job_id = add_job(sessions, hyperparameters={"steps": 1000, "step_ms": 20, "crash_at": {"1": "say 1"}})
    with running(supervise()):
        wait_for(training(sessions, job_id))
        with sessions() as session, session.begin():
            JobStore(session).request_cancel(job_id)
    assert read_job(sessions, job_id).status is JobStatus.CANCELLED
    assert texts(sessions, job_id)[0] == "lorem ipsum"


def test_a_descendant_that_left_and_talks_on_holds_nothing_up(
    supervise: Supervise, sessions: Sessions, tmp_path: Path
) -> None:
    code = """
        import subprocess, sys
        talk = "import time\\nfor _ in range(6000): print('still here', flush=True); time.sleep(0.01)"
        child = subprocess.Popen([sys.executable, "-c", talk], start_new_session=True)
        open(PATH, "w").write(str(child.pid))
        sys.exit(9)
    """
    pid_file = tmp_path / "pid"
    job_id = add_job(sessions, max_attempts=1)
    try:
        with running(supervise(trainer=script(f"PATH = {str(pid_file)!r}\n" + textwrap.dedent(code)))):
            wait_for(lambda: read_job(sessions, job_id).status is JobStatus.FAILED, what="the end")
            os.kill(int(pid_file.read_text()), 0)  # raises where it had ended before the job
    finally:
        with suppress(OSError, ValueError):
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert "still here" in texts(sessions, job_id)

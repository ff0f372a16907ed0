"""A child process and all that it starts."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tests.support.workers import is_running, wait_for
from worker import process
from worker.process import Trainer


def start(folder: Path, code: str, lines: list[bytes] | None = None) -> Trainer:
    return Trainer(
        [sys.executable, "-c", textwrap.dedent(code)],
        log_path=folder / "trainer.log",
        on_line=(lines if lines is not None else []).append,
        on_exit=lambda: None,
    )


def test_reports_output_and_exit_code_arrive(tmp_path: Path) -> None:
    lines: list[bytes] = []
    code = """
        import os, sys
        fd = int(os.environ["MUST_REPORT_FD"])
        os.write(fd, b"one\\ntwo\\n" + b"x" * 70000 + b"\\nhalf a line")
        print("said"); print("complained", file=sys.stderr)
        sys.exit(7)
    """
    trainer = start(tmp_path, code, lines)
    wait_for(lambda: trainer.exited)
    assert trainer.finish() == 7
    assert lines == [b"one\n", b"two\n", b"x" * 70000 + b"\n"], "a line cut short is no line"
    assert set((tmp_path / "trainer.log").read_text().split()) == {"said", "complained"}


def test_a_line_beyond_the_limit_is_skipped_whole(tmp_path: Path) -> None:
    lines: list[bytes] = []
    code = """
        import os
        with os.fdopen(int(os.environ["MUST_REPORT_FD"]), "wb") as out:
            out.write(b"x" * 1_000_000 + b"\\nnext\\n")
    """
    trainer = start(tmp_path, code, lines)
    wait_for(lambda: trainer.exited)
    trainer.finish()
    assert lines == [b"next\n"]


def test_the_log_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    code = "import sys\nfor n in range(800): sys.stdout.write('x' * 9999 + '\\n')\nprint('last words')"
    trainer = start(tmp_path, code)
    wait_for(lambda: trainer.exited)
    trainer.finish()
    sizes = [path.stat().st_size for path in tmp_path.glob("trainer.log*")]
    assert len(sizes) == 2
    assert sum(sizes) <= 2 * process.MAX_LOG_BYTES
    assert (tmp_path / "trainer.log").read_text().endswith("last words\n")


def test_killing_ends_the_whole_group_even_stopped(tmp_path: Path) -> None:
    code = """
        import os, subprocess, time
        child = subprocess.Popen(["/bin/sleep", "300"])
        os.write(int(os.environ["MUST_REPORT_FD"]), f"{child.pid}\\n".encode())
        time.sleep(300)
    """
    lines: list[bytes] = []
    trainer = start(tmp_path, code, lines)
    grandchild = int(wait_for(lambda: lines)[0])
    os.kill(trainer.pid, signal.SIGSTOP)
    trainer.kill()
    assert trainer.finish() == -signal.SIGKILL
    wait_for(lambda: not is_running(grandchild))
    trainer.kill()  # after the end it reaches nobody
    trainer.ask_to_stop()


def test_a_child_left_behind_by_a_good_exit_is_ended_too(tmp_path: Path) -> None:
    code = """
        import os, subprocess
        child = subprocess.Popen(["/bin/sleep", "300"])
        os.write(int(os.environ["MUST_REPORT_FD"]), f"{child.pid}\\n".encode())
    """
    lines: list[bytes] = []
    trainer = start(tmp_path, code, lines)
    wait_for(lambda: trainer.exited)
    assert trainer.finish() == 0
    wait_for(lambda: not is_running(int(lines[0])))


SHIM_WITHOUT = "PR_SET_PDEATHSIG = 1", "PR_SET_PDEATHSIG = 3  # PR_GET_DUMPABLE: asks and changes nothing"


@pytest.mark.parametrize("tie", ["tied", "untied"])
def test_the_kernel_kills_the_trainer_with_the_thread_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tie: str
) -> None:
    """Untied is the negative control: without PR_SET_PDEATHSIG a trainer that heeds nothing lives on."""
    if tie == "untied":
        shim = process.SHIM.read_text()
        assert SHIM_WITHOUT[0] in shim
        monkeypatch.setattr(process, "SHIM", tmp_path / "shim.py")
        process.SHIM.write_text(shim.replace(*SHIM_WITHOUT))
    pids: list[int] = []
    lines: list[bytes] = []
    code = """
        import os, time
        os.write(int(os.environ["MUST_REPORT_FD"]), b"here\\n")
        time.sleep(300)
    """

    def live_shortly() -> None:
        pids.append(start(tmp_path, code, lines).pid)
        wait_for(lambda: lines)
        assert is_running(pids[0])

    thread = threading.Thread(target=live_shortly)
    thread.start()
    thread.join()
    if tie == "tied":
        wait_for(lambda: not is_running(pids[0]))
        return
    time.sleep(1)
    alive = is_running(pids[0])
    os.kill(pids[0], signal.SIGKILL)
    assert alive


@pytest.mark.parametrize("link", ["linked", "deaf"])
def test_a_supervisor_that_is_killed_takes_its_trainer_along_even_without_the_kernel(tmp_path: Path, link: str) -> None:
    """End of file on stdin tells a trainer with a `TrainerLink`; one without it, the control, lives on."""
    program = """
        import os, sys, threading
        from pathlib import Path
        from worker import process
        folder, listens = Path(sys.argv[1]), sys.argv[2] == "linked"
        process.SHIM = folder / "shim.py"
        child = "import os, time; os.write(int(os.environ['MUST_REPORT_FD']), b'here\\\\n'); time.sleep(300)"
        if listens:
            child = "from worker.child import TrainerLink; TrainerLink(); " + child
        trainer = process.Trainer(
            [sys.executable, "-c", child], log_path=folder / "log", on_line=print, on_exit=lambda: None
        )
        print(trainer.pid, flush=True)
        threading.Event().wait()
    """
    (tmp_path / "shim.py").write_text(process.SHIM.read_text().replace(*SHIM_WITHOUT))
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), link], stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert supervisor.stdout.readline(), "it runs"
        supervisor.kill()
    if link == "linked":
        wait_for(lambda: not is_running(pid))
        return
    time.sleep(1)
    alive = is_running(pid)
    os.kill(pid, signal.SIGKILL)
    assert alive


def test_signals_blocked_here_reach_the_trainer(tmp_path: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        trainer = start(tmp_path, "import time; time.sleep(300)")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    trainer.ask_to_stop()
    wait_for(lambda: trainer.exited)
    assert trainer.finish() == -signal.SIGTERM


def test_it_inherits_what_it_reads_and_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that pass are the negative control of those that do not."""
    kept = {"PATH", "HOME", "LC_ALL", "CUDA_HOME", "PYTORCH_CUDA_ALLOC_CONF", "HF_HOME", "https_proxy", "PYTHONPATH"}
    hidden = {"MUST_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "PATHS", "MY_PATH", "HFX", "ANYTHING"}
    for name in hidden | (kept - {"PATH", "HOME", "PYTHONPATH"}):
        monkeypatch.setenv(name, "value")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    trainer = start(tmp_path, "import os; print(*os.environ, sep='\\n')")
    wait_for(lambda: trainer.exited)
    assert trainer.finish() == 0
    inherited = set((tmp_path / "trainer.log").read_text().split())
    assert kept <= inherited
    assert not hidden & inherited

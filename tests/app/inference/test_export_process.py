"""What a child that exports says is what its user is told."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from app.exceptions import Conflict, ServiceError, Unavailable
from app.inference.export_process import ExportProcess, refusal
from tests.support.workers import is_running, wait_for


@pytest.mark.parametrize(
    ("status", "told", "kind", "code"),
    [
        (64, "a warning\nartifact_corrupt: The bundle cannot be read.\n", Unavailable, "artifact_corrupt"),
        (64, "weights_unavailable: They are not here.", Unavailable, "weights_unavailable"),
        (64, "not_exportable (classifier): It has a loop.", Conflict, "not_exportable"),
        (64, "invalid_combination (base_model): Another tower.", Conflict, "not_exportable"),
        (64, "cannot read or write: [Errno 28] No space left on device: 'x'", Unavailable, "storage_full"),
        (64, "", Unavailable, "export_failed"),
        (1, "not_exportable: from a traceback", Unavailable, "export_failed"),
        (-9, "", Unavailable, "export_failed"),
    ],
)
def test_refusals(status: int, told: str, kind: type[ServiceError], code: str) -> None:
    refused = refusal(status, told)
    assert (type(refused), refused.code) == (kind, code)
    assert "[Errno" not in refused.detail


def export_nothing(tmp_path: Path, process: ExportProcess) -> str:
    """Have the real command look for a bundle that is not there; the code that this is refused with."""
    (tmp_path / "bundle").mkdir()
    with pytest.raises(Unavailable) as told:
        process.run(["--classifier", str(tmp_path / "bundle"), "--to", "onnx", "--output", str(tmp_path / "out")])
    return told.value.code


def test_the_real_command_is_understood(tmp_path: Path) -> None:
    assert export_nothing(tmp_path, ExportProcess()) == "artifact_corrupt"


def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    process = ExportProcess(timeout=timedelta(seconds=0.01))
    assert export_nothing(tmp_path, process) == "export_failed"
    assert process._process is not None
    assert not is_running(process._process.pid)


def test_the_end_of_the_service_ends_it(tmp_path: Path, never_ending: Callable[[], None]) -> None:
    process = ExportProcess()
    never_ending()
    with ThreadPoolExecutor(1) as threads:
        refused = threads.submit(export_nothing, tmp_path, process)
        child = wait_for(lambda: process._process, what="the child")
        assert child is not None
        assert is_running(child.pid)
        process.close()
        assert refused.result(30) == "export_failed"
    assert not is_running(child.pid)
    (tmp_path / "bundle").rmdir()
    assert export_nothing(tmp_path, process) == "export_failed", "none is started any more"
    assert process._process is child


@pytest.fixture
def never_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have a program that never ends run instead."""

    def install() -> None:
        program = tmp_path / "program"
        program.write_text("#!/bin/sh\nexec sleep 600\n")
        program.chmod(0o700)
        monkeypatch.setattr("app.inference.export_process.sys.executable", str(program))

    return install

"""What the trainer tells of a run. The run itself is must_core's; here its events are made up."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from must_core.errors import Diverged, InvalidConfig
from must_core.guard.judge import Gain
from must_core.guard.verdict import Outcome, Verdict, too_few_images
from must_core.guard.vetoes import Veto
from must_core.report import make_report
from must_core.unknown import Calibration
from must_core.workflow import Completed, PhaseStarted, RolledBack, Settled, Worked
from tests.support.tiny import CLASSES, make_base, make_images
from tests.support.workers import wait_for
from worker import process, protocol, trainer
from worker.protocol import (
    AnyReport,
    ErrorReport,
    ExitCode,
    PhaseReport,
    ResultReport,
    RolledBackReport,
    SettledReport,
    TrainerSpec,
)
from worker.relay import Relay

SPEC = TrainerSpec(
    job_id="job_1",
    attempt=1,
    base_model="local-dir:/nowhere",
    classes=["cat", "dog"],
    templates=["a {}"],
    hyperparameters={},
    seed=0,
    images=[],
    checkpoints_dir=Path("/c"),
    resume_from=[],
    output_dir=Path("/o"),
)
VETO = Veto("feature_rank", 0.08, 0.4, "They have collapsed.")


class Link:
    """What a supervisor would read."""

    stop_requested = False

    def __init__(self) -> None:
        self.heard: list[AnyReport] = []

    def send(self, report: AnyReport) -> None:
        self.heard.append(protocol.parse_report(protocol.format_report(report)))


def reports(monkeypatch: pytest.MonkeyPatch, *events: Any) -> list[AnyReport]:
    """The trainer's reports of a run with these events."""

    def run_adaptation(*_args: object, **_options: object) -> Iterator[Any]:
        yield from events

    monkeypatch.setattr(trainer, "run_adaptation", run_adaptation)
    link = Link()
    assert trainer._train(SPEC, link) == ExitCode.DONE  # type: ignore[arg-type]
    return link.heard


def judged(outcome: Outcome, *vetoes: Veto) -> Verdict:
    gain = Gain(
        estimate=0.1,
        low=0.05,
        high=0.15,
        held_out_estimate=0.1,
        num_images=300,
        num_held_out=60,
        num_disagreements=9,
        num_for_adapted=7,
        num_for_zero_shot=1,
    )
    return Verdict(outcome=outcome, candidate="half_way", reasons=("One.", "Two."), gain=gain, vetoes=vetoes)


@pytest.mark.parametrize(
    "verdict", [judged("adapted"), judged("zero_shot", VETO), too_few_images(36)], ids=lambda v: v.outcome
)
def test_the_verdict_arrives_as_it_was_given(monkeypatch: pytest.MonkeyPatch, verdict: Verdict) -> None:
    (result,) = reports(monkeypatch, Completed(Path("/o/bundle"), {"changed_answers": 0.2}, verdict))
    assert isinstance(result, ResultReport)
    assert (result.bundle_dir, result.metrics) == (Path("/o/bundle"), {"changed_answers": 0.2})
    assert result.verdict == trainer.told(verdict)
    assert result.verdict.outcome == verdict.outcome
    assert result.verdict.candidate == verdict.candidate
    assert result.verdict.reasons == list(verdict.reasons)
    assert result.verdict.gain == protocol.Gain(**vars(verdict.gain))
    assert [vars(veto) for veto in result.verdict.vetoes] == [vars(veto) for veto in verdict.vetoes]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_statistic_that_is_no_number_costs_no_verdict(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    verdict = judged("zero_shot", Veto("feature_rank", value, 0.4, "No number."))
    (result,) = reports(monkeypatch, Completed(Path("/o/bundle"), {}, verdict))
    assert isinstance(result, ResultReport)
    assert result.verdict is not None
    assert [(veto.name, veto.value) for veto in result.verdict.vetoes] == [("feature_rank", None)]


def test_a_run_without_the_guard_has_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reports(monkeypatch, Completed(Path("/o/bundle"), {}, None)) == [
        ResultReport(bundle_dir=Path("/o/bundle"), metrics={}, verdict=None)
    ]


def test_an_early_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reports(monkeypatch, Settled(30), Completed(Path("/o/bundle"), {}, None))[0] == SettledReport(step=30)


@pytest.mark.parametrize("spoilt", [False, True])
def test_the_largest_report_arrives_in_one_line(monkeypatch: pytest.MonkeyPatch, *, spoilt: bool) -> None:
    """Many classes, and a classifier whose scores are no numbers: neither may cost the job its result."""
    before_NK, after_NK = torch.randn(2000, 10_000), torch.randn(2000, 10_000)
    if spoilt:
        after_NK[:] = float("nan")
    report = make_report(before_NK, after_NK, torch.arange(2000) + 10**6, torch.ones(2000) > 0, seed=0)
    (result,) = reports(monkeypatch, Completed(Path("/o/bundle"), {}, judged("adapted"), report))
    assert isinstance(result, ResultReport)
    assert result.report is not None
    assert len(protocol.format_report(result)) < protocol.MAX_LINE_BYTES / 2
    assert result.report.num_changed == report.num_changed
    assert [image.position for image in result.report.changed] == [image.position for image in report.changed]
    assert (len(result.report.changed), len(result.report.classes), len(result.report.audit.images)) == (60, 500, 50)


@pytest.mark.parametrize(("adapted", "told"), [(0.2, 0.2), (None, None), (float("nan"), None)])
def test_the_limits_of_the_unknown_arrive(
    monkeypatch: pytest.MonkeyPatch, adapted: float | None, told: float | None
) -> None:
    unknown = Calibration(zero_shot_below=-0.1, adapted_below=adapted, num_images=50, held_out=True)
    (result,) = reports(monkeypatch, Completed(Path("/o/bundle"), {}, None, unknown=unknown))
    assert isinstance(result, ResultReport)
    assert result.unknown_below == protocol.UnknownBelow(zero_shot=-0.1, adapted=told)


@pytest.mark.parametrize("to_step", [20, None])
def test_a_collapse_is_told_and_the_run_goes_on_to_its_result(
    monkeypatch: pytest.MonkeyPatch, to_step: int | None
) -> None:
    found = reports(
        monkeypatch,
        RolledBack((VETO,), to_step),
        PhaseStarted("evaluating"),
        Completed(Path("/o/bundle"), {}, judged("zero_shot", VETO)),
    )
    assert found[:2] == [
        RolledBackReport(reasons=["They have collapsed."], to_step=to_step),
        PhaseReport(phase="evaluating"),
    ]
    assert isinstance(found[2], ResultReport)


def test_work_is_told_at_a_bounded_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.time, "monotonic", iter(n / 100 for n in range(10**6)).__next__)
    told = reports(monkeypatch, *(Worked(n) for n in range(1000)), Completed(Path("/o/bundle"), {}, None))
    counts = [report.num_done for report in told if isinstance(report, protocol.WorkReport)]
    assert counts[0] == 0, "the first at once"
    assert 5 < len(counts) < 12
    assert counts == sorted(set(counts))


@pytest.mark.parametrize(
    ("error", "kind", "code", "exit_code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "fatal", "gpu_out_of_memory", ExitCode.FATAL),
        (Diverged("The loss is not a finite number any more."), "fatal", "diverged", ExitCode.FATAL),
        (InvalidConfig("Too large.", param="batch_size"), "usage", "invalid_combination", ExitCode.USAGE),
        (MemoryError(), "transient", "worker_failed", ExitCode.TRANSIENT),
        (OSError("No space left on device"), "transient", "worker_failed", ExitCode.TRANSIENT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_ends_a_run_is_told_by_a_stable_name(  # noqa: PLR0917 - a table
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, kind: str, code: str, exit_code: ExitCode
) -> None:
    """That a step which does not fit is done in parts first is in tests/must_core/test_gradient.py."""

    def fail(*_args: object) -> int:
        raise error

    link = Link()
    (tmp_path / "spec.json").write_bytes(protocol.format_spec(SPEC))
    monkeypatch.setattr(sys, "argv", ["trainer", str(tmp_path / "spec.json")])
    monkeypatch.setattr(trainer, "TrainerLink", lambda: link)
    monkeypatch.setattr(trainer, "configure_logging", lambda: None)
    monkeypatch.setattr(trainer, "_train", fail)
    assert trainer.main() == exit_code
    (told,) = link.heard
    assert isinstance(told, ErrorReport)
    assert (told.kind, told.code) == (kind, code)


STEPS = {"epochs": 400, "batch_size": 8, "learning_rate_per_256": 1e-3, "mask_patch_size": 4}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_soft_stop_of_the_real_trainer_leaves_a_checkpoint(tmp_path: Path) -> None:
    """The checkpoints' interval is an hour: without the stop there would be none, as the middle shows."""
    spec = replace(
        SPEC,
        base_model=make_base(tmp_path / "base"),
        classes=list(CLASSES),
        images=make_images(tmp_path / "images", 16),
        hyperparameters=STEPS,
        checkpoints_dir=tmp_path / "checkpoints",
        output_dir=tmp_path,
        checkpoint_interval_s=3600.0,
    )
    (tmp_path / "spec.json").write_bytes(protocol.format_spec(spec))
    relay = Relay()
    running = process.Trainer(
        [sys.executable, "-m", "worker.trainer", str(tmp_path / "spec.json")],
        log_path=tmp_path / "trainer.log",
        on_line=relay.take_in,
        on_exit=lambda: None,
    )
    wait_for(lambda: running.exited or step_of(relay) > 0, timeout_s=200, what="a step")
    seen = step_of(relay)
    assert not list(spec.checkpoints_dir.rglob("meta.json"))
    running.ask_to_stop()
    wait_for(lambda: running.exited, timeout_s=60, what="the end")
    assert running.finish() == ExitCode.STOPPED
    (meta,) = spec.checkpoints_dir.rglob("meta.json")
    assert json.loads(meta.read_text())["step"] >= seen > 0


def step_of(relay: Relay) -> int:
    """The last step that was told."""
    return int((relay._progress or {}).get("step", 0))

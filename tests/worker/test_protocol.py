"""What crosses the pipe."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker import protocol
from worker.protocol import (
    Answer,
    AnyReport,
    AuditImage,
    AuditPlan,
    CheckpointReport,
    Choice,
    ChoicesReport,
    ClassShare,
    ErrorReport,
    Gain,
    MetricsReport,
    PhaseReport,
    ProgressReport,
    ProtocolError,
    ReportedImage,
    ResultReport,
    RolledBackReport,
    RunReport,
    SettledReport,
    TrainerSpec,
    Verdict,
    Veto,
)

GAIN = Gain(
    estimate=0.1,
    low=0.0,
    high=0.2,
    held_out_estimate=0.1,
    num_images=300,
    num_held_out=60,
    num_disagreements=9,
    num_for_adapted=7,
    num_for_zero_shot=1,
)
VERDICT = Verdict(
    outcome="zero_shot",
    candidate="half_way",
    reasons=["It is worse."],
    gain=GAIN,
    vetoes=[Veto(name="feature_rank", value=None, limit=0.4, reason="It has collapsed.")],
)

SHARE = ClassShare(index=1, answers_zero_shot=3, answers_adapted=0, mean_score_zero_shot=0.25, mean_score_adapted=0.0)
IMAGE = ReportedImage(
    position=7, held_out=True, zero_shot=Answer(index=0, score=0.5), adapted=Answer(index=1, score=1.0), margin=0.1
)
RUN_REPORT = RunReport(
    num_images=9, num_held_out=3, num_changed=1, num_classes=2, classes=[SHARE], changed=[IMAGE], uncertain=[],
    audit=AuditPlan(num_disagreed=1, num_agreed=2, images=[AuditImage(position=7, zero_shot=0, adapted=1)]),
)  # fmt: skip

REPORTS: list[AnyReport] = [
    PhaseReport(phase="training"),
    ChoicesReport(choices={"epochs": Choice(value=3, reason="few images"), "masking": Choice(value=True, reason="")}),
    ProgressReport(phase="training", epoch=1, step=2, total_steps=30, images_per_second=12.5),
    ProgressReport(phase="evaluating", step=0, total_steps=0),
    MetricsReport(metrics={"loss": 0.25, "steps": 3}),
    CheckpointReport(step=7),
    RolledBackReport(reasons=["It has collapsed."], to_step=None),
    SettledReport(step=30),
    ResultReport(bundle_dir=Path("/x/y"), metrics={}),
    ResultReport(bundle_dir=Path("/x/y"), metrics={}, verdict=VERDICT),
    ResultReport(bundle_dir=Path("/x/y"), metrics={}, report=RUN_REPORT),
    ErrorReport(kind="usage", code="out_of_range", message="Too \n much.", param="epochs"),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda r: r.type)
def test_reports_survive_the_pipe(report: AnyReport) -> None:
    line = protocol.format_report(report)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert protocol.parse_report(line) == report


def test_the_spec_survives_the_file() -> None:
    spec = TrainerSpec(
        job_id="job_1",
        attempt=2,
        base_model="local-dir:/m",
        classes=["cat", {"name": "dog", "prompts": ["a puppy"]}],
        templates=["a {}"],
        hyperparameters={"epochs": "auto", "masking": False, "lr": 1e-5},
        seed=2**62,
        images=[Path("/a"), Path("/b")],
        checkpoints_dir=Path("/c"),
        resume_from=[],
        output_dir=Path("/o"),
    )
    assert protocol.parse_spec(protocol.format_spec(spec)) == spec


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"type":"phase","phase":"x"',
        b'{"type":"nothing"}',
        b'{"type":"phase","v":2,"phase":"x"}',
        b'{"type":"phase","v":1,"phase":"x","more":1}',
        b'{"type":"phase","v":1,"phase":7}',
        b'{"type":"phase","v":1,"phase":"a\\u0000b"}',
        b'{"type":"progress","v":1,"phase":"x","step":-1,"total_steps":1}',
        b'{"type":"progress","v":1,"phase":"x","step":"1","total_steps":1}',
        b'{"type":"metrics","v":1,"metrics":{"loss":"0.5"}}',
        b'{"type":"metrics","v":1,"metrics":{"loss":null}}',
        b'{"type":"error","v":1,"kind":"odd","code":"x","message":"m"}',
        b'{"type":"result","v":1,"bundle_dir":"/x","metrics":{},"verdict":{"outcome":"adapted"}}',
        b'{"type":"result","v":1,"bundle_dir":"/x","metrics":{},"report":{"num_images":1}}',
        b'{"type":"rolled_back","v":1,"reasons":"x","to_step":1}',
    ],
)
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.parse_report(line)


def test_values_that_are_no_numbers_are_left_out() -> None:
    report = MetricsReport(metrics={"loss": float("nan"), "rate": float("inf"), "kept": 1.0})
    assert report.metrics == {"kept": 1.0}
    parsed = protocol.parse_report(b'{"type":"metrics","v":1,"metrics":{"loss":NaN,"kept":1.0}}')
    assert isinstance(parsed, MetricsReport)
    assert parsed.metrics == {"kept": 1.0}


def test_messages_are_cut_and_can_be_stored() -> None:
    report = ErrorReport(kind="fatal", code="x", message="a\x00" * 5000)
    assert len(report.message) == 1000
    assert "\x00" not in report.message


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_do_worse_than_be_refused(line: bytes) -> None:
    try:
        protocol.parse_report(line)
    except ProtocolError:
        return
    assert isinstance(json.loads(line), dict)

"""From many reports to few writes."""

from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.jobs.messages import EventType
from tests.support.clock import Clock
from worker.protocol import (
    AnyReport,
    BeatReport,
    CheckpointReport,
    Choice,
    ChoicesReport,
    ErrorReport,
    MetricsReport,
    PhaseReport,
    ProgressReport,
    ResultReport,
    RolledBackReport,
    SettledReport,
    WorkReport,
    format_report,
)
from worker.relay import Relay


@pytest.fixture
def relay(clock: Clock) -> Relay:
    return Relay(clock)


def tell(relay: Relay, *reports: AnyReport) -> None:
    for report in reports:
        relay.take_in(format_report(report))


def progress(step: int, phase: str = "training") -> ProgressReport:
    return ProgressReport(phase=phase, step=step, total_steps=100)


def test_nothing_new_is_nothing_to_say(relay: Relay) -> None:
    assert relay.hand_out() is None
    tell(relay, progress(1))
    assert relay.hand_out() is not None
    assert relay.hand_out() is None


def test_only_the_latest_is_told(relay: Relay) -> None:
    tell(
        relay, *(progress(n) for n in range(50)), MetricsReport(metrics={"loss": 2}), MetricsReport(metrics={"loss": 1})
    )
    told = relay.hand_out()
    assert told is not None
    assert told.progress is not None
    assert told.progress["step"] == 49
    assert told.metrics == {"loss": 1}
    assert [kind for kind, _ in told.events] == [EventType.PHASE, EventType.METRICS]


def test_metrics_events_thin_out_as_a_run_gets_older(relay: Relay, clock: Clock) -> None:
    num_events = 0
    for _ in range(24 * 3600):
        clock.now += 1
        tell(relay, MetricsReport(metrics={"loss": 1}))
        told = relay.hand_out()
        assert told is not None
        num_events += len(told.events)
    assert 300 < num_events < 900


def test_each_phase_is_told_once_however_it_flickers(relay: Relay) -> None:
    for n in range(500):
        tell(relay, PhaseReport(phase=f"phase {n % 2}"), progress(n, phase=f"phase {n % 2}"))
    told = relay.hand_out()
    assert told is not None
    assert len(told.events) == 100


def test_put_back_keeps_the_newer_and_the_order(relay: Relay) -> None:
    tell(relay, PhaseReport(phase="first"), MetricsReport(metrics={"loss": 2}))
    refused = relay.hand_out()
    assert refused is not None
    tell(relay, PhaseReport(phase="second"))
    relay.put_back(refused)
    told = relay.hand_out()
    assert told is not None
    assert told.progress == {"phase": "second"}
    assert told.metrics == {"loss": 2}
    assert [data.get("phase") for _, data in told.events] == ["first", None, "second"]


def test_the_end_is_estimated_from_the_pace(relay: Relay, clock: Clock) -> None:
    tell(relay, progress(40))
    told = relay.hand_out()
    assert told is not None
    assert told.remaining is None, "one point makes no line"
    clock.now += 10
    tell(relay, progress(60))
    told = relay.hand_out()
    assert told is not None
    assert told.remaining == timedelta(seconds=20)


def test_only_reports_are_signs_of_life(relay: Relay, clock: Clock) -> None:
    clock.now += 60
    assert relay.silent_s == 0, "a program may take long to start"
    tell(relay, BeatReport())
    clock.now += 5
    relay.take_in(b"hello\n")
    assert relay.silent_s == 5
    tell(relay, progress(1))
    assert relay.silent_s == 0
    clock.now += 3
    relay.excuse()
    assert (relay.silent_s, relay.stalled_s) == (0, 0)


@pytest.mark.parametrize(
    "report",
    [
        PhaseReport(phase="training"),
        PhaseReport(phase="evaluating"),
        progress(5),
        progress(6),
        WorkReport(num_done=8),
        ResultReport(bundle_dir=Path("/b"), metrics={}),
    ],
    ids=lambda report: f"{report.type}-{getattr(report, 'step', '')}",
)
def test_progress_is_what_was_not_reached_before(relay: Relay, clock: Clock, report: AnyReport) -> None:
    tell(relay, PhaseReport(phase="training"), progress(5), WorkReport(num_done=7))
    clock.now += 9
    tell(relay, BeatReport(), PhaseReport(phase="training"), progress(5), progress(4), WorkReport(num_done=7))
    tell(relay, MetricsReport(metrics={"loss": 1}), CheckpointReport(step=5), SettledReport(step=5))
    assert (relay.silent_s, relay.stalled_s) == (0, 9), "life is not progress"
    tell(relay, report)
    known = [PhaseReport(phase="training"), progress(5)]
    assert relay.stalled_s == (9 if report in known else 0)


def test_inventing_phases_is_no_progress_in_the_end(relay: Relay, clock: Clock) -> None:
    tell(relay, *(PhaseReport(phase=f"phase {n}") for n in range(1000)))
    clock.now += 1
    tell(relay, PhaseReport(phase="yet another"))
    assert relay.stalled_s == 1


def test_events_of_a_kind_are_bounded_however_long_a_trainer_goes_on(relay: Relay) -> None:
    choices = ChoicesReport(choices={"epochs": Choice(value=1, reason="r")})
    told: list[tuple[EventType, object]] = []
    for n in range(200):
        tell(relay, choices, SettledReport(step=n), RolledBackReport(reasons=["r"], to_step=n))
        report = relay.hand_out()
        told += report.events if report else ()
    assert len(told) == 60


def test_lines_that_are_no_reports_do_not_flood_the_log(relay: Relay) -> None:
    with capture_logs() as logs:
        for _ in range(500):
            relay.take_in(b"hello\n")
    assert len(logs) == 20
    assert logs[-1]["last_told"]


def test_last_words_are_kept(relay: Relay) -> None:
    error = ErrorReport(kind="fatal", code="diverged", message="m")
    choices = ChoicesReport(choices={"epochs": Choice(value=1, reason="r")})
    tell(relay, choices, error)
    assert relay.error == error
    told = relay.hand_out()
    assert told is not None
    assert told.choices == {"epochs": {"value": 1, "reason": "r"}}

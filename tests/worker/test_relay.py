"""From many reports to few writes."""

from datetime import timedelta

import pytest

from app.jobs.messages import EventType
from worker.protocol import (
    AnyReport,
    Choice,
    ChoicesReport,
    ErrorReport,
    MetricsReport,
    PhaseReport,
    ProgressReport,
    format_report,
)
from worker.relay import Relay


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


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
    clock.now += 5
    relay.take_in(b"hello\n")
    assert relay.silent_s == 5
    tell(relay, progress(1))
    assert relay.silent_s == 0
    clock.now += 3
    relay.excuse_silence()
    assert relay.silent_s == 0


def test_last_words_are_kept(relay: Relay) -> None:
    error = ErrorReport(kind="fatal", code="diverged", message="m")
    choices = ChoicesReport(choices={"epochs": Choice(value=1, reason="r")})
    tell(relay, choices, error)
    assert relay.error == error
    told = relay.hand_out()
    assert told is not None
    assert told.choices == {"epochs": {"value": 1, "reason": "r"}}

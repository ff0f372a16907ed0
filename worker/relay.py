"""Between the trainer's reports, which come as fast as it likes, and the ledger, which is told about once a second."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from threading import Lock
from typing import Any

import structlog

from app.jobs.messages import EventType, Report
from worker.protocol import (
    CheckpointReport,
    ChoicesReport,
    ErrorReport,
    MetricsReport,
    PhaseReport,
    ProgressReport,
    ProtocolError,
    ResultReport,
    RolledBackReport,
    SettledReport,
    parse_report,
)

_log = structlog.get_logger(__name__)

MIN_EVENT_SPACING_S = 2.0
EVENT_SPACING_SHARE = 0.01
"""A metrics event is kept at most every two seconds, and at most every hundredth of the attempt's age: a few hundred
for a run of a day."""
MAX_PHASE_EVENTS = 100
MAX_PENDING_EVENTS = 500
TRAINING = "training"


class Relay:
    """Takes in report lines on one thread and hands out digests of them on another."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._started = self._last_heard = clock()
        self._last_event = float("-inf")
        self._num_phase_events = 0
        self._phase: str | None = None
        self._progress: Mapping[str, Any] | None = None
        self._training_began: tuple[int, float] | None = None
        self._pending = Report()
        self.result: ResultReport | None = None
        """The trainer's last word when all went well."""
        self.error: ErrorReport | None = None
        """The trainer's last word otherwise."""

    @property
    def silent_s(self) -> float:
        """Seconds since the last valid report, or since the start."""
        return self._clock() - self._last_heard

    def excuse_silence(self) -> None:
        """Start the count of silent seconds anew: it was we who were not listening."""
        self._last_heard = self._clock()

    def take_in(self, line: bytes) -> None:
        """Hear one line. What is no report is logged and ignored; it does not count as a sign of life."""
        try:
            report = parse_report(line)
        except ProtocolError as e:
            _log.warning("report_malformed", num_bytes=len(line), error=str(e))
            return
        with self._lock:
            self._last_heard = self._clock()
            match report:
                case PhaseReport():
                    self._enter(report.phase, {**(self._progress or {}), "phase": report.phase})
                case ProgressReport():
                    progress = asdict(report)
                    del progress["type"], progress["v"]
                    self._enter(report.phase, progress)
                    self._add(remaining=self._remaining(report))
                case MetricsReport():
                    self._add(metrics=report.metrics)
                    self._keep_metrics()
                case ChoicesReport():
                    choices = {name: asdict(choice) for name, choice in report.choices.items()}
                    self._add(choices=choices, event=(EventType.CHOICES, {"choices": choices}))
                case CheckpointReport():
                    _log.debug("checkpoint_written", step=report.step)
                case RolledBackReport():
                    data = {"reasons": report.reasons, "to_step": report.to_step}
                    self._add(event=(EventType.ROLLED_BACK, data))
                case SettledReport():
                    self._add(event=(EventType.SETTLED, {"step": report.step}))
                case ResultReport():
                    self.result = report
                case ErrorReport():
                    self.error = report

    def hand_out(self) -> Report | None:
        """What is new since the last call; None when nothing is."""
        with self._lock:
            pending, self._pending = self._pending, Report()
        return None if pending == Report() else pending

    def put_back(self, report: Report) -> None:
        """Undo `hand_out`: the ledger did not take it. What came in meanwhile is newer and stays on top."""
        with self._lock:
            newer, self._pending = self._pending, report
            self._add(
                progress=newer.progress,
                metrics=newer.metrics,
                choices=newer.choices,
                remaining=newer.remaining,
                event=None,
            )
            events = (*report.events, *newer.events)[-MAX_PENDING_EVENTS:]
            self._pending = replace(self._pending, events=events)

    def _enter(self, phase: str, progress: Mapping[str, Any]) -> None:
        event = None
        if phase != self._phase and self._num_phase_events < MAX_PHASE_EVENTS:
            event = (EventType.PHASE, {"phase": phase})
            self._num_phase_events += 1
        self._phase, self._progress = phase, progress
        self._add(progress=progress, event=event)

    def _remaining(self, report: ProgressReport) -> timedelta | None:
        """Time to the last step at the pace so far. Other phases are short beside training."""
        if report.phase != TRAINING:
            return None
        now = self._clock()
        if self._training_began is None or report.step < self._training_began[0]:
            self._training_began = (report.step, now)
        first_step, began = self._training_began
        if report.step == first_step:
            return None
        seconds = (now - began) / (report.step - first_step) * max(0, report.total_steps - report.step)
        return timedelta(seconds=min(seconds, 365 * 86400))

    def _keep_metrics(self) -> None:
        now = self._clock()
        spacing = max(MIN_EVENT_SPACING_S, EVENT_SPACING_SHARE * (now - self._started))
        if now - self._last_event >= spacing:
            self._last_event = now
            data = {"metrics": self._pending.metrics, "progress": self._progress}
            self._add(event=(EventType.METRICS, data))

    def _add(self, *, event: tuple[EventType, Mapping[str, Any]] | None = None, **values: Any) -> None:
        changes = {name: value for name, value in values.items() if value is not None}
        events = self._pending.events if event is None else (*self._pending.events, event)
        self._pending = replace(self._pending, events=events[-MAX_PENDING_EVENTS:], **changes)

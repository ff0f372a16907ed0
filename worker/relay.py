"""Between the trainer's reports, which come as fast as it likes, and the ledger, which is told about once a second."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from threading import Lock
from typing import Any

import structlog

from app.jobs.messages import EventType, Report
from worker.protocol import (
    BeatReport,
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
    WorkReport,
    parse_report,
)

_log = structlog.get_logger(__name__)

MIN_EVENT_SPACING_S = 2.0
EVENT_SPACING_SHARE = 0.01
"""A metrics event is kept at most every two seconds, and at most every hundredth of the attempt's age: a few hundred
for a run of a day."""
MAX_PHASE_EVENTS = 100
MAX_RARE_EVENTS = 20
"""Of the kinds that a sound trainer tells once."""
MAX_COMPLAINTS = 20
"""Lines that are no reports: so many are logged, the others are counted."""
MAX_EVENTS = {EventType.PHASE: MAX_PHASE_EVENTS, EventType.METRICS: sys.maxsize}  # those are thinned out by time
MAX_PENDING_EVENTS = 500
MAX_MARKS = 200
"""By which progress is told: phases, and work. A trainer that invents more makes no progress by that."""
TRAINING = "training"


class Relay:
    """Takes in report lines on one thread and hands out digests of them on another."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._started = self._last_progress = clock()
        self._last_heard: float | None = None
        self._last_event = float("-inf")
        self._num_events: Counter[EventType] = Counter()
        self._num_malformed = 0
        self._reached: dict[str, int] = {}
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
        """Seconds since the last valid report; 0 before the first, for a program may take long to start."""
        return 0.0 if self._last_heard is None else self._clock() - self._last_heard

    @property
    def stalled_s(self) -> float:
        """Seconds since the last progress, or since the start."""
        return self._clock() - self._last_progress

    def excuse(self) -> None:
        """Start both counts of seconds anew: it was we who were not listening."""
        self._last_progress = self._clock()
        if self._last_heard is not None:
            self._last_heard = self._clock()

    def take_in(self, line: bytes) -> None:
        """Hear one line. What is no report is logged and ignored; it does not count as a sign of life."""
        try:
            report = parse_report(line)
        except ProtocolError as e:
            self._complain(line, e)
            return
        with self._lock:
            self._last_heard = self._clock()
            match report:
                case BeatReport():
                    pass
                case WorkReport():
                    self._reach("work", report.num_done)
                case PhaseReport():
                    self._reach(f"phase {report.phase}", 0)
                    self._enter(report.phase, {**(self._progress or {}), "phase": report.phase})
                case ProgressReport():
                    progress = asdict(report)
                    del progress["type"], progress["v"]
                    self._reach(f"phase {report.phase}", report.step)
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
                    self._reach("result", 0)
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

    def _reach(self, mark: str, count: int) -> None:
        """Note how far the trainer is by one of its counts; only what is new or higher is progress."""
        if mark not in self._reached and len(self._reached) >= MAX_MARKS:
            return
        if count > self._reached.get(mark, -1):
            self._reached[mark] = count
            self._last_progress = self._clock()

    def _complain(self, line: bytes, error: ProtocolError) -> None:
        self._num_malformed += 1
        if self._num_malformed <= MAX_COMPLAINTS:
            last = self._num_malformed == MAX_COMPLAINTS
            _log.warning("report_malformed", num_bytes=len(line), error=str(error)[:500], last_told=last)

    def _enter(self, phase: str, progress: Mapping[str, Any]) -> None:
        event = None if phase == self._phase else (EventType.PHASE, {"phase": phase})
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
        events = self._pending.events
        if event is not None and self._num_events[event[0]] < MAX_EVENTS.get(event[0], MAX_RARE_EVENTS):
            self._num_events[event[0]] += 1
            events = (*events, event)
        self._pending = replace(self._pending, events=events[-MAX_PENDING_EVENTS:], **changes)

"""What passes between the ledger and its callers: frozen, and free of rows and sessions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from app.jobs.promotion import Promotion
from app.jobs.status import JobStatus
from app.tables import DEFAULT_TENANT


class EventType(StrEnum):
    """Kinds of durable events."""

    STATUS = "status"
    """``{status, message, attempt}``: the status moved, or another attempt began."""
    PHASE = "phase"
    """``{phase, attempt}``"""
    CHOICES = "choices"
    """``{choices: {name: {value, reason}}, attempt}``: how each hyper-parameter was chosen."""
    METRICS = "metrics"
    """``{metrics: {name: value}, progress: {…}, attempt}``: a thinned-out history, not every step."""
    ROLLED_BACK = "rolled_back"
    """``{reasons, to_step, attempt}``: training collapsed and ended; the classifier is that of ``to_step``, or of the
    last step when that is null."""
    SETTLED = "settled"
    """``{step, attempt}``: training ended sooner than planned, for hardly an answer changes any more."""
    VERDICT = "verdict"
    """``{outcome, reasons, attempt}``: whether the adapted classifier is better than zero-shot."""
    PROMOTED = "promoted"
    """``{classifier_id}``: a person made the adapted classifier the job's."""


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """When and where a job is to run, as its user wishes."""

    priority: int = 0
    """Higher goes first."""
    not_before: datetime | None = None
    max_runtime_s: int | None = None
    """Of all attempts together, since the job was submitted or resumed."""
    max_pending_s: int | None = None
    """From when it may first start to its first start."""
    num_gpus: int = 1


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job as submitted. ``hyperparameters`` are as asked: each "auto" or a value."""

    id: str
    dataset_id: str
    base_model: str
    classes: list[Any]
    templates: list[str]
    hyperparameters: dict[str, Any]
    seed: int
    max_attempts: int
    promotion: Promotion = Promotion.AUTO
    name: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    tenant: str = DEFAULT_TENANT
    scheduling: Scheduling = Scheduling()


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job failed, for its user. ``code`` is stable, ``param`` the setting it is about."""

    code: str
    message: str
    param: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"code": self.code, "message": self.message, "param": self.param}


@dataclass(frozen=True, kw_only=True)
class StatusChange:
    """One entry of a job's history."""

    status: JobStatus
    at: datetime
    message: str


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Why a queued job does not simply wait for its turn. ``code`` is stable."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a queued job can expect, as far as it is known."""

    queue_position: int | None = None
    """1 is next."""
    estimated_start_at: datetime | None = None
    waiting: Waiting | None = None


@dataclass(frozen=True, kw_only=True)
class JobView:
    """Everything that is told about a job. ``attempt`` counts like ``max_attempts`` does: 0 before the first claim,
    and an attempt that a graceful stop interrupted is continued, not counted again."""

    id: str
    status: JobStatus
    name: str | None
    metadata: Mapping[str, Any]
    dataset_id: str | None
    base_model: str
    classes: list[Any]
    templates: list[str]
    hyperparameters: Mapping[str, Any]
    choices: Mapping[str, Any] | None
    seed: int
    promotion: Promotion
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    estimated_finish_at: datetime | None
    attempt: int
    max_attempts: int
    progress: Mapping[str, Any] | None
    metrics: Mapping[str, float] | None
    verdict: Mapping[str, Any] | None
    error: JobError | None
    classifier_id: str | None
    """What the job answers with."""
    adapted_classifier_id: str | None
    """What it trained, whether that was promoted or not."""
    transitions: tuple[StatusChange, ...]
    tenant: str = DEFAULT_TENANT
    scheduling: Scheduling = Scheduling()
    runtime_s: float = 0.0
    """What ended attempts took, since the job was submitted or resumed."""
    outlook: Outlook = Outlook()
    """Empty in lists."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a job. Within one job, a larger ``id`` became visible later."""

    id: int
    job_id: str
    at: datetime
    type: EventType
    data: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's hold on a job: what it is to do, and the fence (``job_id, owner, attempt``) of all its writes."""

    job_id: str
    owner: str
    attempt: int
    """The fence. Larger than in any claim before it."""
    ordinal: int
    """Which attempt this is of ``max_attempts``, from 1."""
    max_attempts: int
    dataset_id: str
    base_model: str
    classes: list[Any]
    templates: list[str]
    hyperparameters: Mapping[str, Any]
    seed: int
    promotion: Promotion = Promotion.AUTO
    num_gpus: int = 1
    runtime_exceeded: bool = False
    """The attempts before it have used up the job's time."""

    @property
    def is_last(self) -> bool:
        """No retry follows when this attempt fails."""
        return self.ordinal >= self.max_attempts


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The ledger's answer to a worker that still holds its job."""

    cancel_requested: bool
    runtime_exceeded: bool = False
    """The job has run for as long as it may."""


class LogStream(StrEnum):
    """Where a line of a log comes from."""

    STDOUT = "stdout"
    STDERR = "stderr"
    NOTE = "note"
    """Not the trainer's: a remark of ours, on what was left out."""


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A line of a trainer's output as a worker hands it in, fit for users to read."""

    number: int
    """Within the attempt; grows."""
    age: timedelta
    """How long ago it was written."""
    stream: LogStream
    text: str


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """A line of a job's log as it is kept."""

    line: int
    """Within the job, from 1; missing where lines are not kept."""
    claim: int
    """The fence of its attempt: another one is another process."""
    attempt: int
    num_resumed: int
    """How often the job had been resumed before: each time its attempts count anew."""
    at: datetime
    stream: LogStream
    text: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """News of a running attempt. Fields left at None stay as they are in the ledger."""

    progress: Mapping[str, Any] | None = None
    metrics: Mapping[str, float] | None = None
    choices: Mapping[str, Any] | None = None
    remaining: timedelta | None = None
    """Expected time until the job is done."""
    events: tuple[tuple[EventType, Mapping[str, Any]], ...] = ()
    """To be kept, in this order. Whoever reports thins them out."""
    log: tuple[LogLine, ...] = ()
    """New lines of the job's log."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A finished adapted classifier whose files are blobs already."""

    classifier_id: str
    files: Mapping[str, str]
    """File name inside the bundle -> sha256 of its blob."""
    version: str
    metrics: Mapping[str, float]
    verdict: Mapping[str, Any] | None
    """``{outcome, reasons, …}``: the guard's; None when it was off."""
    report: Mapping[str, Any] | None = None
    """What changed, image by image and class by class: indices and positions, as the trainer told them."""
    unknown_below: float | None = None
    """Images whose raw score is lower are unknown to it."""
    zero_shot_unknown_below: float | None = None
    """The same of the zero-shot classifier, should the job answer with that."""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What one sweep ended: ids of jobs whose workers died in the last attempt, of those that were to be cancelled, of
    those that waited too long, and of those that are queued again. And ``silent``: running jobs whose workers do not
    answer, to be looked at again."""

    failed: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    requeued: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()

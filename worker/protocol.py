"""What crosses between the supervisor and a trainer, its child process. Version 1.

Supervisor to trainer:

- The one command-line argument: path of a JSON file with a `TrainerSpec`.
- The environment variable ``MUST_REPORT_FD``: number of an inherited file descriptor to write reports to.
- SIGTERM: write a checkpoint at the next step, then exit with `ExitCode.STOPPED`.
- End of file on stdin: the supervisor is gone; exit at once.
- On several GPUs the trainer is several processes, and what they have of all this is their agent's (worker/ranks.py).

Trainer to supervisor: reports, one JSON object a line, and the exit code. Two timers watch them. Any report is a sign
of life: a trainer that has reported once and then falls silent is killed, so `TrainerLink` sends ``beat`` on a thread
of its own. Progress is a phase that is new, or a ``step`` or ``num_done`` higher than any before: a trainer that makes
none for the stall timeout is killed however it beats, so one that does something long without steps counts what it has
done in ``work``.
"""

import math
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, FiniteFloat, JsonValue, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

REPORT_FD_VARIABLE = "MUST_REPORT_FD"
AGENT_PID_VARIABLE = "MUST_AGENT_PID"
"""To ranks: the process that starts them and holds the report pipe open."""
MAX_LINE_BYTES = 256 * 1024
"""Longest report, newline included. Longer lines are dropped."""

_T = TypeVar("_T")
_STRICT = ConfigDict(strict=True, extra="forbid")


class ExitCode(IntEnum):
    """How a trainer ended. Any other code, or death by a signal, is an accident and retried."""

    DONE = 0
    """A ``result`` was reported."""
    STOPPED = 3
    """A checkpoint was written because of SIGTERM."""
    USAGE = 64
    """The job as asked cannot be done; the user can change that."""
    FATAL = 70
    """It cannot be done, and another attempt would end alike."""
    TRANSIENT = 75
    """Another attempt may succeed."""


class ProtocolError(ValueError):
    """Bytes that are no message of this protocol."""


def _clip(value: object) -> object:
    return value.replace("\x00", "\ufffd")[:1000] if isinstance(value, str) else value


def _finite_only(value: object) -> object:
    """Values that are no numbers have no place in JSON: they are left out."""
    if not isinstance(value, dict):
        return value
    return {k: v for k, v in value.items() if not isinstance(v, float) or math.isfinite(v)}


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Message = Annotated[str, BeforeValidator(_clip)]
Word = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[\w./ -]+$")]
Metrics = Annotated[dict[Word, FiniteFloat], BeforeValidator(_finite_only), Field(max_length=200)]
Rate = Annotated[FiniteFloat, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Score = Annotated[FiniteFloat, Field(ge=0, le=1)]
Reasons = Annotated[list[Message], Field(max_length=200)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainerSpec:
    """What a trainer is to do."""

    v: Literal[1] = 1
    job_id: str
    attempt: int
    base_model: str
    """What open_clip loads: ``ARCH/TAG``, ``ARCH/FILE`` or ``local-dir:FOLDER``."""
    classes: list[JsonValue]
    """Each a name, or ``{"name": …, "prompts": […]}``."""
    templates: list[str]
    hyperparameters: dict[str, JsonValue]
    """Each "auto" or a value."""
    seed: int
    images: list[Path]
    checkpoints_dir: Path
    """This attempt's own; nobody else writes there."""
    resume_from: list[Path]
    """Checkpoint folders of earlier attempts, newest attempt first. Their trainers may still be dying: read only."""
    output_dir: Path
    """Where the bundle goes. Exists and is empty."""
    checkpoint_interval_s: float = 30.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PhaseReport:
    """The trainer begins something else: ``training``, ``evaluating`` …"""

    type: Literal["phase"] = "phase"
    v: Literal[1] = 1
    phase: Word


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BeatReport:
    """The trainer's process lives and its threads run. Says nothing about its work."""

    type: Literal["beat"] = "beat"
    v: Literal[1] = 1


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WorkReport:
    """Something long that has no steps gets on: texts are encoded, images packed, a bundle written."""

    type: Literal["work"] = "work"
    v: Literal[1] = 1
    num_done: Count
    """Of whatever is counted; grows over the whole attempt."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Choice:
    """The value that a hyper-parameter got, and why."""

    value: JsonValue
    reason: Message


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ChoicesReport:
    """How every hyper-parameter was chosen, after a look at the data."""

    type: Literal["choices"] = "choices"
    v: Literal[1] = 1
    choices: Annotated[dict[Word, Choice], Field(max_length=200)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ProgressReport:
    """How far the current phase is. May be sent at every step: the supervisor thins them out."""

    type: Literal["progress"] = "progress"
    v: Literal[1] = 1
    phase: Word
    epoch: Count | None = None
    step: Count
    """Steps done."""
    total_steps: Count
    images_per_second: Rate | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MetricsReport:
    """The latest value of each metric. Values that are not finite are left out. Thinned out like progress."""

    type: Literal["metrics"] = "metrics"
    v: Literal[1] = 1
    metrics: Metrics


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CheckpointReport:
    """A checkpoint is complete on disk."""

    type: Literal["checkpoint"] = "checkpoint"
    v: Literal[1] = 1
    step: Count


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RolledBackReport:
    """Training collapsed and ended. What follows is made of ``to_step``, or of the last step when that is None."""

    type: Literal["rolled_back"] = "rolled_back"
    v: Literal[1] = 1
    reasons: Reasons
    to_step: Count | None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SettledReport:
    """Training ended at ``step``, sooner than planned, because hardly an answer changes any more."""

    type: Literal["settled"] = "settled"
    v: Literal[1] = 1
    step: Count


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Gain:
    """How much more often the adapted classifier is thought right than zero-shot: shares of the images looked at."""

    estimate: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    held_out_estimate: FiniteFloat
    num_images: Count
    num_held_out: Count
    num_disagreements: Count
    num_for_adapted: Count
    num_for_zero_shot: Count


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Veto:
    """A statistic beyond its limit. A value that is no number is None."""

    name: Word
    value: Annotated[FiniteFloat | None, BeforeValidator(_finite_or_none)]
    limit: FiniteFloat
    reason: Message


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Verdict:
    """Whether the adapted classifier is better than zero-shot, and why."""

    outcome: Literal["adapted", "zero_shot", "inconclusive"]
    candidate: Word
    reasons: Reasons
    gain: Gain
    vetoes: Annotated[list[Veto], Field(max_length=200)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ClassShare:
    """How often a class is answered, and its mean score, before and after."""

    index: Count
    answers_zero_shot: Count
    answers_adapted: Count
    mean_score_zero_shot: Score
    mean_score_adapted: Score


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Answer:
    """A class's index and its score."""

    index: Count
    score: Score


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ReportedImage:
    """An image, by its position in the spec's list, with both answers."""

    position: Count
    held_out: bool
    zero_shot: Answer
    adapted: Answer
    margin: Score


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AuditImage:
    """An image to label, with the indices of both answers."""

    position: Count
    zero_shot: Count
    adapted: Count


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AuditPlan:
    """Images to label, and how many they were drawn from."""

    num_disagreed: Count
    num_agreed: Count
    images: Annotated[list[AuditImage], Field(max_length=100)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RunReport:
    """What a run changed, as `must_core.report` has it."""

    num_images: Count
    num_held_out: Count
    num_changed: Count
    num_classes: Count
    classes: Annotated[list[ClassShare], Field(max_length=500)]
    changed: Annotated[list[ReportedImage], Field(max_length=100)]
    uncertain: Annotated[list[ReportedImage], Field(max_length=100)]
    audit: AuditPlan


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class UnknownBelow:
    """Raw scores below which an image is unknown to a classifier. None: there is no such limit."""

    zero_shot: Annotated[FiniteFloat | None, BeforeValidator(_finite_or_none)] = None
    adapted: Annotated[FiniteFloat | None, BeforeValidator(_finite_or_none)] = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ResultReport:
    """The classifier is complete in ``bundle_dir``, which is ``output_dir`` or a folder in it. The last report."""

    type: Literal["result"] = "result"
    v: Literal[1] = 1
    bundle_dir: Path
    metrics: Metrics
    verdict: Verdict | None = None
    """None when nothing was compared."""
    report: RunReport | None = None
    unknown_below: UnknownBelow = UnknownBelow()


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ErrorReport:
    """Why the trainer is about to exit. ``message`` is read by the user; ``param`` names the setting at fault."""

    type: Literal["error"] = "error"
    v: Literal[1] = 1
    kind: Literal["usage", "transient", "fatal"]
    code: Word
    message: Message
    param: Word | None = None


AnyReport = (
    BeatReport
    | PhaseReport
    | WorkReport
    | ChoicesReport
    | ProgressReport
    | MetricsReport
    | CheckpointReport
    | RolledBackReport
    | SettledReport
    | ResultReport
    | ErrorReport
)

_REPORT: TypeAdapter[AnyReport] = TypeAdapter(Annotated[AnyReport, Field(discriminator="type")])
_SPEC: TypeAdapter[TrainerSpec] = TypeAdapter(TrainerSpec)


def format_report(report: AnyReport) -> bytes:
    """One line, newline included."""
    return _REPORT.dump_json(report) + b"\n"


def parse_report(line: bytes) -> AnyReport:
    """The report in one line. Raises `ProtocolError` for anything else."""
    return _parse(_REPORT, line)


def format_spec(spec: TrainerSpec) -> bytes:
    """JSON of a spec."""
    return _SPEC.dump_json(spec)


def parse_spec(content: bytes) -> TrainerSpec:
    """The spec in a file's content. Raises `ProtocolError` for anything else."""
    return _parse(_SPEC, content)


def _parse(adapter: TypeAdapter[_T], content: bytes) -> _T:
    try:
        return adapter.validate_json(content)
    except ValidationError as e:
        raise ProtocolError(str(e.errors(include_url=False, include_input=False)[:3])) from e

"""Jobs on the wire."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from app.inference.class_warnings import warnings_of_rows
from app.inference.verdicts import headline
from app.jobs.messages import Event, JobView
from app.schemas.common import Instant, WireModel

MAX_SEED = 2**63 - 1
MAX_LIMIT_S = 366 * 86400
MAX_GPUS = 64

Name = Annotated[str, Field(min_length=1, max_length=200, description="For people.", examples=["Shelf cameras"])]
BaseModelName = Annotated[
    str,
    Field(
        max_length=200,
        description="A base model of `GET /models`; the operator's default when missing.",
        examples=["ViT-B-16/openai"],
    ),
]


class ClassIn(WireModel):
    """A class with prompts of its own, used word for word instead of the templates."""

    name: str = Field(description="What the class is called in answers.", examples=["cat"])
    prompts: list[str] = Field(
        default_factory=list,
        max_length=200,
        description="Texts that describe the class.",
        examples=[["a tabby", "a kitten"]],
    )


Classes = Annotated[
    list[str | ClassIn],
    Field(description="Class names, or objects with a name and prompts.", examples=[["cat", "dog"]]),
]
Templates = Annotated[
    list[str],
    Field(
        description="Sentences that names are put into; each holds exactly one literal `{}`.",
        examples=[["a photo of a {}."]],
    ),
]
PromotionName = Literal["auto", "manual", "never"]
Hyperparameter = Literal["auto"] | bool | int | float | str


class JobOptions(WireModel):
    """What a job is to do, apart from its images."""

    classes: Classes
    templates: Templates | None = None
    base_model: BaseModelName | None = None
    hyperparameters: dict[str, Hyperparameter] = Field(
        default_factory=dict,
        description="Each `auto` or a value; what is missing is `auto`. The job shows what was chosen and why.",
        examples=[{"epochs": 20, "confidence_threshold": "auto"}],
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Decides crops, masks and order; drawn when missing.",
        examples=[7],
    )
    promotion: PromotionName = Field(
        default="auto",
        description="When the job answers with what it trained instead of zero-shot: `auto`, when the verdict is that "
        "it is better; `manual`, after `POST /jobs/{id}/promote`; `never`. What was trained is kept in any case.",
        examples=["auto"],
    )
    priority: int = Field(
        default=0,
        ge=-100,
        le=100,
        description="Higher goes first. Jobs of one priority are shared out fairly between tenants, then the oldest.",
        examples=[0],
    )
    not_before: Instant | None = Field(
        default=None,
        description="The job starts then or later. RFC 3339, with an offset from UTC.",
        examples=["2026-01-02T22:00:00Z"],
    )
    max_runtime_s: int | None = Field(
        default=None,
        ge=1,
        le=MAX_LIMIT_S,
        description="Seconds that it may run, all attempts together. Then it stops at a checkpoint and fails with "
        "`max_runtime_exceeded`; a resume goes on from there and has the whole time again. No limit when missing.",
        examples=[14400],
    )
    max_pending_s: int | None = Field(
        default=None,
        ge=1,
        le=MAX_LIMIT_S,
        description="Seconds that it may wait for its first start, counted from `not_before` if that is later. Then it "
        "fails with `pending_too_long`. No limit when missing.",
        examples=[3600],
    )
    num_gpus: int = Field(
        default=1,
        ge=1,
        le=MAX_GPUS,
        description="GPUs of one host that it trains on. A worker without GPUs runs jobs of 1 on its CPU.",
        examples=[1],
    )
    name: Name | None = None
    metadata: dict[str, str] = Field(
        default_factory=dict, max_length=16, description="Kept and shown as given.", examples=[{"team": "shelf"}]
    )


class JobCreate(JobOptions):
    """A job on a dataset that was uploaded before."""

    dataset_id: str = Field(description="A dataset's id.", examples=["ds_01k0c9v2ytq4v3m5p6r7s8t9wa"])


class WarningOut(WireModel):
    """Something that was accepted and may be a mistake."""

    code: str = Field(description="Stable name.", examples=["confusable_class_names"])
    message: str = Field(
        description="A sentence for people; classes are counted from 1.",
        examples=["Classes 1 and 4 look the same and are written differently."],
    )
    param: str | None = Field(description="The field it is about.", examples=["classes"])

    @classmethod
    def of_classes(cls, classes: Sequence[Mapping[str, Any]]) -> list["WarningOut"]:
        """The warnings of a stored class list."""
        return [cls(code=w.code, message=w.message, param="classes") for w in warnings_of_rows(classes)]


class StatusTransition(WireModel):
    """One move of a job's status."""

    status: str = Field(description="The status moved to.", examples=["running"])
    at: datetime = Field(description="When.", examples=["2026-01-02T03:04:05Z"])
    message: str = Field(description="Why, in a sentence.", examples=["Attempt 1 of 3."])


class JobErrorOut(WireModel):
    """Why a job failed."""

    code: str = Field(description="Stable name.", examples=["diverged"])
    message: str = Field(description="A sentence for people.", examples=["The loss is not a finite number any more."])
    param: str | None = Field(description="The setting it is about.", examples=["learning_rate_per_256"])


class WaitingOut(WireModel):
    """Why a queued job does not simply wait for its turn."""

    code: str = Field(
        description="`scheduled`, `retrying`, `tenant_limit`, `no_workers` or `too_many_gpus`.", examples=["scheduled"]
    )
    message: str = Field(description="A sentence for people.", examples=["It starts at not_before or later."])


class GainOut(WireModel):
    """How much more often the adapted classifier is right than zero-shot, as estimated without labels."""

    estimate: float = Field(description="A share of the images looked at, −1 to 1.", examples=[0.201])
    low: float = Field(
        description="Lower end of its 95 % interval, which tells chance alone: the judge errs too.", examples=[0.14]
    )
    high: float = Field(description="Upper end of the same interval.", examples=[0.263])
    held_out_estimate: float | None = Field(
        default=None, description="The estimate on the images alone that were held out of training.", examples=[0.19]
    )
    num_images: int | None = Field(default=None, description="Images that were looked at.", examples=[898])
    num_held_out: int = Field(description="Of those, how many were held out of training.", examples=[179])
    num_disagreements: int = Field(description="How many got another answer.", examples=[205])
    num_for_adapted: int = Field(description="Of those, where the new answer is thought right.", examples=[37])
    num_for_zero_shot: int = Field(description="Of those, where the old answer is.", examples=[1])


class VetoOut(WireModel):
    """A sign that training went wrong."""

    name: str = Field(description="The statistic.", examples=["feature_rank"])
    value: float | None = Field(description="What it was; null when it was no number.", examples=[0.08])
    limit: float = Field(description="The limit it is beyond.", examples=[0.4])
    reason: str = Field(
        description="The same in a sentence.",
        examples=["The features fill 0.08 times as many dimensions as before: they have collapsed."],
    )


class VerdictOut(WireModel):
    """Whether what was trained is better than zero-shot, decided without labels on images held out of training."""

    outcome: Literal["adapted", "zero_shot", "inconclusive"] = Field(
        description="`adapted`: it is better. `zero_shot`: it is worse, or training went wrong. `inconclusive`: the "
        "images are too few, or the two too close, to tell.",
        examples=["adapted"],
    )
    headline: str = Field(
        description="The same in words.", examples=["The adapted classifier is better than zero-shot"]
    )
    candidate: str = Field(
        description="What was compared with zero-shot: `teacher`, the end of training, or `quarter_way`, `half_way` or "
        "`three_quarters_way` from zero-shot to it.",
        examples=["teacher"],
    )
    reasons: list[str] = Field(
        description="Sentences, the decisive one first.",
        examples=[["Of 898 images, 205 got another answer; the judge takes the adapted classifier's side …"]],
    )
    gain: GainOut = Field(description="The estimate behind it.")
    vetoes: list[VetoOut] = Field(description="What speaks against it whatever the gain.", examples=[[]])

    @classmethod
    def of(cls, verdict: Mapping[str, Any]) -> "VerdictOut":
        """The wire form of a stored verdict."""
        return cls(
            outcome=verdict["outcome"],
            headline=headline(verdict["outcome"]),
            candidate=verdict["candidate"],
            reasons=verdict["reasons"],
            gain=GainOut(**verdict["gain"]),
            vetoes=[VetoOut(**veto) for veto in verdict["vetoes"]],
        )


class JobOut(WireModel):
    """A job and how far it is."""

    id: str = Field(examples=["job_01k0c9v2ytq4v3m5p6r7s8t9wa"], description="The job's id.")
    object: Literal["job"] = Field(default="job", description="Always `job`.")
    status: str = Field(
        description="`queued`, `running`, `cancelling`, `succeeded`, `failed` or `cancelled`.", examples=["running"]
    )
    name: str | None = Field(description="As given.", examples=["Shelf cameras"])
    metadata: dict[str, Any] = Field(description="As given.", examples=[{"team": "shelf"}])
    dataset_id: str | None = Field(
        description="The images; null once they were deleted.", examples=["ds_01k0c9v2ytq4v3m5p6r7s8t9wa"]
    )
    base_model: str = Field(description="What is adapted.", examples=["ViT-B-16/openai"])
    classes: list[ClassIn] = Field(description="The classes.")
    templates: list[str] = Field(description="The templates in use.", examples=[["a photo of a {}."]])
    warnings: list[WarningOut] = Field(description="What may be a mistake in the classes.")
    hyperparameters: dict[str, Any] = Field(description="As asked for.", examples=[{"epochs": 20}])
    choices: dict[str, Any] | None = Field(
        description="Every hyper-parameter with its value and the reason for it, once the images were looked at.",
        examples=[{"epochs": {"value": 20, "reason": "As requested."}}],
    )
    seed: int = Field(description="As given or drawn.", examples=[7])
    promotion: str = Field(description="As given: `auto`, `manual` or `never`.", examples=["auto"])
    priority: int = Field(description="As given; 0 when not.", examples=[0])
    not_before: datetime | None = Field(description="As given.", examples=["2026-01-02T22:00:00Z"])
    max_runtime_s: int | None = Field(description="As given.", examples=[14400])
    max_pending_s: int | None = Field(description="As given.", examples=[3600])
    num_gpus: int = Field(description="As given; 1 when not.", examples=[1])
    runtime_s: float = Field(
        description="Seconds that ended attempts took, since the job was submitted or resumed; `max_runtime_s` is "
        "about these and the attempt that runs.",
        examples=[0.0],
    )
    queue_position: int | None = Field(
        description="Claims until it is its turn, if nothing comes, ends or fails meanwhile; 1 is next. Null when it "
        "is not queued or may not start yet, and in lists.",
        examples=[3],
    )
    estimated_start_at: datetime | None = Field(
        description="From the running jobs' estimates and recent durations; null when nobody can say, and in lists.",
        examples=["2026-01-02T03:10:00Z"],
    )
    waiting: WaitingOut | None = Field(
        description="Why it does not simply wait for its turn; null when it does, and in lists."
    )
    created_at: datetime = Field(description="Accepted.", examples=["2026-01-02T03:04:05Z"])
    started_at: datetime | None = Field(description="First claimed by a worker.", examples=["2026-01-02T03:04:06Z"])
    finished_at: datetime | None = Field(description="Ended.", examples=[None])
    estimated_finish_at: datetime | None = Field(description="From the rate so far.", examples=["2026-01-02T03:24:06Z"])
    attempt: int = Field(description="Attempts so far.", examples=[1])
    max_attempts: int = Field(description="Attempts it gets.", examples=[3])
    progress: dict[str, Any] | None = Field(
        description="`phase` (preparing, training, evaluating, publishing), and within training epoch, step, rate.",
        examples=[{"phase": "training", "epoch": 3, "step": 40, "total_steps": 560, "images_per_second": 310.5}],
    )
    status_transitions: list[StatusTransition] = Field(description="How it came here, oldest first.")
    metrics: dict[str, float] | None = Field(description="The latest.", examples=[{"loss": 5.4}])
    verdict: VerdictOut | None = Field(
        description="Whether what it trained is better than zero-shot; null before the end."
    )
    classifier_id: str | None = Field(
        description="What it answers with: what it trained, or zero-shot where that is not promoted. Null before the "
        "end.",
        examples=["clf_01k0c9v2ytq4v3m5p6r7s8t9wa"],
    )
    adapted_classifier_id: str | None = Field(
        description="What it trained, promoted or not. Null before the end.",
        examples=["clf_01k0c9v2ytq4v3m5p6r7s8t9wa"],
    )
    error: JobErrorOut | None = Field(description="Why it failed.", examples=[None])

    @classmethod
    def of(cls, view: JobView) -> "JobOut":
        """The wire form of a job."""
        return cls(
            id=view.id,
            status=view.status.value,
            name=view.name,
            metadata=dict(view.metadata),
            dataset_id=view.dataset_id,
            base_model=view.base_model,
            classes=[ClassIn(**c) for c in view.classes],
            templates=view.templates,
            warnings=WarningOut.of_classes(view.classes),
            hyperparameters=dict(view.hyperparameters),
            choices=None if view.choices is None else dict(view.choices),
            seed=view.seed,
            promotion=view.promotion.value,
            priority=view.scheduling.priority,
            not_before=view.scheduling.not_before,
            max_runtime_s=view.scheduling.max_runtime_s,
            max_pending_s=view.scheduling.max_pending_s,
            num_gpus=view.scheduling.num_gpus,
            runtime_s=round(view.runtime_s, 3),
            queue_position=view.outlook.queue_position,
            estimated_start_at=view.outlook.estimated_start_at,
            waiting=None if view.outlook.waiting is None else WaitingOut(**asdict(view.outlook.waiting)),
            created_at=view.created_at,
            started_at=view.started_at,
            finished_at=view.finished_at,
            estimated_finish_at=view.estimated_finish_at,
            attempt=view.attempt,
            max_attempts=view.max_attempts,
            progress=None if view.progress is None else dict(view.progress),
            status_transitions=[
                StatusTransition(status=t.status.value, at=t.at, message=t.message) for t in view.transitions
            ],
            metrics=None if view.metrics is None else dict(view.metrics),
            verdict=None if view.verdict is None else VerdictOut.of(view.verdict),
            classifier_id=view.classifier_id,
            adapted_classifier_id=view.adapted_classifier_id,
            error=None if view.error is None else JobErrorOut(**view.error.to_dict()),
        )


class EventOut(WireModel):
    """Something that happened to a job."""

    id: int = Field(description="Only grows; the stream's position.", examples=[42])
    object: Literal["event"] = Field(default="event", description="Always `event`.")
    at: datetime = Field(description="When.", examples=["2026-01-02T03:04:05Z"])
    type: str = Field(description="What kind.", examples=["status"])
    data: dict[str, Any] = Field(description="What happened.", examples=[{"status": "running"}])

    @classmethod
    def of(cls, event: Event) -> "EventOut":
        """The wire form of an event."""
        return cls(id=event.id, at=event.at, type=str(event.type), data=dict(event.data))

"""Reports and audits on the wire."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from app.inference.audits import Audit, Estimate
from app.jobs.messages import EventType
from app.schemas.common import WireModel
from app.schemas.jobs import VerdictOut
from app.services.reports import ReportView

MAX_LABELS = 100


class CurveOut(WireModel):
    """One metric over the training."""

    metric: str = Field(description="Its name, as in the job's `metrics`.", examples=["loss"])
    steps: list[int] = Field(description="Steps, ascending, 200 at most.", examples=[[10, 20]])
    values: list[float] = Field(description="What was measured at each.", examples=[[5.4, 4.1]])


class ClassShareOut(WireModel):
    """How often a class is answered, before and after."""

    label: str = Field(description="The class.", examples=["two"])
    answers_zero_shot: int = Field(description="Images that zero-shot takes for it.", examples=[31])
    answers_adapted: int = Field(description="Images that the adapted classifier takes for it.", examples=[88])
    mean_score_zero_shot: float = Field(description="Mean of zero-shot's scores for it.", examples=[0.052])
    mean_score_adapted: float = Field(description="Mean of the adapted classifier's scores for it.", examples=[0.098])


class AnswerOut(WireModel):
    """One classifier's answer to an image."""

    label: str = Field(description="The class answered.", examples=["two"])
    score: float = Field(description="Its softmax probability.", examples=[0.97])


class ReportedFileOut(WireModel):
    """An image's file."""

    id: str = Field(description="SHA-256 of its bytes, as in the dataset's images.", examples=["9f86d081884c7d65…"])
    filename: str = Field(description="Its name, cleaned for display.", examples=["monday/0001.jpg"])
    thumbnail: str = Field(
        description="Path of a small JPEG of it.",
        examples=["/datasets/ds_01k0c9v2ytq4v3m5p6r7s8t9wa/images/9f86d081884c7d65…/thumbnail"],
    )


class ReportedImageOut(WireModel):
    """An image with both answers."""

    position: int = Field(description="Its place in the dataset, from 0.", examples=[12])
    held_out: bool = Field(description="Whether it was held out of training.", examples=[True])
    file: ReportedFileOut | None = Field(description="Null once the dataset was deleted.")
    zero_shot: AnswerOut = Field(description="The answer before.")
    adapted: AnswerOut = Field(description="The answer after.")
    margin: float = Field(description="The adapted classifier's best score minus its second.", examples=[0.94])


class AuditImageOut(WireModel):
    """An image to label. What the classifiers say of it is left out, so that labels are not led by it."""

    position: int = Field(description="Its place in the dataset, from 0; what a label names.", examples=[12])
    file: ReportedFileOut | None = Field(description="Null once the dataset was deleted.")


class AuditPlanOut(WireModel):
    """What to label for `POST /jobs/{id}/audit`: drawn at random, more where the classifiers disagree."""

    num_disagreed: int = Field(description="Images drawn from on which the classifiers disagree.", examples=[43])
    num_agreed: int = Field(description="Images drawn from on which they agree.", examples=[136])
    images: list[AuditImageOut] = Field(description="50, or all when there are fewer. The first ones will do as well.")


class ReportOut(WireModel):
    """What a job changed, on the images that its guard looked at: those held out of training, and others.

    It compares zero-shot with the verdict's candidate, whichever of the two the job answers with.
    """

    object: Literal["job_report"] = Field(default="job_report", description="Always.", examples=["job_report"])
    job_id: str = Field(description="The job.", examples=["job_01k0c9v2ytq4v3m5p6r7s8t9wa"])
    name: str | None = Field(description="The job's name.", examples=["Shelf cameras"])
    verdict: VerdictOut | None = Field(description="The job's verdict; null when nothing was decided.")
    classifier_id: str | None = Field(
        description="What the job answers with.", examples=["clf_01k0c9v2ytq4v3m5p6r7s8t9wa"]
    )
    adapted_classifier_id: str | None = Field(
        description="The adapted classifier.", examples=["clf_01k0c9v2ytq4v3m5p6r7s8t9wa"]
    )
    training_end: str | None = Field(
        description="Why training ended sooner than planned; null when it did not.",
        examples=["Training ended at step 380, sooner than planned, for hardly an answer changed any more."],
    )
    num_images: int = Field(description="Images looked at.", examples=[898])
    num_held_out: int = Field(description="Of those, how many nobody trained on.", examples=[179])
    num_changed: int = Field(description="Of those looked at, how many got another answer.", examples=[214])
    num_classes: int = Field(description="Classes of the job.", examples=[10])
    curves: list[CurveOut] = Field(description="The training, all attempts of it.")
    classes: list[ClassShareOut] = Field(
        description="Answers per class, in the job's order; of more than 500 classes those with the highest scores."
    )
    changed: list[ReportedImageOut] = Field(
        description="Images that got another answer, 60 at most: held-out ones first, then those that both "
        "classifiers are surest of."
    )
    uncertain: list[ReportedImageOut] = Field(
        description="The images that the adapted classifier is least sure of, 40 at most."
    )
    audit: AuditPlanOut = Field(description="Images to label for numbers that rest on labels.")

    @classmethod
    def of(cls, view: ReportView) -> "ReportOut":
        """The wire form of a report."""
        body, names = view.body, view.class_names
        verdict = view.job.verdict
        return cls(
            job_id=view.job.id,
            name=view.job.name,
            verdict=None if verdict is None else VerdictOut.of(verdict),
            classifier_id=view.job.classifier_id,
            adapted_classifier_id=view.job.adapted_classifier_id,
            training_end=_training_end(view),
            num_images=body["num_images"],
            num_held_out=body["num_held_out"],
            num_changed=body["num_changed"],
            num_classes=body["num_classes"],
            curves=_curves(view),
            classes=[
                ClassShareOut(label=names[each["index"]], **{k: v for k, v in each.items() if k != "index"})
                for each in body["classes"]
            ],
            changed=[_image(view, image) for image in body["changed"]],
            uncertain=[_image(view, image) for image in body["uncertain"]],
            audit=AuditPlanOut(
                num_disagreed=body["audit"]["num_disagreed"],
                num_agreed=body["audit"]["num_agreed"],
                images=[
                    AuditImageOut(position=image["position"], file=_file(view, image["position"]))
                    for image in body["audit"]["images"]
                ],
            ),
        )


class LabelIn(WireModel):
    """What a person says an image is."""

    position: int = Field(ge=0, le=2**31, description="The image's position in the report.", examples=[12])
    label: str | None = Field(description="A class of the job; null when it is none of them.", examples=["two"])


class AuditRequest(WireModel):
    """Labels of images that the report proposes: at least 10, better all."""

    labels: list[LabelIn] = Field(max_length=MAX_LABELS, description="A label for each image.")


class EstimateOut(WireModel):
    """An estimate with its 95 % interval."""

    estimate: float = Field(description="The estimate.", examples=[0.953])
    low: float = Field(description="Lower end of its interval.", examples=[0.851])
    high: float = Field(description="Upper end of its interval.", examples=[0.984])

    @classmethod
    def of(cls, estimate: Estimate) -> "EstimateOut":
        """The wire form of an estimate."""
        return cls(estimate=estimate.estimate, low=estimate.low, high=estimate.high)


class AuditOut(WireModel):
    """How often the classifiers are right, by labels."""

    object: Literal["audit"] = Field(default="audit", description="Always.", examples=["audit"])
    zero_shot: EstimateOut = Field(description="Zero-shot's accuracy, 0 to 1.")
    adapted: EstimateOut = Field(description="The adapted classifier's accuracy, 0 to 1.")
    difference: EstimateOut = Field(description="How much higher the adapted classifier's is, −1 to 1.")
    num_labels: int = Field(description="Labels counted.", examples=[50])
    sentence: str = Field(
        description="The same in words.",
        examples=["By 50 labels, zero-shot is right on 77.1% of the images and the adapted classifier on 95.3%: …"],
    )

    @classmethod
    def of(cls, audit: Audit) -> "AuditOut":
        """The wire form of an audit."""
        return cls(
            zero_shot=EstimateOut.of(audit.zero_shot),
            adapted=EstimateOut.of(audit.adapted),
            difference=EstimateOut.of(audit.difference),
            num_labels=audit.num_labels,
            sentence=audit.sentence,
        )


def _training_end(view: ReportView) -> str | None:
    if view.training_end is None:
        return None
    kind, data = view.training_end
    if kind == EventType.SETTLED:
        return f"Training ended at step {data['step']}, sooner than planned, for hardly an answer changed any more."
    went = "had no earlier state to go back to" if data["to_step"] is None else f"went back to step {data['to_step']}"
    return f"Training collapsed, was ended, and {went}. {' '.join(data['reasons'])}"


def _curves(view: ReportView) -> list[CurveOut]:
    points: dict[str, list[tuple[int, float]]] = {}
    for step, metrics in view.history:
        for metric, value in metrics.items():
            points.setdefault(metric, []).append((step, value))
    return [
        CurveOut(metric=metric, steps=[step for step, _ in found], values=[value for _, value in found])
        for metric, found in points.items()
    ]


def _image(view: ReportView, image: Mapping[str, Any]) -> ReportedImageOut:
    def answer(said: Mapping[str, Any]) -> AnswerOut:
        return AnswerOut(label=view.class_names[said["index"]], score=said["score"])

    return ReportedImageOut(
        position=image["position"],
        held_out=image["held_out"],
        file=_file(view, image["position"]),
        zero_shot=answer(image["zero_shot"]),
        adapted=answer(image["adapted"]),
        margin=image["margin"],
    )


def _file(view: ReportView, position: int) -> ReportedFileOut | None:
    image = view.images.get(position)
    if image is None:
        return None
    path = f"/datasets/{view.job.dataset_id}/images/{image.sha256}/thumbnail"
    return ReportedFileOut(id=image.sha256, filename=image.filename, thumbnail=path)

"""Classification on the wire."""

from typing import Annotated, Literal

from pydantic import Field

from app.inference.predictor import Answer
from app.schemas.common import WireModel
from app.schemas.jobs import BaseModelName, Classes, Templates
from app.services.classify import Classification, ImageResult

TopK = Annotated[int, Field(ge=1, le=1000, description="Predictions per image, best first.", examples=[5])]


class ClassifyOptionsIn(WireModel):
    """With what to answer, and how."""

    classifier: str | None = Field(
        default=None,
        max_length=200,
        description="A classifier's id, or an alias.",
        examples=["clf_01k0c9v2ytq4v3m5p6r7s8t9wa", "shelf-cameras"],
    )
    classes: Classes | None = None
    templates: Templates | None = None
    base_model: BaseModelName | None = None
    top_k: TopK = 5
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Best scores below this make an image `unknown`, instead of the classifier's own limit.",
        examples=[0.5],
    )
    compare: Literal["zero_shot"] | None = Field(
        default=None, description="Adds the unadapted classifier's answer.", examples=["zero_shot"]
    )


class ImageIn(WireModel):
    """One image of a JSON request."""

    content: str = Field(description="The file, base64.", examples=["iVBORw0KGgo…"])
    filename: str | None = Field(default=None, max_length=255, description="Comes back.", examples=["a.jpg"])


class ClassifyRequest(ClassifyOptionsIn):
    """A classification with the images inside the JSON."""

    images: list[ImageIn] = Field(description="The images.", min_length=1)


class PredictionOut(WireModel):
    """A class and how likely it is."""

    label: str = Field(description="The class name.", examples=["cat"])
    score: float = Field(description="Softmax probability among the classes.", examples=[0.93])


class ItemErrorOut(WireModel):
    """Why one image has no answer."""

    code: str = Field(description="Stable name.", examples=["image_corrupt"])
    detail: str = Field(description="A sentence for people.", examples=["The file is damaged."])


class ComparedOut(WireModel):
    """The other classifier's answer."""

    predictions: list[PredictionOut] = Field(description="Best first.")
    margin: float = Field(description="Best score minus the second.", examples=[0.4])
    raw_score: float = Field(description="Cosine of image and best class.", examples=[0.31])


class ResultOut(WireModel):
    """One image's answer."""

    index: int = Field(description="Position in the request.", examples=[0])
    filename: str | None = Field(description="As sent.", examples=["a.jpg"])
    status: Literal["ok", "error"] = Field(description="Whether there is an answer.")
    predictions: list[PredictionOut] = Field(default_factory=list, description="Best first.")
    margin: float | None = Field(default=None, description="Best score minus the second.", examples=[0.87])
    raw_score: float | None = Field(default=None, description="Cosine of image and best class.", examples=[0.31])
    unknown: bool | None = Field(
        default=None,
        description="True: it may show none of the classes, for it is less like its best class than 95 % of the images "
        "that the classifier's job held out of training (`raw_score` is below the classifier's `unknown_below`). So "
        "are 5 % of new images of the job's kind. With a `threshold`, true says that the best score is below that. "
        "Null without either: for a class list of the moment, and where `unknown_below` is null.",
        examples=[False],
    )
    zero_shot: ComparedOut | None = Field(default=None, description="With `compare=zero_shot`.")
    error: ItemErrorOut | None = Field(default=None, description="When there is no answer.")

    @classmethod
    def of(cls, index: int, result: ImageResult) -> "ResultOut":
        """The wire form of one image's result."""
        if result.answer is None:
            assert result.error is not None  # noqa: S101 - a result has one of the two
            error = ItemErrorOut(code=result.error.code, detail=result.error.detail)
            return cls(index=index, filename=result.filename, status="error", error=error)
        answer = result.answer
        return cls(
            index=index,
            filename=result.filename,
            status="ok",
            predictions=_predictions(answer),
            margin=answer.margin,
            raw_score=answer.raw_score,
            unknown=result.unknown,
            zero_shot=None
            if result.zero_shot is None
            else ComparedOut(
                predictions=_predictions(result.zero_shot),
                margin=result.zero_shot.margin,
                raw_score=result.zero_shot.raw_score,
            ),
        )


class TimingsOut(WireModel):
    """Where the time went."""

    decode_ms: float = Field(description="Decoding all images.", examples=[3.1])
    infer_ms: float = Field(description="Waiting for the model and the forward pass.", examples=[12.4])
    batch_size: int = Field(description="Images in the largest forward pass.", examples=[4])


class ClassifyOut(WireModel):
    """Answers, in the order of the images."""

    classifier: str | None = Field(
        description="Id of the classifier that answered; null for a class list of the moment."
    )
    classifier_version: str | None = Field(description="Its version.", examples=["9f2c…"])
    results: list[ResultOut] = Field(description="One per image.")
    timings: TimingsOut

    @classmethod
    def of(cls, found: Classification) -> "ClassifyOut":
        """The wire form of a classification."""
        return cls(
            classifier=found.classifier_id,
            classifier_version=found.version,
            results=[ResultOut.of(i, r) for i, r in enumerate(found.results)],
            timings=TimingsOut(
                decode_ms=found.timings.decode_ms,
                infer_ms=found.timings.infer_ms,
                batch_size=found.timings.batch_size,
            ),
        )


def _predictions(answer: Answer) -> list[PredictionOut]:
    return [PredictionOut(label=n, score=s) for n, s in zip(answer.labels, answer.scores, strict=True)]

"""Classifiers on the wire."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from app.classifiers.messages import ClassifierView
from app.schemas.common import WireModel
from app.schemas.jobs import BaseModelName, Classes, ClassIn, Name, Templates, WarningOut


class ClassifierCreate(WireModel):
    """A zero-shot classifier from a class list."""

    classes: Classes
    templates: Templates | None = None
    base_model: BaseModelName | None = None
    name: Name | None = None


class ClassifierOut(WireModel):
    """A classifier; it never changes."""

    id: str = Field(description="The classifier's id.", examples=["clf_01k0c9v2ytq4v3m5p6r7s8t9wa"])
    object: Literal["classifier"] = Field(default="classifier", description="Always `classifier`.")
    name: str | None = Field(description="As given.", examples=["Shelf cameras"])
    kind: str = Field(description="`zero_shot` or `adapted`.", examples=["adapted"])
    base_model: str = Field(description="What it is built on.", examples=["ViT-B-16/openai"])
    classes: list[ClassIn] = Field(description="The classes it knows.")
    templates: list[str] = Field(description="The templates in use.", examples=[["a photo of a {}."]])
    warnings: list[WarningOut] = Field(description="What may be a mistake in the classes.")
    job_id: str | None = Field(description="The job that made it.", examples=["job_01k0c9v2ytq4v3m5p6r7s8t9wa"])
    version: str = Field(description="Digest of what decides its answers.", examples=["9f2c…"])
    metrics: dict[str, Any] = Field(description="What its job measured.", examples=[{"changed_answers": 0.21}])
    unknown_below: float | None = Field(
        description="Images with a lower `raw_score` are `unknown` to it. Its job found it, without labels; null for "
        "classifiers that no job made, and where there were too few images.",
        examples=[0.21],
    )
    created_at: datetime = Field(description="Published.", examples=["2026-01-02T03:04:05Z"])

    @classmethod
    def of(cls, view: ClassifierView) -> "ClassifierOut":
        """The wire form of a classifier."""
        return cls(
            id=view.id,
            name=view.name,
            kind=view.kind,
            base_model=view.base_model,
            classes=[ClassIn(**c) for c in view.classes],
            templates=view.templates,
            warnings=WarningOut.of_classes(view.classes),
            job_id=view.job_id,
            version=view.version,
            metrics=dict(view.metrics),
            unknown_below=view.unknown_below,
            created_at=view.created_at,
        )

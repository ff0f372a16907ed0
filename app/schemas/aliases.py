"""Aliases on the wire."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from app.classifiers.messages import AliasMoveView, AliasView
from app.schemas.common import WireModel
from app.services.aliases import AliasHistory

ClassifierId = Annotated[
    str, Field(max_length=40, description="A classifier's id.", examples=["clf_01k0c9v2ytq4v3m5p6r7s8t9wa"])
]


class AliasPut(WireModel):
    """Where an alias is to point."""

    classifier_id: ClassifierId


class AliasOut(WireModel):
    """A name that answers with a classifier."""

    name: str = Field(description="What `/classify` takes as `classifier`.", examples=["shelf-cameras"])
    object: Literal["alias"] = Field(default="alias", description="Always `alias`.")
    classifier_id: ClassifierId
    num_moves: int = Field(description="Times it was pointed somewhere, the first time too.", examples=[3])
    moved_at: datetime = Field(description="The latest of them.", examples=["2026-01-02T03:04:05Z"])

    @classmethod
    def of(cls, view: AliasView) -> "AliasOut":
        """The wire form of an alias."""
        return cls(name=view.name, classifier_id=view.classifier_id, num_moves=view.num_moves, moved_at=view.moved_at)


class AliasMoveOut(WireModel):
    """Where it was pointed, and when."""

    classifier_id: str = Field(
        description="The classifier; it may be gone by now.", examples=["clf_01k0c9v2ytq4v3m5p6r7s8t9wa"]
    )
    moved_at: datetime = Field(description="From then on.", examples=["2026-01-02T03:04:05Z"])

    @classmethod
    def of(cls, view: AliasMoveView) -> "AliasMoveOut":
        """The wire form of a move."""
        return cls(classifier_id=view.classifier_id, moved_at=view.moved_at)


class AliasHistoryOut(AliasOut):
    """An alias and where it was pointed lately."""

    history: list[AliasMoveOut] = Field(description="Its latest moves, newest first; twenty at most.")

    @classmethod
    def told(cls, found: AliasHistory) -> "AliasHistoryOut":
        """The wire form of an alias with its history."""
        return cls(**AliasOut.of(found.alias).model_dump(), history=[AliasMoveOut.of(move) for move in found.moves])

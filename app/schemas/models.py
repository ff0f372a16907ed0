"""Base models on the wire."""

from typing import Literal

from pydantic import Field

from app.inference.catalog import ModelView
from app.schemas.common import WireModel


class ModelOut(WireModel):
    """A base model that jobs and classifiers can name as `base_model`."""

    id: str = Field(description="The model's name.", examples=["ViT-B-16/openai"])
    object: Literal["model"] = Field(default="model", description="Always `model`.", examples=["model"])
    default: bool = Field(description="Whether it is used where none is named.", examples=[True])
    masked_training: bool | None = Field(
        description="Whether jobs train on masked images, as the paper does; false: by self-training only; "
        "null: not known, see `reason`.",
        examples=[True],
    )
    reason: str = Field(
        description="Why, or what is wrong with the model.", examples=["Vision transformer with a class token."]
    )
    image_size: int | None = Field(description="Side of the images it sees, in pixels.", examples=[224])
    patch_size: int | None = Field(
        description="Side of the patches that are masked, in pixels; null when none are.", examples=[16]
    )
    weights_available: bool = Field(
        description="Whether its weights are on the machine that answers; others are downloaded when first needed.",
        examples=[True],
    )

    @classmethod
    def of(cls, view: ModelView) -> "ModelOut":
        """The wire form of a base model."""
        return cls(
            id=view.name,
            default=view.is_default,
            masked_training=view.masked_training,
            reason=view.reason,
            image_size=view.image_size,
            patch_size=view.patch_size,
            weights_available=view.weights_available,
        )

"""Datasets on the wire."""

from dataclasses import asdict
from datetime import datetime
from typing import Literal

from pydantic import Field

from app.datasets.messages import DatasetView, IngestedDataset, RejectedRow
from app.ingest.manifest import AcceptedImage, RejectedImage
from app.schemas.common import WireModel

MAX_REPORTED = 100


class DatasetOut(WireModel):
    """A set of unlabeled images."""

    id: str = Field(description="The dataset's id.", examples=["ds_01k0c9v2ytq4v3m5p6r7s8t9va"])
    object: Literal["dataset"] = Field(default="dataset", description="Always `dataset`.", examples=["dataset"])
    name: str = Field(description="As given, or the name of its first file.", examples=["shelf-cameras.zip"])
    created_at: datetime = Field(description="When it was made.", examples=["2026-01-02T03:04:05Z"])
    num_images: int = Field(description="Different images it holds.", examples=[1797])
    num_duplicates: int = Field(description="Files whose bytes were there already; stored once.", examples=[3])
    num_ignored: int = Field(description="Folders and files such as `Thumbs.db` passed over.", examples=[1])
    num_rejected: int = Field(description="Files set aside; see `rejected`.", examples=[1])
    total_bytes: int = Field(description="Sum of the images' sizes.", examples=[845312])

    @classmethod
    def of(cls, view: DatasetView) -> "DatasetOut":
        """The wire form of a dataset."""
        return cls(**asdict(view))


class RejectedFileOut(WireModel):
    """A file that was set aside."""

    filename: str = Field(description="Its name, cleaned for display.", examples=["labels.csv"])
    code: str = Field(description="Why, for programs.", examples=["unsupported_image_format"])
    detail: str = Field(description="Why, for people.", examples=["Only JPEG, PNG and WEBP images are accepted."])

    @classmethod
    def of(cls, file: RejectedImage) -> "RejectedFileOut":
        """The wire form of a rejected file."""
        return cls(filename=file.filename, code=file.code, detail=file.detail)


class ListedRejectedFileOut(RejectedFileOut):
    """A rejected file in the dataset's list."""

    id: str = Field(description="Its place in the list.", examples=["0"])

    @classmethod
    def listed(cls, row: RejectedRow) -> "ListedRejectedFileOut":
        """The wire form of a row."""
        return cls(id=str(row.position), filename=row.file.filename, code=row.file.code, detail=row.file.detail)


class IngestedDatasetOut(DatasetOut):
    """A dataset after an upload, with that upload's report."""

    num_added: int = Field(description="Images that this upload added.", examples=[1797])
    rejected: list[RejectedFileOut] = Field(
        description=f"Files of this upload that were set aside, {MAX_REPORTED} at most; the dataset's list has all."
    )

    @classmethod
    def ingested(cls, done: IngestedDataset) -> "IngestedDatasetOut":
        """The wire form of what an upload led to."""
        rejected = [RejectedFileOut.of(file) for file in done.rejected[:MAX_REPORTED]]
        return cls(**asdict(done.dataset), num_added=done.num_added, rejected=rejected)


class ImageOut(WireModel):
    """An image of a dataset."""

    id: str = Field(description="SHA-256 of its bytes.", examples=["9f86d081884c7d65…"])
    object: Literal["image"] = Field(default="image", description="Always `image`.", examples=["image"])
    filename: str = Field(description="Its name, cleaned for display.", examples=["monday/0001.jpg"])
    format: str = Field(description="`JPEG`, `PNG` or `WEBP`, by content.", examples=["JPEG"])
    width: int = Field(description="Pixels, upright.", examples=[640])
    height: int = Field(description="Pixels, upright.", examples=[480])
    num_bytes: int = Field(description="Size of the file.", examples=[48213])
    warning: str | None = Field(
        description="What to know: `first_frame_only`, `icc_profile_malformed`, separated by commas.", examples=[None]
    )

    @classmethod
    def of(cls, image: AcceptedImage) -> "ImageOut":
        """The wire form of an image."""
        return cls(
            id=image.sha256,
            filename=image.filename,
            format=image.format,
            width=image.width,
            height=image.height,
            num_bytes=image.num_bytes,
            warning=image.warning,
        )

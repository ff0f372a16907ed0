"""Datasets between the layers."""

from dataclasses import dataclass
from datetime import datetime

from app.ingest.manifest import IngestReport, RejectedImage


@dataclass(frozen=True, kw_only=True)
class DatasetView:
    """A dataset and what became of all files that were ever sent for it."""

    id: str
    name: str
    created_at: datetime
    num_images: int
    num_duplicates: int
    num_ignored: int
    num_rejected: int
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class NewDataset:
    """A dataset to be stored. Its images are blobs by now."""

    id: str
    name: str
    report: IngestReport


@dataclass(frozen=True, kw_only=True)
class IngestedDataset:
    """A dataset as it stands after an upload, with that upload's rejected files."""

    dataset: DatasetView
    num_added: int
    rejected: tuple[RejectedImage, ...]


@dataclass(frozen=True, kw_only=True)
class RejectedRow:
    """A rejected file with its place in the dataset's list."""

    position: int
    file: RejectedImage

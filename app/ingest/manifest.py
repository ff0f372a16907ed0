"""What became of an upload."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AcceptedImage:
    """An image that decodes. Width and height in pixels, after its orientation was applied."""

    sha256: str
    filename: str
    format: str
    width: int
    height: int
    num_bytes: int
    warning: str | None = None


@dataclass(frozen=True, kw_only=True)
class RejectedImage:
    """A file that was set aside, with the stable reason and a sentence for people."""

    filename: str
    code: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """All of an upload, in its order. ``images`` are different from each other, and their blobs are stored."""

    images: tuple[AcceptedImage, ...]
    rejected: tuple[RejectedImage, ...]
    num_ignored: int
    """Folders, and files that operating systems leave behind."""
    num_duplicates: int
    """Images whose bytes were there already."""
    total_bytes: int
    """Sum over ``images``."""

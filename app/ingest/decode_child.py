"""What runs inside a decoding process: small on purpose, for it starts often and meets the worst of the input."""

import io
import math
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from must_core.data.images import ImageLimits, ImageRejected, decode_rgb, probe

THUMBNAIL_PIXELS = 128


@dataclass(frozen=True, kw_only=True)
class CheckedImage:
    """An image that decodes. Width and height are upright ones, in pixels."""

    format: str
    width: int
    height: int
    warning: str | None


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """RGB bytes, row by row."""

    width: int
    height: int
    rgb: bytes


def confine(max_memory_bytes: int) -> None:
    """Give the process limits that it cannot raise, and take away what it does not need."""
    os.environ.clear()  # settings hold secrets
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + max_memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def check(path: str, limits: ImageLimits, max_seconds: float) -> CheckedImage | ImageRejected:
    """Decode a file to the last pixel and say what it is."""
    _limit_cpu(max_seconds)
    try:
        info = probe(Path(path), limits)
        decoded = decode_rgb(Path(path))
    except ImageRejected as rejected:
        return rejected
    width, height = decoded.image.size
    return CheckedImage(format=info.format, width=width, height=height, warning=decoded.warning)


def decode(content: bytes, limits: ImageLimits, max_seconds: float) -> Pixels | ImageRejected:
    """Decode bytes to RGB."""
    _limit_cpu(max_seconds)
    try:
        image = decode_rgb(content, limits).image
        return Pixels(width=image.width, height=image.height, rgb=image.tobytes())
    except ImageRejected as rejected:
        return rejected
    except MemoryError:
        return ImageRejected("image_corrupt", "The image needs more memory than any sound one would.")


def thumbnail(content: bytes, limits: ImageLimits, max_seconds: float) -> bytes | ImageRejected:
    """Decode bytes and encode their pixels anew, `THUMBNAIL_PIXELS` on the longer side at most: a JPEG."""
    _limit_cpu(max_seconds)
    try:
        image = decode_rgb(content, limits).image
    except ImageRejected as rejected:
        return rejected
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def _limit_cpu(seconds: float) -> None:
    """The kernel's own end to a decode, should the parent's clock not be heard. Counts from here."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = usage.ru_utime + usage.ru_stime
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used + seconds) + 1, hard))

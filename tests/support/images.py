"""Images made in memory: sound ones, each different by its seed, and broken ones."""

import io
import random
import struct
import zlib
from typing import Any

from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The image as a file's bytes."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def sound(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (16, 12), **options: Any) -> bytes:
    """A small image that differs from those of other seeds."""
    return encoded(Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1])), kind, **options)


def png(*chunks: tuple[bytes, bytes], width: int = 16, height: int = 16) -> bytes:
    """A PNG put together by hand: IHDR (8-bit RGB) and these chunks."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in ((b"IHDR", header), *chunks))


def png_pixels(width: int = 16, height: int = 16) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    """The IDAT and IEND chunks of a grey 8-bit RGB PNG."""
    return (b"IDAT", zlib.compress((b"\x00" + b"\x80" * 3 * width) * height)), (b"IEND", b"")


def many_scans(num_scans: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A progressive JPEG whose last scan is there that many times."""
    data = encoded(Image.radial_gradient("L").resize(size).convert("RGB"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * num_scans + b"\xff\xd9"

"""The one decoder: any accepted file -> the same RGB pixels, wherever it is read.

Validation of uploads, training and classification all come through here, so what was accepted can be trained on and
what was trained on looks the same when classified. Needs Pillow and the standard library alone: the small processes
that decode strangers' files must start fast and hold nothing worth reaching.
"""

import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

# Imported by name, so that Pillow finds them registered and never goes on to load every plugin it has.
from PIL import Image, ImageFile, ImageMath, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from must_core.errors import MustError

FORMATS = ("JPEG", "PNG", "WEBP")
_PLUGINS = (JpegImagePlugin, PngImagePlugin, WebPImagePlugin)

FIRST_FRAME_ONLY = "first_frame_only"
"""Warning: the file is animated, and its first frame was taken."""
ICC_PROFILE_IGNORED = "icc_profile_malformed"
"""Warning: the colour profile is broken. (Whole ones are ignored as well: CLIP was trained that way.)"""

_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# JPEG markers: the frame headers (SOF), and those without a length.
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL_SOF = frozenset({0xC0, 0xC1, 0xC9})
_BARE = frozenset({0x01, 0xD8})
_EOI, _SOS = 0xD9, 0xDA
_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What an image may be. All of it is checked before a pixel is decoded."""

    max_pixels: int = 50_000_000
    """Width times height. Pillow itself refuses more than 178 million."""
    max_aspect: float = 100.0
    """Longer side over shorter side."""
    min_side: int = 8
    """Shorter side, in pixels."""
    max_jpeg_scans: int = 100
    """Passes over a JPEG's pixels. Each costs a whole decode, however few bytes it has."""


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What the header says: before any orientation is applied."""

    format: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """RGB pixels, upright, with nothing of the file's metadata left, and what should be known about them."""

    image: Image.Image
    warning: str | None
    """Comma-separated stable names (`FIRST_FRAME_ONLY`, `ICC_PROFILE_IGNORED`), or nothing."""


class ImageRejected(MustError):
    """A file that cannot be used, with the stable ``code`` and a sentence for people."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail, code=code)
        self.detail = detail

    def __reduce__(self) -> tuple[type["ImageRejected"], tuple[str, str]]:
        return (ImageRejected, (self.code, self.detail))


def sniff(head: bytes) -> str | None:
    """Name the format that the first 12 bytes announce; None when it is not one that is accepted."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    return None


def probe(source: bytes | Path | BinaryIO, limits: ImageLimits) -> ImageInfo:
    """Read the header alone, hold it against the limits, decode nothing.

    Raises `ImageRejected`: ``unsupported_image_format``, ``image_too_many_pixels``, ``image_bad_aspect``,
    ``image_too_small``, ``image_too_complex``, ``image_corrupt``.
    """
    with _opened(source) as file:
        info, num_scans = _read_header(file, limits.max_jpeg_scans)
    short, long = sorted((info.width, info.height))
    if short == 0:
        _corrupt()
    if short * long > limits.max_pixels:
        raise ImageRejected("image_too_many_pixels", f"The image has more than {limits.max_pixels} pixels.")
    if long > limits.max_aspect * short:
        raise ImageRejected("image_bad_aspect", f"One side is over {limits.max_aspect:g} times the other.")
    if short < limits.min_side:
        raise ImageRejected("image_too_small", f"A side is shorter than {limits.min_side} pixels.")
    if num_scans > limits.max_jpeg_scans:
        raise ImageRejected("image_too_complex", f"The JPEG has more than {limits.max_jpeg_scans} scans.")
    return info


def decode_rgb(source: bytes | Path | BinaryIO, limits: ImageLimits | None = None) -> DecodedImage:
    """Decode a JPEG, PNG or WEBP, by its content whatever its name, to upright RGB.

    The first frame of an animation; 16-bit channels by their high byte; transparency on white; EXIF orientation
    applied. The same bytes give the same pixels in every process with the same Pillow. With ``limits``, `probe`
    comes first. Raises `ImageRejected`.
    """
    with _opened(source) as file:
        info = probe(file, limits) if limits else None
        kind = _sniffed(file)
        try:
            image = Image.open(file, formats=(kind,))
            if info is not None and image.size != (info.width, info.height):
                _corrupt()  # two readers that disagree: the limits were checked on another size
            warning = _warning(image, kind)
            upright = _upright(_rgb(image), _orientation(image))
        except ImageRejected:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
            raise ImageRejected("image_too_many_pixels", "The image has too many pixels.") from e
        except Exception as e:  # decoders fail in every way there is; each means the same here
            raise ImageRejected("image_corrupt", "The image cannot be decoded.") from e
    return DecodedImage(image=upright, warning=warning)


@contextmanager
def _opened(source: bytes | Path | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield file
    elif isinstance(source, bytes):
        yield io.BytesIO(source)
    else:
        yield source


def _corrupt() -> NoReturn:
    raise ImageRejected("image_corrupt", "The image cannot be decoded.")


def _sniffed(file: BinaryIO) -> str:
    file.seek(0)
    kind = sniff(file.read(12))
    if kind is None:
        raise ImageRejected("unsupported_image_format", "Only JPEG, PNG and WEBP images are accepted.")
    return kind


def _read_header(file: BinaryIO, max_scans: int) -> tuple[ImageInfo, int]:
    """Size and number of scans, by our own reading: opening a WEBP in Pillow already allocates its canvas."""
    kind = _sniffed(file)
    file.seek(0)
    try:
        if kind == "JPEG":
            width, height, num_scans = _jpeg_header(file, max_scans)
        else:
            width, height = _png_size(file.read(33)) if kind == "PNG" else _webp_size(file.read(30))
            num_scans = 1
    except (struct.error, IndexError) as e:
        raise ImageRejected("image_corrupt", "The header of the image is cut short.") from e
    return ImageInfo(format=kind, width=width, height=height), num_scans


def _png_size(head: bytes) -> tuple[int, int]:
    length, name, width, height = struct.unpack_from(">I4sII", head, 8)
    if name != b"IHDR" or length != 13:
        _corrupt()
    return width, height


def _webp_size(head: bytes) -> tuple[int, int]:
    kind = head[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8X":
        width_low, width_high, height_low, height_high = struct.unpack_from("<HBHB", head, 24)
        return (width_low | width_high << 16) + 1, (height_low | height_high << 16) + 1
    _corrupt()


def _jpeg_header(file: BinaryIO, max_scans: int) -> tuple[int, int, int]:
    """Width, height and the number of scans that a decoder would go through (one more than allowed at most).

    A sequential file whose first scan has every component is read once and no further; any other makes the decoder
    gather all scans up to the end of the image, so there they are counted.
    """
    file.seek(2)
    width = height = num_components = num_scans = 0
    sequential = True
    while (marker := _next_marker(file)) not in (None, _EOI) and num_scans <= max_scans:
        if marker in _BARE:
            continue
        (length,) = struct.unpack(">H", file.read(2))
        segment = file.read(max(0, length - 2))
        if marker in _SOF:
            height, width, num_components = struct.unpack_from(">HHB", segment, 1)
            sequential = marker in _SEQUENTIAL_SOF
        elif marker == _SOS:
            num_scans += 1
            if sequential and segment[0] == num_components:
                break
    if not num_scans or not num_components:
        _corrupt()
    return width, height, num_scans


def _next_marker(file: BinaryIO) -> int | None:
    """Move past the next marker, over padding, junk and coded pixels; None at the end of the file."""
    kept = b""
    size = 2  # most often it is the next thing there
    while chunk := file.read(size):
        window = kept + chunk
        if found := _MARKER.search(window):
            file.seek(found.end() - len(window), io.SEEK_CUR)
            return window[found.end() - 1]
        kept = window[-1:]
        size = 1 << 16
    return None


def _warning(image: Image.Image, kind: str) -> str | None:
    warnings = []
    # A JPEG with several pictures is a photograph with its preview or depth map, not an animation.
    if kind != "JPEG" and getattr(image, "n_frames", 1) > 1:
        warnings.append(FIRST_FRAME_ONLY)
    if "icc_profile" in image.info and not _is_whole_profile(image.info["icc_profile"]):
        warnings.append(ICC_PROFILE_IGNORED)
    return ",".join(warnings) or None


def _is_whole_profile(profile: bytes | None) -> bool:
    return (
        profile is not None
        and len(profile) >= 128
        and profile[36:40] == b"acsp"
        and int.from_bytes(profile[:4], "big") == len(profile)
    )


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001 - whatever is wrong with the metadata, the pixels are fine
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image) -> Image.Image:
    transparency = _transparent_value(image)
    image.load()
    if image.mode.startswith("I"):
        rgb = _from_16_bit(image, transparency)
    elif image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or transparency is not None:
        if transparency is not None:
            image.info["transparency"] = transparency
        rgb = _on_white(image.convert("RGBA"))
    elif image.mode == "RGB":
        rgb = image.copy()  # a plain image: the file's own class keeps the file's bytes alive
    else:
        rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def _transparent_value(image: Image.Image) -> bytes | int | tuple[int, ...] | None:
    """The PNG's transparent colour, as its pixels will read once unpacked to 8 bits. Call before loading."""
    value: bytes | int | tuple[int, ...] | None = image.info.get("transparency")
    if value is None or image.mode == "P":
        return value
    raw_mode = str(image.tile[0].args) if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    if isinstance(value, int) and raw_mode in ("L;2", "L;4"):
        return value * (85 if raw_mode == "L;2" else 17) & 0xFF
    if isinstance(value, tuple):
        return tuple(v >> 8 if raw_mode == "RGB;16B" else v & 0xFF for v in value)
    return value & 0xFF if isinstance(value, int) and image.mode == "L" else value


def _from_16_bit(image: Image.Image, transparency: object) -> Image.Image:
    wide = image.convert("I")
    # The high byte, as Pillow does for 16-bit colour.
    grey = wide.point(lambda value: value * (1 / 256)).convert("L")
    if isinstance(transparency, int):
        clear = ImageMath.lambda_eval(
            lambda images: images["convert"]((images["wide"] == transparency) * 255, "L"), wide=wide
        )
        grey.paste(255, mask=clear)
    return grey.convert("RGB")


def _on_white(rgba: Image.Image) -> Image.Image:
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white

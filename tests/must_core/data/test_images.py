"""Each kind of image and each rejection of the one decoder."""

import io
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from must_core.data.images import (
    FIRST_FRAME_ONLY,
    ICC_PROFILE_IGNORED,
    DecodedImage,
    ImageInfo,
    ImageLimits,
    ImageRejected,
    decode_rgb,
    probe,
)
from tests.support.images import encoded, many_scans, png, png_pixels, sound

LIMITS = ImageLimits(max_pixels=1_000_000)
RAMP = Image.linear_gradient("L")  # 256 x 256, each row of its own value


def at(decoded: DecodedImage, row: int) -> tuple[int, int, int]:
    assert decoded.image.mode == "RGB"
    pixel = decoded.image.getpixel((7, row))
    assert isinstance(pixel, tuple)
    return pixel  # type: ignore[return-value]


def with_alpha(image: Image.Image, alpha: int) -> Image.Image:
    image.putalpha(alpha)
    return image


CONVERSIONS = {
    "grey": (encoded(RAMP), (100,) * 3),
    "1-bit": (encoded(RAMP.point(lambda v: 255 * (v > 99), "1")), (255,) * 3),
    "palette": (encoded(RAMP.convert("P")), (100,) * 3),
    "palette, transparent": (encoded(RAMP.convert("P"), transparency=100), (255,) * 3),
    "grey, transparent": (encoded(RAMP, transparency=100), (255,) * 3),
    "rgb, transparent": (encoded(RAMP.convert("RGB"), transparency=(100, 100, 100)), (255,) * 3),
    "LA": (encoded(with_alpha(RAMP.copy(), 0)), (255,) * 3),
    "RGBA, clear": (encoded(with_alpha(RAMP.convert("RGB"), 0)), (255,) * 3),
    "RGBA, half": (encoded(with_alpha(RAMP.convert("RGB"), 51)), (224,) * 3),  # 0.2 * 100 + 0.8 * 255
    "16-bit": (encoded(RAMP.convert("I;16").point(lambda v: v * 257)), (100,) * 3),
    "16-bit, transparent": (encoded(RAMP.convert("I;16").point(lambda v: v * 257), transparency=25700), (255,) * 3),
    "CMYK": (encoded(RAMP.convert("RGB").convert("CMYK"), "JPEG", quality=95), (100,) * 3),
    "WEBP": (encoded(RAMP.convert("RGB"), "WEBP", lossless=True), (100,) * 3),
    "WEBP, clear": (encoded(with_alpha(RAMP.convert("RGB"), 0), "WEBP", lossless=True), (255,) * 3),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_every_mode_becomes_rgb(name: str) -> None:
    data, expected = CONVERSIONS[name]
    decoded = decode_rgb(data, LIMITS)
    assert all(abs(a - b) <= 1 for a, b in zip(at(decoded, 100), expected, strict=True))
    assert decoded.warning is None
    assert decoded.image.info == {}


def test_low_bit_grey_matches_its_transparent_value() -> None:
    rows = zlib.compress((b"\x00" + b"\xaa" * 4) * 16)  # 2 bits: 0b10 everywhere
    data = bytearray(png((b"tRNS", b"\x00\x02"), (b"IDAT", rows), (b"IEND", b"")))
    data[24:26] = bytes([2, 0])  # 2 bits, grey
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    assert at(decode_rgb(bytes(data)), 3) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_same_pixels_from_bytes_path_and_stream(kind: str, tmp_path: Path) -> None:
    data = sound(1, kind, (40, 30))
    path = tmp_path / "misnamed.gif"
    path.write_bytes(data)
    pixels = {decode_rgb(source).image.tobytes() for source in (data, path, io.BytesIO(data))}
    assert len(pixels) == 1
    assert probe(data, LIMITS) == ImageInfo(format=kind, width=40, height=30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = sound(2, "PNG", (40, 30), exif=exif)
    assert decode_rgb(data).image.size == ((40, 30) if orientation < 5 else (30, 40))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_corrupt_exif_is_ignored() -> None:
    data = sound(3, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert decode_rgb(data, LIMITS).warning is None


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    decoded = decode_rgb(data, LIMITS)
    assert decoded.warning == FIRST_FRAME_ONLY
    assert at(decoded, 3) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_malformed_icc_profile_is_noted(kind: str) -> None:
    assert decode_rgb(sound(4, kind, icc_profile=b"nonsense"), LIMITS).warning == ICC_PROFILE_IGNORED


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


WEBP = sound(5, "WEBP")
PHOTO = sound(6, "JPEG", (200, 200))
REJECTED = {
    "nothing": (b"", "unsupported_image_format"),
    "text": (b"hello, world", "unsupported_image_format"),
    "gif": (encoded(RAMP, "GIF"), "unsupported_image_format"),
    "bmp": (encoded(RAMP, "BMP"), "unsupported_image_format"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_image_format"),
    "huge png header": (png(width=50_000, height=50_000), "image_too_many_pixels"),
    "huge webp canvas": (
        b"RIFF\x16\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00" + b"\x00" * 4 + b"\xfe\xff\xff" * 2,
        "image_too_many_pixels",
    ),
    "pixels just over": (png(*png_pixels(1001, 1000), width=1001, height=1000), "image_too_many_pixels"),
    "1 x 65000": (png(width=1, height=65_000), "image_bad_aspect"),
    "7 x 7": (sound(7, size=(7, 7)), "image_too_small"),
    "0 x 8": (png(width=0, height=8), "image_corrupt"),
    "101 scans": (many_scans(101), "image_too_complex"),
    "10000 scans": (many_scans(10_000), "image_too_complex"),
    "cut jpeg": (PHOTO[: len(PHOTO) // 2], "image_corrupt"),
    "cut png": (sound(8, size=(99, 99))[:500], "image_corrupt"),
    "cut webp": (WEBP[: len(WEBP) // 2], "image_corrupt"),
    "jpeg start only": (b"\xff\xd8\xff", "image_corrupt"),
    "png start only": (b"\x89PNG\r\n\x1a\n", "image_corrupt"),
    "webp start only": (b"RIFF\x00\x00\x00\x00WEBP", "image_corrupt"),
    "flipped bytes": (patched(sound(9, size=(99, 99)), 600, b"\x00" * 64), "image_corrupt"),
    "iCCP bomb": (
        png((b"iCCP", b"x\x00\x00" + zlib.compress(b"\x00" * 50_000_000)), *png_pixels()),
        "image_corrupt",
    ),
    "zTXt bomb": (
        png((b"zTXt", b"x\x00\x00" + zlib.compress(b"\x00" * 50_000_000)), *png_pixels()),
        "image_corrupt",
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_with_its_code(name: str) -> None:
    data, code = REJECTED[name]
    with pytest.raises(ImageRejected) as caught:
        decode_rgb(data, LIMITS)
    assert caught.value.code == code


def test_limits_are_the_reason() -> None:
    """The same files pass when the limits let them: what rejects them is not something else."""
    wide = ImageLimits(max_pixels=2_000_000, max_jpeg_scans=200, min_side=1)
    for name in ("pixels just over", "101 scans", "7 x 7"):
        assert decode_rgb(REJECTED[name][0], wide).image.mode == "RGB"
    assert decode_rgb(many_scans(80), LIMITS).image.mode == "RGB"


@settings(deadline=None)
@given(data=st.binary(max_size=300), kind=st.sampled_from(["JPEG", "PNG", "WEBP"]), cut=st.integers(0, 400))
def test_garbage_is_rejected_and_nothing_else_is_raised(data: bytes, kind: str, cut: int) -> None:
    code = "image_"
    try:
        decode_rgb(sound(10, kind)[:cut] + data, LIMITS)
    except ImageRejected as e:
        code = e.code
    assert code.startswith(("image_", "unsupported_"))


def test_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, must_core.data.images as m; print(sorted({'torch', 'numpy', 'fastapi'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

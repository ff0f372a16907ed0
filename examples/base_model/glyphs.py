"""Printed characters cut out of font files.

Faces are grouped into families, so that a family with thirty weights is not drawn thirty times as often as
one with a single face, and so that whole families can be held out to measure on.
"""

import re
import string
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFont

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
FONT_PIXELS = 72
"""Size at which glyphs are cut: about twice what an image of 32 pixels can show."""
NOT_PLAIN_PRINT = re.compile(
    r"symbol|dingbat|d050000l|ornament|emoji|icon|math|size(one|two|three|four|five)|"  # signs
    r"script|chorus|chancery|z003|calligr|cursive|handwrit|"  # imitations of the pen: print only
    r"initial|keyboard|outline|shadow|barcode|capitals",  # decorated or partial faces
    re.IGNORECASE,
)
UNASSIGNED = "\U0010fffe"
"""A code point no font has: what is drawn for it is the face's sign for a missing character."""

GlyphHW: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Family:
    """All usable faces of one font family."""

    name: str
    faces: tuple[dict[str, GlyphHW], ...]
    """One entry a face: character -> ink coverage (uint8, 0-255), cropped to the ink."""


class TooFewFontsError(Exception):
    """The folders hold too few usable font families to train on."""


def find_font_files(folders: Iterable[Path]) -> list[Path]:
    """Return every TrueType and OpenType file below the folders, sorted by file name."""
    files = {path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in {".ttf", ".otf"}}
    return sorted(files, key=lambda path: (path.name, str(path)))


def cut_glyph(font: ImageFont.FreeTypeFont, character: str) -> GlyphHW | None:
    """Return the ink of one character, cropped to it, or None where the face draws nothing."""
    mask = font.getmask(character, mode="L")
    width, height = mask.size
    if width == 0 or height == 0:
        return None
    canvas = Image.new("L", (width, height))
    canvas.im.paste(mask, (0, 0, width, height))
    box = canvas.getbbox()
    return None if box is None else np.asarray(canvas.crop(box))


def load_face(path: Path) -> tuple[str, dict[str, GlyphHW]] | None:
    """Return a face's family name and its glyphs, or None for a face without plain digits and letters."""
    try:
        font = ImageFont.truetype(path, FONT_PIXELS)
        family, style = font.getname()
        if family is None or NOT_PLAIN_PRINT.search(f"{path.stem} {family} {style}"):
            return None
        missing = cut_glyph(font, UNASSIGNED)
        cut = {character: cut_glyph(font, character) for character in CHARACTERS}
    except OSError:  # bitmap-only and damaged files
        return None
    glyphs = {character: glyph for character, glyph in cut.items() if glyph is not None}
    if len(glyphs) < len(CHARACTERS):
        return None
    if missing is not None and any(np.array_equal(glyph, missing) for glyph in glyphs.values()):
        return None
    if len({glyphs[digit].tobytes() for digit in string.digits}) < len(string.digits):
        return None
    return family, glyphs


def load_families(folders: Iterable[Path], *, minimum: int) -> list[Family]:
    """Load every usable family below the folders, sorted by name.

    Faces that draw the very same digits as an earlier one (shipped as both .ttf and .otf, say) are left out.

    Raises:
        TooFewFontsError: fewer than `minimum` families were usable.
    """
    folders = list(folders)
    faces: dict[str, list[dict[str, GlyphHW]]] = defaultdict(list)
    seen: set[bytes] = set()
    files = find_font_files(folders)
    for path in files:
        loaded = load_face(path)
        if loaded is None:
            continue
        name, glyphs = loaded
        fingerprint = b"".join(glyphs[digit].tobytes() for digit in string.digits)
        if fingerprint not in seen:
            seen.add(fingerprint)
            faces[name].append(glyphs)
    if len(faces) < minimum:
        places = ", ".join(str(folder) for folder in folders)
        raise TooFewFontsError(
            f"{len(faces)} usable font families among {len(files)} font files in {places}; at least {minimum} are"
            " needed. Install more fonts of printed type (README.md lists the packages used) or name more folders"
            " with --fonts."
        )
    return [Family(name=name, faces=tuple(faces[name])) for name in sorted(faces)]


def hold_out(families: list[Family], *, share: float = 0.1, seed: int = 0) -> tuple[list[Family], list[Family]]:
    """Split families into those to train on and those to measure on; the same fonts and seed split alike."""
    order = np.random.default_rng(seed).permutation(len(families))
    count = max(1, round(share * len(families)))
    held_out = set(order[:count].tolist())
    return (
        [family for index, family in enumerate(families) if index not in held_out],
        [family for index, family in enumerate(families) if index in held_out],
    )

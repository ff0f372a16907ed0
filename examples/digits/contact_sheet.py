"""A sheet of small images with the answers before and after, as a PNG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE = 96
CAPTION = 34
COLUMNS = 10
MOST = 60

_WHITE, _INK, _RIGHT, _WRONG = "#ffffff", "#222222", "#1a7f37", "#b42318"


@dataclass(frozen=True)
class Tile:
    """An encoded image, what was said of it before and after, and what it is."""

    content: bytes
    before: str
    after: str
    true: str


def save_contact_sheet(tiles: Sequence[Tile], path: Path) -> None:
    """Draw up to 60 tiles; under each, the answer before and the one after, green when right and red when wrong."""
    shown = tiles[:MOST]
    rows = max(1, -(-len(shown) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + CAPTION)), _WHITE)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for position, tile in enumerate(shown):
        left, top = position % COLUMNS * TILE, position // COLUMNS * (TILE + CAPTION)
        with Image.open(io.BytesIO(tile.content)) as image:
            sheet.paste(
                image.convert("RGB").resize((TILE - 6, TILE - 6), Image.Resampling.BICUBIC), (left + 3, top + 3)
            )
        for line, (prefix, answer) in enumerate((("", tile.before), ("> ", tile.after))):
            colour = _RIGHT if answer == tile.true else _WRONG
            draw.text((left + 5, top + TILE + 15 * line), prefix, _INK, font)
            draw.text((left + 5 + (14 if prefix else 0), top + TILE + 15 * line), answer, colour, font)
    sheet.save(path)

"""Images of printed characters and simple shapes, as a careless scan or a small photo would show them.

Legend: B batch, H and W pixels (both IMAGE_SIZE), 3 colour channels.

Nothing here knows of handwriting: characters come from fonts, and what varies is what varies in print and in
cameras: place, size, slant, weight, resolution, focus, contrast, colour, light and noise.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from examples.base_model.captions import (
    COLOURS,
    NUM_CHARACTERS,
    NUM_DIGITS,
    SHAPES,
    SUBJECTS,
    Caption,
    write_caption,
)
from examples.base_model.glyphs import Family, GlyphHW

IMAGE_SIZE = 32
CANVAS_SIZE = 2 * IMAGE_SIZE
"""Side of the drawing before it is brought down to its resolution."""
COLOUR_VALUES = np.array(list(COLOURS.values()), dtype=np.float32) / 255
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rendered images and their captions, in the same order."""

    images_B3HW: FloatArray
    """Values from 0 to 1."""
    captions: list[Caption]
    subjects_B: npt.NDArray[np.int64]
    colours_B: npt.NDArray[np.int64]
    """Index of each image's colour, or -1 for grey."""
    tones_B: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Look:
    """How strongly images vary. Sizes are shares of the image's side unless said otherwise."""

    digit_share: float = 0.4
    letter_share: float = 0.45
    """The rest of the images shows shapes."""
    smallest: float = 0.55
    largest: float = 1.0
    """Limits of the longer side of the subject."""
    shift: float = 0.7
    """How much of the room beside the subject it may be shifted by."""
    rotation_degrees: float = 7.0
    """Standard deviation; nothing turns by more than three of them, so no digit becomes another."""
    slant: float = 0.10
    """Standard deviation of the shear."""
    aspect: float = 0.15
    """Standard deviation of the logarithm of width over height."""
    coarse_probability: float = 0.6
    """How often an image is brought down below IMAGE_SIZE before it is enlarged again."""
    coarsest_pixels: int = 8
    legible_pixels: float = 7.0
    """A coarse image still leaves the subject's longer side this many pixels: with fewer nobody could read it."""
    blur_pixels: float = 1.0
    """Largest radius of the blur."""
    noise: float = 0.08
    """Largest standard deviation of the noise, on values from 0 to 1."""
    colour_probability: float = 0.3


EASY = Look(
    smallest=0.8,
    shift=0.3,
    rotation_degrees=3.0,
    slant=0.03,
    aspect=0.05,
    coarse_probability=0.3,
    blur_pixels=0.5,
    noise=0.03,
)
"""Large, upright, nearly clean print: what a model that knows nothing yet can learn from quickly."""


def blend(start: Look, end: Look, amount: float) -> Look:
    """Return the look between two others: `start` at an amount of 0, `end` at 1."""
    values = {
        field.name: (1 - amount) * getattr(start, field.name) + amount * getattr(end, field.name)
        for field in fields(Look)
    }
    return Look(**{**values, "coarsest_pixels": end.coarsest_pixels})


def shape_mask(name: str) -> GlyphHW:
    """Draw one shape as ink coverage (uint8)."""
    size, low, high = 64, 2, 61
    middle = size / 2
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)

    def corners(count: int, radii: tuple[float, ...], turn: float) -> list[tuple[float, float]]:
        angles = [turn + 2 * math.pi * index / count for index in range(count)]
        return [
            (middle + radii[i % len(radii)] * math.cos(a), middle + radii[i % len(radii)] * math.sin(a))
            for i, a in enumerate(angles)
        ]

    match name:
        case "circle":
            draw.ellipse((low, low, high, high), fill=255)
        case "ring":
            draw.ellipse((low, low, high, high), outline=255, width=10)
        case "square":
            draw.rectangle((low, low, high, high), fill=255)
        case "triangle":
            draw.polygon([(low, high), (high, high), (middle, low)], fill=255)
        case "diamond":
            draw.polygon(corners(4, (30.0,), 0.0), fill=255)
        case "star":
            draw.polygon(corners(10, (30.0, 12.0), -math.pi / 2), fill=255)
        case "cross":
            draw.rectangle((low, 24, high, 40), fill=255)
            draw.rectangle((24, low, 40, high), fill=255)
        case "arrow":
            draw.polygon([(low, 24), (34, 24), (34, low), (high, 32), (34, high), (34, 40), (low, 40)], fill=255)
        case _:
            raise ValueError(f"no such shape: {name}")
    return np.asarray(image.crop(image.getbbox()))


class Renderer:
    """Draws seeded batches from a set of font families."""

    def __init__(self, *, families: list[Family], look: Look, seed: int) -> None:
        self._families = families
        self.look = look
        """May be changed between batches."""
        self._rng = np.random.default_rng(seed)
        self._shapes = [shape_mask(name) for name in SHAPES]

    def batch(self, size: int) -> Batch:
        """Render `size` images with one caption each."""
        rng, look = self._rng, self.look
        subjects_B = np.array([self._choose_subject() for _ in range(size)])
        ink_BHW = np.stack([self._draw(int(subject)) for subject in subjects_B])

        colours_B = np.where(rng.random(size) < look.colour_probability, rng.integers(len(COLOURS), size=size), -1)
        colours_B = np.where(subjects_B >= NUM_CHARACTERS, rng.integers(len(COLOURS), size=size), colours_B)
        tones_B = rng.integers(2, size=size)  # 0: dark ink on a light ground
        images_B3HW = self._paint(ink_BHW, colours_B, tones_B)
        captions = [
            write_caption(rng, subject=int(subject), colour=int(colour), tone=int(tone))
            for subject, colour, tone in zip(subjects_B, colours_B, tones_B, strict=True)
        ]
        return Batch(
            images_B3HW=images_B3HW,
            captions=captions,
            subjects_B=subjects_B,
            colours_B=colours_B,
            tones_B=tones_B,
        )

    def _choose_subject(self) -> int:
        rng, look = self._rng, self.look
        kind = rng.random()
        if kind < look.digit_share:
            return int(rng.integers(NUM_DIGITS))
        if kind < look.digit_share + look.letter_share:
            return int(rng.integers(NUM_DIGITS, NUM_CHARACTERS))
        return int(rng.integers(NUM_CHARACTERS, len(SUBJECTS)))

    def _draw(self, subject: int) -> FloatArray:
        """Return the ink coverage (H, W, 0 to 1) of one subject in a random pose and sharpness."""
        rng, look = self._rng, self.look
        characters = SUBJECTS[subject].characters
        if characters:
            family = self._families[rng.integers(len(self._families))]
            glyphs = family.faces[rng.integers(len(family.faces))]
            ink = self._vary_weight(Image.fromarray(glyphs[characters[rng.integers(len(characters))]]))
        else:
            ink = Image.fromarray(self._shapes[subject - NUM_CHARACTERS])
        share = rng.uniform(look.smallest, look.largest)
        canvas = self._place(ImageOps.expand(ink, border=2), share)  # the rim keeps the ink's edge soft

        if rng.random() < look.coarse_probability:
            coarsest = max(look.coarsest_pixels, math.ceil(look.legible_pixels / share))
            pixels = int(rng.integers(coarsest, IMAGE_SIZE))
            canvas = canvas.resize((pixels, pixels), Image.Resampling.BOX)
            enlarge = Image.Resampling.BICUBIC if rng.random() < 0.7 else Image.Resampling.BILINEAR
            canvas = canvas.resize((IMAGE_SIZE, IMAGE_SIZE), enlarge)
        else:
            canvas = canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
            radius = rng.uniform(0, look.blur_pixels)
            if radius > 0.3:
                canvas = canvas.filter(ImageFilter.GaussianBlur(radius))
        return np.asarray(canvas, dtype=np.float32) / np.float32(255)

    def _vary_weight(self, ink: Image.Image) -> Image.Image:
        """Print bolder or thinner now and then, as more or less ink would."""
        rng = self._rng
        choice = rng.random()
        if choice < 0.3:
            reach = 2 * int(rng.integers(1, 4))
            padded = Image.new("L", (ink.width + 2 * reach, ink.height + 2 * reach))
            padded.paste(ink, (reach, reach))
            return padded.filter(ImageFilter.MaxFilter(reach + 1))
        if choice < 0.45:
            thinner = ink.filter(ImageFilter.MinFilter(3))
            if np.asarray(thinner).sum() > 0.5 * np.asarray(ink).sum():  # hairlines would vanish
                return thinner
        return ink

    def _place(self, ink: Image.Image, share: float) -> Image.Image:
        """Put the ink on a square canvas: scaled, stretched, slanted, turned and shifted in one go.

        Its longer side takes `share` of the canvas.
        """
        rng, look = self._rng, self.look
        longer = share * CANVAS_SIZE
        stretch = math.exp(float(np.clip(rng.normal(0, look.aspect), -0.5, 0.5)))
        width, height = ink.width * math.sqrt(stretch), ink.height / math.sqrt(stretch)
        scale = longer / max(width, height)
        width, height = width * scale, height * scale
        furthest = 3 * look.rotation_degrees
        turn = math.radians(float(np.clip(rng.normal(0, look.rotation_degrees), -furthest, furthest)))
        slant = float(np.clip(rng.normal(0, look.slant), -0.3, 0.3))
        # Room left beside the ink is where it may be shifted to; a fifteenth of the side may leave the image.
        room_x = max(CANVAS_SIZE - width, 0) / 2 + CANVAS_SIZE / 15
        room_y = max(CANVAS_SIZE - height, 0) / 2 + CANVAS_SIZE / 15
        centre_x = CANVAS_SIZE / 2 + rng.uniform(-room_x, room_x) * look.shift
        centre_y = CANVAS_SIZE / 2 + rng.uniform(-room_y, room_y) * look.shift

        # Pillow wants the way back: canvas pixel -> ink pixel.
        cos, sin = math.cos(turn), math.sin(turn)
        forward = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, slant], [0, 1]])
        forward = forward @ np.diag([width / ink.width, height / ink.height])
        back = np.linalg.inv(forward)
        offset = np.array([ink.width / 2, ink.height / 2]) - back @ np.array([centre_x, centre_y])
        data = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
        return ink.transform(
            (CANVAS_SIZE, CANVAS_SIZE), Image.Transform.AFFINE, data, resample=Image.Resampling.BILINEAR
        )

    def _paint(
        self, ink_BHW: FloatArray, colours_B: npt.NDArray[np.int64], tones_B: npt.NDArray[np.int64]
    ) -> FloatArray:
        """Give ink and ground their values, then add uneven light and noise."""
        rng, look = self._rng, self.look
        size = len(ink_BHW)
        extreme_B = rng.random(size) < 0.3  # plain black and white, the most common print
        dark_B = np.where(extreme_B, 0.0, rng.uniform(0, 0.4, size))
        light_B = np.where(extreme_B, 1.0, dark_B + rng.uniform(0.35, 1.0, size) * (1 - dark_B))
        ink_value_B = np.where(tones_B == 0, dark_B, light_B)
        ground_value_B = np.where(tones_B == 0, light_B, dark_B)
        ink_B3 = np.repeat(ink_value_B[:, None], 3, axis=1)
        ground_B3 = np.repeat(ground_value_B[:, None], 3, axis=1)

        coloured_B = colours_B >= 0
        tint_B3 = COLOUR_VALUES[colours_B] + rng.normal(0, 0.04, (size, 3))
        # Coloured ink needs a ground of the named tone that it stands out from.
        tone_ground_B1 = np.where(tones_B == 0, rng.uniform(0.85, 1.0, size), rng.uniform(0.0, 0.12, size))[:, None]
        ink_B3 = np.where(coloured_B[:, None], tint_B3, ink_B3)
        ground_B3 = np.where(coloured_B[:, None], tone_ground_B1, ground_B3)

        ink_B1HW = ink_BHW[:, None]
        images_B3HW = ground_B3[:, :, None, None] * (1 - ink_B1HW) + ink_B3[:, :, None, None] * ink_B1HW
        ramp_H = np.linspace(-1, 1, IMAGE_SIZE)
        tilt_x_B, tilt_y_B = rng.normal(0, 0.04, (2, size))
        light_BHW = tilt_x_B[:, None, None] * ramp_H[None, None, :] + tilt_y_B[:, None, None] * ramp_H[None, :, None]
        noise_B = np.where(rng.random(size) < 0.5, rng.uniform(0, look.noise, size), 0.0)
        grain_BHW = rng.standard_normal(ink_BHW.shape, dtype=np.float32) * noise_B[:, None, None]
        images_B3HW = images_B3HW + (light_BHW + grain_BHW)[:, None]
        clipped_B3HW: FloatArray = np.clip(images_B3HW, 0, 1).astype(np.float32)
        return clipped_B3HW

"""What the images show, and the many ways to say it."""

import string
from dataclasses import dataclass

import numpy as np

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "arrow")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 220, 50),
    "orange": (245, 140, 30),
    "purple": (140, 60, 180),
    "pink": (250, 140, 190),
    "brown": (130, 80, 40),
}
"""Colour words and their RGB values (0-255)."""
COLOUR_NAMES = tuple(COLOURS)
TONES = ("dark", "light")
"""Tone of the ink against its ground."""

FRAMES = (
    "{}",
    "a {}",
    "a photo of {}.",
    "a photo of a {}.",
    "a picture of {}",
    "a picture of a {}",
    "an image of {}",
    "a blurry photo of {}.",
    "a low resolution photo of {}.",
    "a close-up photo of {}.",
    "a scan of {}",
    "a drawing of a {}",
    "this is {}",
    "there is a {} here",
    "an icon of {}",
    "{} on a plain background",
    "a small picture of {}.",
    "a cropped photo of {}.",
)
"""Sentences around any subject."""
PRINT_FRAMES = (
    "printed {}",
    "{} in print",
    "{} printed on paper",
    "{} typed in some font",
    "a scan of a printed {}",
    "a photo of {} on a sign.",
    "text that says {}",
)
"""Sentences around a printed character."""
DIGIT_NOUNS = (
    "",
    "number ",
    "the number ",
    "digit ",
    "the digit ",
    "the numeral ",
    "numeral ",
    "the figure ",
)
LETTER_NOUNS = ("", "letter ", "the letter ", "the character ", "character ", "the letter called ")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing an image can show."""

    names: tuple[str, ...]
    """Interchangeable names, such as "3" and "three"."""
    nouns: tuple[str, ...]
    """What may stand before the name; the empty string for nothing."""
    characters: str
    """The characters that show it; empty for a shape."""


SUBJECTS = (
    *(
        Subject(names=(str(value), word), nouns=DIGIT_NOUNS, characters=str(value))
        for value, word in enumerate(DIGIT_WORDS)
    ),
    *(
        Subject(names=(letter,), nouns=LETTER_NOUNS, characters=letter + letter.lower())
        for letter in string.ascii_uppercase
    ),
    *(Subject(names=(shape,), nouns=("", "the "), characters="") for shape in SHAPES),
)
"""Ten digits, 26 letters (both cases are one: CLIP's tokenizer lower-cases its text) and eight shapes."""
NUM_DIGITS = len(DIGIT_WORDS)
NUM_CHARACTERS = NUM_DIGITS + len(string.ascii_uppercase)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A text and what an image must show for the text to be true of it."""

    text: str
    subject: int
    colour: int = -1
    """Index into COLOUR_NAMES, or -1 where the text names none."""
    tone: int = -1
    """Index into TONES, or -1 where the text names none."""


def write_caption(rng: np.random.Generator, *, subject: int, colour: int, tone: int) -> Caption:
    """Write one true caption of an image.

    `colour` is -1 for a grey image. A shape's colour is mostly told, a character's sometimes, tone rarely.
    """
    what = SUBJECTS[subject]
    name = str(rng.choice(what.names))
    is_character = bool(what.characters)
    tells_colour = colour >= 0 and rng.random() < (0.4 if is_character else 0.75)
    tells_tone = not tells_colour and rng.random() < 0.08
    if tells_colour:
        name = f"{COLOUR_NAMES[colour]} {name}"
    elif tells_tone:
        name = f"{TONES[tone]} {name}"
    elif rng.random() < 0.75:
        name = f"{rng.choice(what.nouns)}{name}"
    frames = FRAMES + PRINT_FRAMES if is_character else FRAMES
    text = str(rng.choice(frames)).format(name).replace("a the ", "the ")
    return Caption(text=text, subject=subject, colour=colour if tells_colour else -1, tone=tone if tells_tone else -1)

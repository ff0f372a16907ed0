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
from torchvision.transforms.v2 import functional as V2

from must_core.backbone import Preprocess
from must_core.config import AdaptConfig
from must_core.seeding import VIEWS, derive_seed


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Run a block with Python's and NumPy's global generators seeded by a key, and give them back as they were.

    timm draws from both; torch's generator is not touched.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    seed = derive_seed(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class Views:
    """Makes ``(weak_CHW, strong_CHW)`` from one RGB image.

    With ``augment_on="loader"`` both are float32, normalised and ready. With ``"device"`` both are the same crops as
    uint8 pixels, and what is left to do is `must_core.data.augment_batch.BatchAugment`'s. The crops are then resized by
    torch instead of Pillow, which is several times as fast; about 2 % of the values are a level off, none more than 2
    (``python -m bench.augment`` measures both).
    """

    def __init__(self, preprocess: Preprocess, config: AdaptConfig) -> None:
        self._size = preprocess.image_size
        self._mean = list(preprocess.mean)
        self._std = list(preprocess.std)
        self._crop_scale = (config.crop_scale_min, 1.0)
        self._on_device = config.augment_on == "device"
        self._flip = config.horizontal_flip
        self._rand_augment = rand_augment(config.rand_augment, preprocess) if config.rand_augment else None

    @property
    def num_bytes(self) -> int:
        """Of both views of one image."""
        return 2 * 3 * self._size**2 * (1 if self._on_device else 4)

    def __call__(self, image: Image.Image, *key: int) -> tuple[Tensor, Tensor]:
        """Make both views; ``key`` is what their randomness is drawn from (seed, epoch, index of the image)."""
        with seeded(VIEWS, *key):
            if self._on_device:
                pixels_CHW = TF.pil_to_tensor(image)
                return self._weak_crop(pixels_CHW).contiguous(), self._strong_crop(pixels_CHW).contiguous()
            return self._normalise(self._weak_crop(image)), self._normalise(self._augment(self._strong_crop(image)))

    def _weak_crop(self, image: Any) -> Any:
        """Of a Pillow image or a tensor, as one of the same kind; likewise `_strong_crop`."""
        resized = V2.resize(image, [self._size], InterpolationMode.BICUBIC)
        height, width = V2.get_size(resized)
        left = random.randint(0, width - self._size)
        top = random.randint(0, height - self._size)
        return V2.crop(resized, top, left, self._size, self._size)

    def _strong_crop(self, image: Any) -> Any:
        box = RandomResizedCropAndInterpolation.get_params(image, self._crop_scale, (3 / 4, 4 / 3))
        return V2.resized_crop(image, *box, [self._size, self._size], InterpolationMode.BICUBIC)

    def _augment(self, view: Image.Image) -> Image.Image:
        if self._flip and random.random() < 0.5:
            view = ImageOps.mirror(view)
        if self._rand_augment is not None:
            view = self._rand_augment(view)
        return view

    def _normalise(self, image: Image.Image) -> Tensor:
        tensor: Tensor = TF.normalize(TF.to_tensor(image), self._mean, self._std)
        return tensor


def rand_augment(policy: str, preprocess: Preprocess) -> RandAugment:
    """timm's RandAugment of this policy for the base model's images, with at least one bit left by Posterize."""
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

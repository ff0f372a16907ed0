"""The images that the guard looks at: those held out of training, and others for its judge to learn from.

Shapes: N images of the panel, B of a batch, K classes, D embedding width.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from must_core import evaluate
from must_core.backbone import Preprocess
from must_core.data.image_list import ImageList
from must_core.data.loader import evaluation_batches
from must_core.guard.judge import Evidence, features_from_sides
from must_core.guard.verdict import MIN_HELD_OUT
from must_core.guard.vetoes import Opinion
from must_core.seeding import HELD_OUT, derive_seed
from must_core.student import Student

_BATCH = 64
_CPU_BATCH = 8
"""A sign of progress follows each batch, and the first look asks eleven times about an image."""
_HELD_OUT_SHARE = 5
_MOST_HELD_OUT = 2000
_FEWEST_OTHERS = 1024
_OTHERS_PER_CLASS = 20
_MOST_LOGITS = 20_000_000
"""Of one classifier, among the others: 80 MB."""


@dataclass(frozen=True)
class Split:
    """Which images are trained on and which are not: positions, int64, each ascending."""

    training: NDArray[np.int64]
    held_out: NDArray[np.int64]


def hold_out(num_images: int, *, seed: int) -> Split:
    """Draw a fifth of the images, 2,000 at most, as a function of the seed; none where that is too few to decide on.

    What makes a decision sure is their number and not their share.
    """
    count = min(num_images // _HELD_OUT_SHARE, _MOST_HELD_OUT)
    if count < MIN_HELD_OUT:
        return no_held_out(num_images)
    generator = torch.Generator().manual_seed(derive_seed(HELD_OUT, seed))
    order = torch.randperm(num_images, generator=generator).numpy()
    return Split(np.sort(order[count:]), np.sort(order[:count]))


def no_held_out(num_images: int) -> Split:
    """All images are trained on."""
    return Split(np.arange(num_images), np.arange(0))


class Panel:
    """The images, and what classifiers say of them. ``held_out_N`` marks those that nobody trained on; ``positions_N``
    is where each stands among all images."""

    def __init__(
        self,
        images: Sequence[Path],
        split: Split,
        preprocess: Preprocess,
        *,
        num_classes: int,
        device: str,
        num_workers: int,
    ) -> None:
        wanted = max(_FEWEST_OTHERS, min(_OTHERS_PER_CLASS * num_classes, _MOST_LOGITS // num_classes))
        step = max(1, -(-len(split.training) // wanted))
        others = split.training[::step]
        positions = np.concatenate([split.held_out, others])
        self.positions_N = torch.from_numpy(positions)
        self.images = ImageList.of(images).take(positions)
        self.held_out_N = torch.arange(len(self.images)) < len(split.held_out)
        self._preprocess = preprocess
        self._device = device
        self._num_workers = num_workers

    def batches(self) -> Iterator[Tensor]:
        """``images_BCHW`` on the device, in order."""
        for images_BCHW in evaluation_batches(
            self.images,
            self._preprocess,
            batch_size=_CPU_BATCH if self._device == "cpu" else _BATCH,
            num_workers=self._num_workers,
        ):
            yield images_BCHW.to(self._device)

    def opinion(self, classifier: Student) -> Generator[None, None, Opinion]:
        """Ask a classifier about every image; yields after each batch."""
        looked = []
        for images_BCHW in self.batches():
            looked.append(opinion_of(classifier, images_BCHW))
            yield
        return Opinion.joined(looked)


def opinion_of(classifier: Student, images_BCHW: Tensor) -> Opinion:
    """What a classifier says of a batch, on the CPU."""

    def ask(part_BCHW: Tensor) -> tuple[Tensor, ...]:
        features_BD = classifier.features(part_BCHW)
        return classifier.classify(features_BD), features_BD

    return Opinion(*evaluate.in_memory(ask, images_BCHW))


def evidence_of(zero_shot: Student, images_BCHW: Tensor) -> Evidence:
    """What the judge needs to know of a batch, on the CPU."""

    def ask(part_BCHW: Tensor) -> tuple[Tensor, ...]:
        features_BD = features_from_sides(zero_shot, part_BCHW)
        unit_BD = F.normalize(features_BD, dim=-1)
        return features_BD, zero_shot.classify(unit_BD).log_softmax(dim=-1)

    return Evidence(*evaluate.in_memory(ask, images_BCHW))

"""What the benches have in common: clocks that wait for the device, interleaved pairs, photos to read."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from must_core.data.image_list import ImageList

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of a channel; OpenAI's CLIP."""


class Clock:
    """Seconds by phase, summed over a step; waits for the device, if it is one that runs ahead."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self._device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def measuring(self, phase: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[phase] += self.now() - start

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Let calls of a method count as a phase from now on."""
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.measuring(phase):
                return method(*args, **kwargs)

        setattr(owner, name, timed)

    def take(self) -> dict[str, float]:
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds


def interleaved(first: Callable[[], Any], second: Callable[[], Any], num_pairs: int) -> list[tuple[Any, Any]]:
    """Results of both, one after the other, first and second changing places from pair to pair."""
    pairs = []
    for i in range(num_pairs):
        if i % 2:
            b, a = second(), first()
        else:
            a, b = first(), second()
        pairs.append((a, b))
    return pairs


def make_photos(folder: Path, num_images: int, size: tuple[int, int]) -> ImageList:
    """JPEG files of smooth noise, no two alike."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(num_images):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        grain = generator.normal(0, 6, (size[1], size[0], 1))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06}.jpg", quality=90)
    return ImageList.below(folder)

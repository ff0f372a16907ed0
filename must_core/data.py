"""Images on disk -> batches of views, in an order that is a function of seed, epoch and position.

Shapes: B images.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from must_core.augment import Views
from must_core.backbone import Preprocess
from must_core.errors import InvalidConfig, UnreadableImage
from must_core.images import ImageRejected, decode_rgb
from must_core.seeding import ORDER, derive_seed

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def find_images(folder: Path) -> list[Path]:
    """List the image files below a folder, in a stable order."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def epoch_order(num_images: int, *, seed: int, epoch: int) -> list[int]:
    """The order of an epoch: a permutation drawn from ``(seed, epoch)`` alone."""
    generator = torch.Generator().manual_seed(derive_seed(ORDER, seed, epoch))
    return torch.randperm(num_images, generator=generator).tolist()


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches in an epoch; raises `InvalidConfig` when there is none."""
    if batch_size > num_images:
        raise InvalidConfig("batch_size is larger than the number of images.", param="batch_size")
    return num_images // batch_size


class _TrainingViews(Dataset[tuple[Tensor, Tensor] | UnreadableImage]):
    def __init__(self, paths: Sequence[Path], views: Views, seed: int) -> None:
        self._paths = [str(p) for p in paths]
        self._views = views
        self._seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor] | UnreadableImage:
        epoch, index = key
        try:
            return self._views(_decoded(self._paths[index]), self._seed, epoch, index)
        except UnreadableImage as e:
            return e  # raised in a loader process, it would arrive as a RuntimeError with a traceback for a message


def _decoded(path: str) -> Image.Image:
    try:
        return decode_rgb(Path(path)).image
    except ImageRejected as e:
        raise UnreadableImage(f"{Path(path).name}: {e.detail} ({e.code})") from e


def _collated(
    samples: list[tuple[Tensor, Tensor] | UnreadableImage],
) -> tuple[Tensor, Tensor] | UnreadableImage:
    pairs = []
    for sample in samples:
        if isinstance(sample, UnreadableImage):
            return sample
        pairs.append(sample)
    weak, strong = zip(*pairs, strict=True)
    return torch.stack(weak), torch.stack(strong)


class _Positions:
    """Batches of ``(epoch, index)`` from a step on, to the end of the last epoch."""

    def __init__(self, num_images: int, batch_size: int, epochs: int, seed: int, first_step: int) -> None:
        self._num_images = num_images
        self._batch_size = batch_size
        self._epochs = epochs
        self._seed = seed
        self._first_step = first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = steps_per_epoch(self._num_images, self._batch_size)
        first_epoch, skip = divmod(self._first_step, per_epoch)
        for epoch in range(first_epoch, self._epochs):
            order = epoch_order(self._num_images, seed=self._seed, epoch=epoch)
            for step in range(skip if epoch == first_epoch else 0, per_epoch):
                chosen = order[step * self._batch_size : (step + 1) * self._batch_size]
                yield [(epoch, index) for index in chosen]


def training_batches(
    paths: Sequence[Path],
    views: Views,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    first_step: int = 0,
    num_workers: int = 0,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield ``(weak_BCHW, strong_BCHW)`` for every step from ``first_step`` on, last incomplete batches dropped.

    Batch t is the same whatever ``first_step`` and ``num_workers`` are. Raises `UnreadableImage`.
    """
    positions = _Positions(len(paths), batch_size, epochs, seed, first_step)
    loader: DataLoader[tuple[Tensor, Tensor] | UnreadableImage] = DataLoader(
        _TrainingViews(paths, views, seed),
        batch_sampler=positions,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        collate_fn=_collated,
    )
    for batch in loader:
        if isinstance(batch, UnreadableImage):
            raise batch
        yield batch


class _EvaluationImages(Dataset[Tensor]):
    def __init__(self, paths: Sequence[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self._paths = [str(p) for p in paths]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        return self._transform(_decoded(self._paths[index]))


def evaluation_batches(
    paths: Sequence[Path], preprocess: Preprocess, *, batch_size: int = 256, num_workers: int = 0
) -> Iterator[Tensor]:
    """Yield ``images_BCHW`` in the order of ``paths``, each as the base model wants it."""
    dataset = _EvaluationImages(paths, preprocess.transform())
    yield from DataLoader(dataset, batch_size=batch_size, num_workers=num_workers)

"""Images on disk -> batches of views, in an order that is a function of seed, epoch and position.

Nothing here grows with the number of images but `ImageList` and one epoch's order, eight bytes an image.

Shapes: B images.
"""

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from must_core.backbone import Preprocess
from must_core.data.augment import Views
from must_core.data.image_list import ImageList
from must_core.data.images import ImageRejected, decode_rgb
from must_core.errors import InvalidConfig, UnreadableImage
from must_core.seeding import ORDER, derive_seed

T = TypeVar("T")

_ALL = slice(None)

_PREFETCHED_BYTES = 2 * 2**30


@runtime_checkable
class ImageSource(Protocol):
    """Decoded images by position: the same pixels whenever and in whichever process they are asked for.

    Loader processes get it by fork or pickled, so it should be cheap to pickle.
    """

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Upright RGB pixels. Raises `UnreadableImage`."""


class ImageFiles:
    """The `ImageSource` that decodes a file each time it is asked."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = ImageList.of(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        try:
            return decode_rgb(self.paths[index]).image
        except ImageRejected as e:
            raise unreadable(self.paths.name(index), e) from e


def image_source(images: Sequence[Path] | ImageSource) -> ImageSource:
    """The source itself, or one that decodes these files."""
    return images if isinstance(images, ImageSource) else ImageFiles(images)


def unreadable(name: str, rejected: ImageRejected) -> UnreadableImage:
    """The error for an image of this name (`ImageList.name`)."""
    return UnreadableImage(f"{name}: {rejected.detail} ({rejected.code})")


def find_images(folder: Path) -> ImageList:
    """List the image files below a folder, in a stable order: see `ImageList.below`."""
    return ImageList.below(folder)


def epoch_order(num_images: int, *, seed: int, epoch: int) -> Tensor:
    """The order of an epoch, int64 positions: a permutation drawn from ``(seed, epoch)`` alone."""
    generator = torch.Generator().manual_seed(derive_seed(ORDER, seed, epoch))
    return torch.randperm(num_images, generator=generator)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches in an epoch; raises `InvalidConfig` when there is none."""
    if batch_size > num_images:
        raise InvalidConfig("batch_size is larger than the number of images.", param="batch_size")
    return num_images // batch_size


def readable(make: Callable[[], T]) -> T | UnreadableImage:
    """What ``make`` returns, or its `UnreadableImage` as a value, for `raised` to raise.

    Raised in a loader process, it would arrive with a traceback for a message.
    """
    try:
        return make()
    except UnreadableImage as e:
        return e


def raised(value: T | UnreadableImage) -> T:
    """The value, unless it is an `UnreadableImage`: that is raised."""
    if isinstance(value, UnreadableImage):
        raise value
    return value


def loaded(
    dataset: Dataset[T | UnreadableImage], *, num_workers: int, prefetch: int = 2, **options: Any
) -> Iterator[T]:
    """Go once through a `DataLoader` of ``num_workers`` processes that keep ``prefetch`` batches each ready.

    PyTorch gives each of them one thread, and has it end within some seconds of a parent that was killed. Signals
    that a terminal or a service manager sends to the whole group are the parent's alone: a loader process that died
    of one would take the run with it before the parent has saved its checkpoint. Raises `UnreadableImage`.
    """
    loader: DataLoader[T | UnreadableImage] = DataLoader(
        dataset,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        worker_init_fn=_heed_the_parent,
        **options,
    )
    # What is blocked here is blocked in the new processes from their first moment, and in all of their threads.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    yield from map(raised, batches)


_CAN_TELL_SENDERS = hasattr(signal, "sigwaitinfo")
"""Not so on macOS."""
_GROUP_SIGNALS = {signal.SIGINT, signal.SIGTERM} if _CAN_TELL_SENDERS else {signal.SIGINT}


def _heed_the_parent(_worker_id: int) -> None:
    """In a loader process: let SIGTERM work where the parent sends it, as Python does to what remains at its exit."""
    if _CAN_TELL_SENDERS:
        Thread(target=_exit_when_terminated_by, args=(os.getppid(),), daemon=True).start()


def _exit_when_terminated_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class _TrainingViews(Dataset[tuple[Tensor, Tensor] | UnreadableImage]):
    def __init__(self, source: ImageSource, views: Views, seed: int) -> None:
        self._source = source
        self._views = views
        self._seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor] | UnreadableImage:
        epoch, index = key
        return readable(lambda: self._views(self._source.image(index), self._seed, epoch, index))


def _views_collated(
    samples: list[tuple[Tensor, Tensor] | UnreadableImage],
) -> tuple[Tensor, Tensor] | UnreadableImage:
    def collated() -> tuple[Tensor, Tensor]:
        weak, strong = zip(*map(raised, samples), strict=True)
        return torch.stack(weak), torch.stack(strong)

    return readable(collated)


class _Positions:
    """Batches of ``(epoch, index)`` from a step on, to the end of the last epoch; of each the share asked for."""

    def __init__(
        self, num_images: int, *, batch_size: int, epochs: int, seed: int, first_step: int, share: slice
    ) -> None:
        self._num_images = num_images
        self._batch_size = batch_size
        self._epochs = epochs
        self._seed = seed
        self._first_step = first_step
        self._share = share

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = steps_per_epoch(self._num_images, self._batch_size)
        first_epoch, skip = divmod(self._first_step, per_epoch)
        for epoch in range(first_epoch, self._epochs):
            order = epoch_order(self._num_images, seed=self._seed, epoch=epoch)
            for step in range(skip if epoch == first_epoch else 0, per_epoch):
                batch = order[step * self._batch_size : (step + 1) * self._batch_size]
                yield [(epoch, index) for index in batch[self._share].tolist()]


def training_batches(
    images: Sequence[Path] | ImageSource,
    views: Views,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    first_step: int = 0,
    share: slice = _ALL,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield ``(weak_BCHW, strong_BCHW)`` for every step from ``first_step`` on, last incomplete batches dropped.

    Batch t is the same whatever ``first_step``, ``num_workers`` and the kind of source are. Of several processes,
    each asks for its ``share`` of the rows (`must_core.parallel.Ranks.share_of`). ``pin_memory`` puts batches where a
    GPU can fetch them. Raises `UnreadableImage`, and `InvalidConfig` for a batch larger than the number of images.
    """
    source = image_source(images)
    yield from loaded(
        _TrainingViews(source, views, seed),
        batch_sampler=_Positions(
            len(source), batch_size=batch_size, epochs=epochs, seed=seed, first_step=first_step, share=share
        ),
        collate_fn=_views_collated,
        pin_memory=pin_memory,
        num_workers=num_workers,
        prefetch=_prefetch(views.num_bytes * len(range(batch_size)[share]), num_workers),
    )


def _prefetch(batch_bytes: int, num_workers: int) -> int:
    """Batches that each loader process keeps ready: four, fewer where they would fill the shared memory."""
    return max(1, min(4, _PREFETCHED_BYTES // (batch_bytes * max(1, num_workers))))


class _EvaluationImages(Dataset[Tensor | UnreadableImage]):
    def __init__(self, source: ImageSource, transform: Callable[[Image.Image], Tensor]) -> None:
        self._source = source
        self._transform = transform

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Tensor | UnreadableImage:
        return readable(lambda: self._transform(self._source.image(index)))


def _images_collated(samples: list[Tensor | UnreadableImage]) -> Tensor | UnreadableImage:
    return readable(lambda: torch.stack([*map(raised, samples)]))


def evaluation_batches(
    images: Sequence[Path] | ImageSource,
    preprocess: Preprocess,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Tensor]:
    """Yield ``images_BCHW`` in the order of ``images``, each as the base model wants it. Raises `UnreadableImage`."""
    yield from loaded(
        _EvaluationImages(image_source(images), preprocess.transform()),
        batch_size=batch_size,
        collate_fn=_images_collated,
        pin_memory=pin_memory,
        num_workers=num_workers,
    )

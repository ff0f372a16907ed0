"""Decoding strangers' images in child processes with limits on memory, CPU and time: a bad image costs itself."""

import asyncio
import multiprocessing
import signal
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray
from pebble import ProcessExpired, ProcessPool

from app.exceptions import Unavailable
from app.ingest import decode_child
from app.ingest.decode_child import CheckedImage, Pixels
from must_core.data.images import ImageLimits, ImageRejected

_log = structlog.get_logger(__name__)

_MEMORY_BASE = 256 * 1024**2
_MEMORY_PER_PIXEL = 32
"""Bytes. A decoder holds the canvas several times over: coefficients or frames, the image, its copy on white."""

_TASKS_PER_CHILD = 5000
"""Then it is replaced, so that what a decoder leaks stays small."""

T = TypeVar("T")


class Pending(Generic[T]):
    """An answer that a child process is working on."""

    def __init__(self, future: "Future[T | ImageRejected]") -> None:
        self._future = future

    def result(self) -> T | ImageRejected:
        """Wait for it. What the decoder did to its process, or how long it took, is a reason for rejection too."""
        try:
            return self._future.result()
        except (TimeoutError, ProcessExpired, BrokenProcessPool) as e:
            return _rejected(e)

    def cancel(self) -> None:
        """Not wanted any more."""
        self._future.cancel()


class DecoderPool:
    """Child processes that decode. Made at once, started with the first image. Use from any thread.

    A program that uses it must be importable without side effects and without torch: each child imports its main
    module (multiprocessing's "spawn").
    """

    def __init__(
        self, *, processes: int = 2, limits: ImageLimits | None = None, timeout: timedelta = timedelta(seconds=20)
    ) -> None:
        self._processes = processes
        self._limits = limits or ImageLimits()
        self._timeout_s = timeout.total_seconds()
        self._lock = Lock()
        self._closed = False
        self._pool = self._make_pool()

    def check(self, path: Path) -> Pending[CheckedImage]:
        """Start validating a file: header against the limits, then every pixel."""
        return Pending(self._schedule(decode_child.check, str(path)))

    async def decode(self, content: bytes) -> NDArray[np.uint8]:
        """Decode one image to RGB, ``[height, width, 3]``. Raises `ImageRejected`."""
        answer: Pixels = await self._answer(decode_child.decode, content)
        return np.frombuffer(answer.rgb, dtype=np.uint8).reshape(answer.height, answer.width, 3)

    async def thumbnail(self, content: bytes) -> bytes:
        """A small JPEG of one image's pixels, and of nothing else of the file. Raises `ImageRejected`."""
        small: bytes = await self._answer(decode_child.thumbnail, content)
        return small

    def close(self) -> None:
        """End the children, whatever they are doing."""
        with self._lock:
            self._closed = True
            self._pool.stop()
            self._pool.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_pool(self) -> Any:
        return ProcessPool(
            max_workers=self._processes,
            max_tasks=_TASKS_PER_CHILD,
            initializer=decode_child.confine,
            initargs=(_MEMORY_BASE + _MEMORY_PER_PIXEL * self._limits.max_pixels,),
            context=multiprocessing.get_context("spawn"),
        )

    async def _answer(self, function: Any, content: bytes) -> Any:
        future = self._schedule(function, content)
        try:
            answer = await asyncio.wrap_future(future)
        except (TimeoutError, ProcessExpired, BrokenProcessPool) as e:
            answer = _rejected(e)
        if isinstance(answer, ImageRejected):
            raise answer
        return answer

    def _schedule(self, function: Any, *args: Any) -> Any:
        for _ in range(2):
            pool = self._pool
            try:
                return pool.schedule(function, args=(*args, self._limits, self._timeout_s), timeout=self._timeout_s)
            except RuntimeError:  # not running: broken by the machine, or closed
                self._replace(pool)
        raise Unavailable("decoder_unavailable", "Images cannot be decoded now.", retry_after_s=5)

    def _replace(self, broken: Any) -> None:
        with self._lock:
            if self._closed or self._pool is not broken:
                return
            _log.warning("decoder_pool_replaced")
            broken.stop()
            broken.join()
            self._pool = self._make_pool()


def _rejected(error: Exception) -> ImageRejected:
    out_of_time = isinstance(error, TimeoutError) or getattr(error, "exitcode", None) == -signal.SIGXCPU
    _log.info("decode_failed", error=type(error).__name__, exitcode=getattr(error, "exitcode", None))
    if out_of_time:
        return ImageRejected("image_decode_timeout", "The image takes too long to decode.")
    return ImageRejected("image_corrupt", "The image makes its decoder fail.")

"""Files and folders on the local disk: durable writes, second names, listings that tolerate others at work."""

import ctypes
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

_STAGED = ".staged-"
_ABANDONED_AFTER_S = 3600.0
"""Longer than anybody works in a staged folder without making a file."""


def entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing when it is gone."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def modified(path: Path) -> float:
    """When a file was last written, as a timestamp; now, when it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def link_or_copy(source: Path, to: Path) -> None:
    """Give a file a second name, or a copy where the file system has no hard links."""
    try:
        to.hardlink_to(source)
    except OSError as e:
        if e.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP):
            raise
        shutil.copyfile(source, to)


def touch(path: Path) -> bool:
    """Mark a file as used now; False when it is gone."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def mark_used(path: Path) -> bool:
    """Have a file be the one read last, without a change of when it was written; False when it is gone."""
    try:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def sync(paths: Sequence[Path]) -> None:
    """Make files or folders durable: each by itself when few, their whole (one) file system at once when many."""
    if not paths:
        return
    all_at_once = _syncfs() if len(paths) > 8 else None
    for path in paths[:1] if all_at_once else paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            (all_at_once or os.fsync)(handle)
        finally:
            os.close(handle)


def _syncfs() -> Callable[[int], None] | None:
    """Linux's syncfs, which reports failed writes since 5.8; Python has no name for it."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if function is None:
        return None

    def syncfs(handle: int) -> None:
        if function(handle) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return syncfs


@contextmanager
def staged(parent: Path) -> Iterator[Path]:
    """Yield a new folder that nobody else uses and that goes with the block.

    Those that killed processes left in the same place go too, an hour after the last file was made in them.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in entries(parent):
        if left.name.startswith(_STAGED) and modified(left) < time.time() - _ABANDONED_AFTER_S:
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(mkdtemp(dir=parent, prefix=_STAGED))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""A disk of a few megabytes, to be filled and set read-only."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A file system in memory at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leave no room, not for a byte."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError as e:
                    assert e.errno == errno.ENOSPC  # noqa: PT017 - any other error is one of the test's

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink()

    def set_writable(self, *, writable: bool) -> None:
        """Or read-only."""
        _run("mount", "-o", f"remount,{'rw' if writable else 'ro'}", str(self.path))


@contextmanager
def small_disk(path: Path, *, megabytes: int) -> Iterator[SmallDisk]:
    """It needs root's rights: without them the test is skipped, or failed with ``CI=true``."""
    path.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path))
    except (OSError, subprocess.CalledProcessError) as e:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no file system can be mounted: {e}")
        pytest.skip("no file system can be mounted")
    try:
        yield SmallDisk(path)
    finally:
        _run("umount", "--lazy", str(path))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)

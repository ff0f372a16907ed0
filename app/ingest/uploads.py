"""What came in with a request, on disk without a name: gone when closed, also if the process is killed."""

import errno
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from app.exceptions import Unavailable


@dataclass(frozen=True)
class Upload:
    """One file as its sender named it. The stream can be sought, is read from its start, and its name is untrusted."""

    filename: str
    file: BinaryIO


class Spool:
    """All bytes of a request in one nameless file, so that a request of 100,000 files holds one handle."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by `close`
        self.num_bytes = 0

    def append(self, content: bytes | bytearray) -> None:
        """Write at the end. Raises `Unavailable` ``storage_full``."""
        view = memoryview(content)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Unavailable("storage_full", "The storage is full.", retry_after_s=30) from e
            raise
        self.num_bytes += len(content)

    def part(self, start: int, num_bytes: int) -> BinaryIO:
        """A stream of its own over a piece, valid until the spool is closed."""
        # Without a buffer of its own: there may be 100,000 of them.
        return cast(BinaryIO, _Part(self._file, start, num_bytes))

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()


class _Part(io.RawIOBase):
    def __init__(self, file: BinaryIO, start: int, num_bytes: int) -> None:
        self._file = file
        self._start = start
        self._num_bytes = num_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._num_bytes - self._position))
        # By absolute position: pieces are read in turns, from several threads.
        count = os.preadv(self._file.fileno(), [memoryview(buffer)[:wanted]], self._start + self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

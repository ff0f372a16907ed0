"""Files on their way out of a folder, where whoever still needs one gets it back.

A file is taken out of its place in one step, looked at where nobody else writes, and then removed or put back. A
process that dies in between leaves it here, to be put back by whoever finds it.
"""

import errno
import secrets
from collections.abc import Iterator
from pathlib import Path

from app.files import entries, sync

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EMLINK})


class Aside:
    """A folder beside the places, on their file system. Files keep their names, each with a suffix of its taker's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, place: Path) -> Path | None:
        """Move a file out of its place; None when it is gone. Of several that take at once, one gets it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # A name of one's own: under a common one, two takers would remove each other's file.
        taken = self._folder / f"{place.name}.{secrets.token_hex(8)}"
        try:
            place.rename(taken)
        except FileNotFoundError:
            return None
        return taken

    def files(self) -> Iterator[tuple[str, Path]]:
        """What is here: the name that a file has in its place, and where it is now."""
        for path in entries(self._folder):
            yield path.name.partition(".")[0], path


def put_back(taken: Path, place: Path) -> None:
    """Undo `Aside.take`, durably. Others may do the same at the same time."""
    try:
        try:
            place.hardlink_to(taken)  # unlike a rename, it leaves alone what was stored there meanwhile
        except FileExistsError:
            pass
        except OSError as e:
            if e.errno not in _NO_LINKS:
                raise
            taken.rename(place)
    except FileNotFoundError:
        return  # another one has put it back, or removed it
    sync([place.parent])  # before the last other name of these bytes goes
    taken.unlink(missing_ok=True)

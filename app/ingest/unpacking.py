"""What holds for archives of every kind: limits, names, refusals."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Protocol

from app.exceptions import InvalidInput

CHUNK = 1 << 16

_LEFT_BEHIND = frozenset({"thumbs.db", ".ds_store", "desktop.ini"})
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """What an archive may hold."""

    max_entries: int = 200_000
    max_unpacked_bytes: int = 16 * 1024**3
    max_ratio: int = 100
    """Bytes out per byte in, over the whole archive."""
    ratio_free_bytes: int = 1024**2
    """Unpacked bytes up to which the ratio is nobody's concern."""
    max_depth: int = 32
    max_name_bytes: int = 255
    """Longest part of a name between two slashes."""


class Stream(Protocol):
    """Bytes of one member."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, fewer at times; empty at the end."""
        ...


@dataclass(frozen=True)
class Member:
    """A regular file of an archive. Read it before the next is asked for; it is read to its end in any case."""

    name: str
    stream: Stream


class Tally:
    """What an upload's archives have cost so far: entries met, bytes out, files passed over."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self.limits = limits
        self.num_entries = 0
        self.num_ignored = 0
        self.num_bytes = 0
        self._allowed_bytes = 0

    def admit(self, packed_bytes: int) -> None:
        """An archive of this size begins: it may grow by the ratio."""
        self._allowed_bytes += max(self.limits.ratio_free_bytes, self.limits.max_ratio * packed_bytes)

    def announce(self, num_entries: int) -> None:
        """Entries are known to come. Raises `InvalidInput` ``archive_too_many_entries``."""
        self.num_entries += num_entries
        if self.num_entries > self.limits.max_entries:
            raise InvalidInput(
                "archive_too_many_entries", f"The archive has more than {self.limits.max_entries} entries."
            )

    def unpack(self, num_bytes: int) -> None:
        """Bytes came out. Raises `InvalidInput` ``archive_too_large_uncompressed``."""
        self.num_bytes += num_bytes
        if self.num_bytes > min(self.limits.max_unpacked_bytes, self._allowed_bytes):
            raise InvalidInput(
                "archive_too_large_uncompressed",
                f"Unpacked, the archive is over {self.limits.max_unpacked_bytes} bytes or over "
                f"{self.limits.max_ratio} times its size.",
            )


class NameRules:
    """Judges the names of one archive's entries, and remembers them."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self._limits = limits
        self._seen: set[bytes] = set()

    def check(self, name: str, raw: bytes) -> None:
        """Refuse names that point outside, or are too deep or too long: ``archive_unsafe_path``."""
        parts = re.split(rb"[/\\]", raw.rstrip(b"/\\"))
        if (
            not name
            or "\x00" in name
            or name[0] in "/\\"
            or _DRIVE.match(name)
            or b".." in parts
            or len(parts) > self._limits.max_depth
            or any(len(part) > self._limits.max_name_bytes for part in parts)
        ):
            raise InvalidInput("archive_unsafe_path", "A name in the archive leads outside or is too long.")

    def claim(self, name: str) -> None:
        """Refuse a file whose name differs from an earlier one's by case or Unicode form only."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", "/".join(parts)).casefold())
        key = hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key in self._seen:
            raise InvalidInput("archive_duplicate_entry", "Two files of the archive have the same name.")
        self._seen.add(key)


def is_left_behind(name: str) -> bool:
    """Whether an operating system put the file there for itself (``__MACOSX``, ``Thumbs.db`` …)."""
    parts = name.replace("\\", "/").split("/")
    return "__MACOSX" in parts or parts[-1].lower() in _LEFT_BEHIND or parts[-1].startswith("._")


def ambiguous() -> InvalidInput:
    """Two readers would see two different archives."""
    return InvalidInput("archive_ambiguous", "The archive can be read in more than one way.")


def corrupt() -> InvalidInput:
    """The archive is not what it says."""
    return InvalidInput("archive_corrupt", "The archive is damaged or cut short.")


def unsupported_entry() -> InvalidInput:
    """Something that is neither a file nor a folder."""
    return InvalidInput("archive_unsupported_entry", "The archive holds links, devices or other special entries.")


def drain(stream: Stream) -> None:
    """Read to the end, so that what was not wanted is checked and counted as well."""
    while stream.read(CHUNK):
        pass

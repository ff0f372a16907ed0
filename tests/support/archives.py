"""Archives made in memory, sound and broken."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Mapping

Files = Mapping[str, bytes]


def zipped(files: Files, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A plain zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def zipped_to_a_pipe(files: Files) -> bytes:
    """A zip whose writer could not go back, so that sizes follow the bytes."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.content = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.content += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        for name, content in files.items():
            archive.writestr(name, content)
    return pipe.content


def zipped_as(name: str, mode: int, content: bytes = b"target") -> bytes:
    """A zip with one entry of a Unix kind: a link, a device …"""
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (mode | 0o644) << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(info, content)
    return out.getvalue()


LINK = stat.S_IFLNK
FIFO = stat.S_IFIFO


def central(data: bytes, number: int = 0) -> int:
    """Where the n-th record of the central directory starts."""
    position = data.index(b"PK\x01\x02")
    for _ in range(number):
        position = data.index(b"PK\x01\x02", position + 4)
    return position


def patched(data: bytes, at: int, layout: str, *values: int) -> bytes:
    """The bytes with numbers written over them."""
    new = struct.pack(layout, *values)
    return data[:at] + new + data[at + len(new) :]


def flagged(data: bytes, bits: int) -> bytes:
    """A zip of one entry with flag bits set in both headers."""
    at = central(data)
    return patched(patched(data, at + 8, "<H", bits), 6, "<H", bits)


def overlapping() -> bytes:
    """Two directory records over the same bytes."""
    data = zipped({"a.png": b"a" * 100, "b.png": b"b" * 100}, zipfile.ZIP_STORED)
    first, second = central(data), central(data, 1)
    record = data[first:second].replace(b"a.png", b"b.png")
    return data[:second] + record + data[second + len(record) :]


def tarred(files: Files, *, compressed: bool = False, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of regular files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if compressed else "w", format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def tarred_as(kind: bytes, name: str = "x", linkname: str = "", size: int = 0) -> bytes:
    """A tar with one entry of this type."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(info)
    data = out.getvalue()
    return header_patched(data, 124, f"{size:011o}\0".encode()) if size else data


def header_patched(data: bytes, at: int, new: bytes) -> bytes:
    """A tar with bytes of its first header changed and the checksum put right."""
    header = bytearray(data[:512])
    header[at : at + len(new)] = new
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + data[512:]


def gzipped(data: bytes) -> bytes:
    """The bytes as gzip."""
    return gzip.compress(data)

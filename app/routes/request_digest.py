"""What a request asks for, as one SHA-256: by it a repeated request is known."""

import hashlib
import json


class RequestDigest:
    """Of method, path and body. Of a JSON body every byte counts. Of a form its fields and files count, in their order:
    names, file names and contents, and not the boundary between them, which is another one each time."""

    def __init__(self, method: str, path: str) -> None:
        self._sha256 = hashlib.sha256()
        self._add("request", method, path)

    def add_body(self, raw: bytes) -> None:
        """A body that is read as a whole."""
        self._add("body", hashlib.sha256(raw).hexdigest())

    def add_part(self, name: str, filename: str | None, content_sha256: str) -> None:
        """A part of a form; ``filename`` is None for a field."""
        self._add("part", name, filename, content_sha256)

    def hexdigest(self) -> str:
        """The digest of everything so far."""
        return self._sha256.hexdigest()

    def _add(self, *values: str | None) -> None:
        self._sha256.update(json.dumps(values).encode() + b"\n")  # no list's text begins or ends another's

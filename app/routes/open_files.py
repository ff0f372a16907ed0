"""Answers that are files, read from what is open already."""

import os
from typing import BinaryIO

from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send


class OpenFileResponse(FileResponse):
    """A file to keep, or the part asked for; that its name goes meanwhile changes nothing. Closes the file."""

    def __init__(self, file: BinaryIO, *, filename: str, etag: str, media_type: str) -> None:
        super().__init__(
            f"/dev/fd/{file.fileno()}",
            filename=filename,
            media_type=media_type,
            headers={"ETag": etag},
            stat_result=os.fstat(file.fileno()),
        )
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._file:
            await super().__call__(scope, receive, send)

"""Small pictures of stored images, for people to look at."""

import re

from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool

from app.database import read_only
from app.datasets.store import DatasetStore
from app.exceptions import NotFound
from app.ids import is_id
from app.ingest.decoding import DecoderPool
from app.storage import BlobStore
from must_core.data.images import ImageRejected

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ThumbnailService:
    """Decodes in the decoders' processes; what strangers uploaded is never sent as it is."""

    def __init__(self, *, sessions: sessionmaker[Session], storage: BlobStore, decoder: DecoderPool) -> None:
        self._sessions = sessions
        self._storage = storage
        self._decoder = decoder

    async def of_image(self, dataset_id: str, image_id: str) -> bytes:
        """A JPEG of an image of a dataset, 128 pixels on the longer side at most.

        Raises `NotFound`, also for an image that does not decode any more, and `Unavailable`.
        """
        content = await run_in_threadpool(self._read, dataset_id, image_id)
        try:
            return await self._decoder.thumbnail(content)
        except ImageRejected as e:
            raise NotFound from e

    def _read(self, dataset_id: str, image_id: str) -> bytes:
        if not (is_id("ds", dataset_id) and _SHA256.fullmatch(image_id)):
            raise NotFound
        with read_only(self._sessions) as session:
            if DatasetStore(session).position_of(dataset_id, image_id) is None:
                raise NotFound
        return self._storage.read(image_id)

"""Datasets over HTTP."""

from typing import Any

from fastapi import APIRouter, Response, status

from app.datasets.messages import IngestedDataset
from app.deps import DatasetServiceDep, ThumbnailServiceDep
from app.idempotency.messages import Answer
from app.routes.idempotency import OnceDep, answer_of
from app.routes.multipart import FILE_FIELDS, FormDep
from app.routes.paging import PagingDep
from app.schemas.common import Page
from app.schemas.datasets import DatasetOut, ImageOut, IngestedDatasetOut, ListedRejectedFileOut

router = APIRouter(prefix="/datasets", tags=["datasets"])

_BINARY = {"type": "string", "format": "binary"}
_FILES = {
    "archive": {**_BINARY, "description": "One archive: zip, tar or tar.gz."},
    "images": {"type": "array", "items": _BINARY, "description": "Image files: JPEG, PNG or WEBP."},
}
_NAME = {
    "name": {"type": "string", "maxLength": 200, "description": "For people.", "examples": ["Shelf cameras"]},
}


def _created(done: IngestedDataset) -> Answer:
    return answer_of(201, IngestedDatasetOut.ingested(done))


def _appended(done: IngestedDataset) -> Answer:
    return answer_of(200, IngestedDatasetOut.ingested(done))


def _multipart(properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


@router.post("", status_code=201, response_model=IngestedDatasetOut, openapi_extra=_multipart({**_FILES, **_NAME}))
async def create_dataset(form: FormDep, datasets: DatasetServiceDep, once: OnceDep) -> Response:
    """Make a dataset of an archive or of image files. Files that cannot be used are reported, the rest is kept."""
    form.only("name")
    uploads = form.uploads(*FILE_FIELDS)
    name = form.fields.get("name")
    return await once.answer(lambda record: datasets.create(uploads, name=name, record=record), _created)


@router.post("/{dataset_id}/images", response_model=IngestedDatasetOut, openapi_extra=_multipart(_FILES))
async def append_images(dataset_id: str, form: FormDep, datasets: DatasetServiceDep, once: OnceDep) -> Response:
    """Add images to a dataset. Images that it has already are stored once."""
    form.only()
    uploads = form.uploads(*FILE_FIELDS)
    return await once.answer(lambda record: datasets.append(dataset_id, uploads, record=record), _appended)


@router.get("")
def list_datasets(page: PagingDep, datasets: DatasetServiceDep) -> Page[DatasetOut]:
    """List datasets, newest first."""
    found = [DatasetOut.of(view) for view in datasets.list(limit=page.limit + 1, after=page.after)]
    return Page[DatasetOut].of(found, limit=page.limit, id_of=lambda dataset: dataset.id)


@router.get("/{dataset_id}")
def get_dataset(dataset_id: str, datasets: DatasetServiceDep) -> DatasetOut:
    """Read a dataset."""
    return DatasetOut.of(datasets.get(dataset_id))


@router.delete("/{dataset_id}", status_code=status.HTTP_204_NO_CONTENT)
def delete_dataset(dataset_id: str, datasets: DatasetServiceDep) -> None:
    """Delete a dataset that no job needs any more."""
    datasets.delete(dataset_id)


@router.get("/{dataset_id}/images")
def list_images(dataset_id: str, page: PagingDep, datasets: DatasetServiceDep) -> Page[ImageOut]:
    """Page through the images of a dataset."""
    found = [ImageOut.of(image) for image in datasets.images(dataset_id, limit=page.limit + 1, after=page.after)]
    return Page[ImageOut].of(found, limit=page.limit, id_of=lambda image: image.id)


@router.get(
    "/{dataset_id}/images/{image_id}/thumbnail",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}, "description": "At most 128 pixels wide and high."}},
)
async def thumbnail(dataset_id: str, image_id: str, thumbnails: ThumbnailServiceDep) -> Response:
    """Show an image of a dataset, small and encoded anew."""
    return Response(
        await thumbnails.of_image(dataset_id, image_id),
        media_type="image/jpeg",
        headers={
            "Cache-Control": "private, max-age=86400, immutable",
            "Content-Security-Policy": "default-src 'none'",
            "X-Content-Type-Options": "nosniff",
        },
    )


@router.get("/{dataset_id}/rejected")
def list_rejected(dataset_id: str, page: PagingDep, datasets: DatasetServiceDep) -> Page[ListedRejectedFileOut]:
    """Page through the files that were set aside."""
    rows = datasets.rejected(dataset_id, limit=page.limit + 1, after=page.after)
    found = [ListedRejectedFileOut.listed(row) for row in rows]
    return Page[ListedRejectedFileOut].of(found, limit=page.limit, id_of=lambda file: file.id)

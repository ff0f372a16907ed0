"""``/classifiers``."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response, status

from app.classifiers.messages import ClassifierView
from app.deps import ClassifierServiceDep, DownloadServiceDep
from app.idempotency.messages import Answer
from app.inference.exports import ExportFormat
from app.routes.bodies import body_schema, class_list, read_json_body
from app.routes.idempotency import OnceDep, answer_of
from app.routes.open_files import OpenFileResponse
from app.routes.paging import PagingDep
from app.schemas.classifiers import ClassifierCreate, ClassifierOut
from app.schemas.common import Page

router = APIRouter(prefix="/classifiers", tags=["classifiers"])


@router.post("", status_code=201, response_model=ClassifierOut, openapi_extra=body_schema(ClassifierCreate))
async def create_classifier(request: Request, service: ClassifierServiceDep, once: OnceDep) -> Response:
    """Make a zero-shot classifier from a class list; it is ready at once."""
    wanted = await read_json_body(request, ClassifierCreate, digest=once.digest)
    classes = class_list(wanted.classes, wanted.templates)
    return await once.answer(
        lambda record: service.create_zero_shot(classes, base_model=wanted.base_model, name=wanted.name, record=record),
        _created,
    )


def _created(view: ClassifierView) -> Answer:
    return answer_of(201, ClassifierOut.of(view))


@router.get("")
def list_classifiers(service: ClassifierServiceDep, paging: PagingDep) -> Page[ClassifierOut]:
    """List classifiers, newest first."""
    found = [ClassifierOut.of(view) for view in service.list(limit=paging.limit + 1, after=paging.after)]
    return Page[ClassifierOut].of(found, limit=paging.limit, id_of=lambda classifier: classifier.id)


@router.get("/{classifier_id}")
def get_classifier(service: ClassifierServiceDep, classifier_id: str) -> ClassifierOut:
    """Read a classifier."""
    return ClassifierOut.of(service.get(classifier_id))


@router.get(
    "/{classifier_id}/download",
    status_code=status.HTTP_200_OK,
    response_class=OpenFileResponse,
    responses={200: {"content": {"application/zip": {}}, "description": "A folder, zipped."}},
)
async def download_classifier(
    service: DownloadServiceDep,
    classifier_id: str,
    to: Annotated[
        ExportFormat, Query(alias="format", description="What it is to be used with.", examples=["onnx"])
    ] = ExportFormat.BUNDLE,
) -> OpenFileResponse:
    """Download a classifier, zipped: as a bundle, as a folder for open_clip or as ONNX. The first time takes longer."""
    archive = await service.archive(classifier_id, to)
    return OpenFileResponse(archive.file, filename=archive.name, etag=archive.etag, media_type="application/zip")


@router.delete("/{classifier_id}", status_code=status.HTTP_204_NO_CONTENT)
def delete_classifier(service: ClassifierServiceDep, downloads: DownloadServiceDep, classifier_id: str) -> None:
    """Delete a classifier with which neither an alias nor a job answers."""
    service.delete(classifier_id)
    downloads.forget(classifier_id)

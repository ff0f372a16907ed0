"""``/classifiers``."""

from fastapi import APIRouter, Depends, Request

from app.deps import ClassifierServiceDep
from app.routes.bodies import body_schema, class_list, read_json_body
from app.routes.paging import PagingDep
from app.schemas.classifiers import ClassifierCreate, ClassifierOut
from app.schemas.common import Page

router = APIRouter(prefix="/classifiers", tags=["classifiers"])


async def _creation(request: Request) -> ClassifierCreate:
    return await read_json_body(request, ClassifierCreate)


@router.post("", status_code=201, openapi_extra=body_schema(ClassifierCreate))
def create_classifier(
    service: ClassifierServiceDep,
    wanted: ClassifierCreate = Depends(_creation),  # noqa: B008 - FastAPI's way
) -> ClassifierOut:
    """Make a zero-shot classifier from a class list; it is ready at once."""
    classes = class_list(wanted.classes, wanted.templates)
    return ClassifierOut.of(service.create_zero_shot(classes, base_model=wanted.base_model, name=wanted.name))


@router.get("")
def list_classifiers(service: ClassifierServiceDep, paging: PagingDep) -> Page[ClassifierOut]:
    """List classifiers, newest first."""
    found = [ClassifierOut.of(view) for view in service.list(limit=paging.limit + 1, after=paging.after)]
    return Page[ClassifierOut].of(found, limit=paging.limit, id_of=lambda classifier: classifier.id)


@router.get("/{classifier_id}")
def get_classifier(service: ClassifierServiceDep, classifier_id: str) -> ClassifierOut:
    """Read a classifier."""
    return ClassifierOut.of(service.get(classifier_id))

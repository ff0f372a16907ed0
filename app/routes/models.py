"""``/models``."""

from fastapi import APIRouter

from app.deps import ModelServiceDep
from app.schemas.common import Page
from app.schemas.models import ModelOut

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(service: ModelServiceDep) -> Page[ModelOut]:
    """List the base models that may be named, all at once."""
    found = [ModelOut.of(view) for view in service.list()]
    return Page[ModelOut].of(found, limit=len(found), id_of=lambda model: model.id)

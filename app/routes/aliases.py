"""``/aliases``: names that answer with a classifier."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response, status

from app.classifiers.names import ALIAS_PATTERN
from app.deps import AliasServiceDep, TenantDep
from app.idempotency.messages import Answer
from app.routes.bodies import body_schema, read_json_body
from app.routes.idempotency import OnceDep, answer_of
from app.routes.paging import PagingDep
from app.schemas.aliases import AliasHistoryOut, AliasOut, AliasPut
from app.schemas.common import Page
from app.services.aliases import AliasHistory

router = APIRouter(prefix="/aliases", tags=["aliases"])

NewName = Annotated[
    str,
    Path(
        pattern=ALIAS_PATTERN,
        description="Lower-case letters, digits, dots and hyphens; 63 at most.",
        examples=["shelf-cameras"],
    ),
]
KnownName = Annotated[str, Path(description="An alias's name.", examples=["shelf-cameras"])]


async def _target(request: Request) -> AliasPut:
    return await read_json_body(request, AliasPut)


@router.put("/{name}", openapi_extra=body_schema(AliasPut))
def move_alias(
    name: NewName,
    service: AliasServiceDep,
    tenant: TenantDep,
    target: AliasPut = Depends(_target),  # noqa: B008 - FastAPI's way
) -> AliasHistoryOut:
    """Point a name at a classifier, which is loaded first. Each request is answered by one classifier as a whole."""
    return AliasHistoryOut.told(service.move(name, target.classifier_id, tenant=tenant))


@router.post("/{name}/rollback", response_model=AliasHistoryOut)
async def roll_back_alias(name: KnownName, service: AliasServiceDep, tenant: TenantDep, once: OnceDep) -> Response:
    """Point a name at what it pointed at before its latest move. Twice leads back, unless both have the same key."""
    return await once.answer(lambda record: service.roll_back(name, tenant=tenant, record=record), _rolled_back)


def _rolled_back(found: AliasHistory) -> Answer:
    return answer_of(200, AliasHistoryOut.told(found))


@router.get("")
def list_aliases(service: AliasServiceDep, paging: PagingDep, tenant: TenantDep) -> Page[AliasOut]:
    """List aliases, by name."""
    views = service.list(limit=paging.limit + 1, after=paging.after, tenant=tenant)
    return Page[AliasOut].of([AliasOut.of(view) for view in views], limit=paging.limit, id_of=lambda alias: alias.name)


@router.get("/{name}")
def get_alias(name: KnownName, service: AliasServiceDep, tenant: TenantDep) -> AliasHistoryOut:
    """Read an alias and where it was pointed lately."""
    return AliasHistoryOut.told(service.get(name, tenant=tenant))


@router.delete("/{name}", status_code=status.HTTP_204_NO_CONTENT)
def delete_alias(name: KnownName, service: AliasServiceDep, tenant: TenantDep) -> None:
    """Take a name away; its classifier stays."""
    service.delete(name, tenant=tenant)

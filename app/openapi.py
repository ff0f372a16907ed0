"""The OpenAPI document, with the models of the bodies that routes read by themselves."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from app.schemas.aliases import AliasPut
from app.schemas.classifiers import ClassifierCreate
from app.schemas.classify import ClassifyRequest
from app.schemas.jobs import JobCreate
from app.schemas.reports import AuditRequest

_BODY_MODELS = (AliasPut, AuditRequest, ClassifierCreate, ClassifyRequest, JobCreate)


def install(app: FastAPI) -> None:
    """Make ``app.openapi()`` include them."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, extra = models_json_schema(
                [(model, "validation") for model in _BODY_MODELS], ref_template="#/components/schemas/{model}"
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in extra["$defs"].items():
                schemas.setdefault(name, schema)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

"""``POST /classify``."""

import base64
import binascii
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from app.config import Settings
from app.deps import ClassifyServiceDep, SettingsDep, TenantDep
from app.exceptions import InvalidInput, PayloadTooLarge
from app.routes.bodies import body_schema, class_list, form_fields, form_model, is_form, read_json_body
from app.routes.multipart import FILE_FIELDS, FormLimits, read_form
from app.schemas.classify import ClassifyOptionsIn, ClassifyOut, ClassifyRequest
from app.services.classify import ClassifyOptions, ImageInput

router = APIRouter(tags=["classify"])

_PLAIN = frozenset({"classifier", "base_model", "compare"})
_FORM = form_fields(plain=_PLAIN, as_json=("templates", "top_k", "threshold"))


@router.post("/classify", openapi_extra=body_schema(ClassifyRequest, form=_FORM))
async def classify(
    request: Request, service: ClassifyServiceDep, settings: SettingsDep, tenant: TenantDep
) -> ClassifyOut:
    """Classify images with a classifier, or zero-shot with a class list of the moment."""
    if is_form(request):
        async with read_form(request, _limits(settings)) as form:
            wanted = form_model(form.fields, ClassifyOptionsIn, plain=_PLAIN)
            images = await run_in_threadpool(
                lambda: [ImageInput(filename=u.filename, content=u.file.read()) for u in form.uploads(*FILE_FIELDS)]
            )
    else:
        body = await read_json_body(request, ClassifyRequest, max_bytes=settings.max_classify_bytes)
        wanted, images = body, [ImageInput(filename=i.filename, content=_decoded(i.content)) for i in body.images]
    if len(images) > settings.max_classify_images:
        raise PayloadTooLarge("too_many_parts", f"A request has at most {settings.max_classify_images} images.")
    options = ClassifyOptions(
        top_k=wanted.top_k, threshold=wanted.threshold, compare_zero_shot=wanted.compare == "zero_shot"
    )
    if (wanted.classifier is None) == (wanted.classes is None):
        raise InvalidInput("invalid_combination", "Give a classifier or classes, one of the two.", param="classifier")
    if wanted.classes is not None:
        classes = class_list(wanted.classes, wanted.templates)
        found = await service.with_classes(classes, wanted.base_model, images, options)
    else:
        found = await service.with_classifier(wanted.classifier or "", images, options, tenant=tenant)
    return ClassifyOut.of(found)


def _limits(settings: Settings) -> FormLimits:
    return replace(
        FormLimits.from_settings(settings),
        max_bytes=settings.max_classify_bytes,
        max_files=settings.max_classify_images,
    )


def _decoded(content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as e:
        raise InvalidInput("invalid_encoding", "An image's content is not base64.", param="images") from e

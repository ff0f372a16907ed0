"""``/jobs``."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.deps import JobServiceDep, SettingsDep, TenantDep
from app.exceptions import MalformedRequest
from app.idempotency.messages import Answer
from app.jobs.messages import JobView, Scheduling
from app.jobs.promotion import Promotion
from app.routes.bodies import body_schema, class_list, form_fields, form_model, is_form, read_json_body
from app.routes.event_stream import event_stream
from app.routes.idempotency import OnceDep, answer_of
from app.routes.multipart import FILE_FIELDS, FormLimits, read_form
from app.routes.paging import PagingDep
from app.schemas.common import Page
from app.schemas.jobs import EventOut, JobCreate, JobOptions, JobOut
from app.services.jobs import JobRequest

router = APIRouter(prefix="/jobs", tags=["jobs"])

_PLAIN = frozenset({"name", "base_model", "promotion", "not_before"})
_RETRY_AFTER_S = "2"
_AS_JSON = (
    "templates", "hyperparameters", "seed", "metadata", "priority", "max_runtime_s", "max_pending_s", "num_gpus",
)  # fmt: skip
_FORM = form_fields(plain=_PLAIN, as_json=_AS_JSON, archive=True)


@router.post("", status_code=202, response_model=JobOut, openapi_extra=body_schema(JobCreate, form=_FORM))
async def create_job(
    request: Request, jobs: JobServiceDep, settings: SettingsDep, tenant: TenantDep, once: OnceDep
) -> Response:
    """Start an adaptation: JSON with a dataset's id, or a form with images and classes in one request."""
    if not is_form(request):
        body = await read_json_body(request, JobCreate, digest=once.digest)
        wanted = _job_request(body)
        return await once.answer(
            lambda record: jobs.submit(body.dataset_id, wanted, tenant=tenant, record=record), _accepted
        )
    async with read_form(request, FormLimits.from_settings(settings), digest=once.digest) as form:
        options = _job_request(form_model(form.fields, JobOptions, plain=_PLAIN))
        uploads = form.uploads(*FILE_FIELDS)
        return await once.answer(
            lambda record: jobs.submit_with_images(uploads, options, tenant=tenant, record=record), _accepted
        )


@router.get("")
def list_jobs(service: JobServiceDep, paging: PagingDep) -> Page[JobOut]:
    """List jobs, newest first."""
    found = [JobOut.of(view) for view in service.list(limit=paging.limit + 1, after=paging.after)]
    return Page[JobOut].of(found, limit=paging.limit, id_of=lambda job: job.id)


@router.get("/{job_id}")
def get_job(service: JobServiceDep, job_id: str) -> JobOut:
    """Read a job and how far it is."""
    return JobOut.of(service.get(job_id))


@router.post("/{job_id}/cancel")
def cancel_job(service: JobServiceDep, job_id: str) -> JobOut:
    """Cancel: a queued job at once, a running one at its next step."""
    return JobOut.of(service.cancel(job_id))


@router.post("/{job_id}/resume", status_code=202)
def resume_job(service: JobServiceDep, job_id: str) -> JobOut:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint while that is kept."""
    return JobOut.of(service.resume(job_id))


@router.post("/{job_id}/promote")
def promote_job(service: JobServiceDep, job_id: str) -> JobOut:
    """Have a job that succeeded answer with its adapted classifier, whatever the verdict; calling twice is once."""
    return JobOut.of(service.promote(job_id))


@router.get("/{job_id}/events", response_model=Page[EventOut])
def job_events(
    request: Request,
    service: JobServiceDep,
    job_id: str,
    *,
    limit: Annotated[int, Query(ge=1, le=100, description="Most events in a page.", examples=[100])] = 100,
    after: Annotated[int, Query(ge=0, le=2**62, description="Only events above this id.", examples=[0])] = 0,
    last_event_id: Annotated[str | None, Header(description="Where a stream goes on.", examples=["42"])] = None,
) -> Page[EventOut] | StreamingResponse:
    """List what happened to a job, oldest first; with `Accept: text/event-stream`, stream it as it happens."""
    if "text/event-stream" in request.headers.get("accept", ""):
        service.get(job_id)
        position = after if last_event_id is None else _position(last_event_id)
        return StreamingResponse(
            event_stream(service, job_id, after=position),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
    found = [EventOut.of(event) for event in service.events(job_id, after=after, limit=limit + 1)]
    return Page[EventOut].of(found, limit=limit, id_of=lambda event: str(event.id))


def _accepted(job: JobView) -> Answer:
    return answer_of(202, JobOut.of(job), {"Location": f"/jobs/{job.id}", "Retry-After": _RETRY_AFTER_S})


def _position(last_event_id: str) -> int:
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 19):
        raise MalformedRequest("invalid_cursor", "Last-Event-ID is no id of an event.", param="last_event_id")
    return int(last_event_id)


def _job_request(options: JobOptions) -> JobRequest:
    return JobRequest(
        classes=class_list(options.classes, options.templates),
        base_model=options.base_model,
        hyperparameters=options.hyperparameters,
        seed=options.seed,
        promotion=Promotion(options.promotion),
        scheduling=Scheduling(
            priority=options.priority,
            not_before=options.not_before,
            max_runtime_s=options.max_runtime_s,
            max_pending_s=options.max_pending_s,
            num_gpus=options.num_gpus,
        ),
        name=options.name,
        metadata=options.metadata,
    )

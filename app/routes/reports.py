"""``/jobs/{id}/report`` and ``/jobs/{id}/audit``."""

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from app.deps import ReportServiceDep
from app.routes.bodies import body_schema, is_page_form, read_json_body, read_page_form
from app.schemas.reports import MAX_LABELS, AuditOut, AuditRequest, ReportOut
from app.web.audit_form import answer_form
from app.web.pages import page
from app.web.report_page import report_page

router = APIRouter(prefix="/jobs", tags=["jobs"])

_FORM = {
    "type": "object",
    "additionalProperties": {"type": "string"},
    "description": "The report page's own form, answered by a page: fields `label.POSITION` with a class's name.",
}


@router.get(
    "/{job_id}/report",
    response_model=ReportOut,
    responses={200: {"content": {"text/html": {}}, "description": "The report; a page when HTML is asked for."}},
)
def job_report(request: Request, response: Response, service: ReportServiceDep, job_id: str) -> ReportOut | Response:
    """Show what a job that succeeded changed; with `Accept: text/html`, as browsers send it, as a page."""
    view = service.get(job_id)
    report = ReportOut.of(view)
    if "text/html" in request.headers.get("accept", ""):
        return page(report_page(report, view.class_names))
    response.headers["Vary"] = "Accept"
    return report


@router.post("/{job_id}/audit", response_model=AuditOut, openapi_extra=body_schema(AuditRequest, page_form=_FORM))
async def audit_job(request: Request, service: ReportServiceDep, job_id: str) -> AuditOut | Response:
    """Measure a job's classifiers by labels of the images that its report proposes. Nothing is kept."""
    if is_page_form(request):
        fields = await read_page_form(request, max_fields=MAX_LABELS)
        return await run_in_threadpool(answer_form, service, job_id, fields)
    body = await read_json_body(request, AuditRequest)
    labels = [(each.position, each.label) for each in body.labels]
    return AuditOut.of(await run_in_threadpool(service.audit, job_id, labels))

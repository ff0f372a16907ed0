"""``/jobs/{id}/report`` and ``/jobs/{id}/audit``."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from app.deps import ReportServiceDep
from app.routes.bodies import body_schema, read_json_body
from app.schemas.reports import AuditOut, AuditRequest, ReportOut
from app.web.report_page import CONTENT_SECURITY_POLICY, report_page

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get(
    "/{job_id}/report",
    response_model=ReportOut,
    responses={200: {"content": {"text/html": {}}, "description": "The report; a page when HTML is asked for."}},
)
def job_report(request: Request, response: Response, service: ReportServiceDep, job_id: str) -> ReportOut | Response:
    """Show what a job that succeeded changed; with `Accept: text/html`, as browsers send it, as a page."""
    report = ReportOut.of(service.get(job_id))
    if "text/html" not in request.headers.get("accept", ""):
        response.headers["Vary"] = "Accept"
        return report
    headers = {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(report_page(report), headers=headers)


@router.post("/{job_id}/audit", openapi_extra=body_schema(AuditRequest))
async def audit_job(request: Request, service: ReportServiceDep, job_id: str) -> AuditOut:
    """Measure a job's classifiers by labels of the images that its report proposes. Nothing is kept."""
    body = await read_json_body(request, AuditRequest)
    labels = [(each.position, each.label) for each in body.labels]
    return AuditOut.of(await run_in_threadpool(service.audit, job_id, labels))

"""``/jobs/{id}/log``: what a job's trainers wrote."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import PlainTextResponse

from app.deps import JobServiceDep
from app.exceptions import InvalidInput
from app.jobs.messages import LogEntry
from app.schemas.common import Page
from app.schemas.job_logs import LogLineOut

router = APIRouter(prefix="/jobs", tags=["jobs"])

MAX_LINES = 1000
_PAGE = 100
_HEADERS = {"Vary": "Accept", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True)
class Piece:
    """Which lines are wanted: those after a number, or the last ones."""

    after: int
    limit: int | None
    tail: int | None

    def of(self, entries: Sequence[LogEntry]) -> Sequence[LogEntry]:
        """The lines, without a limit yet."""
        if self.tail is not None:
            return entries[-self.tail :]
        return [entry for entry in entries if entry.line > self.after]


def piece(
    request: Request,
    limit: Annotated[
        int | None, Query(ge=1, le=MAX_LINES, description="Most lines; in JSON 100 when missing.", examples=[100])
    ] = None,
    after: Annotated[int, Query(ge=0, le=2**62, description="Only lines above this number.", examples=[0])] = 0,
    tail: Annotated[int | None, Query(ge=1, le=MAX_LINES, description="Only the last lines.", examples=[20])] = None,
) -> Piece:
    """Read the parameters strictly: each at most once, in plain digits, and a tail by itself."""
    for name in ("limit", "after", "tail"):
        given = request.query_params.getlist(name)
        if len(given) > 1:
            raise InvalidInput("repeated_parameter", "The parameter is given more than once.", param=name)
        if given and not (given[0].isascii() and given[0].isdigit()):
            raise InvalidInput("invalid_type", "The parameter is a number.", param=name)
    if tail is not None and (after or limit is not None):
        raise InvalidInput("invalid_combination", "The last lines, or those after a number.", param="tail")
    return Piece(after=after, limit=limit, tail=tail)


@router.get(
    "/{job_id}/log",
    response_model=Page[LogLineOut],
    responses={200: {"content": {"text/plain": {}}, "description": "Text; a page of lines when JSON is asked for."}},
)
def job_log(
    request: Request, service: JobServiceDep, job_id: str, wanted: Annotated[Piece, Depends(piece)]
) -> Response:
    """Show what a job's trainers wrote, as text; with `Accept: application/json`, as a page of lines.

    The log is bounded: its beginning and its end are kept, and a line says how much is missing between them.
    """
    entries = service.log(job_id)
    found = wanted.of(entries)
    if "application/json" in request.headers.get("accept", ""):
        lines = [LogLineOut.of(entry) for entry in found]
        limit = wanted.limit or (_PAGE if wanted.tail is None else MAX_LINES)
        page = Page[LogLineOut].of(lines, limit=limit, id_of=lambda line: str(line.line))
        return Response(page.model_dump_json(), media_type="application/json", headers=_HEADERS)
    text = "".join(f"{line}\n" for line in _as_text(found[: wanted.limit], entries))
    return PlainTextResponse(text, headers=_HEADERS)


def _as_text(found: Sequence[LogEntry], entries: Sequence[LogEntry]) -> Iterator[str]:
    """The lines, with a heading where another process begins."""
    claim = 0
    for entry in found:
        if entry.claim != claim:
            claim = entry.claim
            yield f"=== attempt {entry.attempt}{_beginning(entry, entries)} ==="
        yield f"{entry.at:%Y-%m-%dT%H:%M:%S}Z {entry.stream.value} {entry.text}"


def _beginning(entry: LogEntry, entries: Sequence[LogEntry]) -> str:
    """How the attempt began, if that is not with its first process."""
    before = [e for e in entries if e.claim < entry.claim]
    if entry.num_resumed > max((e.num_resumed for e in before), default=0):
        return ", resumed"
    same = any(e.attempt == entry.attempt and e.num_resumed == entry.num_resumed for e in before)
    return ", continued" if same else ""

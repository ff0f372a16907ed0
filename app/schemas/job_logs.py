"""Logs of jobs on the wire."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from app.jobs.messages import LogEntry
from app.schemas.common import WireModel


class LogLineOut(WireModel):
    """A line of a job's log."""

    line: int = Field(description="Its number within the job, from 1.", examples=[42])
    object: Literal["log_line"] = Field(default="log_line", description="Always `log_line`.")
    attempt: int = Field(description="The attempt that wrote it.", examples=[1])
    at: datetime = Field(description="When.", examples=["2026-01-02T03:04:05Z"])
    stream: Literal["stdout", "stderr", "note"] = Field(
        description="Where it comes from; a `note` is a remark of the service on what was left out.",
        examples=["stderr"],
    )
    text: str = Field(
        description="The line. Control characters are escaped, paths of the machine and secrets are taken out.",
        examples=["info: resumed step=120"],
    )

    @classmethod
    def of(cls, entry: LogEntry) -> "LogLineOut":
        """The wire form of a line."""
        return cls(line=entry.line, attempt=entry.attempt, at=entry.at, stream=entry.stream.value, text=entry.text)

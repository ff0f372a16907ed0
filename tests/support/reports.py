"""Jobs that have a report; the worker's part is played by the test."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from app.ids import new_id
from app.jobs.ledger import Ledger
from app.jobs.messages import EventType, Publication, Report
from tests.support.jobs import verdict


def publish(
    ledger: Ledger,
    job_id: str,
    report: Mapping[str, Any] | None,
    *,
    outcome: str | None = "adapted",
    events: tuple[tuple[EventType, Mapping[str, Any]], ...] = (),
) -> None:
    """Do what a worker does at the end."""
    claim = ledger.claim("w", timedelta(seconds=60), job_id)
    assert claim is not None
    for step in (10, 20, 30):
        told = {"metrics": {"loss": 1 / step, "fairness": 0.5}, "progress": {"phase": "training", "step": step}}
        ledger.report(claim, Report(events=((EventType.METRICS, told),)))
    if events:
        ledger.report(claim, Report(events=events))
    adapted = Publication(
        classifier_id=new_id("clf"), files={"bundle.json": "0" * 64}, version="1" * 64, metrics={},
        verdict=None if outcome is None else verdict(outcome), report=report,
    )  # fmt: skip
    ledger.publish(claim, adapted)

"""Jobs to test with."""

from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_utc
from app.ids import new_id
from app.jobs.messages import JobView, NewJob
from app.jobs.store import JobStore
from app.tables import Dataset, DatasetImage


def add_dataset(sessions: sessionmaker[Session], digests: tuple[str, ...] = ()) -> str:
    """Insert a dataset whose images are ``digests``; returns its id."""
    dataset_id = new_id("ds")
    with sessions() as session, session.begin():
        session.execute(
            insert(Dataset).values(
                id=dataset_id,
                name="test",
                created_at=now_utc(),
                num_images=len(digests),
                num_duplicates=0,
                num_ignored=0,
                num_rejected=0,
                total_bytes=0,
            )
        )
        for position, sha256 in enumerate(digests):
            session.execute(
                insert(DatasetImage).values(
                    dataset_id=dataset_id,
                    position=position,
                    sha256=sha256,
                    filename=f"{position}.png",
                    format="PNG",
                    width=1,
                    height=1,
                    num_bytes=1,
                )
            )
    return dataset_id


def add_job(sessions: sessionmaker[Session], *, digests: tuple[str, ...] = (), **fields: Any) -> str:
    """Insert a queued job with a dataset of its own; returns its id."""
    job_id = new_id("job")
    new = NewJob(
        **{
            "id": job_id,
            "dataset_id": add_dataset(sessions, digests),
            "base_model": "tiny-clip",
            "classes": ["cat", "dog"],
            "templates": ["a photo of a {}."],
            "hyperparameters": {},
            "seed": 0,
            "max_attempts": 3,
            **fields,
        }
    )
    with sessions() as session, session.begin():
        JobStore(session).add(new)
    return job_id


def verdict(outcome: str = "adapted") -> dict[str, Any]:
    """What the guard may have said, as it is stored."""
    return {
        "outcome": outcome,
        "candidate": "teacher",
        "reasons": [f"It is {outcome}.", "So it seems."],
        "gain": {
            "estimate": 0.1,
            "low": 0.05,
            "high": 0.15,
            "held_out_estimate": 0.1,
            "num_images": 300,
            "num_held_out": 60,
            "num_disagreements": 9,
            "num_for_adapted": 7,
            "num_for_zero_shot": 1,
        },
        "vetoes": [{"name": "feature_rank", "value": None, "limit": 0.4, "reason": "No number."}],
    }


def told_verdict(outcome: str) -> dict[str, Any]:
    """The same on the wire."""
    headlines = {
        "adapted": "The adapted classifier is better than zero-shot",
        "zero_shot": "Zero-shot is better than the adapted classifier",
        "inconclusive": "The adapted classifier is not known to be better than zero-shot",
    }
    return {**verdict(outcome), "headline": headlines[outcome]}


def read_job(sessions: sessionmaker[Session], job_id: str) -> JobView:
    """The job as its user sees it."""
    with sessions() as session, session.begin():
        view = JobStore(session).get(job_id)
    assert view is not None
    return view

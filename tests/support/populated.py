"""A service's data with some of everything, small and whole, made as the service makes it."""

import io
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, sessionmaker

from app.classifiers.aliases import AliasStore
from app.classifiers.messages import bundle_version
from app.datasets.store import DatasetStore
from app.housekeeping.chores import ChoreList
from app.idempotency.messages import Answer, Hold, KeyedRequest
from app.idempotency.store import IdempotencyStore
from app.ids import new_id
from app.ingest.manifest import AcceptedImage, IngestReport, RejectedImage
from app.jobs.fleet import Presence
from app.jobs.ledger import Ledger
from app.jobs.messages import Claim, EventType, JobError, LogLine, LogStream, NewJob, Publication, Report
from app.jobs.promotion import Promotion
from app.jobs.store import JobStore
from app.storage import BlobStore
from app.tables import Base
from tests.support.jobs import verdict

Sessions = sessionmaker[Session]
LEASE = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class Populated:
    """Ids of what there is."""

    images: tuple[str, ...]
    """sha256 of the first dataset's."""
    dataset_id: str
    other_dataset_id: str
    """Shares an image with the first."""
    promoted: str
    """A job that answers with its adapted classifier."""
    refused: str
    """One that answers zero-shot."""
    failed: str
    queued: str
    files: dict[str, str]
    """Of the adapted classifier of ``promoted``."""


def add_images(sessions: Sessions, storage: BlobStore, contents: list[bytes]) -> tuple[str, tuple[str, ...]]:
    """A dataset as an upload makes it; its id, and its images' sha256."""
    dataset_id = new_id("ds")
    with storage.batch() as batch:
        names = [batch.put_stream(io.BytesIO(content)).sha256 for content in contents]
    images = tuple(
        AcceptedImage(
            sha256=name, filename=f"{n} ä.png", format="PNG", width=1, height=1, num_bytes=len(content), warning=None
        )
        for n, (name, content) in enumerate(zip(names, contents, strict=True))
    )
    report = IngestReport(
        images=images,
        rejected=(RejectedImage(filename="x.txt", code="unsupported_image_format", detail="No image."),),
        num_ignored=1,
        num_duplicates=0,
        total_bytes=sum(len(content) for content in contents),
    )
    with sessions.begin() as session:
        store = DatasetStore(session)
        store.add(dataset_id, "a dataset")
        store.extend(dataset_id, report)
    return dataset_id, tuple(names)


def submit(sessions: Sessions, dataset_id: str, promotion: Promotion = Promotion.AUTO) -> str:
    """A queued job; its id."""
    job_id = new_id("job")
    new = NewJob(
        id=job_id,
        dataset_id=dataset_id,
        base_model="tiny-clip",
        classes=["cat", {"name": "dog", "prompts": ["a dog"]}],
        templates=["a photo of a {}."],
        hyperparameters={"epochs": "auto", "learning_rate": 0.1 + 0.2},
        seed=2**31 - 1,
        max_attempts=3,
        promotion=promotion,
        metadata={"team": "Ünïcode ☃"},
    )
    with sessions.begin() as session:
        JobStore(session).add(new)
    return job_id


def claim(sessions: Sessions, job_id: str, owner: str = "w") -> Claim:
    """Have a worker take the job, and tell a little of it."""
    ledger = Ledger(sessions)
    taken = ledger.claim(owner, LEASE, job_id)
    assert taken is not None
    events = ((EventType.METRICS, {"metrics": {"loss": 1 / 3}, "progress": {"step": 1}}),)
    line = LogLine(number=1, age=timedelta(0), stream=LogStream.STDOUT, text="a line")
    ledger.report(taken, Report(progress={"phase": "training"}, events=events, log=(line,)))
    return taken


def publish(sessions: Sessions, storage: BlobStore, job_id: str) -> dict[str, str]:
    """Have a worker finish the job; returns its classifier's files."""
    taken = claim(sessions, job_id)
    contents = {
        "bundle.json": job_id.encode(),
        "weights/model.bin": b"weights of " + job_id.encode(),
        "same.txt": b"same",
    }
    with storage.batch() as batch:
        files = {name: batch.put_stream(io.BytesIO(content)).sha256 for name, content in contents.items()}
    publication = Publication(
        classifier_id=new_id("clf"),
        files=files,
        version=bundle_version(files),
        metrics={"agreement": 0.5},
        verdict=verdict(),
        report={"changed": [1, 2, 3]},
        unknown_below=0.1,
    )
    Ledger(sessions).publish(taken, publication)
    return files


def populate(sessions: Sessions, storage: BlobStore) -> Populated:
    """Some of everything. No worker holds a job; one is known, and a request is under way."""
    dataset_id, images = add_images(sessions, storage, [b"image %d" % n for n in range(5)])
    other_dataset_id, _ = add_images(sessions, storage, [b"image 0", b"another"])
    promoted, failed, queued = (submit(sessions, dataset_id) for _ in range(3))
    refused = submit(sessions, other_dataset_id, Promotion.NEVER)
    files = publish(sessions, storage, promoted)
    publish(sessions, storage, refused)
    with sessions.begin() as session:
        for job_id in (promoted, refused):
            answer = JobStore(session).get(job_id)
            assert answer is not None
            assert answer.classifier_id is not None
            AliasStore(session, "default").move("best", answer.classifier_id)
    Ledger(sessions).fail(claim(sessions, failed), JobError(code="diverged", message="As told."))
    Ledger(sessions).check_in(Presence(owner="w", num_slots=1, num_gpus=1), LEASE)
    ChoreList(sessions).take("garbage", every=LEASE)
    with sessions.begin() as session:
        store = IdempotencyStore(session)
        for key in ("answered", "under way"):
            hold = store.claim(KeyedRequest(tenant="default", key=key, digest="0" * 64), f"token {key}", LEASE)
            assert isinstance(hold, Hold)
            if key == "answered":
                store.complete(hold, Answer(status_code=201, headers={"Location": "/x"}, body="{}"))
    return Populated(
        images=images,
        dataset_id=dataset_id,
        other_dataset_id=other_dataset_id,
        promoted=promoted,
        refused=refused,
        failed=failed,
        queued=queued,
        files=files,
    )


def leave_no_worker(sessions: Sessions) -> None:
    """Have the database look as after all workers have stopped."""
    Ledger(sessions).check_out("w")


def rows_of(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    """Everything, table by table, in the order of the keys."""
    with engine.connect() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]
            for table in Base.metadata.sorted_tables
        }

"""The tables. Rows are written by the stores alone; see migrations/ for how the schema got here."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A UTC instant: ``timestamptz`` on PostgreSQL; on SQLite, text that sorts and always reads back aware."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Names every constraint, so that migrations can name them too."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads this class attribute
        datetime: UtcDateTime,
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


DEFAULT_TENANT = "default"
"""Everybody's, until requests say whose they are."""

ObjectId = String(40)
Sha256 = String(64)
BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite autoincrements INTEGER PRIMARY KEY only


class Dataset(Base):
    """A set of unlabeled images."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(ObjectId, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime]
    num_images: Mapped[int]
    num_duplicates: Mapped[int]
    num_ignored: Mapped[int]
    num_rejected: Mapped[int]
    total_bytes: Mapped[int] = mapped_column(BigInteger)


class DatasetImage(Base):
    """One image of a dataset; its bytes are a blob."""

    __tablename__ = "dataset_images"
    __table_args__ = (UniqueConstraint("dataset_id", "sha256"),)

    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sha256: Mapped[str] = mapped_column(Sha256, index=True)
    filename: Mapped[str] = mapped_column(String(255))
    format: Mapped[str] = mapped_column(String(8))
    width: Mapped[int]
    height: Mapped[int]
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    warning: Mapped[str | None] = mapped_column(String(80))


class RejectedFile(Base):
    """A file of an upload that was set aside, with the reason."""

    __tablename__ = "rejected_files"

    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    filename: Mapped[str] = mapped_column(String(255))
    code: Mapped[str] = mapped_column(String(80))
    detail: Mapped[str] = mapped_column(Text)


def _index_of_some(name: str, *columns: str, where: str) -> Index:
    """An index that holds only the rows ``where``. SQLite uses it for queries that say the same in the same words."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


_JOB_INDEXES = (
    Index("ix_jobs_tenant_claimed_at", "tenant", "claimed_at"),
    _index_of_some(
        "ix_jobs_claim", "tenant", "priority", "created_at", "id", "available_at", "num_gpus", where="status = 'queued'"
    ),
    _index_of_some("ix_jobs_held", "tenant", "lease_until", where="lease_until IS NOT NULL"),
    _index_of_some("ix_jobs_finished_at", "finished_at", where="finished_at IS NOT NULL"),
    _index_of_some("ix_jobs_pending_until", "pending_until", where="pending_until IS NOT NULL"),
)


class Job(Base):
    """One adaptation. Every move of ``status`` is a guarded UPDATE in app/jobs/store.py or claims.py."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("status in ('queued','running','cancelling','succeeded','failed','cancelled')", name="status"),
        CheckConstraint("promotion in ('auto','manual','never')", name="promotion"),
        *_JOB_INDEXES,
    )

    id: Mapped[str] = mapped_column(ObjectId, primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    name: Mapped[str | None] = mapped_column(String(200))
    user_metadata: Mapped[dict[str, Any]] = mapped_column("metadata")
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id", ondelete="SET NULL"), index=True)
    """Empty once the dataset of an ended job was deleted."""
    base_model: Mapped[str] = mapped_column(String(200))
    classes: Mapped[list[Any]]
    templates: Mapped[list[Any]]
    hyperparameters: Mapped[dict[str, Any]]
    """As asked: each "auto" or a value."""
    choices: Mapped[dict[str, Any] | None]
    """As chosen: each ``{"value": …, "reason": …}``; empty until the trainer has looked at the data."""
    seed: Mapped[int] = mapped_column(BigInteger)
    promotion: Mapped[str] = mapped_column(String(8), server_default="auto")
    """A `Promotion`: who decides which of its classifiers the job answers with."""

    tenant: Mapped[str] = mapped_column(String(64), server_default=DEFAULT_TENANT)
    """Whose job it is."""
    priority: Mapped[int] = mapped_column(server_default="0")
    """Higher goes first."""
    not_before: Mapped[datetime | None]
    max_runtime_s: Mapped[int | None]
    max_pending_s: Mapped[int | None]
    num_gpus: Mapped[int] = mapped_column(server_default="1")

    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    owner: Mapped[str | None] = mapped_column(String(120))
    """The worker that runs the job, or that finished it."""
    lease_until: Mapped[datetime | None]
    attempt: Mapped[int]
    """The fence: grows with every claim and never falls, so a write that carries an older one is a zombie's."""
    attempts_forgiven: Mapped[int]
    """Attempts that do not count against ``max_attempts``: ended by a graceful stop, or before a resume."""
    max_attempts: Mapped[int]
    available_at: Mapped[datetime]
    """A queued job may be claimed from here on; later than now before ``not_before`` and while a retry backs off."""
    pending_until: Mapped[datetime | None]
    """A job still queued then has waited too long; empty once it has been claimed."""
    claimed_at: Mapped[datetime | None]
    """When the latest attempt began."""
    running_s: Mapped[float] = mapped_column(Double, server_default="0")
    """What ended attempts took, since the job was submitted or resumed."""
    notify_at: Mapped[datetime | None]
    """When the next broker message about this job is due; empty for a job that was claimed."""
    num_notified: Mapped[int]
    """Messages sent since the job was last queued. Each doubles the wait for the next."""

    estimated_finish_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any] | None]
    metrics: Mapped[dict[str, Any] | None]
    verdict: Mapped[dict[str, Any] | None]
    classifier_id: Mapped[str | None] = mapped_column(ForeignKey("classifiers.id", use_alter=True), index=True)
    """What the job answers with: set in the transaction that ends it, moved by a promotion."""
    error: Mapped[dict[str, Any] | None]


class Worker(Base):
    """A worker process that was seen lately: what it can run. Nothing depends on it but what jobs are told."""

    __tablename__ = "workers"

    owner: Mapped[str] = mapped_column(String(120), primary_key=True)
    num_slots: Mapped[int]
    """Jobs that it runs at a time."""
    num_gpus: Mapped[int]
    """Most GPUs that one job can get of it."""
    expected_until: Mapped[datetime]
    """It says so again before then, unless it is gone."""


class Chore(Base):
    """Housekeeping that one worker does for all. Whoever moves ``due_at`` does it."""

    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    due_at: Mapped[datetime]
    reached: Mapped[datetime | None]
    """For a chore that goes through jobs as they finish: it is done with those finished until then."""


class BlobHold(Base):
    """Somebody copies blobs by a list that may be older than the newest rows: until then, none is removed."""

    __tablename__ = "blob_holds"

    id: Mapped[str] = mapped_column(ObjectId, primary_key=True)
    held_until: Mapped[datetime]


class JobEvent(Base):
    """What happened to a job, in order. ``id`` only grows, so it doubles as the stream position."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_id_id", "job_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    at: Mapped[datetime]
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]]


class JobReport(Base):
    """What a finished job changed, to be looked at: in a table of its own, so that lists of jobs stay light."""

    __tablename__ = "job_reports"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    body: Mapped[dict[str, Any]]


class JobLogChunk(Base):
    """Some lines of a job's log, in order. What is told of the lines counts all that there ever were."""

    __tablename__ = "job_logs"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int]
    """The fence of the attempt that told them."""
    ordinal: Mapped[int]
    """The same attempt as users count."""
    first_line: Mapped[int] = mapped_column(BigInteger)
    """Number of the first line within the job, from 1."""
    num_lines: Mapped[int]
    last_told: Mapped[int] = mapped_column(BigInteger)
    """Number of the last line within the attempt: the same lines told again are known by it."""
    num_bytes: Mapped[int]
    end_byte: Mapped[int] = mapped_column(BigInteger)
    """Sum of ``num_bytes`` of this chunk and all before it, gone ones too."""
    lines: Mapped[list[Any]]
    """Each ``[milliseconds since 1970, stream, text]``."""


class Alias(Base):
    """A name that answers with a classifier, and may answer with another one tomorrow."""

    __tablename__ = "aliases"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    classifier_id: Mapped[str] = mapped_column(ForeignKey("classifiers.id"), index=True)
    num_moves: Mapped[int]
    """Times it was pointed somewhere, the first time too."""
    moved_at: Mapped[datetime]


class AliasMove(Base):
    """One of the times that an alias was pointed somewhere."""

    __tablename__ = "alias_moves"
    __table_args__ = (ForeignKeyConstraint(["tenant", "name"], ["aliases.tenant", "aliases.name"], ondelete="CASCADE"),)

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """From 1."""
    classifier_id: Mapped[str] = mapped_column(ObjectId)
    """That classifier may be gone by now."""
    moved_at: Mapped[datetime]


class Classifier(Base):
    """A published classifier. Never changed after its insert; its files are blobs."""

    __tablename__ = "classifiers"
    __table_args__ = (UniqueConstraint("job_id", "kind"),)

    id: Mapped[str] = mapped_column(ObjectId, primary_key=True)
    name: Mapped[str | None] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(16))
    """``zero_shot`` or ``adapted``."""
    base_model: Mapped[str] = mapped_column(String(200))
    classes: Mapped[list[Any]]
    templates: Mapped[list[Any]]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    """The job that published it: each publishes an adapted one, and a zero-shot one unless that is promoted at once."""
    files: Mapped[dict[str, Any]]
    """File name inside the bundle -> sha256 of its blob. Empty for a zero-shot classifier: its head is text."""
    version: Mapped[str] = mapped_column(Sha256)
    """Digest of what decides its answers."""
    metrics: Mapped[dict[str, Any]]
    unknown_below: Mapped[float | None] = mapped_column(Double)
    """Images whose raw score is lower are unknown to it; empty when nobody can say."""
    created_at: Mapped[datetime]


class IdempotencyKey(Base):
    """A creating request that carries a key: at work while ``status_code`` is empty, else answered."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str] = mapped_column(Sha256)
    """Of what was asked."""
    token: Mapped[str] = mapped_column(String(32))
    """The fence: whoever takes the key draws another, so a write that carries an older one is a zombie's."""
    free_at: Mapped[datetime] = mapped_column(index=True)
    """From here on the key is anybody's: the end of a lock that is renewed while the request is at work, and of the
    answer's keeping afterwards."""
    status_code: Mapped[int | None]
    headers: Mapped[dict[str, Any] | None]
    body: Mapped[str | None] = mapped_column(Text)

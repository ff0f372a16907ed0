"""Settings of the service, read once from the environment and handed down.

Every field is set by an environment variable with the prefix ``MUST_`` (``MUST_DATABASE_URL`` …). With nothing
set, the service is embedded: SQLite and blobs in ``data_dir``, no broker, one worker that asks the ledger.
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ByteSize, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def _seconds(value: object) -> object:
    """Environment variables are text; a bare number in one means seconds."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Duration = Annotated[timedelta, BeforeValidator(_seconds)]

REPOSITORY = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """What an operator can choose. Durations accept seconds or ISO 8601, sizes accept ``512MiB``."""

    model_config = SettingsConfigDict(env_prefix="MUST_", frozen=True, extra="ignore")

    data_dir: Path = Path("must-data")
    """Folder for whatever has no address of its own: the SQLite file, local blobs, run folders of jobs."""

    database_url: SecretStr | None = None
    """SQLAlchemy URL (``postgresql+psycopg://…``). Unset: ``must.db`` in ``data_dir``."""

    storage_url: str | None = None
    """Where blobs live: a folder or any fsspec URL (``s3://bucket/prefix``). Unset: ``blobs`` in ``data_dir``."""

    broker_url: SecretStr | None = None
    """Celery broker (``redis://…`` or ``amqp://…``). Unset: workers poll the ledger and need no broker."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000

    models: dict[str, str] = {
        "tiny-clip": f"local-dir:{REPOSITORY / 'examples' / 'base_model' / 'tiny-clip'}",
        "ViT-B-32/openai": "ViT-B-32/openai",
        "ViT-B-16/openai": "ViT-B-16/openai",
        "ViT-L-14/openai": "ViT-L-14/openai",
    }
    """Base models that users may name, each with what open_clip loads for it: ``ARCH/TAG``, ``ARCH/FILE`` or
    ``local-dir:FOLDER``."""

    default_model: str = "ViT-B-16/openai"
    """The base model of a request that names none."""

    max_upload_bytes: ByteSize = ByteSize(4 * 1024**3)
    """Largest request body. Larger: 413 ``payload_too_large``."""

    max_unpacked_bytes: ByteSize = ByteSize(16 * 1024**3)
    """Largest sum of an archive's unpacked files, counted on real bytes."""

    max_images: Annotated[int, Field(ge=1)] = 200_000
    """Most entries in one archive, and most files in one request."""

    max_image_pixels: Annotated[int, Field(ge=64)] = 50_000_000
    """Most pixels of one image, read from its header before anything is decoded."""

    max_total_pixels: Annotated[int, Field(ge=64)] = 200_000_000_000
    """Most pixels of all images of one upload."""

    max_image_bytes: ByteSize = ByteSize(64 * 1024**2)
    """Largest single image file."""

    max_classify_images: Annotated[int, Field(ge=1)] = 256
    """Most images in one request to classify."""

    max_classify_bytes: ByteSize = ByteSize(256 * 1024**2)
    """Largest body of a request to classify."""

    decode_timeout: Duration = timedelta(seconds=20)
    """Longest that one image may take to decode."""

    decode_processes: Annotated[int, Field(ge=1)] = 2
    """Child processes that decode images."""

    lease: Duration = timedelta(seconds=60)
    """How long a worker owns a job after each heartbeat. A worker silent for longer has lost the job."""

    sweep_interval: Duration = timedelta(seconds=10)
    """How often expired leases and unsent messages are looked for."""

    poll_interval: Duration = timedelta(seconds=1)
    """How often an idle worker without a broker asks the ledger for a job."""

    max_attempts: Annotated[int, Field(ge=1)] = 3
    """Attempts a job gets before it fails with ``worker_lost``."""

    max_running_jobs_per_tenant: Annotated[int, Field(ge=1)] | None = None
    """Jobs of one tenant that run at a time; its others wait. Unset: no limit. To be the same for API and workers."""

    checkpoint_interval: Duration = timedelta(seconds=30)
    """How often a trainer saves what it has: a killed attempt costs at most this much work."""

    stall_timeout: Duration = timedelta(minutes=10)
    """A trainer that makes no progress for this long (no step, no part of anything) is killed and tried again."""

    silence_timeout: Duration = timedelta(minutes=2)
    """A trainer that gives no sign of life for this long, after its first one, is killed and the attempt retried."""

    stop_grace: Duration = timedelta(seconds=30)
    """What a trainer gets to write a checkpoint after it was asked to stop, before it is killed."""

    max_job_log_bytes: Annotated[ByteSize, Field(ge=128 * 1024)] = ByteSize(512 * 1024)
    """How much is kept of a job's log, all attempts together: the beginning and the end of what its trainers wrote."""

    housekeeping_interval: Duration = timedelta(hours=1)
    """How often garbage is looked for: blobs that nothing refers to, history older than it is kept. One worker does it
    for all."""

    blob_grace: Annotated[Duration, Field(ge=timedelta(minutes=1))] = timedelta(hours=24)
    """How long a blob that nothing refers to is kept after it was stored. Has to be longer than an upload or a worker
    takes from its last byte to its commit, or what was just stored is lost: where in doubt, longer."""

    checkpoint_retention: Duration = timedelta(days=7)
    """How long the checkpoints of a failed or cancelled job wait for somebody to resume it. Those of a job that
    succeeded go at once."""

    history_retention: Duration = timedelta(days=90)
    """How long a finished job keeps its metrics and phases (the curves of its report), its log and, on workers,
    ``trainer.log``. When its status moved, its verdict and its report are kept for good."""

    worker_concurrency: Annotated[int, Field(ge=1)] = 1
    """Jobs that one worker process supervises at a time."""

    worker_gpus: Annotated[str, Field(pattern=r"^(auto|none|cpu:[1-9][0-9]?|[A-Za-z0-9_.,-]+)$")] = "auto"
    """Devices that one worker process owns, shared out among its jobs: ``auto`` for the GPUs it finds, ``none`` for the
    CPU alone, GPUs by number (nvidia-smi's) or UUID (``0,1``), or ``cpu:N`` to have N processes on the CPU stand in for
    N GPUs. ``auto`` is for one worker a host: two would find the same GPUs and each give them to its jobs."""

    max_cached_models: Annotated[int, Field(ge=1)] = 4
    """Base models and adapted classifiers kept in the memory of the API process, least recently used out."""

    max_download_cache_bytes: ByteSize = ByteSize(10 * 1024**3)
    """How much of exported classifiers is kept for those who ask again; the one asked for longest ago goes first."""

    @property
    def resolved_database_url(self) -> str:
        """The database to open, embedded default included."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{(self.data_dir / 'must.db').absolute()}"

    @property
    def resolved_storage_url(self) -> str:
        """Where blobs go, embedded default included."""
        return self.storage_url or str((self.data_dir / "blobs").absolute())

    @property
    def runs_dir(self) -> Path:
        """Run folders of jobs. Shared between the workers that are to resume each other's jobs."""
        return (self.data_dir / "runs").absolute()

"""``create_app()``: puts the service together. Assembly only."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from fastapi import FastAPI
from sqlalchemy import Engine

from app import __doc__ as about
from app import __version__, errors, openapi
from app.config import Settings
from app.cross_site import CrossSiteMiddleware
from app.database import make_engine, make_sessionmaker, migrate
from app.deps import Services
from app.inference.bundles import StoredBundles
from app.inference.catalog import ModelCatalog
from app.inference.exports import Exporter
from app.inference.predictor import Predictor
from app.ingest.decoding import DecoderPool
from app.ingest.ingest import IngestLimits, Ingestor, image_limits
from app.log import configure_logging
from app.middleware import RequestIdMiddleware
from app.queue import CeleryTaskQueue, LedgerOnlyQueue, TaskQueue
from app.routes import aliases, classifiers, classify, datasets, health, icon, job_logs, jobs, models, reports
from app.services.aliases import AliasService
from app.services.classifiers import ClassifierService
from app.services.classify import ClassifyService
from app.services.datasets import DatasetService
from app.services.downloads import DownloadService
from app.services.health import HealthService
from app.services.idempotency import IdempotencyService
from app.services.jobs import JobService
from app.services.models import ModelService
from app.services.reports import ReportService
from app.services.thumbnails import ThumbnailService
from app.storage import make_storage


def create_app(settings: Settings | None = None) -> FastAPI:
    """Assemble the application; with no settings given, the environment's. Nothing is opened before its start."""
    settings = settings or Settings()
    configure_logging()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = make_engine(settings.resolved_database_url)
        migrate(engine)
        decoder = DecoderPool(
            processes=settings.decode_processes, limits=image_limits(settings), timeout=settings.decode_timeout
        )
        queue = _make_queue(settings)
        try:
            services = app.state.services = _make_services(settings, engine, decoder, queue)
            with closing(services.downloads):
                yield
        finally:
            queue.close()
            decoder.close()
            engine.dispose()

    app = FastAPI(title="MUST as a service", version=__version__, description=about or "", lifespan=lifespan)
    for module in (datasets, jobs, job_logs, reports, classifiers, aliases, classify, models, health, icon):
        app.include_router(module.router)
    app.add_middleware(CrossSiteMiddleware)
    app.add_middleware(RequestIdMiddleware)
    errors.install(app)
    openapi.install(app)
    return app


def _make_queue(settings: Settings) -> TaskQueue:
    if settings.broker_url is None:
        return LedgerOnlyQueue()
    return CeleryTaskQueue(settings.broker_url.get_secret_value())


def _make_services(settings: Settings, engine: Engine, decoder: DecoderPool, queue: TaskQueue) -> Services:
    sessions = make_sessionmaker(engine)
    storage = make_storage(settings.resolved_storage_url, settings.data_dir / "cache")
    catalog = ModelCatalog(settings.models, default=settings.default_model)
    bundles = StoredBundles(storage=storage, folder=settings.data_dir / "bundles")
    predictor = Predictor(catalog=catalog, bundles=bundles, max_models=settings.max_cached_models)
    classifier_service = ClassifierService(sessions=sessions, predictor=predictor, catalog=catalog)
    dataset_service = DatasetService(
        sessions=sessions,
        ingestor=Ingestor(storage=storage, decoder=decoder, limits=IngestLimits.from_settings(settings)),
    )
    return Services(
        settings=settings,
        datasets=dataset_service,
        jobs=JobService(
            sessions=sessions,
            queue=queue,
            datasets=dataset_service,
            classifiers=classifier_service,
            predictor=predictor,
            max_attempts=settings.max_attempts,
            max_running_per_tenant=settings.max_running_jobs_per_tenant,
        ),
        reports=ReportService(sessions=sessions),
        thumbnails=ThumbnailService(sessions=sessions, storage=storage, decoder=decoder),
        classifiers=classifier_service,
        aliases=AliasService(sessions=sessions, classifiers=classifier_service, predictor=predictor),
        downloads=DownloadService(
            classifiers=classifier_service,
            exporter=Exporter(predictor=predictor, bundles=bundles),
            folder=settings.data_dir / "downloads",
            max_bytes=settings.max_download_cache_bytes,
        ),
        classify=ClassifyService(classifiers=classifier_service, predictor=predictor, decoder=decoder),
        models=ModelService(catalog=catalog),
        health=HealthService(sessions=sessions, queue=queue),
        idempotency=IdempotencyService(sessions=sessions),
    )

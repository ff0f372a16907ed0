"""What routes ask for: the services that app/main.py put together."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.config import Settings
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
from app.tables import DEFAULT_TENANT


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything a request may need; lives as long as the application."""

    settings: Settings
    datasets: DatasetService
    jobs: JobService
    reports: ReportService
    thumbnails: ThumbnailService
    classifiers: ClassifierService
    aliases: AliasService
    downloads: DownloadService
    classify: ClassifyService
    models: ModelService
    health: HealthService
    idempotency: IdempotencyService


def services(request: Request) -> Services:
    """The application's services."""
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(services)]


def _settings(of: ServicesDep) -> Settings:
    return of.settings


def _datasets(of: ServicesDep) -> DatasetService:
    return of.datasets


def _jobs(of: ServicesDep) -> JobService:
    return of.jobs


def _reports(of: ServicesDep) -> ReportService:
    return of.reports


def _thumbnails(of: ServicesDep) -> ThumbnailService:
    return of.thumbnails


def _classifiers(of: ServicesDep) -> ClassifierService:
    return of.classifiers


def _aliases(of: ServicesDep) -> AliasService:
    return of.aliases


def _downloads(of: ServicesDep) -> DownloadService:
    return of.downloads


def _classify(of: ServicesDep) -> ClassifyService:
    return of.classify


def _models(of: ServicesDep) -> ModelService:
    return of.models


def _health(of: ServicesDep) -> HealthService:
    return of.health


def _idempotency(of: ServicesDep) -> IdempotencyService:
    return of.idempotency


def _tenant() -> str:
    """Whose request it is. Nobody says yet, so everybody's requests are of one tenant."""
    return DEFAULT_TENANT


TenantDep = Annotated[str, Depends(_tenant)]
SettingsDep = Annotated[Settings, Depends(_settings)]
DatasetServiceDep = Annotated[DatasetService, Depends(_datasets)]
JobServiceDep = Annotated[JobService, Depends(_jobs)]
ReportServiceDep = Annotated[ReportService, Depends(_reports)]
ThumbnailServiceDep = Annotated[ThumbnailService, Depends(_thumbnails)]
ClassifierServiceDep = Annotated[ClassifierService, Depends(_classifiers)]
AliasServiceDep = Annotated[AliasService, Depends(_aliases)]
DownloadServiceDep = Annotated[DownloadService, Depends(_downloads)]
ClassifyServiceDep = Annotated[ClassifyService, Depends(_classify)]
ModelServiceDep = Annotated[ModelService, Depends(_models)]
HealthServiceDep = Annotated[HealthService, Depends(_health)]
IdempotencyServiceDep = Annotated[IdempotencyService, Depends(_idempotency)]

"""``/health``: for load balancers and for people."""

from fastapi import APIRouter, Response

from app.deps import HealthServiceDep

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live")
def live() -> dict[str, str]:
    """Whether the process answers at all."""
    return {"status": "ok"}


@router.get("/ready")
def ready(service: HealthServiceDep, response: Response) -> dict[str, object]:
    """Whether requests should be sent here: 503 when not. Without a broker jobs are accepted and start later."""
    health = service.check()
    response.status_code = 200 if health.ready else 503
    return {"status": health.status, "database": health.database, "broker": health.broker}

"""``must``: starts what there is to start; beside it, the training library's own commands."""

from datetime import timedelta
from typing import Annotated

import typer

from app.cli.admin import app as admin
from app.cli.serve import Program, run_together
from app.config import Settings
from app.database import make_engine, migrate
from must_core.cli.main import app as training

app = typer.Typer(no_args_is_help=True, add_completion=False, help="MUST as a service.")


app.add_typer(training)
app.add_typer(admin, name="admin")


@app.callback()
def _must() -> None:
    """MUST as a service: classifiers that adapt to unlabeled images."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; MUST_HOST otherwise.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; MUST_PORT otherwise.")] = None,
) -> None:
    """Start the API and a worker, and stop both together."""
    settings = Settings()
    host = host or settings.host
    port = settings.port if port is None else port
    address = f"http://{host}:{port}"
    programs = [
        Program(
            "api",
            [
                *("-m", "uvicorn", "app.main:create_app", "--factory", "--no-access-log"),
                *("--timeout-graceful-shutdown", "10"),
                *("--timeout-keep-alive", "75"),  # longer than proxies and clients keep an idle connection
                *("--host", host, "--port", str(port)),
            ],
        ),
        Program("worker", ["-m", "worker"]),
    ]
    backend = "Celery" if settings.broker_url else "embedded, no broker"
    typer.echo(f"API     {address}\ndocs    {address}/docs\nworker  {backend}\ndata    {settings.data_dir.absolute()}")
    raise typer.Exit(run_together(programs, stop_within=settings.stop_grace + timedelta(seconds=15)))


@app.command(name="migrate")
def migrate_database() -> None:
    """Bring the database's schema to the newest revision."""
    migrate(make_engine(Settings().resolved_database_url))


if __name__ == "__main__":
    app()

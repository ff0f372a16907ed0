"""``must admin``: what an operator does by hand, beside the service or in its place (docs/operating.md)."""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from app.admin.backup import Backup
from app.admin.problems import AdminError, Problem
from app.admin.restore import Restore, check_backup
from app.admin.verify import Verifier
from app.config import Settings
from app.database import make_engine, make_sessionmaker
from app.exceptions import Unavailable
from app.housekeeping.garbage import GarbageCollector
from app.storage import BlobStore, make_storage

PROBLEMS_FOUND = 1
NOT_DONE = 2

app = typer.Typer(no_args_is_help=True, help="Check, clean up, back up and restore what the service keeps.")

Folder = Annotated[Path, typer.Argument(help="A folder on this machine.", file_okay=False)]


@app.command()
def verify(
    backup: Annotated[Path | None, typer.Option(help="Check this backup instead of the service's own data.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """Read the database and every blob that it refers to, and tell what is wrong. Exits with 1 when anything is."""
    problems = _Problems(kept=as_json)
    with _told():
        settings = Settings()
        if backup is not None:
            manifest = check_backup(backup, problems.tell)
            summary: dict[str, object] = {"backup": manifest.created_at, "lost": list(manifest.lost)}
        else:
            engine = make_engine(settings.resolved_database_url)
            verifier = Verifier(engine=engine, storage=_storage(settings), blob_grace=settings.blob_grace)
            summary = asdict(verifier.verify(problems.tell))
    if as_json:
        typer.echo(json.dumps({**summary, "problems": [asdict(problem) for problem in problems.found]}, indent=1))
    else:
        summary.pop("num_problems", None)
        typer.echo(f"{problems.number} problems. " + _words(summary))
    raise typer.Exit(PROBLEMS_FOUND if problems.number else 0)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and remove nothing.")] = False,
) -> None:
    """Remove blobs that nothing refers to, as workers do by themselves each hour."""
    with _told():
        settings = Settings()
        sessions = make_sessionmaker(make_engine(settings.resolved_database_url))
        collector = GarbageCollector(sessions=sessions, storage=_storage(settings), grace=settings.blob_grace)
        found = collector.collect(dry_run=dry_run)
        if found.held:
            raise AdminError("a backup is being made, which needs all blobs to stay: try again when it is done")
    typer.echo(_words(asdict(found)))


@app.command(name="backup")
def make_backup(folder: Folder) -> None:
    """Copy all rows, as of one moment, and the blobs that they refer to. The service may go on meanwhile.

    A second backup into the same folder copies what is new and takes the first one's place.
    """
    problems = _Problems()
    with _told():
        settings = Settings()
        engine = make_engine(settings.resolved_database_url)
        folders = _service_folders(settings)
        backup = Backup(engine=engine, storage=_storage(settings), service_folders=folders)
        done = backup.write(folder, problems.tell)
    typer.echo(f"Backed up to {folder}. " + _words(asdict(done)))
    raise typer.Exit(PROBLEMS_FOUND if problems.number else 0)


@app.command()
def restore(folder: Folder) -> None:
    """Put a backup into a database and a storage that are empty; neither API nor workers may run meanwhile."""
    problems = _Problems()
    with _told():
        settings = Settings()
        engine = make_engine(settings.resolved_database_url)
        done = Restore(engine=engine, storage=_storage(settings)).run(folder, problems.tell)
    typer.echo(f"Restored the backup of {done.created_at}: {done.num_rows} rows, {done.num_blobs} blobs.")
    for name in done.lost:
        typer.echo(f"blob_not_in_backup {name}: it was missing or damaged when the backup was made")
    typer.echo("Now run must admin verify.")


class _Problems:
    """Prints problems as they come, or keeps them."""

    def __init__(self, *, kept: bool = False) -> None:
        self._kept = kept
        self.number = 0
        self.found: list[Problem] = []

    def tell(self, problem: Problem) -> None:
        self.number += 1
        if self._kept:
            self.found.append(problem)
        else:
            typer.echo(str(problem))


@contextmanager
def _told() -> Iterator[None]:
    """Errors that an operator can act on come as a sentence."""
    try:
        yield
    except AdminError as e:
        typer.echo(f"Not done: {e}.", err=True)
        raise typer.Exit(NOT_DONE) from e
    except (Unavailable, SQLAlchemyError, OSError) as e:
        typer.echo(f"Not done: {e}", err=True)
        raise typer.Exit(NOT_DONE) from e
    except Exception as e:
        # A defect of ours; Python's own exit code for it would say that problems were found.
        typer.echo(f"{traceback.format_exc()}Not done: {type(e).__name__}: {e}", err=True)
        raise typer.Exit(NOT_DONE) from e


def _storage(settings: Settings) -> BlobStore:
    return make_storage(settings.resolved_storage_url, settings.data_dir.absolute() / "cache")


def _service_folders(settings: Settings) -> list[Path]:
    """Where the service keeps things on this machine."""
    scheme, separator, path = settings.resolved_storage_url.rpartition("://")
    is_local = not separator or scheme in {"file", "local"}
    return [settings.data_dir, *([Path(path)] if is_local else [])]


def _words(counts: dict[str, object]) -> str:
    """``num_removed=3`` as an operator reads it."""
    shown = {name: value for name, value in counts.items() if value is not False}
    return ", ".join(f"{name.removeprefix('num_').replace('_', ' ')} {value}" for name, value in shown.items())

"""A PostgreSQL server of a test's own, to be stopped and started at will. From Debian's binaries."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.support.service import free_port

USER = "postgres"
OPTIONS = "-c fsync=off -c listen_addresses=127.0.0.1 -c max_connections=25 -c superuser_reserved_connections=3"


class PostgresServer:
    """Its databases are in ``folder``. The user is a superuser, as `USER` is."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries, self._folder = binaries, folder
        self._port = free_port()
        self._run("initdb", "--pgdata", str(folder / "data"), "--auth=trust", "--username", USER, "--no-sync")
        self.url = f"postgresql+psycopg://{USER}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Returns when it takes connections."""
        options = f"{OPTIONS} -p {self._port} -k {self._folder}"
        self._control("start", "--wait", "--timeout=60", f"--log={self._folder / 'log'}", f"--options={options}")

    def stop(self) -> None:
        """At once, as a crash would: the next start recovers from its log. May be called again."""
        if (self._folder / "data" / "postmaster.pid").exists():
            self._control("stop", "--mode=immediate", "--wait", "--timeout=60")

    def terminate_backends(self) -> int:
        """End every connection there is; returns how many there were."""
        engine = create_engine(self.url)
        with engine.connect() as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            ended = connection.execute(text(f"{others} AND pid <> pg_backend_pid()")).all()
        engine.dispose()
        return len(ended)

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "--pgdata", str(self._folder / "data"), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        # PostgreSQL refuses to run as root. Its children inherit what we give, so they get no pipe to hold open.
        as_user = ["runuser", "-u", USER, "--"] if os.getuid() == 0 else []
        with (self._folder / "output").open("ab") as output:
            subprocess.run(
                [*as_user, str(self._binaries / program), *arguments],
                cwd=self._folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=120, check=True,
            )  # fmt: skip


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server that runs, gone afterwards. Without the binaries the test is skipped, or failed with ``CI=true``."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        message = "PostgreSQL's server is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    # Not in pytest's folder, which is root's alone.
    with tempfile.TemporaryDirectory(prefix="must-postgres-") as name:
        if os.getuid() == 0:
            shutil.chown(name, USER)
        server = PostgresServer(found[-1].parent, Path(name))
        server.start()
        try:
            yield server
        finally:
            server.stop()

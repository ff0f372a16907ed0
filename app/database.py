"""Engines, sessions, the database's clock and the migrations. Nothing is opened or created on import.

SQLite and PostgreSQL behave alike here. A plain session opens a *write* transaction: on SQLite ``BEGIN IMMEDIATE``, so
that a transaction that reads first and writes later can never fail half-way for a lock. Whoever only reads opens
`read_only`, which on SQLite's write-ahead log never waits for a writer.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from sqlite3 import SQLITE_FULL
from sqlite3 import Connection as SqliteConnection
from sqlite3 import Error as SqliteError
from sqlite3 import OperationalError as SqliteOperationalError
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import DiskFull
from sqlalchemy import Connection, Engine, SQLColumnExpression, create_engine, event, func, literal, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Float

from app.tables import UtcDateTime

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
MIGRATION_LOCK = 0x6D757374  # any constant: the advisory lock that two migrators of one database share

BUSY_TIMEOUT = timedelta(seconds=15)
STATEMENT_TIMEOUT = timedelta(seconds=30)
FROZEN_AFTER = timedelta(seconds=5)
READ_ONLY = "must_read_only"


def make_engine(url: str) -> Engine:
    """An engine for ``url`` with this service's settings for its database.

    The folder of a SQLite file is created when missing. Connections are opened on first use.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, json_serializer=_to_json)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    milliseconds = int(STATEMENT_TIMEOUT.total_seconds() * 1000)
    return create_engine(
        parsed,
        json_serializer=_to_json,
        pool_pre_ping=True,
        pool_size=10,
        max_overflow=10,
        pool_timeout=10,
        isolation_level="READ COMMITTED",  # whatever the database's default: see `wait_for_turn`
        connect_args={
            "connect_timeout": 5,
            "keepalives": 1,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            "options": f"-c statement_timeout={milliseconds} -c idle_in_transaction_session_timeout=60000",
        },
    )


def _to_json(value: object) -> str:
    # PostgreSQL refuses NaN in JSON and SQLite would keep it: refuse it everywhere.
    return json.dumps(value, allow_nan=False)


def make_sessionmaker(engine: Engine) -> sessionmaker[Session]:
    """Sessions on ``engine``. Objects stay readable after the commit; nothing is reloaded behind one's back."""
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def read_only(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """A session with one transaction that sees one state of the database and may not write.

    On SQLite it does not wait for writers, and writers do not wait for it. Writing in it raises the database's error.
    """
    with sessions() as session, session.begin():
        options: dict[str, Any] = {READ_ONLY: True, "postgresql_readonly": True}
        if session.get_bind().dialect.name == "postgresql":
            options["isolation_level"] = "REPEATABLE READ"  # else each statement would see a state of its own
        session.connection(execution_options=options)
        yield session


def take_any_time(session: Session) -> None:
    """Lift the limits of time from the transaction, for what reads whole tables."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SET LOCAL statement_timeout = 0"))
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))


def revisions(engine: Engine) -> tuple[str | None, str | None]:
    """The schema's revision, None before the first migration, and the one that this code is for."""
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    return found, ScriptDirectory.from_config(alembic_config()).get_current_head()


class now_utc(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function it is
    """SQL: the database's clock at the start of the statement. No worker's own clock enters the ledger."""

    type = UtcDateTime()
    inherit_cache = True


class _PlusSeconds(FunctionElement[datetime]):
    type = UtcDateTime()
    inherit_cache = True


def now_plus(delta: timedelta) -> FunctionElement[datetime]:
    """SQL: the database's clock plus ``delta`` (which may be negative), to the millisecond."""
    return plus_seconds(now_utc(), literal(delta.total_seconds(), Float()))


def plus_seconds(instant: SQLColumnExpression[Any], seconds: SQLColumnExpression[Any]) -> FunctionElement[datetime]:
    """SQL: an instant some seconds later, to the millisecond; NULL when one of the two is."""
    return _PlusSeconds(instant, seconds)


# SQLite keeps instants as text. These expressions write what `UtcDateTime` writes, six decimals, so that text order
# is time order.
_SQLITE_FORMAT = "'%Y-%m-%d %H:%M:%f000'"


@compiles(now_utc, "sqlite")
def _now_sqlite(element: now_utc, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ARG001 - SQLAlchemy's signature
    return f"strftime({_SQLITE_FORMAT}, 'now')"


@compiles(now_utc)
def _now(element: now_utc, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ARG001 - SQLAlchemy's signature
    # now() is the transaction's start, which may lie far back when the transaction waited for a lock;
    # clock_timestamp() changes within the statement and defeats indexes.
    return "statement_timestamp()"


@compiles(_PlusSeconds, "sqlite")
def _plus_seconds_sqlite(element: _PlusSeconds, compiler: SQLCompiler, **kw: Any) -> str:
    instant, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"strftime({_SQLITE_FORMAT}, {instant}, round({seconds}, 3) || ' seconds')"


@compiles(_PlusSeconds)
def _plus_seconds(element: _PlusSeconds, compiler: SQLCompiler, **kw: Any) -> str:
    instant, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({instant} + make_interval(secs => {seconds}))"


class _SecondsBetween(FunctionElement[float]):
    type = Float()
    inherit_cache = True


def seconds_between(start: SQLColumnExpression[Any], end: SQLColumnExpression[Any]) -> FunctionElement[float]:
    """SQL: the seconds from ``start`` to ``end``, to the millisecond; NULL when one of them is."""
    return _SecondsBetween(start, end)


@compiles(_SecondsBetween, "sqlite")
def _seconds_between_sqlite(element: _SecondsBetween, compiler: SQLCompiler, **kw: Any) -> str:
    start, end = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"((julianday({end}) - julianday({start})) * 86400.0)"


@compiles(_SecondsBetween)
def _seconds_between(element: _SecondsBetween, compiler: SQLCompiler, **kw: Any) -> str:
    start, end = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"CAST(EXTRACT(EPOCH FROM ({end} - {start})) AS DOUBLE PRECISION)"


def is_full(error: Exception) -> bool:
    """Whether a database's error is that its disk has no room left. Reading goes on then."""
    if isinstance(error, DBAPIError) and isinstance(error.orig, SqliteError):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == SQLITE_FULL  # the rest of it says where
    return isinstance(error, DBAPIError) and isinstance(error.orig, DiskFull)


def wait_for_turn(session: Session, lock: int) -> None:
    """Have transactions that name the same ``lock`` come one after the other: what one reads after this call, those
    before it have committed. On SQLite every writing transaction is alone as it is.

    Needs READ COMMITTED: a transaction with one snapshot takes it before the wait, and sees nothing of those before it.

    A holder that goes silent in the middle of its transaction is thrown off by the server after `FROZEN_AFTER`.
    """
    if session.get_bind().dialect.name != "postgresql":
        return
    milliseconds = str(int(FROZEN_AFTER.total_seconds() * 1000))
    session.execute(
        select(
            func.set_config("idle_in_transaction_session_timeout", milliseconds, True),
            func.pg_advisory_xact_lock(lock),
        )
    )


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision. Safe for any number of processes at once: one does it, the rest wait.

    All revisions run in one transaction: the schema is the old one or the new one, never between.
    """
    with schema_change(engine) as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def schema_change(engine: Engine) -> Iterator[Connection]:
    """One transaction for revisions to run in, up or down. A second one waits for the first."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            with _sqlite_schema_change(connection):
                yield connection
        else:
            with connection.begin():
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                connection.execute(func.pg_advisory_xact_lock(MIGRATION_LOCK).select())
                connection.execute(text("SET LOCAL lock_timeout = '15s'"))
                yield connection


def alembic_config() -> Config:
    """Where the migrations are, for running alembic from code."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _sqlite_schema_change(connection: Connection) -> Iterator[None]:
    # SQLite changes a table by copying it and dropping the old one, and the drop would cascade into the rows that
    # refer to it. The switch works outside of transactions only, hence on the driver's connection.
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        with connection.begin():  # BEGIN IMMEDIATE: a second migrator waits here, then finds nothing to do
            yield
            if broken := connection.execute(text("PRAGMA foreign_key_check")).all():
                raise RuntimeError(f"migration leaves {len(broken)} rows that refer to nothing")
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def _prepare_sqlite(connection: SqliteConnection, record: object) -> None:  # noqa: ARG001 - SQLAlchemy's signature
    connection.isolation_level = None  # the driver begins no transaction of its own: `_begin_sqlite` does
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT.total_seconds() * 1000)}")
    _use_wal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _use_wal(cursor: Any) -> None:
    """Switch a new file to write-ahead logging. The switch ignores busy_timeout, and every process tries at once."""
    deadline = time.monotonic() + BUSY_TIMEOUT.total_seconds()
    while cursor.execute("PRAGMA journal_mode").fetchone()[0] not in {"wal", "memory"}:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except SqliteOperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    reading = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql(f"PRAGMA query_only={'ON' if reading else 'OFF'}")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

"""Databases for the benches that need one."""

from tests.support.databases import database_url, engine, postgres_url, sessions, sqlite_template

__all__ = ["database_url", "engine", "postgres_url", "sessions", "sqlite_template"]

"""Each test of classifiers' rows runs on both databases."""

from tests.support.databases import database_url, engine, postgres_url, sessions, sqlite_template

__all__ = ["database_url", "engine", "postgres_url", "sessions", "sqlite_template"]

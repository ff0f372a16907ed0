"""The API on the broker's queue ``TEST_QUEUE``: ``uvicorn tests.support.api_main:create_app --factory``."""

import os

from fastapi import FastAPI

from app import main
from app.jobs import hint


def create_app() -> FastAPI:
    """The application as it is, but for the queue."""
    hint.QUEUE = os.environ.get("TEST_QUEUE", hint.QUEUE)
    return main.create_app()

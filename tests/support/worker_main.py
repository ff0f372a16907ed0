"""A real worker process with the scripted trainer, on the broker's queue ``TEST_QUEUE`` when that is set.

``--trainer quick`` and ``--trainer real`` run another one; ``TEST_TRAINER`` names a module of one. Faults can be placed
exactly: ``--die before-commit`` and ``after-commit`` kill the process there when it publishes; ``--hold preparing`` and
``publishing`` have it wait there, saying ``held``, until the data folder holds a file ``go-on``.

Its other arguments take protections away (tests/support/unprotected.py).
"""

import tests.support.wrong_clock  # isort: skip  # noqa: F401 - before anybody has imported a clock
import os
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog

from app.jobs import hint
from app.jobs.ledger import Ledger
from tests.support.unprotected import take_away
from worker import __main__ as program
from worker import celery_app

TRAINERS = {
    "scripted": (sys.executable, "-m", os.environ.get("TEST_TRAINER", "tests.support.scripted_trainer")),
    "quick": (sys.executable, "-I", "-S", str(Path(__file__).with_name("quick_trainer.py"))),
    "real": (sys.executable, "-m", "worker.trainer"),
}
_log = structlog.get_logger("tests.worker")


def prepare(arguments: list[str]) -> str:
    """Do as the arguments say; returns the trainer's name."""
    parser = ArgumentParser()
    parser.add_argument("--trainer", default="scripted", choices=TRAINERS)
    parser.add_argument("--die", choices=["before-commit", "after-commit"])
    parser.add_argument("--hold", choices=["preparing", "publishing"])
    wanted, flags = parser.parse_known_args(arguments)
    take_away(flags)
    if wanted.die == "before-commit":
        wrap("publish", before=die)
    elif wanted.die == "after-commit":
        wrap("publish", after=die)
    if wanted.hold:
        name = "image_digests" if wanted.hold == "preparing" else "publish"
        wrap(name, before=lambda: hold(wanted.hold))
    return str(wanted.trainer)


def wrap(name: str, *, before: Callable[[], None] | None = None, after: Callable[[], None] | None = None) -> None:
    """Have something happen before or after each call of a method of the ledger."""
    inner = getattr(Ledger, name)

    def outer(*arguments: Any) -> Any:
        if before:
            before()
        result = inner(*arguments)
        if after:
            after()
        return result

    setattr(Ledger, name, outer)


def die() -> None:
    """As by SIGKILL from outside, but here."""
    os.kill(os.getpid(), signal.SIGKILL)


def hold(at: str) -> None:
    """Wait to be told to go on, a minute at most."""
    go_on = Path(os.environ["MUST_DATA_DIR"], "go-on")
    _log.info("held", at=at)
    deadline = time.monotonic() + 60
    while not go_on.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


if __name__ == "__main__":
    hint.QUEUE = celery_app.QUEUE = os.environ.get("TEST_QUEUE", hint.QUEUE)
    program.LISTEN_AGAIN_S = 0.3
    trainer = TRAINERS[prepare(sys.argv[1:])]
    sys.exit(program.main(trainer=trainer, retry_delay=timedelta(seconds=0.1)))

"""A real worker process with the scripted trainer, on the broker's queue ``TEST_QUEUE`` when that is set.

``TEST_TRAINER`` names another scripted trainer. Its arguments take protections away (tests/support/unprotected.py).
"""

import os
import sys
from datetime import timedelta

from app.jobs import hint
from tests.support.unprotected import take_away
from worker import __main__ as program
from worker import celery_app

if __name__ == "__main__":
    hint.QUEUE = celery_app.QUEUE = os.environ.get("TEST_QUEUE", hint.QUEUE)
    program.LISTEN_AGAIN_S = 0.3
    take_away(sys.argv[1:])
    trainer = os.environ.get("TEST_TRAINER", "tests.support.scripted_trainer")
    sys.exit(program.main(trainer=(sys.executable, "-m", trainer), retry_delay=timedelta(seconds=0.1)))

"""A real worker process with the scripted trainer, on the broker's queue ``TEST_QUEUE`` when that is set.

``--no-fence`` takes the fence away, for negative controls.
"""

import os
import sys
from datetime import timedelta

from app.jobs import hint
from app.jobs.claims import ClaimStore
from app.tables import Job
from worker import celery_app
from worker.__main__ import main

if __name__ == "__main__":
    hint.QUEUE = celery_app.QUEUE = os.environ.get("TEST_QUEUE", hint.QUEUE)
    if "--no-fence" in sys.argv:
        ClaimStore._fence = lambda _, claim: (Job.id == claim.job_id,)  # type: ignore[assignment,misc,return-value]
    sys.exit(main(trainer=(sys.executable, "-m", "tests.support.scripted_trainer"), retry_delay=timedelta(seconds=0.1)))

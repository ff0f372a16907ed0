"""A real worker process with the scripted trainer. ``--no-fence`` takes the fence away, for negative controls."""

import sys
from datetime import timedelta

from app.jobs.claims import ClaimStore
from app.tables import Job
from worker.__main__ import main

if __name__ == "__main__":
    if "--no-fence" in sys.argv:
        ClaimStore._fence = lambda _, claim: (Job.id == claim.job_id,)  # type: ignore[assignment,misc,return-value]
    sys.exit(main(trainer=(sys.executable, "-m", "tests.support.scripted_trainer"), retry_delay=timedelta(seconds=0.1)))

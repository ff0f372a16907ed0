"""Runs many short jobs in one supervisor and prints what it holds after each: ``many_jobs FOLDER JOBS [leak]``.

A line of JSON a job: resident memory, open files, threads. With ``leak`` it keeps something of every job, as a defect
would.
"""

import gc
import json
import sys
import threading
from datetime import timedelta
from pathlib import Path

from app.database import make_engine, make_sessionmaker, migrate
from app.jobs.ledger import Ledger
from app.storage import make_storage
from tests.support.jobs import add_job
from tests.support.supervision import make_supervisor

LEAK_BYTES = 512 * 1024
TRAINER = """
import json, os, sys
spec = json.load(open(sys.argv[1]))
say = lambda **report: os.write(int(os.environ["MUST_REPORT_FD"]), json.dumps({"v": 1, **report}).encode() + b"\\n")
for step in range(200):
    say(type="progress", phase="training", step=step, total_steps=200)
    say(type="metrics", metrics={"loss": 0.5})
    print("a line of output", "x" * 200)
kind = spec["seed"] % 3
if kind == 0:
    open(spec["output_dir"] + "/bundle.json", "w").write(spec["job_id"])
    say(type="result", bundle_dir=spec["output_dir"], metrics={})
elif kind == 1:
    say(type="error", kind="fatal", code="diverged", message="As told.")
    sys.exit(70)
else:
    os.kill(os.getpid(), 11)
"""


def main() -> None:
    """Run them."""
    folder, num_jobs, leaks = Path(sys.argv[1]), int(sys.argv[2]), "leak" in sys.argv[3:]
    engine = make_engine(f"sqlite:///{folder / 'must.db'}")
    migrate(engine)
    sessions = make_sessionmaker(engine)
    supervisor = make_supervisor(
        Ledger(sessions),
        make_storage(str(folder / "blobs"), folder / "cache"),
        folder / "runs",
        trainer=(sys.executable, "-I", "-S", "-c", TRAINER),
        lease=timedelta(seconds=60),
    )
    kept = []
    for n in range(num_jobs):
        add_job(sessions, seed=n, max_attempts=1)
        assert supervisor.run_one()
        if leaks:
            kept.append(b"\x01" * LEAK_BYTES)
        gc.collect()
        held = {
            "resident": int(Path("/proc/self/statm").read_text().split()[1]) * 4096,
            "files": len(list(Path("/proc/self/fd").iterdir())),
            "threads": threading.active_count(),
            "children": Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split(),
            "torch": "torch" in sys.modules,
        }
        sys.stdout.write(f"held {json.dumps(held)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

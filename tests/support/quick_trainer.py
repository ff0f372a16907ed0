"""A trainer that starts in milliseconds, for tests of many jobs: the standard library alone, run with ``-I -S``.

Its script is the job's ``hyperparameters``: ``steps`` of ``step_ms`` each. It keeps no checkpoints.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    """Do the steps, and hand in a bundle that names the attempt."""
    spec = json.loads(Path(sys.argv[1]).read_bytes())
    script, bundle = spec["hyperparameters"], Path(spec["output_dir"], "bundle")
    for step in range(1, script["steps"] + 1):
        time.sleep(script["step_ms"] / 1000)
        say(type="progress", phase="training", step=step, total_steps=script["steps"])
    bundle.mkdir()
    (bundle / "bundle.json").write_text(json.dumps({"job": spec["job_id"], "attempt": spec["attempt"]}))
    say(type="result", bundle_dir=str(bundle), metrics={})


def say(**report: object) -> None:
    os.write(int(os.environ["MUST_REPORT_FD"]), json.dumps({"v": 1, **report}).encode() + b"\n")


if __name__ == "__main__":
    main()

"""A trainer that trains nothing, for some seconds. How long follows from the job's seed."""

import sys
from typing import Any

from tests.support import scripted_trainer
from worker.protocol import TrainerSpec

STEP_MS = 50
MIN_STEPS = 10
MAX_STEPS = 50


def script_of(spec: TrainerSpec) -> dict[str, Any]:
    """Its script."""
    return {"steps": MIN_STEPS + spec.seed % (MAX_STEPS - MIN_STEPS), "step_ms": STEP_MS, "verdict": "adapted"}


if __name__ == "__main__":
    sys.exit(scripted_trainer.main(script_of))

"""One rank of `tests.support.runs` runs, for torchrun: ``ranks_main OUTPUT JSON``.

JSON is an object of cases by name, run one after the other. Each may set ``classes``, ``batch_size``, ``masked``,
``micro_batch_size``, ``dtype``, ``fairness_form`` and ``out_of_memory_above`` (the last rank's student then raises for
larger batches). The first rank writes the losses of every step; every rank its weights' digest.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from must_core.parallel import Ranks, joined
from tests.support import runs
from tests.support.tiny import weights_digest


def run_case(ranks: Ranks, case: dict[str, Any]) -> dict[str, Any]:
    """Train, and say what this rank ended with."""
    masked = case.get("masked", True)
    run = runs.make_run(
        replace(
            runs.CONFIG,
            masking=masked,
            batch_size=case.get("batch_size", runs.BATCH),
            fairness_form=case.get("fairness_form", "paper"),
        ),
        num_classes=case.get("classes", 10),
        dtype=getattr(torch, case.get("dtype", "float64")),
        ranks=ranks,
        micro_batch_size=case.get("micro_batch_size"),
    )
    limit = case.get("out_of_memory_above")
    if limit and ranks.rank == ranks.world_size - 1:

        def refuse(_module: object, arguments: tuple[Tensor, ...]) -> None:
            if len(arguments[0]) > limit:
                raise torch.OutOfMemoryError("pretended")

        run.student.register_forward_pre_hook(refuse)
    return {
        "losses": runs.history(runs.train(run, masked=masked)),
        "student": weights_digest(run.student),
        "teacher": weights_digest(run.teacher),
        "marginal": None if run.marginal_K is None else run.marginal_K.tolist(),
        "micro_batch_size": run.micro_batch_size,
    }


def main() -> None:
    """Run as this rank."""
    output, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    with joined("cpu") as ranks:
        results = {name: run_case(ranks, case) for name, case in cases.items()}
    (output / f"rank-{ranks.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()

"""The guard against hidden labels: ``python -m bench.guard``.

Runs every trial (task x seed x setting) that is not in the folder yet, then lets the guard decide each from its
outputs alone and compares with the labels.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from bench.tasks import all_tasks
from bench.trials import SETTINGS, Key, run_trial

HERE = Path(__file__).parent


def run_missing(keys: list[Key], folder: Path, num_processes: int) -> None:
    """Run the trials that have no file."""
    missing = [key for key in keys if not key.file(folder).exists()]
    with ProcessPoolExecutor(num_processes) as pool:
        futures = {pool.submit(run_trial, key, folder): key for key in missing}
        for i, future in enumerate(as_completed(futures), 1):
            future.result()
            print(f"{i}/{len(missing)} {futures[future]}", file=sys.stderr, flush=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(all_tasks()))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS))
    parser.add_argument("--outputs", type=Path, default=HERE / "outputs")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    a = parser.parse_args()
    keys = [Key(task, seed, setting) for seed in a.seeds for setting in a.settings for task in a.tasks]
    run_missing(keys, a.outputs, a.processes)
    return 0


if __name__ == "__main__":
    sys.exit(main())

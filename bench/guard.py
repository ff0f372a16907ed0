"""The guard against hidden labels: ``python -m bench.guard``.

A trial adapts the tiny base model to a task with a setting, good or bad; the guard then decides it from outputs alone,
and so do simpler rules. Labels are read for the table: how often a rule shipped a classifier that is worse on other
images of the task, and how much it kept of the gain that who sees the labels would have kept.

``--run`` runs the trials that have no file in ``--outputs`` yet (hours), and writes what came of all of them to the
results file, beside what it holds of the same version of the code. Without it, the tables are printed from that file.
Constants were chosen on seeds of 100 and above; tables are of the others unless ``--development`` is given.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from bench.guard_report import Result, print_report
from bench.tasks import all_tasks
from bench.trials import DEVELOPMENT_SEEDS, SETTINGS, VERSION, Key, judged, run_trial

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "guard.jsonl"


def run_missing(keys: list[Key], folder: Path, num_processes: int) -> None:
    """Run the trials that have no file."""
    missing = [key for key in keys if not key.file(folder).exists()]
    with ProcessPoolExecutor(num_processes) as pool:
        futures = {pool.submit(run_trial, key, folder): key for key in missing}
        for i, future in enumerate(as_completed(futures), 1):
            future.result()
            print(f"{i}/{len(missing)} {futures[future]}", file=sys.stderr, flush=True)


def write_results(folder: Path, results: Path) -> None:
    """Let every rule decide every trial in the folder; results of this version whose outputs are gone are kept."""
    keys = sorted((Key.of(file) for file in folder.glob("*.npz")), key=lambda key: (key.task, key.seed, key.setting))
    earlier = read_results(results) if results.exists() else []
    kept = [r for r in earlier if Key(r.task, r.seed, r.setting) not in keys]
    found = sorted([*kept, *judged(keys, folder)], key=lambda r: (r.task, r.seed, r.setting))
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text("".join(json.dumps(asdict(result)) + "\n" for result in found), encoding="utf-8")


def read_results(results: Path) -> list[Result]:
    """What `write_results` wrote."""
    rows = map(json.loads, results.read_text(encoding="utf-8").splitlines())
    return [Result(**row) for row in rows if row.get("version") == VERSION]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--tasks", nargs="+", default=list(all_tasks()))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--outputs", type=Path, default=HERE / "outputs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--development", action="store_true")
    a = parser.parse_args()
    outputs = a.outputs / f"v{VERSION}"
    if a.run:
        keys = [Key(task, seed, setting) for seed in a.seeds for setting in a.settings for task in a.tasks]
        run_missing(keys, outputs, a.processes)
        write_results(outputs, a.results)
    results = [r for r in read_results(a.results) if (r.seed >= DEVELOPMENT_SEEDS) is a.development]
    if not results:
        print(f"{a.results} holds nothing of this version and kind; --run makes it", file=sys.stderr)
        return 1
    print_report(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

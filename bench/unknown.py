"""Can a classifier tell images of none of its classes? ``python -m bench.unknown``.

Each task has strangers: images of classes that are not in its list, shown the same way. Zero-shot, the teacher of an
adaptation and the classifier half-way between them get a limit each from the held-out images, as in a job, and are
asked about other images of the task and about the strangers. Several scores are compared by how well they tell one
from the other at any limit (AUROC) and at the one that was found.

``--run`` makes the results anew (ten minutes) and writes them to the results file; without it they are printed from
there. Which score to go by was chosen on seed 100.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.tasks import Task, all_tasks, leaving_out, seed_of
from bench.trials import InMemory, Scene, evidence_for_auto, look
from must_core import auto as choosing
from must_core.adapt import adapt
from must_core.adaptation import Adaptation
from must_core.interpolation import between
from must_core.student import Student
from must_core.unknown import lower_limit, raw_scores

RESULTS = Path(__file__).parent / "results" / "unknown.jsonl"
WHOLE = ("digits-blurred", "letters-bent")
"""Digits against letters, and letters against digits."""
SOME = ("scans", "mnist", "digits-textured", "letters-bent", "shapes-fog", "coloured-shapes")
"""With each fifth of the classes left out of the list."""
NUM_STRANGERS = 500
CONTAMINATION = 0.1

SCORES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "raw score": raw_scores,
    "above mean": lambda logits_NK, scale: raw_scores(logits_NK, scale) - logits_NK.mean(dim=-1) / scale,
    "energy": lambda logits_NK, _: logits_NK.logsumexp(dim=-1),
    "score": lambda logits_NK, _: logits_NK.softmax(dim=-1).max(dim=-1).values,
    "margin": lambda logits_NK, _: -logits_NK.softmax(dim=-1).topk(2, dim=-1).values.diff(dim=-1)[:, 0],
}
"""By name: how well an image is known, from logits and their scale."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How well a score tells strangers; ``…flagged`` are shares of the images below the limit."""

    task: str
    seed: int
    classifier: str
    score: str
    auroc: float
    strangers_flagged: float
    known_flagged: float
    known_flagged_by_trained_on: float
    """With a limit from images that were trained on."""
    strangers_flagged_if_contaminated: float
    """With strangers among the held-out images, a tenth of them."""


def tasks() -> list[Task]:
    """Those with strangers."""
    every = all_tasks()
    return [every[name] for name in WHOLE] + [leaving_out(every[name]) for name in SOME if name in every]


def measure(task: Task, seed: int) -> Iterator[Result]:
    """Adapt, and try every score of every classifier."""
    scene = Scene.of(task, seed)
    assert task.strangers is not None  # noqa: S101 - see `tasks`
    strangers = task.strangers(NUM_STRANGERS, np.random.default_rng(seed_of(task.name, seed, "strangers")))
    sets = [scene.pixels(some.images_NHWC) for some in (scene.unlabeled, scene.test, strangers)]
    zero_shot = Student.from_base(scene.base, scene.weights_DK, seed=seed)
    teacher = _adapted(scene, zero_shot, seed)
    candidates = {"zero-shot": zero_shot, "half-way": between(zero_shot, teacher, 0.5), "teacher": teacher}
    for classifier, candidate in candidates.items():
        logits = [look(candidate, pixels_NCHW).logits_NK for pixels_NCHW in sets]
        for score, ask in SCORES.items():
            unlabeled_N, known_N, strange_N = (ask(logits_NK, candidate.logit_scale) for logits_NK in logits)
            held_out_N, trained_on_N = unlabeled_N[: scene.num_held_out], unlabeled_N[scene.num_held_out :]
            some = round(CONTAMINATION * len(held_out_N))
            yield Result(
                task=task.name,
                seed=seed,
                classifier=classifier,
                score=score,
                auroc=auroc(known_N, strange_N),
                strangers_flagged=_flagged(strange_N, held_out_N),
                known_flagged=_flagged(known_N, held_out_N),
                known_flagged_by_trained_on=_flagged(known_N, trained_on_N),
                strangers_flagged_if_contaminated=_flagged(
                    strange_N[some:], torch.cat([strange_N[:some], held_out_N[some:]])
                ),
            )


def auroc(known_N: Tensor, strange_N: Tensor) -> float:
    """How often a known image has the higher score of the two; half where they are equal."""
    above = (known_N[:, None] > strange_N).double() + 0.5 * (known_N[:, None] == strange_N).double()
    return float(above.mean())


def _flagged(scores_N: Tensor, calibration_N: Tensor) -> float:
    limit = lower_limit(calibration_N)
    return 0.0 if limit is None else float((scores_N < limit).double().mean())


def _adapted(scene: Scene, zero_shot: Student, seed: int) -> Student:
    """The teacher of a run whose settings chose themselves."""
    evidence = evidence_for_auto(scene, zero_shot)
    config, _ = choosing.choose({}, evidence, scene.base, seed=seed)
    run = Adaptation(deepcopy(zero_shot), config, steps_per_epoch=evidence.num_images // config.batch_size)
    for _ in adapt(run, InMemory(scene.training_NHWC), scene.base.preprocess):
        pass
    return run.teacher


def print_report(results: list[Result]) -> None:
    """Means over the tasks for every score, then each task by the score that is used."""
    print(f"{'mean of tasks':26}{'score':12}{'AUROC':>7}{'strangers flagged':>19}{'known flagged':>15}")
    for classifier in ("zero-shot", "half-way", "teacher"):
        for score in SCORES:
            some = [r for r in results if (r.classifier, r.score) == (classifier, score)]
            shown = [statistics.mean(values) for values in zip(*map(_shown, some), strict=True)]
            print(f"{classifier:26}{score:12}{shown[0]:7.3f}{shown[1]:19.0%}{shown[2]:15.1%}")
    print(f"\nBy raw score\n{'task':26}{'classifier':12}{'AUROC':>7}{'strangers flagged':>19}{'known flagged':>15}")
    used = [r for r in results if r.score == "raw score"]
    for task, some_of_task in groupby(sorted(used, key=lambda r: r.task), key=lambda r: r.task):
        for classifier, one in groupby(some_of_task, key=lambda r: r.classifier):
            shown = [statistics.mean(values) for values in zip(*map(_shown, one), strict=True)]
            print(f"{task:26}{classifier:12}{shown[0]:7.3f}{shown[1]:19.0%}{shown[2]:15.1%}")
    adapted = [r for r in used if r.classifier == "teacher"]
    print(
        f"\nTeacher, known flagged by a limit from images trained on: "
        f"{statistics.mean(r.known_flagged_by_trained_on for r in adapted):.1%} instead of "
        f"{statistics.mean(r.known_flagged for r in adapted):.1%}\n"
        f"Teacher, strangers flagged where a tenth of the held-out images are strangers: "
        f"{statistics.mean(r.strangers_flagged_if_contaminated for r in adapted):.0%} instead of "
        f"{statistics.mean(r.strangers_flagged for r in adapted):.0%}"
    )


def _shown(result: Result) -> tuple[float, float, float]:
    return result.auroc, result.strangers_flagged, result.known_flagged


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    a = parser.parse_args()
    if a.run:
        torch.set_num_threads(1)
        with a.results.open("w", encoding="utf-8") as file:
            for task in tasks():
                for seed in a.seeds:
                    file.writelines(json.dumps(asdict(result)) + "\n" for result in measure(task, seed))
                    file.flush()
                    print(task.name, seed, file=sys.stderr, flush=True)
    results = [Result(**json.loads(line)) for line in a.results.read_text(encoding="utf-8").splitlines()]
    print_report(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

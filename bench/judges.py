"""Which judge to believe: ``python -m bench.judges``, on the outputs that ``python -m bench.guard --run`` left.

Where zero-shot and an adapted classifier disagree and one of them is right, a judge should take its side. Each judge is
asked about every candidate of every development trial that changed less than half of the answers, on all unlabeled
images.

Legend: N images, K classes, D width, M disagreements, S images agreed on.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.guard import HERE
from bench.tasks import all_tasks
from bench.trials import CANDIDATES, DEVELOPMENT_SEEDS, VERSION, Key, Scene, look, opinion
from must_core.guard.judge import Evidence, judge
from must_core.guard.panel import evidence_of
from must_core.student import Student

_NEIGHBOURS = 10


def judges(scene: Scene) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """By name: from both classifiers' answers to votes, all ``…_N``."""
    zero_shot = Student.from_base(scene.base, scene.weights_DK)
    pixels_NCHW = scene.pixels(scene.unlabeled.images_NHWC)
    several = Evidence.joined([evidence_of(zero_shot, part) for part in pixels_NCHW.split(256)])
    said = look(zero_shot, pixels_NCHW)
    one = Evidence(said.features_ND, said.logits_NK.log_softmax(dim=-1))
    no_text = torch.zeros_like(several.log_scores_NK)
    no_features = torch.zeros_like(several.features_ND)
    return {
        "neighbours, one side": lambda a, b: neighbours(one.features_ND, a, b),
        "neighbours, several sides": lambda a, b: neighbours(several.features_ND, a, b),
        "discriminant, one side": lambda a, b: judge(Evidence(one.features_ND, no_text), a, b),
        "discriminant, several sides": lambda a, b: judge(Evidence(several.features_ND, no_text), a, b),
        "text, several sides": lambda a, b: judge(Evidence(no_features, several.log_scores_NK), a, b),
        "discriminant and text": lambda a, b: judge(several, a, b),
    }


def neighbours(features_ND: Tensor, zero_shot_N: Tensor, adapted_N: Tensor) -> Tensor:
    """Votes by the nearest agreed images' answers, by cosine."""
    agreed_N = zero_shot_N == adapted_N
    votes_N = torch.zeros(len(agreed_N))
    unit_ND = torch.nn.functional.normalize(features_ND - features_ND.mean(dim=0), dim=-1)
    near_MJ = (unit_ND[~agreed_N] @ unit_ND[agreed_N].T).topk(_NEIGHBOURS, dim=1).indices
    answers_MJ = zero_shot_N[agreed_N][near_MJ]
    ours_M, theirs_M = ((answers_MJ == side[~agreed_N, None]).sum(dim=1) for side in (adapted_N, zero_shot_N))
    votes_N[~agreed_N] = (ours_M - theirs_M).sign().float()
    return votes_N


def main() -> int:
    """Print a line a judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=Path, default=HERE / "outputs")
    folder = parser.parse_args().outputs / f"v{VERSION}"
    torch.set_num_threads(1)
    keys = sorted(map(Key.of, folder.glob("*.npz")), key=lambda key: (key.task, key.seed, key.setting))
    keys = [key for key in keys if key.seed >= DEVELOPMENT_SEEDS]
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for (task, seed), some in groupby(keys, key=lambda key: (key.task, key.seed)):
        asked = judges(Scene.of(all_tasks()[task], seed))
        for key in some:
            with np.load(key.file(folder)) as outputs:
                labels_N = torch.from_numpy(outputs["labels_N"])
                zero_shot_N = opinion(outputs, "zero_shot").answers_N
                for candidate in CANDIDATES:
                    adapted_N = opinion(outputs, candidate).answers_N
                    truth_N = (adapted_N == labels_N).float() - (zero_shot_N == labels_N).float()
                    if (adapted_N != zero_shot_N).double().mean() >= 0.5 or not truth_N.any():
                        continue
                    for name, ask in asked.items():
                        votes_N = ask(zero_shot_N, adapted_N)
                        right = float((votes_N == truth_N)[truth_N != 0].double().mean())
                        rows[name].append((right, float(votes_N.mean()), float(truth_N.mean())))
    print(f"{'judge':30}{'candidates':>11}{'right':>8}{'correlation':>13}{'bias':>8}{'error':>8}{'false':>7}")
    for name, row in rows.items():
        right, estimates, gains = zip(*row, strict=True)
        errors = [estimate - gain for estimate, gain in zip(estimates, gains, strict=True)]
        false = sum(estimate > 0.03 and gain < 0 for estimate, gain in zip(estimates, gains, strict=True))
        print(
            f"{name:30}{len(row):11}{statistics.mean(right):8.0%}{statistics.correlation(estimates, gains):13.2f}"
            f"{statistics.mean(errors):+8.3f}{statistics.mean(map(abs, errors)):8.3f}{false:7}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One adaptation of a task with a setting, and all that a guard could look at, kept in a file.

The guard looks on as it does in a job: training ends when it has settled, and a collapse brings back the last teacher
that passed. A collapsed run then goes on unwatched, so that it can be told what looking saved. Training dominates the
cost by far, so what it leaves (logits, features, hidden labels) is stored and every rule is tried on the stored
outputs. A trial is a function of task, seed and setting.

Legend: N unlabeled images, T images to measure on, K classes, D embedding width.
"""

import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.digits import BASE_MODEL
from bench.guard_report import Result
from bench.tasks import LabelledSet, Pixels, Task, all_tasks, seed_of
from must_core import auto as choosing
from must_core.adapt import adapt
from must_core.adaptation import Adaptation
from must_core.backbone import BaseModel, load_base
from must_core.checkpoint import Checkpoints
from must_core.errors import Diverged
from must_core.first_look import low_score
from must_core.guard.judge import Evidence, crop
from must_core.guard.panel import evidence_of, opinion_of
from must_core.guard.verdict import choose_among, compare
from must_core.guard.vetoes import Opinion, Veto
from must_core.guard.watch import Watch
from must_core.interpolation import STATIONS, between
from must_core.student import Student
from must_core.text.prompts import ClassSpec, build_class_weights

NUM_UNLABELED = 1200
LARGEST_SHARE_UNLABELED = 0.6
"""Where there are few images, the others are to measure on."""
NUM_TEST = 1000
HELD_OUT_SHARE = 0.2
logger = logging.getLogger(__name__)

VERSION = 3
"""Of what a trial comes to: raised whenever training, auto's choices, the guard or the tasks change."""
DEVELOPMENT_SEEDS = 100
"""From here on: for choosing constants, never for reporting."""
CANDIDATES = ("teacher", *STATIONS)
UNWATCHED = "unwatched"
"""The teacher at the end of a collapsed run, had nobody looked; there is none where it diverged then."""

T = TypeVar("T")
Hyperparameters = dict[str, Any]

SETTINGS: dict[str, Callable[[Mapping[str, Any]], Hyperparameters]] = {
    "auto": lambda _: {},
    "flipped": lambda _: {"horizontal_flip": True},
    "no-fairness": lambda _: {"fairness_weight": 0.0},
    "much-fairness": lambda _: {"fairness_weight": 10.0},
    "any-label": lambda _: {"confidence_threshold": 0.0},
    "surest-labels": lambda _: {"confidence_threshold": 0.97},
    "no-self-training": lambda _: {"confidence_threshold": 1.0},
    "no-masking": lambda _: {"masking": False},
    "no-alignment": lambda _: {"alignment_weight": 0.0},
    "no-augmentation": lambda _: {"rand_augment": "", "crop_scale_min": 1.0},
    "no-teacher": lambda _: {"ema_decay_init": 0.0, "ema_decay": 0.0},
    "small-batch": lambda _: {"batch_size": 16, "fairness_form": "paper"},
    "small-batch-running": lambda _: {"batch_size": 16, "fairness_form": "running"},
    "rate-x0.1": lambda auto: {"learning_rate_per_256": auto["learning_rate_per_256"] / 10},
    "rate-x0.3": lambda auto: {"learning_rate_per_256": auto["learning_rate_per_256"] * 0.3},
    "rate-x5": lambda auto: {"learning_rate_per_256": min(10.0, auto["learning_rate_per_256"] * 5)},
    "rate-x25": lambda auto: {"learning_rate_per_256": min(10.0, auto["learning_rate_per_256"] * 25)},
}
"""What is asked for instead of auto's choices, given those."""


@dataclass(frozen=True)
class Key:
    """Which trial."""

    task: str
    seed: int
    setting: str

    def file(self, folder: Path) -> Path:
        """Where its outputs are kept."""
        return folder / f"{self.task}~{self.seed}~{self.setting}.npz"

    @classmethod
    def of(cls, file: Path) -> "Key":
        """Which trial's outputs a file holds."""
        task, seed, setting = file.stem.split("~")
        return cls(task, int(seed), setting)


class InMemory:
    """The `ImageSource` of an array."""

    def __init__(self, images_NHWC: Pixels) -> None:
        self._images_NHWC = images_NHWC

    def __len__(self) -> int:
        return len(self._images_NHWC)

    def image(self, index: int) -> Image.Image:
        """Pixels of one image."""
        return Image.fromarray(self._images_NHWC[index])


@dataclass(frozen=True)
class Scene:
    """What the trials of a task and a seed have in common."""

    base: BaseModel
    weights_DK: Tensor
    unlabeled: LabelledSet
    test: LabelledSet

    @classmethod
    def of(cls, task: Task, seed: int) -> "Scene":
        """Draw the images and build the class head."""
        base = load_base(BASE_MODEL)
        drawn = task.draw(NUM_UNLABELED + NUM_TEST, np.random.default_rng(seed_of(task.name, seed)))
        cut = min(NUM_UNLABELED, round(LARGEST_SHARE_UNLABELED * len(drawn.labels_N)))
        return cls(
            base,
            build_class_weights(base, [ClassSpec(name) for name in task.classes], task.templates),
            LabelledSet(images_NHWC=drawn.images_NHWC[:cut], labels_N=drawn.labels_N[:cut]),
            LabelledSet(images_NHWC=drawn.images_NHWC[cut:], labels_N=drawn.labels_N[cut:]),
        )

    @property
    def num_held_out(self) -> int:
        """The first of the unlabeled images are never trained on."""
        return round(len(self.unlabeled.labels_N) * HELD_OUT_SHARE)

    @property
    def training_NHWC(self) -> Pixels:  # noqa: N802 - named by its shape
        """The others."""
        return self.unlabeled.images_NHWC[self.num_held_out :]

    def pixels(self, images_NHWC: Pixels) -> Tensor:
        """Images as the tower takes them; they have its size already."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.base.preprocess.mean, self.base.preprocess.std))
        return (torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 255 - mean) / std


def look(classifier: Student, pixels_NCHW: Tensor) -> Opinion:
    """What a classifier says of images."""
    return Opinion.joined([opinion_of(classifier, part) for part in pixels_NCHW.split(256)])


def evidence_for_auto(scene: Scene, zero_shot: Student) -> choosing.Evidence:
    """What a run would know of the unlabeled images when its settings choose themselves."""
    pixels_NCHW = scene.pixels(scene.unlabeled.images_NHWC)
    said = look(zero_shot, pixels_NCHW)
    flips, crops = (
        float((look(zero_shot, other_NCHW).answers_N != said.answers_N).double().mean())
        for other_NCHW in (pixels_NCHW.flip(-1), crop(pixels_NCHW, enlarged=0.5, top=0.5, left=0.5))
    )
    return choosing.Evidence(
        num_images=len(scene.training_NHWC),
        num_classes=scene.weights_DK.shape[1],
        flip_disagreement=flips,
        crop_disagreement=crops,
        low_score=low_score(said),
    )


def run_trial(key: Key, folder: Path) -> None:
    """Adapt, and write the outcome."""
    torch.set_num_threads(1)
    scene = Scene.of(all_tasks()[key.task], key.seed)
    pixels_NCHW, test_TCHW = scene.pixels(scene.unlabeled.images_NHWC), scene.pixels(scene.test.images_NHWC)
    zero_shot = Student.from_base(scene.base, scene.weights_DK, seed=key.seed)
    kept: dict[str, Any] = {"labels_N": scene.unlabeled.labels_N, "test_labels_T": scene.test.labels_N}

    def keep(name: str, classifier: Student) -> Opinion:
        said = look(classifier, pixels_NCHW)
        kept[f"{name}/features_ND"] = said.features_ND.half().numpy()
        kept[f"{name}/logits_NK"] = said.logits_NK.numpy()
        kept[f"{name}/test_logits_TK"] = look(classifier, test_TCHW).logits_NK.half().numpy()
        return said

    before = keep("zero_shot", zero_shot)
    evidence = evidence_for_auto(scene, zero_shot)
    auto = choosing.choose({}, evidence, scene.base, seed=key.seed)[0].to_dict()
    config, _ = choosing.choose(SETTINGS[key.setting](auto), evidence, scene.base, seed=key.seed)
    run = Adaptation(deepcopy(zero_shot), config, steps_per_epoch=evidence.num_images // config.batch_size)

    def ask(classifier: Student) -> Generator[None, None, Opinion]:
        yield
        return look(classifier, pixels_NCHW)

    with TemporaryDirectory() as checkpoints, suppress(Diverged):
        store = Checkpoints(Path(checkpoints), {"trial": str(key)})
        ended = _trained(run, scene, Watch(ask, before, run, store), store)
        kept["ending"] = json.dumps(ended.ending)
        keep("teacher", run.teacher)
        for name, share in STATIONS.items():
            keep(name, between(zero_shot, run.teacher, share))
        if ended.unwatched is not None:
            keep(UNWATCHED, ended.unwatched)
    folder.mkdir(parents=True, exist_ok=True)
    staged = key.file(folder).with_suffix(".tmp")
    with staged.open("wb") as file:
        np.savez_compressed(file, **kept)
    staged.rename(key.file(folder))


@dataclass(frozen=True)
class _Ended:
    """How training ended; the run's teacher is what a job would go on with."""

    ending: dict[str, Any]
    """``{share, collapsed, vetoes}``: of the steps, the share that was done before the end; signs of a collapse that
    there was nothing to go back from."""
    unwatched: Student | None
    """See `UNWATCHED`."""


def _trained(run: Adaptation, scene: Scene, watch: Watch, store: Checkpoints) -> _Ended:
    reports = adapt(
        run,
        InMemory(scene.training_NHWC),
        scene.base.preprocess,
        checkpoints=store,
        checkpoint_interval_s=float("inf"),
        milestones=watch.milestones,
    )
    for report in reports:
        seen = _finished(watch.heed(report))
        if seen.settled:
            break
        if seen.collapse:
            share, collapsed = run.step_index / run.total_steps, deepcopy(run.teacher)
            unwatched = None
            with suppress(Diverged):
                for _ in reports:
                    pass
                unwatched = deepcopy(run.teacher)
            vetoes = []
            if watch.roll_back() is None:
                run.teacher.load_state_dict(collapsed.state_dict())
                vetoes = [asdict(veto) for veto in seen.collapse]
            return _Ended({"share": share, "collapsed": True, "vetoes": vetoes}, unwatched)
    reports.close()
    return _Ended({"share": run.step_index / run.total_steps, "collapsed": False, "vetoes": []}, None)


def _finished(work: Generator[None, None, T]) -> T:
    while True:
        try:
            next(work)
        except StopIteration as e:
            return e.value


def judged(keys: Sequence[Key], folder: Path) -> Iterator[Result]:
    """What every rule makes of the trials' outputs, and the truth."""
    torch.set_num_threads(1)
    for (task, seed), some in groupby(keys, key=lambda key: (key.task, key.seed)):
        scene = Scene.of(all_tasks()[task], seed)
        zero_shot = Student.from_base(scene.base, scene.weights_DK)
        pixels_NCHW = scene.pixels(scene.unlabeled.images_NHWC)
        evidence = Evidence.joined([evidence_of(zero_shot, part) for part in pixels_NCHW.split(256)])
        held_out_N = torch.arange(len(pixels_NCHW)) < scene.num_held_out
        for key in some:
            with np.load(key.file(folder)) as outputs:
                if "teacher/logits_NK" not in outputs:
                    logger.warning("%s diverged and is left out: nothing could be shipped", key)
                    continue
                yield _judged(key, dict(outputs), evidence, held_out_N)


def _judged(key: Key, outputs: dict[str, Any], evidence: Evidence, held_out_N: Tensor) -> Result:
    zero_shot = opinion(outputs, "zero_shot")
    candidates = {name: opinion(outputs, name) for name in CANDIDATES}
    ending = json.loads(str(outputs["ending"]))
    others = tuple(Veto(**veto) for veto in ending["vetoes"])
    compared = {name: compare(evidence, zero_shot, o, held_out_N) for name, o in candidates.items()}
    verdict = choose_among(compared, others)
    unvetoed = [name for name in CANDIDATES if not compared[name].vetoes and not others]
    by_judge = choose_among({name: replace(each, vetoes=()) for name, each in compared.items()})
    before = _accuracy(outputs, "zero_shot")
    labels_N = torch.from_numpy(outputs["labels_N"])
    right = {
        name: float((said.answers_N == labels_N).double().mean())
        for name, said in {"zero_shot": zero_shot, **candidates}.items()
    }
    return Result(
        version=VERSION,
        task=key.task,
        seed=key.seed,
        setting=key.setting,
        zero_shot=before,
        gains={name: _accuracy(outputs, name) - before for name in CANDIDATES},
        unwatched=_unwatched(outputs, collapsed=ending["collapsed"]) - before,
        ended_at=ending["share"],
        collapsed=ending["collapsed"],
        outcome=verdict.outcome,
        candidate=verdict.candidate,
        estimate=verdict.gain.estimate,
        low=verdict.gain.low,
        high=verdict.gain.high,
        vetoes=list(dict.fromkeys(veto.name for veto in verdict.vetoes)),
        candidate_here=right[verdict.candidate] - right["zero_shot"],
        judge_alone=by_judge.candidate if by_judge.outcome == "adapted" else None,
        vetoes_alone=unvetoed[0] if unvetoed else None,
        more_confident=_mean_score(candidates["teacher"]) > _mean_score(zero_shot),
        more_informed=_information(candidates["teacher"]) > _information(zero_shot),
    )


def _unwatched(outputs: dict[str, Any], *, collapsed: bool) -> float:
    """Accuracy of the teacher had nobody looked; zero-shot's where there would be none."""
    if not collapsed:
        return _accuracy(outputs, "teacher")
    return _accuracy(outputs, UNWATCHED if f"{UNWATCHED}/test_logits_TK" in outputs else "zero_shot")


def opinion(outputs: Mapping[str, Any], name: str) -> Opinion:
    """What a classifier said of the unlabeled images, by its name in the outputs."""
    logits_NK, features_ND = (torch.from_numpy(outputs[f"{name}/{what}"]) for what in ("logits_NK", "features_ND"))
    return Opinion(logits_NK.float(), features_ND.float())


def _accuracy(outputs: dict[str, Any], name: str) -> float:
    return float((outputs[f"{name}/test_logits_TK"].argmax(axis=-1) == outputs["test_labels_T"]).mean())


def _mean_score(opinion: Opinion) -> float:
    return float(opinion.logits_NK.softmax(dim=-1).max(dim=-1).values.mean())


def _information(opinion: Opinion) -> float:
    """Of answers about images, in nats: entropy of the mean less mean of the entropies."""
    scores_NK = opinion.logits_NK.double().softmax(dim=-1)
    return float(torch.special.entr(scores_NK.mean(dim=0)).sum() - torch.special.entr(scores_NK).sum(dim=-1).mean())

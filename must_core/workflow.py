"""From images and class names to a published bundle: the whole job, as one iterator of what happens.

Both the command line and the service's trainer run this and differ only in whom they tell.

Shapes: N images, K classes.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from must_core import evaluate
from must_core.adapt import CheckpointSaved, Progress, Stopped, adapt
from must_core.adaptation import Adaptation
from must_core.auto import Choice, Evidence, choose
from must_core.backbone import load_base
from must_core.bundle import save_bundle
from must_core.checkpoint import Checkpoints
from must_core.config import AdaptConfig
from must_core.data import evaluation_batches, steps_per_epoch
from must_core.errors import InvalidConfig
from must_core.prompts import ClassSpec, PromptEnsemble
from must_core.student import Student

LOOK_AT_MOST = 1024
"""Images that choices and closing metrics are drawn from; more would cost time and change nothing."""


@dataclass(frozen=True, kw_only=True)
class AdaptRequest:
    """What to adapt to what. ``images`` are files, in an order that is part of the run's identity."""

    base_model: str
    classes: tuple[ClassSpec, ...]
    templates: tuple[str, ...]
    images: tuple[Path, ...]
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class PhaseStarted:
    """``preparing``, ``training``, ``evaluating`` or ``publishing``."""

    phase: str


@dataclass(frozen=True)
class Chosen:
    """Every hyper-parameter with its reason."""

    choices: dict[str, Choice]


@dataclass(frozen=True)
class Resumed:
    """The run goes on from an earlier attempt's checkpoint."""

    step: int


@dataclass(frozen=True)
class Completed:
    """The bundle is written."""

    bundle: Path
    metrics: dict[str, float]


Event = PhaseStarted | Chosen | Resumed | Progress | CheckpointSaved | Stopped | Completed


def run_adaptation(
    request: AdaptRequest,
    *,
    bundle: Path,
    checkpoints: Path,
    resume_from: Sequence[Path] = (),
    checkpoint_interval_s: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
    num_workers: int | None = None,
    device: str | None = None,
) -> Iterator[Event]:
    """Adapt and write the bundle folder, resuming from ``checkpoints`` or ``resume_from`` where they hold this run.

    The last event is `Completed`, or `Stopped` when ``stop`` said so. Raises this library's errors.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    workers = default_num_workers() if num_workers is None else num_workers

    yield PhaseStarted("preparing")
    base = load_base(request.base_model)
    ensemble = PromptEnsemble(base, request.classes, request.templates)
    for _ in ensemble:
        yield PhaseStarted("preparing")  # a sign of life
        if stop():
            yield Stopped(0)
            return
    student = Student.from_base(base, ensemble.weights_DK, seed=request.seed).to(device)
    if not request.images:
        raise InvalidConfig("There are no images.", code="no_usable_images", param="images")
    sample = _spread(request.images, LOOK_AT_MOST)
    looked = _Look()
    for images_BCHW in evaluation_batches(sample, base.preprocess, batch_size=64):
        looked.take(student, images_BCHW.to(device))
        yield PhaseStarted("preparing")  # a sign of life
        if stop():
            yield Stopped(0)
            return
    zero_shot_NK, flip_disagreement = looked.zero_shot_NK, looked.flip_disagreement
    evidence = Evidence(len(request.images), len(request.classes), flip_disagreement)
    config, choices = choose(request.hyperparameters, evidence, base, seed=request.seed)
    yield Chosen(choices)

    run = Adaptation(student, config, steps_per_epoch=steps_per_epoch(len(request.images), config.batch_size))
    store = Checkpoints(checkpoints, run_digest(request, config))
    if store.resume(run, resume_from) is not None:
        yield Resumed(run.step_index)

    yield PhaseStarted("training")
    for report in adapt(
        run,
        request.images,
        base.preprocess,
        checkpoints=store,
        checkpoint_interval_s=checkpoint_interval_s,
        stop=stop,
        num_workers=workers,
    ):
        yield report
        if isinstance(report, Stopped):
            return

    yield PhaseStarted("evaluating")
    adapted_NK = evaluate.predict(run.teacher, sample, base.preprocess, device=device)
    metrics = compare(zero_shot_NK, adapted_NK)

    yield PhaseStarted("publishing")
    if not bundle.exists():
        save_bundle(
            bundle,
            run.teacher,
            visual_config=base.visual_config,
            preprocess=base.preprocess,
            classes=request.classes,
            templates=request.templates,
            provenance={
                "base_model": base.address,
                "num_images": len(request.images),
                "config": config.to_dict(),
                "steps": run.step_index,
                "metrics": metrics,
            },
        )
    yield Completed(bundle, metrics)


def default_num_workers() -> int:
    """Loader processes: one core is left to the training process, and more than eight are rarely kept busy."""
    return max(1, min(8, (os.cpu_count() or 1) - 1))


def compare(zero_shot_NK: Tensor, adapted_NK: Tensor) -> dict[str, float]:
    """What changed between two classifiers' answers, said without labels."""
    metrics = {f"zero_shot_{name}": value for name, value in evaluate.summary(zero_shot_NK)}
    metrics |= {f"adapted_{name}": value for name, value in evaluate.summary(adapted_NK)}
    changed_N = zero_shot_NK.argmax(dim=-1) != adapted_NK.argmax(dim=-1)
    metrics["changed_answers"] = float(changed_N.double().mean())
    return metrics


def run_digest(request: AdaptRequest, config: AdaptConfig) -> str:
    """sha256 of all that decides a run: configuration, model, classes, and the images' names and sizes."""
    identity = {
        "config": config.digest,
        "base_model": request.base_model,
        "classes": [asdict(c) for c in request.classes],
        "templates": request.templates,
        "images": [(p.name, p.stat().st_size) for p in request.images],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _spread(paths: Sequence[Path], most: int) -> list[Path]:
    """At most so many paths, evenly spread over the list."""
    step = max(1, -(-len(paths) // most))
    return list(paths[::step])


class _Look:
    """Zero-shot ``logits_NK`` of images, and the share of answers that change when they are mirrored."""

    def __init__(self) -> None:
        self._straight: list[Tensor] = []
        self._mirrored: list[Tensor] = []

    @torch.inference_mode()
    def take(self, student: Student, images_BCHW: Tensor) -> None:
        student.eval()
        self._straight.append(student(images_BCHW).float().cpu())
        self._mirrored.append(student(images_BCHW.flip(-1)).float().cpu())

    @property
    def zero_shot_NK(self) -> Tensor:  # noqa: N802 - named by its shape
        return torch.cat(self._straight)

    @property
    def flip_disagreement(self) -> float:
        mirrored_N = torch.cat(self._mirrored).argmax(dim=-1)
        return float((self.zero_shot_NK.argmax(dim=-1) != mirrored_N).double().mean())

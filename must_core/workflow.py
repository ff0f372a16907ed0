"""From images and class names to a published bundle: the whole job, as one iterator of what happens.

Both the command line and the service's trainer run this and differ only in whom they tell.

Shapes: N images, K classes, D embedding width.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from must_core import evaluate
from must_core.adapt import CheckpointSaved, Progress, Stopped, adapt
from must_core.adaptation import Adaptation
from must_core.auto import Choice, Evidence, choose
from must_core.backbone import BaseModel, load_base
from must_core.bundle import save_bundle
from must_core.checkpoint import Checkpoints
from must_core.config import AdaptConfig
from must_core.data.image_list import ImageList
from must_core.data.labels import Labels
from must_core.data.loader import evaluation_batches, steps_per_epoch
from must_core.data.packed import PackedImages, packed_bytes, packing
from must_core.errors import InvalidConfig
from must_core.parallel import SINGLE, Ranks, local_device
from must_core.presets import Preset
from must_core.student import Student
from must_core.text.prompts import ClassSpec, PromptEnsemble

logger = logging.getLogger(__name__)

LOOK_AT_MOST = 1024
"""Images that choices and closing metrics are drawn from; more would cost time and change nothing."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images whose classes are known. Metrics come from them; nothing is chosen by them."""

    images: ImageList
    labels: Labels


@dataclass(frozen=True, kw_only=True)
class AdaptRequest:
    """What to adapt to what. ``images`` are files, in an order that is part of the run's identity."""

    base_model: str
    classes: tuple[ClassSpec, ...]
    templates: tuple[str, ...]
    images: Sequence[Path]
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    preset: Preset | None = None
    """The paper's settings for what is missing in ``hyperparameters``."""
    seed: int = 0
    evaluation: LabelledImages | None = None


@dataclass(frozen=True, kw_only=True)
class RunFolders:
    """Where a run leaves what."""

    bundle: Path
    """Must not exist; appears whole at the end."""
    checkpoints: Path
    """This run's own."""
    resume_from: Sequence[Path] = ()
    """Checkpoint folders of earlier attempts, read only."""
    cache: Path | None = None
    """For images decoded once; made when they fit ``cache_at_most_bytes``, and removed at the end. None: no cache."""
    cache_at_most_bytes: int = 8 * 2**30


@dataclass(frozen=True)
class PhaseStarted:
    """``preparing``, ``training``, ``evaluating`` or ``publishing``; told again as a sign of life."""

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


@dataclass(frozen=True)
class _Prepared:
    """What the first rank found out before training."""

    class_weights_DK: Tensor
    zero_shot_NK: Tensor
    """Of `LOOK_AT_MOST` images."""
    config: AdaptConfig
    choices: dict[str, Choice]
    identity: dict[str, str]


def run_adaptation(
    request: AdaptRequest,
    folders: RunFolders,
    *,
    checkpoint_interval_s: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
    num_workers: int | None = None,
    device: str | None = None,
    ranks: Ranks = SINGLE,
) -> Iterator[Event]:
    """Adapt and write the bundle folder, resuming where a checkpoint folder holds this run.

    The last event is `Completed`, or `Stopped` when ``stop`` said so. Raises this library's errors. With several
    ranks each runs this; the first prepares, saves, evaluates and publishes, and the others end after training.
    """
    device = device or local_device()
    workers = default_num_workers() if num_workers is None else num_workers

    yield PhaseStarted("preparing")
    with ranks.failing_together():
        _require_compiler(request, device)
        base = load_base(request.base_model)
        prepared = (yield from _prepared(request, base, device, workers, stop)) if ranks.first else None
    prepared = ranks.agreed(prepared)
    if prepared is None:
        yield Stopped(0)
        return
    yield Chosen(prepared.choices)
    config = prepared.config

    with ranks.failing_together():
        ranks.share_of(config.batch_size)
        num_steps = steps_per_epoch(len(request.images), config.batch_size)
    student = Student.from_base(base, prepared.class_weights_DK, seed=request.seed).to(device)
    run = Adaptation(student, config, steps_per_epoch=num_steps, ranks=ranks)
    store = Checkpoints(folders.checkpoints, prepared.identity)
    if store.resume(run, folders.resume_from) is not None:
        yield Resumed(run.step_index)
    images: Sequence[Path] | PackedImages | None = request.images
    if run.step_index < run.total_steps:
        images = yield from _decoded_once(request.images, folders, workers, ranks, stop)
    if images is None:
        yield Stopped(run.step_index)
        return

    yield PhaseStarted("training")
    for report in adapt(
        run,
        images,
        base.preprocess,
        checkpoints=store,
        checkpoint_interval_s=checkpoint_interval_s,
        stop=stop,
        num_workers=workers,
    ):
        yield report
        if isinstance(report, Stopped):
            return
    run.end_training()
    if ranks.first_of_host and folders.cache is not None:
        shutil.rmtree(_cache_of_host(folders.cache, ranks), ignore_errors=True)
        with suppress(OSError):  # other hosts' caches may still be there
            folders.cache.rmdir()
    if not ranks.first:
        return

    yield PhaseStarted("evaluating")
    looked_at = _spread(request.images)
    adapted_NK = evaluate.predict(run.teacher, looked_at, base.preprocess, device=device, num_workers=workers)
    metrics = compare(prepared.zero_shot_NK, adapted_NK)
    if request.evaluation is not None:
        zero_shot = Student.from_base(base, prepared.class_weights_DK).to(device)
        for name, classifier in (("zero_shot", zero_shot), ("student", run.student), ("teacher", run.teacher)):
            measured = yield from _measured(
                classifier, request.evaluation, base, device=device, num_workers=workers, stop=stop
            )
            if measured is None:
                yield Stopped(run.step_index)
                return
            metrics |= {f"{name}_{metric}": value for metric, value in measured.items()}

    yield PhaseStarted("publishing")
    if not folders.bundle.exists():
        save_bundle(
            folders.bundle,
            run.teacher,
            visual_config=base.visual_config,
            preprocess=base.preprocess,
            classes=request.classes,
            templates=request.templates,
            provenance={
                "base_model": base.address,
                "base_text_fingerprint": base.text_fingerprint,
                "num_images": len(request.images),
                "config": config.to_dict(),
                "steps": run.step_index,
                "metrics": metrics,
            },
        )
    yield Completed(folders.bundle, metrics)


def default_num_workers() -> int:
    """Loader processes: a core is left to each training process of the host, and more than eight are rarely busy."""
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, cores - 1))


def compare(zero_shot_NK: Tensor, adapted_NK: Tensor) -> dict[str, float]:
    """What changed between two classifiers' answers, said without labels."""
    metrics = {f"zero_shot_{name}": value for name, value in evaluate.summary(zero_shot_NK)}
    metrics |= {f"adapted_{name}": value for name, value in evaluate.summary(adapted_NK)}
    changed_N = zero_shot_NK.argmax(dim=-1) != adapted_NK.argmax(dim=-1)
    metrics["changed_answers"] = float(changed_N.double().mean())
    return metrics


def run_identity(request: AdaptRequest, config: AdaptConfig) -> dict[str, str]:
    """What makes two runs the same, part by part: sha256 of configuration, classes, and the images' names and sizes."""
    spoken = {"classes": [asdict(c) for c in request.classes], "templates": request.templates}
    return {
        "config": config.digest,
        "base_model": request.base_model,
        "classes": hashlib.sha256(json.dumps(spoken, sort_keys=True).encode()).hexdigest(),
        "images": ImageList.of(request.images).digest(),
    }


def _require_compiler(request: AdaptRequest, device: str) -> None:
    """Raise `InvalidConfig` where torch.compile would find, minutes later, no compiler for the CPU."""
    if request.hyperparameters.get("compiled") is not True or device != "cpu":
        return
    from torch._inductor import cpp_builder, exc  # noqa: PLC0415 - takes seconds to load

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as e:
        raise InvalidConfig(
            "On a CPU, compiled=true needs a C++ compiler: install g++, or name another one in CXX, or leave it out.",
            param="compiled",
        ) from e


def _prepared(
    request: AdaptRequest, base: BaseModel, device: str, num_workers: int, stop: Callable[[], bool]
) -> Generator[Event, None, _Prepared | None]:
    """Class weights, a look at the images, and the choices that follow from it; None when told to stop."""
    base.to(device)
    ensemble = PromptEnsemble(base, request.classes, request.templates)
    for _ in ensemble:
        yield PhaseStarted("preparing")
        if stop():
            return None
    base.to("cpu")
    if not request.images:
        raise InvalidConfig("There are no images.", code="no_usable_images", param="images")
    student = Student.from_base(base, ensemble.weights_DK).to(device)
    looked = _Look()
    for images_BCHW in evaluation_batches(
        _spread(request.images), base.preprocess, batch_size=64, num_workers=num_workers
    ):
        looked.take(student, images_BCHW.to(device))
        yield PhaseStarted("preparing")
        if stop():
            return None
    evidence = Evidence(len(request.images), len(request.classes), looked.flip_disagreement)
    config, choices = choose(request.hyperparameters, evidence, base, seed=request.seed, preset=request.preset)
    return _Prepared(ensemble.weights_DK, looked.zero_shot_NK, config, choices, identity=run_identity(request, config))


def _decoded_once(
    paths: Sequence[Path], folders: RunFolders, num_workers: int, ranks: Ranks, stop: Callable[[], bool]
) -> Generator[Event, None, Sequence[Path] | PackedImages | None]:
    """The images to train on: packed where there is room, by one process of each host; None when told to stop."""
    cache = None if folders.cache is None else _cache_of_host(folders.cache, ranks)
    (no_room,) = ranks.any(cache is None or not _has_room(cache, paths, folders.cache_at_most_bytes))
    if cache is None or no_room:
        return paths
    stopping = disk_full = False
    if ranks.first_of_host:
        try:
            for _ in packing(paths, cache, num_workers=num_workers):
                yield PhaseStarted("preparing")
                if stopping := stop():
                    break
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            disk_full = True
            logger.warning("no room to keep decoded images after all")
    stopping, disk_full = ranks.any(stopping, disk_full)  # the others of the host wait here
    if stopping:
        return None
    return paths if disk_full else PackedImages(cache)


def _cache_of_host(cache: Path, ranks: Ranks) -> Path:
    """Hosts may share the folder, and each makes its own."""
    return cache / f"host-{ranks.host}"


def _has_room(cache: Path, paths: Sequence[Path], at_most_bytes: int) -> bool:
    """Whether a cache is within the limit and leaves half of the disk's free space, not counting one that is there."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    there = sum(file.stat().st_size for file in cache.glob("*"))
    return packed_bytes(paths) <= min(at_most_bytes, (shutil.disk_usage(cache.parent).free + there) // 2)


def _measured(
    classifier: Student,
    labelled: LabelledImages,
    base: BaseModel,
    *,
    device: str,
    num_workers: int,
    stop: Callable[[], bool],
) -> Generator[Event, None, dict[str, float] | None]:
    """Accuracies; None when told to stop."""
    tally = evaluate.Tally()
    for _ in evaluate.count_into(
        tally,
        classifier,
        labelled.images,
        base.preprocess,
        labelled.labels.labels_N,
        device=device,
        num_workers=num_workers,
    ):
        yield PhaseStarted("evaluating")
        if stop():
            return None
    return dict(tally.accuracy())


def _spread(paths: Sequence[Path]) -> Sequence[Path]:
    """At most `LOOK_AT_MOST` paths, evenly spread over the list."""
    step = max(1, -(-len(paths) // LOOK_AT_MOST))
    return paths[::step]


class _Look:
    """Zero-shot ``logits_NK`` of images, and the share of answers that change when they are mirrored."""

    def __init__(self) -> None:
        self._straight: list[Tensor] = []
        self._mirrored: list[Tensor] = []

    def take(self, student: Student, images_BCHW: Tensor) -> None:
        student.eval()
        self._straight.append(evaluate.logits_of(student, images_BCHW))
        self._mirrored.append(evaluate.logits_of(student, images_BCHW.flip(-1)))

    @property
    def zero_shot_NK(self) -> Tensor:  # noqa: N802 - named by its shape
        return torch.cat(self._straight)

    @property
    def flip_disagreement(self) -> float:
        mirrored_N = torch.cat(self._mirrored).argmax(dim=-1)
        return float((self.zero_shot_NK.argmax(dim=-1) != mirrored_N).double().mean())

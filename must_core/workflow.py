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
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from must_core import evaluate
from must_core.adapt import CheckpointSaved, Progress, Report, Stopped, adapt
from must_core.adaptation import Adaptation
from must_core.auto import Choice, Evidence, choose
from must_core.backbone import BaseModel, load_base
from must_core.bundle import save_bundle
from must_core.checkpoint import Checkpoints
from must_core.compiling import require_compiler
from must_core.config import AUTO, AdaptConfig
from must_core.data.image_list import ImageList
from must_core.data.labels import Labels
from must_core.data.loader import steps_per_epoch
from must_core.data.packed import PackedImages, has_room, packing
from must_core.errors import InvalidConfig
from must_core.first_look import FirstLook, first_look, low_score
from must_core.guard.panel import Panel, Split, hold_out, no_held_out
from must_core.guard.verdict import Verdict, decide, too_few_images
from must_core.guard.vetoes import Opinion, Veto
from must_core.guard.watch import Seen, Watch
from must_core.interpolation import STATIONS, between
from must_core.memory import memory_of
from must_core.parallel import SINGLE, Ranks, local_device
from must_core.presets import Preset
from must_core.report import RunReport, make_report
from must_core.student import Student
from must_core.text.prompts import ClassSpec, PromptEnsemble
from must_core.unknown import Calibration, calibrate

logger = logging.getLogger(__name__)


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
    guarded: bool = True
    """Hold images out of training and have the guard say whether the result is better than zero-shot."""


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
    """``preparing``, ``training``, ``evaluating`` or ``publishing``."""

    phase: str


@dataclass(frozen=True)
class Worked:
    """A part of something long that has no steps is done: texts encoded, images packed, a batch looked at."""

    num_done: int
    """Parts of all kinds since this run began, so that it only grows."""


@dataclass(frozen=True)
class Chosen:
    """Every hyper-parameter with its reason."""

    choices: dict[str, Choice]


@dataclass(frozen=True)
class Resumed:
    """The run goes on from an earlier attempt's checkpoint."""

    step: int


@dataclass(frozen=True)
class RolledBack:
    """The guard saw a collapse: training ended, and the teacher is that of ``to_step`` again, where there is one."""

    vetoes: tuple[Veto, ...]
    to_step: int | None


@dataclass(frozen=True)
class Settled:
    """Hardly an answer changes any more, so training ended sooner than planned."""

    step: int


@dataclass(frozen=True)
class Completed:
    """The bundle is written. ``verdict`` says whether it is better than zero-shot; None when the guard was off."""

    bundle: Path
    metrics: dict[str, float]
    verdict: Verdict | None
    report: RunReport | None = None
    unknown: Calibration | None = None


Event = (
    PhaseStarted | Worked | Chosen | Resumed | Progress | CheckpointSaved | RolledBack | Settled | Stopped | Completed
)


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
    return _Job(
        request=request,
        folders=folders,
        checkpoint_interval_s=checkpoint_interval_s,
        stop=stop,
        num_workers=default_num_workers() if num_workers is None else num_workers,
        device=device or local_device(),
        ranks=ranks,
    ).run()


class _StopAsked(Exception):
    """The caller wants to stop."""


@dataclass(frozen=True)
class _Prepared:
    """What the first rank found out before training."""

    class_weights_DK: Tensor
    split: Split
    first_look: FirstLook
    config: AdaptConfig
    choices: dict[str, Choice]
    identity: dict[str, str]


@dataclass(frozen=True)
class _Chosen:
    """The classifier to publish, by its name among the candidates, and what is known of it."""

    name: str
    classifier: Student
    metrics: dict[str, float]
    verdict: Verdict | None
    report: RunReport
    unknown: Calibration


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One call of `run_adaptation`."""

    request: AdaptRequest
    folders: RunFolders
    checkpoint_interval_s: float
    stop: Callable[[], bool]
    num_workers: int
    device: str
    ranks: Ranks
    parts: Iterator[int] = field(default_factory=lambda: count(1))
    """Counts what `Worked` tells."""

    def run(self) -> Iterator[Event]:
        """The phases, one after the other."""
        yield PhaseStarted("preparing")
        with self.ranks.failing_together():
            require_compiler(self.request.hyperparameters, self.device)
            base = load_base(self.request.base_model)
            prepared = None
            if self.ranks.first:
                with suppress(_StopAsked):
                    prepared = yield from self._prepare(base)
        prepared = self.ranks.agreed(prepared)
        if prepared is None:
            yield Stopped(0)
            return
        yield Chosen(prepared.choices)

        images = ImageList.of(self.request.images).take(prepared.split.training)
        run = self._adaptation(base, prepared, len(images))
        panel = self._panel(base, prepared.split)
        try:
            collapse = yield from self._train(run, images, panel, base, prepared)
            if self.ranks.first:
                chosen = yield from self._choose(run, collapse, panel, base, prepared)
        except _StopAsked:
            yield Stopped(run.step_index)
            return
        if self.ranks.first:
            yield from self._publish(chosen, run, base, prepared)

    def _prepare(self, base: BaseModel) -> Generator[Event, None, _Prepared]:
        """Class weights, a look at the images, and the choices that follow from it."""
        request = self.request
        base.to(self.device)
        ensemble = PromptEnsemble(base, request.classes, request.templates)
        yield from self._in_parts(iter(ensemble))
        base.to("cpu")
        if not request.images:
            raise InvalidConfig("There are no images.", code="no_usable_images", param="images")
        num_images = len(request.images)
        split = hold_out(num_images, seed=request.seed) if request.guarded else no_held_out(num_images)
        zero_shot = Student.from_base(base, ensemble.weights_DK).to(self.device)
        looking = first_look(zero_shot, self._panel(base, split), for_the_judge=len(split.held_out) > 0)
        looked = yield from self._in_parts(looking)
        evidence = Evidence(
            num_images=len(split.training),
            num_classes=len(request.classes),
            flip_disagreement=looked.flip_disagreement,
            crop_disagreement=looked.crop_disagreement,
            low_score=low_score(looked.zero_shot),
        )
        config, choices = choose(
            request.hyperparameters,
            evidence,
            base,
            seed=request.seed,
            preset=request.preset,
            memory=memory_of(
                zero_shot,
                base.preprocess.image_size,
                bfloat16=request.hyperparameters.get("precision") == "bfloat16",
                num_ranks=self.ranks.world_size,
            ),
        )
        return _Prepared(ensemble.weights_DK, split, looked, config, choices, run_identity(request, config))

    def _panel(self, base: BaseModel, split: Split) -> Panel:
        return Panel(
            self.request.images,
            split,
            base.preprocess,
            num_classes=len(self.request.classes),
            device=self.device,
            num_workers=self.num_workers,
        )

    def _adaptation(self, base: BaseModel, prepared: _Prepared, num_images: int) -> Adaptation:
        with self.ranks.failing_together():
            self.ranks.share_of(prepared.config.batch_size)
            num_steps = steps_per_epoch(num_images, prepared.config.batch_size)
        student = Student.from_base(base, prepared.class_weights_DK, seed=self.request.seed).to(self.device)
        return Adaptation(
            student,
            prepared.config,
            steps_per_epoch=num_steps,
            ranks=self.ranks,
            micro_batch_size=prepared.config.micro_batch_size,
        )

    def _train(
        self, run: Adaptation, images: ImageList, panel: Panel, base: BaseModel, prepared: _Prepared
    ) -> Generator[Event, None, tuple[Veto, ...]]:
        """Train to the end, or to a collapse; returns its signs where there was nothing to go back to."""
        store = Checkpoints(self.folders.checkpoints, prepared.identity)
        if store.resume(run, self.folders.resume_from) is not None:
            yield Resumed(run.step_index)
        source: Sequence[Path] | PackedImages = images
        if run.step_index < run.total_steps:
            source = yield from self._decoded_once(images)
        yield PhaseStarted("training")
        watch = None
        if len(prepared.split.held_out):
            watch = Watch(panel.opinion, prepared.first_look.zero_shot, run, store, self.folders.resume_from)
        reports = adapt(
            run,
            source,
            base.preprocess,
            checkpoints=store,
            checkpoint_interval_s=self.checkpoint_interval_s,
            milestones=watch.milestones if watch else (),
            stop=self.stop,
            num_workers=self.num_workers,
        )
        with closing(reports):
            collapse = yield from self._watched(reports, watch, run)
        run.end_training()
        if self.ranks.first_of_host and self.folders.cache is not None:
            shutil.rmtree(_cache_of_host(self.folders.cache, self.ranks), ignore_errors=True)
            with suppress(OSError):  # other hosts' caches may still be there
                self.folders.cache.rmdir()
        return collapse

    def _watched(
        self, reports: Iterator[Report], watch: Watch | None, run: Adaptation
    ) -> Generator[Event, None, tuple[Veto, ...]]:
        """The loop's reports, to their end or a collapse; returns as `_train` does."""
        seen = Seen()
        if watch is not None and run.step_index in watch.milestones:  # an attempt ended on its way to this look
            seen = yield from self._in_parts(watch.look(), heed_stop=self.ranks.world_size == 1)
        while not seen.collapse and not self._ends(seen) and (report := next(reports, None)) is not None:
            if isinstance(report, Stopped):
                raise _StopAsked
            yield report
            if watch is not None:
                seen = yield from self._in_parts(watch.heed(report), heed_stop=self.ranks.world_size == 1)
        if not seen.collapse or watch is None:
            if run.step_index < run.total_steps:
                yield Settled(run.step_index)
            return ()
        to_step = watch.roll_back()
        yield RolledBack(seen.collapse, to_step)
        return seen.collapse if to_step is None else ()

    def _ends(self, seen: Seen) -> bool:
        """Who asked for a number of epochs gets it."""
        asked = self.request.hyperparameters.get("epochs", AUTO if self.request.preset is None else None)
        return seen.settled and asked == AUTO

    def _choose(
        self, run: Adaptation, collapse: tuple[Veto, ...], panel: Panel, base: BaseModel, prepared: _Prepared
    ) -> Generator[Event, None, _Chosen]:
        """Compare the candidates with zero-shot, without labels; measure all of them where there are labels."""
        yield PhaseStarted("evaluating")
        looked, request = prepared.first_look, self.request
        zero_shot = Student.from_base(base, prepared.class_weights_DK, seed=request.seed).to(self.device)
        names = ("teacher", *STATIONS) if looked.evidence is not None else ("teacher",)

        def candidate(name: str) -> Student:
            """Made when asked for: all at once may be more than a GPU holds."""
            return run.teacher if name == "teacher" else between(zero_shot, run.teacher, STATIONS[name])

        opinions: dict[str, Opinion] = {}
        for name in names:
            opinions[name] = yield from self._in_parts(panel.opinion(candidate(name)))
        verdict = None
        if request.guarded and looked.evidence is None:
            verdict = too_few_images(len(request.images))
        elif looked.evidence is not None:
            verdict = decide(
                looked.evidence, looked.zero_shot, opinions, panel.held_out_N, seed=request.seed, others=collapse
            )
        name = verdict.candidate if verdict else "teacher"
        metrics = evaluate.what_changed(looked.zero_shot.logits_NK, opinions[name].logits_NK)
        if request.evaluation is not None:
            others = {"zero_shot": zero_shot, "student": run.student}
            for measured in (*others, *names):
                classifier = others.get(measured) or candidate(measured)
                accuracies = yield from self._measured(classifier, request.evaluation, base)
                metrics |= {f"{measured}_{metric}": value for metric, value in accuracies.items()}
        report = make_report(
            looked.zero_shot.logits_NK,
            opinions[name].logits_NK,
            panel.positions_N,
            panel.held_out_N,
            seed=request.seed,
        )
        unknown = calibrate(
            looked.zero_shot.logits_NK, opinions[name].logits_NK, panel.held_out_N, logit_scale=base.logit_scale
        )
        return _Chosen(name, candidate(name), metrics, verdict, report, unknown)

    def _publish(self, chosen: _Chosen, run: Adaptation, base: BaseModel, prepared: _Prepared) -> Iterator[Event]:
        yield PhaseStarted("publishing")
        folder = self.folders.bundle
        if not folder.exists():
            save_bundle(
                folder,
                chosen.classifier,
                visual_config=base.visual_config,
                preprocess=base.preprocess,
                classes=self.request.classes,
                templates=self.request.templates,
                provenance={
                    "base_model": base.address,
                    "base_text_fingerprint": base.text_fingerprint,
                    "num_images": len(self.request.images),
                    "num_held_out": len(prepared.split.held_out),
                    "config": prepared.config.to_dict(),
                    "steps": run.step_index,
                    "classifier": chosen.name,
                    "metrics": chosen.metrics,
                    "verdict": chosen.verdict.to_dict() if chosen.verdict else None,
                    "unknown": asdict(chosen.unknown),
                },
                unknown_below=chosen.unknown.adapted_below,
            )
        yield Completed(folder, chosen.metrics, chosen.verdict, chosen.report, chosen.unknown)

    def _measured(
        self, classifier: Student, labelled: LabelledImages, base: BaseModel
    ) -> Generator[Event, None, dict[str, float]]:
        """Accuracies."""
        tally = evaluate.Tally()
        counting = evaluate.count_into(
            tally,
            classifier,
            labelled.images,
            base.preprocess,
            labelled.labels.labels_N,
            device=self.device,
            num_workers=self.num_workers,
        )
        yield from self._in_parts(counting)
        return dict(tally.accuracy())

    def _decoded_once(self, paths: ImageList) -> Generator[Event, None, Sequence[Path] | PackedImages]:
        """The images to train on: packed where there is room, by one process of each host."""
        ranks, folders = self.ranks, self.folders
        cache = None if folders.cache is None else _cache_of_host(folders.cache, ranks)
        (no_room,) = ranks.any(cache is None or not has_room(cache, paths, folders.cache_at_most_bytes))
        if cache is None or no_room:
            return paths
        stopping = disk_full = False
        if ranks.first_of_host:
            try:
                yield from self._in_parts(packing(paths, cache, num_workers=self.num_workers))
            except _StopAsked:
                stopping = True
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise
                disk_full = True
                logger.warning("no room to keep decoded images after all")
        stopping, disk_full = ranks.any(stopping, disk_full)  # the others of the host wait here
        if stopping:
            raise _StopAsked
        return paths if disk_full else PackedImages(cache)

    def _in_parts(self, work: Iterator[Any], *, heed_stop: bool = True) -> Generator[Event, None, Any]:
        """What a generator returns; `Worked` each time it yields. Raises `_StopAsked` when told to stop."""
        while True:
            try:
                next(work)
            except StopIteration as e:
                return e.value
            yield Worked(next(self.parts))
            if heed_stop and self.stop():
                raise _StopAsked


def default_num_workers() -> int:
    """Loader processes: a core is left to each training process of the host, and more than eight are rarely busy."""
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, cores - 1))


def run_identity(request: AdaptRequest, config: AdaptConfig) -> dict[str, str]:
    """What makes two runs the same, part by part: sha256 of configuration, classes, and the images' names and sizes."""
    spoken = {"classes": [asdict(c) for c in request.classes], "templates": request.templates}
    return {
        "config": config.digest,
        "base_model": request.base_model,
        "classes": hashlib.sha256(json.dumps(spoken, sort_keys=True).encode()).hexdigest(),
        "images": ImageList.of(request.images).digest(),
        "guarded": str(request.guarded),
    }


def _cache_of_host(cache: Path, ranks: Ranks) -> Path:
    """Hosts may share the folder, and each makes its own."""
    return cache / f"host-{ranks.host}"

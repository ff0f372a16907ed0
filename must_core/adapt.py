"""The training loop. It yields what happens and records nothing itself.

Shapes: B images.
"""

import math
import time
from collections.abc import Callable, Container, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from must_core.adaptation import Adaptation, StepResult
from must_core.backbone import Preprocess
from must_core.checkpoint import Checkpoints
from must_core.data.augment import Views
from must_core.data.augment_batch import BatchAugment
from must_core.data.loader import ImageSource, training_batches
from must_core.errors import Diverged
from must_core.masking import PatchMask, PatchMasker
from must_core.seeding import MASKS, derive_seed


@dataclass(frozen=True)
class Progress:
    """Where the run is, the means of its losses since the last report, and its rates at the last step."""

    step: int
    total_steps: int
    epoch: int
    images_per_second: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class CheckpointSaved:
    """The run can be resumed from this step."""

    step: int


@dataclass(frozen=True)
class Stopped:
    """The run ended early because it was asked to; its checkpoint is saved."""

    step: int


Report = Progress | CheckpointSaved | Stopped

_METRICS = ("loss", "self_training", "fairness", "reconstruction", "alignment", "confident_ratio")


def adapt(
    run: Adaptation,
    images: Sequence[Path] | ImageSource,
    preprocess: Preprocess,
    *,
    checkpoints: Checkpoints | None = None,
    checkpoint_interval_s: float = 60.0,
    report_interval_s: float = 0.5,
    milestones: Container[int] = (),
    stop: Callable[[], bool] = lambda: False,
    num_workers: int = 0,
) -> Generator[Report, None, None]:
    """Train to the end of the last epoch, from wherever ``run`` is.

    After each step of ``milestones`` there is a report and, with ``checkpoints``, a checkpoint. ``stop`` is asked after
    each step; when it says yes, a checkpoint is saved and `Stopped` is the last report.
    Afterwards ``run.teacher`` is the adapted classifier. Raises `Diverged` when the loss is not a finite number; what
    is saved then is older than that.

    With several ranks each runs this; the first one saves and its reports count, and a stop asked of any stops all.
    """
    ranks = run.ranks
    meter = _Meter(run.config.batch_size)
    saved_at = time.monotonic()
    with closing(_inputs(run, images, preprocess, num_workers)) as inputs:
        for weak_BCHW, strong_BCHW, mask in inputs:
            # Schedule, teacher labels, student loss, backward, step, teacher.
            meter.add(run.step(weak_BCHW, strong_BCHW, mask))

            # Report. What depends on a clock is the first rank's to decide.
            finished = run.step_index == run.total_steps
            milestone = finished or run.step_index in milestones
            due = checkpoints is not None and time.monotonic() - saved_at >= checkpoint_interval_s
            stopping, reporting, saving = ranks.any(
                not finished and stop(),
                milestone or (ranks.first and meter.seconds >= report_interval_s),
                milestone or (ranks.first and due),
            )
            saving = checkpoints is not None and (saving or stopping)
            if reporting or saving:
                yield meter.report(run)
            if checkpoints is not None and saving:
                _require_finite(run)
                if ranks.first:
                    checkpoints.save(run)
                yield CheckpointSaved(run.step_index)
                saved_at = time.monotonic()
                meter.rest()  # whoever heard of it may have looked at the teacher for long
            if stopping:
                yield Stopped(run.step_index)
                return


def _inputs(
    run: Adaptation, images: Sequence[Path] | ImageSource, preprocess: Preprocess, num_workers: int
) -> Generator[tuple[Tensor, Tensor, PatchMask | None], None, None]:
    """This rank's share of every step's views and masks, on its device."""
    config = run.config
    share = run.ranks.share_of(config.batch_size)
    device = run.student.classifier.device
    masker = _masker(run, preprocess)
    finish = BatchAugment(preprocess, config) if config.augment_on == "device" else None
    batches = training_batches(
        images,
        Views(preprocess, config),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        first_step=run.step_index,
        share=share,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    with closing(batches):
        for step, views in enumerate(batches, start=run.step_index):
            weak_BCHW, strong_BCHW = (view_BCHW.to(device, non_blocking=True) for view_BCHW in views)
            if finish is not None:
                weak_BCHW, strong_BCHW = finish(
                    weak_BCHW, strong_BCHW, key=(config.seed, step), share=share, batch_size=config.batch_size
                )
            # Mask: drawn from seed and step, so that a resumed run hides the same patches.
            mask = None
            if masker is not None:
                generator = torch.Generator().manual_seed(derive_seed(MASKS, config.seed, step))
                mask = masker.sample(config.batch_size, generator).rows(share).to(device)
            yield weak_BCHW, strong_BCHW, mask


def _require_finite(run: Adaptation) -> None:
    """The last losses were those of the weights before the last update; these are what would be kept."""
    with torch.no_grad():
        total = torch.stack([p.sum() for p in run.student.parameters()]).sum()
    if not math.isfinite(float(total)):
        raise Diverged("The weights are not finite numbers any more; a smaller learning rate may help.")


def _masker(run: Adaptation, preprocess: Preprocess) -> PatchMasker | None:
    if not (run.config.masking and run.student.can_mask):
        return None
    return PatchMasker(
        image_size=preprocess.image_size,
        patch_size=run.student.patch_size,
        mask_patch_size=run.config.mask_patch_size,
        mask_ratio=run.config.mask_ratio,
    )


class _Meter:
    """Sums metrics on the device; the only wait for the device is in `report`."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._reset()

    def _reset(self) -> None:
        self._sums: Tensor | None = None
        self._rates: dict[str, float] = {}
        self.num_steps = 0
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the last report."""
        return time.monotonic() - self._since

    def rest(self) -> None:
        """Do not count the time since the last report. For right after it: steps added since would seem faster."""
        self._since = time.monotonic()

    def add(self, result: StepResult) -> None:
        losses = result.losses
        values = torch.stack(
            [
                losses.total.detach(),
                losses.self_training.detach(),
                losses.fairness.detach(),
                losses.reconstruction.detach(),
                losses.alignment.detach(),
                result.confident_ratio.to(losses.total.dtype),
            ]
        )
        self._sums = values if self._sums is None else self._sums + values
        self._rates = {"learning_rate": result.learning_rate, "ema_decay": result.ema_decay}
        self.num_steps += 1

    def report(self, run: Adaptation) -> Progress:
        assert self._sums is not None  # noqa: S101 - report follows add
        means = (self._sums / self.num_steps).tolist()
        if not all(map(math.isfinite, means)):
            raise Diverged("The loss is not a finite number any more; a smaller learning rate may help.")
        progress = Progress(
            step=run.step_index,
            total_steps=run.total_steps,
            epoch=math.ceil(run.step_index / run.steps_per_epoch),
            images_per_second=self.num_steps * self._batch_size / max(self.seconds, 1e-9),
            metrics=dict(zip(_METRICS, means, strict=True)) | self._rates,
        )
        self._reset()
        return progress

"""``must adapt``: runs an adaptation and shows how it goes."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from must_core import adapt as loop
from must_core.cli.inputs import choose_templates, find_preset, read_labels
from must_core.cli.told import DONE, STOPPED, plain_console, told
from must_core.data.loader import find_images
from must_core.errors import InvalidConfig
from must_core.guard.verdict import headline
from must_core.interpolation import STATIONS
from must_core.parallel import Ranks, joined, local_device
from must_core.run_folder import RunFolder
from must_core.text.class_files import read_classes
from must_core.text.lookalikes import class_warnings
from must_core.workflow import (
    AdaptRequest,
    Chosen,
    Completed,
    Event,
    LabelledImages,
    PhaseStarted,
    Resumed,
    RolledBack,
    Settled,
    run_adaptation,
)

_LINE_EVERY_S = 10.0
"""Where there is no terminal to draw a bar on."""


@dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """The command line's arguments."""

    images: Path
    classes: Path
    model: str
    output: Path
    templates: Path | None
    preset: str | None
    settings: tuple[str, ...]
    seed: int
    guarded: bool
    labels: str | None
    evaluate_on: Path | None
    checkpoint_interval_s: float
    device: str | None
    num_workers: int | None


def run(options: AdaptOptions) -> int:
    """Adapt; the exit status says whether it is done or stopped."""
    with stop_on_signals() as stop_requested:
        # Told in here: torchrun ends the other processes by a signal as soon as one is gone.
        return told(lambda: _joined(options, stop_requested))


def _joined(options: AdaptOptions, stop_requested: Callable[[], bool]) -> int:
    device = local_device(options.device)
    with joined(device) as ranks, closing(RunFolder(options.output)) as folder:
        return _adapt(options, folder, device, ranks, stop_requested)


def _adapt(
    options: AdaptOptions, folder: RunFolder, device: str, ranks: Ranks, stop_requested: Callable[[], bool]
) -> int:
    with ranks.failing_together():
        request = _request(options)
        if ranks.first:
            folder.require_free()
    shown = _Shown(folder, drawn=ranks.first)
    if ranks.first:
        for warning in class_warnings(request.classes):
            plain_console(stderr=True).print(f"warning: {warning.message}")
    events = run_adaptation(
        request,
        folder.folders,
        checkpoint_interval_s=options.checkpoint_interval_s,
        stop=stop_requested,
        num_workers=options.num_workers,
        device=device,
        ranks=ranks,
    )
    status = DONE
    with shown.bar:
        for event in events:
            if isinstance(event, Chosen):  # from here on the input is known to be right
                with ranks.failing_together():
                    if ranks.first:
                        folder.start(_described(options, request, ranks))
            if ranks.first:
                folder.record(event)
                shown.show(event)
            if isinstance(event, loop.Stopped):
                status = STOPPED
            if isinstance(event, Completed) and event.report is not None:
                names = [spec.name for spec in request.classes]
                folder.write_report(event.report.to_dict(names, request.images))
    return status


def _request(options: AdaptOptions) -> AdaptRequest:
    preset = find_preset(options.preset)
    classes = read_classes(options.classes)
    images = find_images(options.images)
    evaluation = None
    if options.labels is not None:
        root = options.evaluate_on or options.images
        labelled = images if options.evaluate_on is None else find_images(root)
        names = tuple(spec.name for spec in classes)
        labels = read_labels(options.labels, labelled, names, root=root)
        evaluation = LabelledImages(images=labelled, labels=labels)
    elif options.evaluate_on is not None:
        raise InvalidConfig("Images to evaluate on need labels.", param="labels")
    return AdaptRequest(
        base_model=options.model,
        classes=classes,
        templates=choose_templates(options.templates, preset),
        images=images,
        hyperparameters=_settings(options.settings),
        preset=preset,
        seed=options.seed,
        evaluation=evaluation,
        guarded=options.guarded,
    )


def _settings(settings: tuple[str, ...]) -> dict[str, object]:
    chosen: dict[str, object] = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator:
            raise InvalidConfig("A setting is written NAME=VALUE.", param=name)
        try:
            chosen[name] = json.loads(value)
        except (ValueError, RecursionError):
            chosen[name] = {"True": True, "False": False}.get(value, value)  # as we print them
    return chosen


def _described(options: AdaptOptions, request: AdaptRequest, ranks: Ranks) -> dict[str, Any]:
    preset = request.preset
    source = str(options.templates) if options.templates else preset.templates_source if preset else "general"
    return {
        "images": str(options.images.absolute()),
        "num_images": len(request.images),
        "base_model": request.base_model,
        "classes": [{"name": c.name, "prompts": list(c.prompts)} for c in request.classes],
        "templates": list(request.templates),
        "templates_source": source,
        "preset": options.preset,
        "hyperparameters": dict(request.hyperparameters),
        "seed": request.seed,
        "guarded": request.guarded,
        "labels": options.labels,
        "evaluated_on": str(options.evaluate_on.absolute()) if options.evaluate_on else None,
        "processes": ranks.world_size,
    }


class _Shown:
    """What the person at the terminal sees; a line now and then where there is no terminal."""

    def __init__(self, folder: RunFolder, *, drawn: bool) -> None:
        self._folder = folder
        self._console = plain_console()
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(), console=self._console, disable=not (drawn and self._console.is_terminal),
        )  # fmt: skip
        self._task = self.bar.add_task("preparing", total=None, note="")
        self._line_at = time.monotonic()

    def show(self, event: Event) -> None:
        console = self._console
        match event:
            case PhaseStarted(phase):
                self.bar.update(self._task, description=phase, note="")
            case Chosen(choices):
                for name, choice in choices.items():
                    console.print(f"{name} = {choice.value}: {choice.reason}")
            case Resumed(step):
                console.print(f"resumed at step {step}")
            case loop.Progress():
                self._show_progress(event)
            case loop.Stopped(step):
                console.print(f"stopped at step {step}; the same command goes on from there")
            case RolledBack(vetoes, to_step):
                for veto in vetoes:
                    console.print(veto.reason)
                console.print("training ended" + ("" if to_step is None else f"; back to step {to_step}"))
            case Settled(step):
                console.print(f"training ended at step {step}: hardly an answer changes any more")
            case Completed():
                self._show_outcome(event)

    def _show_outcome(self, completed: Completed) -> None:
        console, metrics, verdict = self._console, completed.metrics, completed.verdict
        console.print(f"{metrics['changed_answers']:.1%} of the answers changed")
        for name in ("zero_shot", "student", "teacher", *STATIONS):
            if f"{name}_top1" in metrics:
                console.print(_accuracy(name, metrics))
        if verdict is not None:
            console.print(f"verdict: {headline(verdict.outcome)}.", *verdict.reasons)
        console.print(f"classifier in {completed.bundle}; {self._folder.root / 'README.md'} says what else is there")

    def _show_progress(self, progress: loop.Progress) -> None:
        note = f"loss {progress.metrics['loss']:.3f}, {progress.images_per_second:.0f} images/s"
        self.bar.update(self._task, completed=progress.step, total=progress.total_steps, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._line_at >= _LINE_EVERY_S:
            self._line_at = now
            left = self.bar.tasks[0].time_remaining
            until = f", {timedelta(seconds=round(left))} left" if left is not None else ""
            self._console.print(f"step {progress.step} of {progress.total_steps}: {note}{until}")


def _accuracy(name: str, metrics: dict[str, float]) -> str:
    def share(metric: str) -> str:
        return f"{metrics[f'{name}_{metric}']:.1%}"

    return (
        f"{name}: top-1 {share('top1')} (95 % interval {share('top1_low')} to {share('top1_high')}), "
        f"mean per class {share('mean_per_class')}; {metrics[f'{name}_num_labelled']:.0f} labelled images"
    )


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Within the block, SIGINT and SIGTERM only make the function that it yields say True."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

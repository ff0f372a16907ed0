"""The training library's command line: ``python -m must_core adapt …``, no service needed."""

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from must_core import adapt as loop
from must_core.backbone import load_base
from must_core.config import AUTO, HYPERPARAMETERS
from must_core.data import find_images
from must_core.errors import InvalidConfig, MustError
from must_core.files import write_json
from must_core.presets import PRESETS, preset
from must_core.prompts import DEFAULT_TEMPLATES, ClassSpec
from must_core.workflow import AdaptRequest, Chosen, Completed, PhaseStarted, Resumed, run_adaptation

STOPPED = 3
USAGE = 64


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="must_core", description="Adapt a CLIP classifier on unlabeled images.")
    adapt = parser.add_subparsers(dest="command", required=True).add_parser(
        "adapt", help="adapt a base model to a folder of images and write the classifier"
    )
    adapt.add_argument("--images", type=Path, required=True, help="folder of JPEG, PNG or WEBP files, searched deeply")
    adapt.add_argument(
        "--classes",
        type=Path,
        required=True,
        help='one class name a line, or a JSON list of names or {"name": …, "prompts": […]}',
    )
    adapt.add_argument("--templates", type=Path, help="JSON list of templates, each with one {}")
    adapt.add_argument("--model", required=True, help="ARCH/TAG, ARCH/FILE or local-dir:FOLDER")
    adapt.add_argument("--output", type=Path, required=True, help="run folder; the classifier is in its bundle/")
    adapt.add_argument("--preset", choices=PRESETS, help="the paper's setting for a data set")
    adapt.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"a hyper-parameter, a value or {AUTO}; one of {', '.join(HYPERPARAMETERS)}",
    )
    adapt.add_argument("--seed", type=int, default=0)
    adapt.add_argument("--checkpoint-interval", type=float, default=60.0, metavar="SECONDS")
    return parser


def read_classes(path: Path) -> tuple[ClassSpec, ...]:
    """Read a class list from a JSON or a plain text file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return tuple(ClassSpec(line.strip()) for line in text.splitlines() if line.strip())
    return tuple(map(ClassSpec.from_json, json.loads(text)))


def _settings(arguments: argparse.Namespace) -> dict[str, object]:
    chosen: dict[str, object] = {}
    if arguments.preset:
        base = load_base(arguments.model)
        values = preset(arguments.preset, patch_size=base.visual_config["vision_cfg"].get("patch_size", 16)).to_dict()
        chosen = {name: values[name] for name in HYPERPARAMETERS if name != "batch_size"}
    for setting in arguments.set:
        name, separator, value = setting.partition("=")
        if not separator:
            raise InvalidConfig("A setting is written NAME=VALUE.", param=name)
        try:
            chosen[name] = json.loads(value)
        except ValueError:
            chosen[name] = value
    return chosen


def _adapt(arguments: argparse.Namespace, console: Console) -> int:
    templates = DEFAULT_TEMPLATES
    if arguments.templates:
        templates = tuple(json.loads(arguments.templates.read_text(encoding="utf-8")))
    request = AdaptRequest(
        base_model=arguments.model,
        classes=read_classes(arguments.classes),
        templates=templates,
        images=tuple(find_images(arguments.images)),
        hyperparameters=_settings(arguments),
        seed=arguments.seed,
    )
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    bundle = output / "bundle"
    if bundle.exists():
        raise InvalidConfig(f"{bundle} is there already; name another folder.", param="output")
    with stop_on_signals() as stop_requested, Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(), console=console,
    ) as bar:  # fmt: skip
        task = bar.add_task("preparing", total=None, note="")
        for event in run_adaptation(
            request,
            bundle=bundle,
            checkpoints=output / "checkpoints",
            checkpoint_interval_s=arguments.checkpoint_interval,
            stop=stop_requested,
        ):
            match event:
                case PhaseStarted(phase):
                    bar.update(task, description=phase, note="")
                case Chosen(choices):
                    listed = {name: {"value": c.value, "reason": c.reason} for name, c in choices.items()}
                    write_json(output / "hyperparameters.json", listed)
                    for name, choice in choices.items():
                        console.print(f"{name} = {choice.value}  [dim]{choice.reason}[/dim]")
                case Resumed(step):
                    console.print(f"resumed at step {step}")
                case loop.Progress(step, total, _, rate, metrics):
                    note = f"loss {metrics['loss']:.3f}, {rate:.0f} images/s"
                    bar.update(task, completed=step, total=total, note=note)
                case loop.Stopped(step):
                    console.print(f"stopped at step {step}; the same command goes on from there")
                    return STOPPED
                case Completed(path, metrics):
                    write_json(output / "metrics.json", metrics)
                    console.print(f"{metrics['changed_answers']:.1%} of the answers changed; classifier in {path}")
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return 0


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, of this process when none is given.

    Returns the exit status: 0 done, 3 stopped after a checkpoint, 64 wrong input.
    """
    console = Console()
    try:
        return _adapt(_parser().parse_args(arguments), console)
    except MustError as e:
        named = f" ({e.param})" if e.param else ""
        Console(stderr=True).print(f"{e.code}{named}: {e.message}", markup=False)
        return USAGE
    except (OSError, ValueError) as e:
        Console(stderr=True).print(f"cannot read the input: {e}", markup=False)
        return USAGE


if __name__ == "__main__":
    sys.exit(main())

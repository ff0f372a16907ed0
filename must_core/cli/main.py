"""``python -m must_core``, and the same commands in ``must``: what each one takes.

What they do is in the modules beside this one, imported when a command runs: torch takes seconds to load, and
``--help`` should not.
"""

from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from must_core.cli.told import told

P = ParamSpec("P")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adapt CLIP classifiers on unlabeled images, without a service.",
)


class ExportFormat(StrEnum):
    """What a classifier can be exported to."""

    OPEN_CLIP = "open_clip"
    ONNX = "onnx"


def _command(body: Callable[P, int]) -> Callable[P, None]:
    """Register a command; what it returns is the exit status, and its errors are told in a line."""

    @wraps(body)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        raise typer.Exit(told(lambda: body(*args, **kwargs)))

    app.command()(command)
    return command


ImagesOption = Annotated[Path, typer.Option(help="Folder of JPEG, PNG or WEBP files, searched deeply.")]
ModelOption = Annotated[str, typer.Option(help="Base model: ARCH/TAG, ARCH/FILE or local-dir:FOLDER.")]
ClassifierOption = Annotated[Path, typer.Option(help="Folder of an adapted classifier (a run's bundle/).")]
ClassesOption = Annotated[
    Path, typer.Option(help='One class name a line, or a .json list of names or {"name": …, "prompts": […]}.')
]
TemplatesOption = Annotated[
    Path | None,
    typer.Option(help="Prompts with one {} each, one a line or a .json list; else the preset's, or general ones."),
]
PresetOption = Annotated[
    str | None, typer.Option(help="The paper's setting for a data set; `must presets` lists them.")
]
LabelsOption = Annotated[
    str | None,
    typer.Option(help="For metrics only: 'folders' (each image lies in a folder named like its class), or a CSV file."),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; the first GPU otherwise, or the CPU.")]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="Loader processes; as many as cores to spare.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@_command
def adapt(
    *,
    images: ImagesOption,
    classes: ClassesOption,
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="Run folder; the classifier will be in its bundle/.")],
    templates: TemplatesOption = None,
    preset: PresetOption = None,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="A hyper-parameter: a value, or auto.")
    ] = [],  # noqa: B006 - Typer copies it
    seed: Annotated[int, typer.Option(help="Decides crops, masks and order.")] = 0,
    guard: Annotated[
        bool, typer.Option(help="Hold a fifth of the images out, and say whether the result is better than zero-shot.")
    ] = True,
    labels: LabelsOption = None,
    evaluate_on: Annotated[
        Path | None, typer.Option(help="Folder of the labelled images; those adapted to otherwise.")
    ] = None,
    checkpoint_interval: Annotated[float, typer.Option(metavar="SECONDS")] = 60.0,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> int:
    """Adapt a base model to a folder of images and write the classifier.

    Ctrl-C saves a checkpoint, and the same command goes on from there. Under torchrun, several processes share every
    batch: torchrun --nproc-per-node=4 -m must_core adapt …
    """
    from must_core.cli.adapt import AdaptOptions, run

    options = AdaptOptions(
        images=images,
        classes=classes,
        model=model,
        output=output,
        templates=templates,
        preset=preset,
        settings=tuple(settings),
        seed=seed,
        guarded=guard,
        labels=labels,
        evaluate_on=evaluate_on,
        checkpoint_interval_s=checkpoint_interval,
        device=device,
        num_workers=workers,
    )
    return run(options)


@_command
def evaluate(
    *,
    images: ImagesOption,
    classifier: Annotated[Path | None, typer.Option(help="Folder of an adapted classifier (a run's bundle/).")] = None,
    model: Annotated[str | None, typer.Option(help="Instead: a base model, zero-shot. Needs --classes.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Class list, as for adapt.")] = None,
    templates: TemplatesOption = None,
    preset: PresetOption = None,
    labels: LabelsOption = None,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> int:
    """Measure a classifier on a folder of images: accuracies where labels are given, and what can be said without."""
    from must_core.cli.evaluate import require_use, run
    from must_core.cli.inputs import open_classifier

    require_use(
        classifier=classifier, classes=classes, templates=templates, preset=preset, headline=bool(labels and not json)
    )
    subject = open_classifier(classifier, model, classes, templates, preset, device=device)
    return run(subject, images, labels, device=device, num_workers=workers, as_json=json)


@_command
def classify(
    *,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    classifier: ClassifierOption,
    top_k: Annotated[int, typer.Option(min=1, help="Answers an image.")] = 3,
    device: DeviceOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON an image.")] = False,
) -> int:
    """Say what is in images. An image that cannot be read is told as such, and the exit status is then 1."""
    from must_core.cli.classify import run

    return run(classifier, images, top_k=top_k, device=device, as_json=json)


@_command
def export(
    *,
    classifier: ClassifierOption,
    to: Annotated[ExportFormat, typer.Option(help="open_clip: a folder that open_clip loads. onnx: for onnxruntime.")],
    output: Annotated[Path, typer.Option(help="Folder to make.")],
    model: Annotated[
        str | None, typer.Option(help="For open_clip, where the base model is now; the address it had otherwise.")
    ] = None,
) -> int:
    """Write a classifier for use elsewhere, with a README that says how."""
    from must_core.cli.export import run

    return run(classifier, to, output, model)


@_command
def audit(
    *,
    run: Annotated[Path, typer.Option(help="Folder of a finished run (adapt's --output).")],
    output: Annotated[
        Path | None, typer.Option(help="CSV file to make, with the images to label; printed otherwise.")
    ] = None,
    answers: Annotated[
        bool, typer.Option("--answers", help="Put both classifiers' answers into it. They lead whoever labels.")
    ] = False,
    labels: Annotated[Path | None, typer.Option(help="That file with its column label filled in.")] = None,
    json: JsonOption = False,
) -> int:
    """Propose 50 images of a run to label; with --labels, say by them how often both classifiers are right."""
    from must_core.cli.audit import count, propose
    from must_core.errors import InvalidConfig

    if labels is None:
        if json:
            raise InvalidConfig("Accuracies are printed as JSON, and need --labels.", param="json")
        return propose(run, output, answers=answers)
    if output is not None or answers:
        raise InvalidConfig(
            "With --labels nothing is written; leave --output and --answers out.",
            param="output" if output else "answers",
        )
    return count(run, labels, as_json=json)


@_command
def models(
    *,
    name: Annotated[
        str | None, typer.Argument(help="An architecture, or ARCH/TAG, ARCH/FILE, local-dir:FOLDER.")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Tell which base models can be trained on masked images, which only by self-training, and why."""
    from must_core.cli.models import run

    return run(name, as_json=json)


@_command
def presets(*, json: JsonOption = False) -> int:
    """List the paper's settings by data set, with the source of their prompts."""
    from must_core.cli.presets import run

    return run(as_json=json)

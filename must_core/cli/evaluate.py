"""``must evaluate``: measures a classifier on a folder of images."""

import json
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from must_core.cli.inputs import Subject, read_labels
from must_core.cli.told import DONE
from must_core.data.loader import find_images
from must_core.errors import InvalidConfig
from must_core.evaluate import Tally, count_into
from must_core.parallel import local_device
from must_core.workflow import default_num_workers

_BATCH = 64


def require_use(
    *, classifier: Path | None, classes: Path | None, templates: Path | None, preset: str | None, headline: bool
) -> None:
    """Raise `InvalidConfig` for an option that would change nothing.

    ``headline`` says whether accuracies are shown with the preset's metric standing out.
    """
    if classifier is not None:
        for name, file in (("classes", classes), ("templates", templates)):
            if file is not None:
                raise InvalidConfig(f"A classifier has its own {name}; leave --{name} out.", param=name)
    if preset is not None and not headline and (classifier is not None or templates is not None):
        raise InvalidConfig(
            "A preset has prompts for a model without --templates, and a metric to stand out in a table of accuracies "
            "(--labels, without --json); here it would do nothing.",
            param="preset",
        )


def run(
    subject: Subject, folder: Path, labels: str | None, *, device: str | None, num_workers: int | None, as_json: bool
) -> int:
    """Print the metrics."""
    images = find_images(folder)
    if not images:
        raise InvalidConfig("There are no images.", code="no_usable_images", param="images")
    labels_N = None
    if labels is not None:
        labels_N = read_labels(labels, images, subject.class_names, root=folder).labels_N
    tally = Tally()
    counted = count_into(
        tally,
        subject.classifier,
        images,
        subject.preprocess,
        labels_N,
        device=local_device(device),
        batch_size=_BATCH,
        num_workers=default_num_workers() if num_workers is None else num_workers,
    )
    console = Console(stderr=True)
    for _ in track(
        counted, "evaluating", total=-(-len(images) // _BATCH), console=console, disable=not console.is_terminal,
        transient=True,
    ):  # fmt: skip
        pass
    metrics = {"num_images": len(images), **dict(tally.summary()), **dict(tally.accuracy())}
    if as_json:
        Console(soft_wrap=True).print_json(json.dumps(metrics))
        return DONE
    Console().print(_table(metrics, subject.metric))
    return DONE


def _table(metrics: dict[str, float], headline: str) -> Table:
    table = Table("metric", "value")
    table.columns[1].justify = "right"
    for name, value in metrics.items():
        text = f"{value:.0f}" if name.startswith("num_") else f"{value:.2f}"
        if name in {"mean_score", "mean_per_class"} or name.startswith("top1"):
            text = f"{value:.2%}"
        table.add_row(name, text, style="bold" if name == headline else None)
    return table

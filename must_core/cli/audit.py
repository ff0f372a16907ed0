"""``must audit``: which few images of a finished run to label, and what their labels say of its two classifiers."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from must_core.audit import MIN_LABELS, MIN_OF_STRATUM, Audit, Labelled, TooFewLabels, estimate
from must_core.cli.told import DONE, plain_console
from must_core.errors import CorruptArtifact, InvalidConfig
from must_core.run_folder import RunFolder
from must_core.text.written_labels import UnknownLabel, WrittenLabels

_IMAGE, _LABEL, _ANSWERS = "image", "label", ("zero_shot", "adapted")
_DELIMITERS = ",;\t"
"""Spreadsheets of some countries put semicolons between columns."""
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""How a cell begins that spreadsheets compute, or that looks as if it had been kept from that."""


@dataclass(frozen=True)
class _Plan:
    """A run's images to label, and among how many they were drawn."""

    num_disagreed: int
    num_agreed: int
    images: Mapping[str, Mapping[str, str]]
    """By path, as it is written in tables: both answers."""
    labels: WrittenLabels


def propose(run: Path, output: Path | None, *, answers: bool) -> int:
    """Write the table to be filled in, or print it; never over a file that is there: somebody's labels may be in it."""
    plan = _plan(run)
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    shown = _ANSWERS if answers else ()
    writer.writerow([_IMAGE, _LABEL, *shown])
    for path, image in plan.images.items():
        writer.writerow([_cell(path), "", *(_cell(image[name]) for name in shown)])
    told = plain_console(stderr=output is None)
    if output is None:
        typer.echo(table.getvalue(), nl=False)
    else:
        _write_new(output, table.getvalue())
        told.print(f"{len(plan.images)} images to label in {output}")
    told.print(
        f"Look at each image and write its class into the column {_LABEL}; {plan.labels.none!r} where it is of none.\n"
        f"At least {MIN_LABELS}, better all; the first ones will do. Then:\n"
        f"  must audit --run {run} --labels {output or 'TABLE'}"
    )
    return DONE


def count(run: Path, table: Path, *, as_json: bool) -> int:
    """Print what the labels say."""
    plan = _plan(run)
    labelled = _labelled(plan, table)
    try:
        audit = estimate(labelled, num_disagreed=plan.num_disagreed, num_agreed=plan.num_agreed)
    except TooFewLabels as e:
        raise InvalidConfig(
            f"At least {MIN_LABELS} labels are needed, and {MIN_OF_STRATUM} each of images on which the classifiers "
            f"agree and disagree. {table} has labels of {len(labelled)} of the {len(plan.images)} images to label.",
            code="too_few_labels",
            param="labels",
        ) from e
    if as_json:
        Console(soft_wrap=True).print_json(json.dumps({**asdict(audit), "sentence": audit.sentence}))
        return DONE
    Console().print(_shown(audit))
    plain_console().print(audit.sentence)
    if len(labelled) < len(plan.images):
        plain_console().print(f"{len(plan.images) - len(labelled)} of {len(plan.images)} images have no label yet.")
    return DONE


def _plan(run: Path) -> _Plan:
    class_names, report = RunFolder(run).read_report()
    found = report.get("audit")
    if found is None:
        raise InvalidConfig(
            "The run is of a version that proposed no images to label; must evaluate counts labels of any images.",
            code="invalid_value",
            param="run",
        )
    try:
        images = {_as_written(each["image"]): {name: each[name] for name in _ANSWERS} for each in found["images"]}
        labels = WrittenLabels(class_names)
        for answer in (image[name] for image in images.values() for name in _ANSWERS):
            labels.index_of(answer)
        return _Plan(found["num_disagreed"], found["num_agreed"], images, labels)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CorruptArtifact(f"{run} holds something else than what the run wrote.", param="run") from e


def _labelled(plan: _Plan, table: Path) -> Sequence[Labelled]:
    labelled: dict[str, Labelled] = {}
    for line, cell, text in _rows(table):
        path = _path(plan, cell)
        image = plan.images.get(path)
        if image is None:
            raise _wrong(
                f"line {line} names {path!r}, which is none of the images to label; the column {_IMAGE} is to stay as "
                "must audit wrote it"
            )
        if not text:
            continue
        if path in labelled:
            raise _wrong(f"line {line} labels {path!r} a second time")
        zero_shot, adapted = (plan.labels.index_of(image[name]) for name in _ANSWERS)
        assert zero_shot is not None and adapted is not None  # noqa: S101, PT018 - answers are classes
        labelled[path] = Labelled(zero_shot=zero_shot, adapted=adapted, label=_label(plan.labels, line, text))
    return list(labelled.values())


def _label(labels: WrittenLabels, line: int, text: str) -> int | None:
    try:
        return _index(labels, text)
    except UnknownLabel as e:
        nearest = labels.nearest(text)
        meant = f" (perhaps {nearest!r} is)" if nearest else ""
        raise _wrong(
            f"line {line}: {text!r} is no class of the run{meant}; where an image is of none, write {labels.none!r}"
        ) from e


def _index(labels: WrittenLabels, text: str) -> int | None:
    """Of a label as typed, or as `_cell` writes it."""
    try:
        return labels.index_of(text)
    except UnknownLabel:
        if not _FORMULA.match(text):
            raise
        return labels.index_of(text.removeprefix("'"))


def _path(plan: _Plan, cell: str) -> str:
    """Of an image, as `_cell` writes it; as it is, where a spreadsheet or a person took the mark away."""
    path = cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
    return path if path in plan.images else cell


def _cell(text: str) -> str:
    """A text as a cell that no spreadsheet computes: with a leading ``'`` where it could be a formula.

    Texts that begin so already get one more, so no two texts are one cell.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def _rows(table: Path) -> Iterator[tuple[int, str, str]]:
    """Line numbers, paths and labels."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(_DELIMITERS, key=first.count)
            header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
            if not {_IMAGE, _LABEL} <= set(header):
                raise _wrong(f"the first line must name the columns {_IMAGE} and {_LABEL}, as must audit wrote them")
            image_at, label_at = header.index(_IMAGE), header.index(_LABEL)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                line = reader.line_num + 1
                if len(cells) <= max(image_at, label_at):
                    raise _wrong(f"line {line} has too few columns")
                yield line, cells[image_at], cells[label_at].strip()
    except UnicodeDecodeError as e:
        raise InvalidConfig("Labels: the table is not UTF-8.", code="invalid_encoding", param="labels") from e
    except csv.Error as e:
        raise _wrong("the table is not CSV") from e


def _as_written(path: str) -> str:
    """Bytes that are not UTF-8 as ``\\udce9``: tables are UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
    except FileExistsError as e:
        raise InvalidConfig(
            f"{path} is there already, perhaps with labels; name another file.", code="invalid_value", param="output"
        ) from e


def _shown(audit: Audit) -> Table:
    table = Table("", "accuracy", "95 % interval")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, each in (("zero-shot", audit.zero_shot), ("adapted", audit.adapted)):
        table.add_row(name, f"{each.estimate:.1%}", f"{each.low:.1%} to {each.high:.1%}")
    points: dict[str, Any] = {name: 100 * value for name, value in asdict(audit.difference).items()}
    table.add_row("difference", f"{points['estimate']:+.1f}", f"{points['low']:+.1f} to {points['high']:+.1f}")
    return table


def _wrong(what: str) -> InvalidConfig:
    return InvalidConfig(f"Labels: {what}.", code="invalid_value", param="labels")

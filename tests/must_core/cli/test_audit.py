"""must audit, as a person types it."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from app.inference.audits import audit as of_service
from must_core.cli.audit import _cell, _path, _Plan
from must_core.cli.main import app
from must_core.files import write_json
from must_core.report import RunReport, make_report
from must_core.run_folder import RunFolder
from must_core.text.written_labels import WrittenLabels

CLASSES = ["red", "green", "blue"]
NUM_IMAGES = 60
PATHS = [Path(f"photos/{i}, of 60.png") for i in range(NUM_IMAGES)]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def report() -> RunReport:
    """Zero-shot takes everything for red; the adapted classifier takes every third image for green."""
    zero_shot_NK = torch.tensor([[3.0, 1.0, 0.0]]).repeat(NUM_IMAGES, 1)
    adapted_NK = zero_shot_NK.clone()
    adapted_NK[::3] = torch.tensor([0.0, 2.0, 0.0])
    held_out_N = torch.zeros(NUM_IMAGES, dtype=torch.bool)
    return make_report(zero_shot_NK, adapted_NK, torch.arange(NUM_IMAGES), held_out_N, seed=0)


def finish(folder: Path, paths: list[Path] = PATHS, classes: list[str] = CLASSES) -> Path:
    """What a finished run leaves, as far as an audit asks."""
    folder.mkdir()
    write_json(folder / "request.json", {"classes": [{"name": name, "prompts": []} for name in classes]})
    RunFolder(folder).write_report(report().to_dict(classes, paths))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finish(tmp_path / "run")


def truth(path: str) -> str:
    """Of the images that changed, most are green; of the others all are red."""
    position = int(Path(path).name.partition(",")[0])
    return "blue" if position == 0 else "red" if position % 3 or position == 3 else "green"


def filled(rows: list[dict[str, str]], table: Path, delimiter: str = ",") -> Path:
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return table


def proposed(run: Path, *options: str) -> list[dict[str, str]]:
    table = run.parent / "to-label.csv"
    table.unlink(missing_ok=True)
    written = invoke("--run", run, "--output", table, *options)
    assert written.exit_code == 0, written.output
    assert written.stdout.startswith(f"50 images to label in {table}\n")
    assert f"must audit --run {run} --labels {table}" in written.stdout
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def labelled(run: Path) -> list[dict[str, str]]:
    return [{**row, "label": truth(row["image"])} for row in proposed(run)]


def test_what_to_label_is_a_table_without_the_answers(run: Path) -> None:
    rows = proposed(run)
    assert [row["image"] for row in rows] == [str(PATHS[image.position]) for image in report().audit.images]
    assert {tuple(row) for row in rows} == {("image", "label")}, "labels are not led by answers"
    assert {row["label"] for row in rows} == {""}
    printed = invoke("--run", run)
    assert printed.stdout == (run.parent / "to-label.csv").read_text()
    assert "Look at each image" in printed.stderr


def test_answers_are_there_for_who_asks(run: Path) -> None:
    for row in proposed(run, "--answers"):
        changed = int(Path(row["image"]).name.partition(",")[0]) % 3 == 0
        assert (row["zero_shot"], row["adapted"]) == ("red", "green" if changed else "red")


def test_the_numbers_are_the_services(run: Path) -> None:
    rows = labelled(run)
    rows[0]["label"] = "none of the classes"
    table = filled(rows, run.parent / "filled.csv")
    told = invoke("--run", run, "--labels", table, "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)

    plan = report().audit
    images = [vars(image) for image in plan.images]
    labels = [(image.position, truth(str(PATHS[image.position]))) for image in plan.images]
    expected = of_service(
        {"num_disagreed": plan.num_disagreed, "num_agreed": plan.num_agreed, "images": images},
        CLASSES,
        [(labels[0][0], None), *labels[1:]],
    )
    for name in ("zero_shot", "adapted", "difference"):
        assert found[name] == vars(getattr(expected, name))
    assert (found["num_labels"], found["sentence"]) == (50, expected.sentence)

    lines = invoke("--run", run, "--labels", table).stdout
    assert f"{expected.adapted.estimate:.1%}" in lines
    difference = expected.difference
    assert f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}" in lines
    assert expected.sentence in lines
    assert "no label yet" not in lines


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_spreadsheets_are_read(run: Path, delimiter: str) -> None:
    rows = labelled(run)
    plain = filled(rows, run.parent / "plain.csv")
    odd = filled(
        [{"note": "mine", **row, "label": f" {row['label'].upper()} "} for row in rows],
        run.parent / "odd.csv",
        delimiter,
    )
    odd.write_text("\ufeff" + odd.read_text().replace("\n", "\r\n") + f"{delimiter}{delimiter}\r\n\r\n")
    expected = invoke("--run", run, "--labels", plain, "--json").stdout
    told = invoke("--run", run, "--labels", odd, "--json")
    assert told.exit_code == 0, told.output
    assert told.stdout == expected


def test_rows_without_a_label_and_missing_rows_wait(run: Path) -> None:
    rows = labelled(run)[:30]
    for row in rows[20:]:
        row["label"] = ""
    told = invoke("--run", run, "--labels", filled(rows, run.parent / "some.csv"))
    assert told.exit_code == 0, told.output
    assert "By 20 labels" in told.stdout
    assert "30 of 50 images have no label yet." in told.stdout


def change(rows: list[dict[str, str]], number: int, **cells: str) -> list[dict[str, str]]:
    return [{**row, **cells} if i == number else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            lambda rows: change(rows, 2, label="gren"),
            "line 4: 'gren' is no class of the run (perhaps 'green' is); where",
        ),
        (
            lambda rows: change(rows, 2, label="1"),
            "line 4: '1' is no class of the run; where an image is of none, write ",
        ),
        (
            lambda rows: change(rows, 0, image="photos/x.png"),
            "line 2 names 'photos/x.png', which is none of the images",
        ),
        (lambda rows: [*rows, rows[0]], "line 52 labels "),
        (lambda rows: rows[:9], "too_few_labels (labels): At least 10 labels are needed, and 5 each of "),
        (
            lambda rows: [{"image": row["image"]} for row in rows],
            "the first line must name the columns image and label",
        ),
    ],
)
def test_wrong_tables_are_told_by_line(run: Path, wrong: Any, told: str) -> None:
    result = invoke("--run", run, "--labels", filled(wrong(labelled(run)), run.parent / "wrong.csv"))
    assert result.exit_code == 64
    assert told in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"image,label\n\xff\xfe,red\n", "invalid_encoding"),
        (b'image,label\n"photos/0, of 60.png\n', "invalid_value"),
        (b"image,label\nphotos/0\n", "invalid_value"),
        (b"", "invalid_value"),
    ],
)
def test_what_is_no_table_is_told(run: Path, content: bytes, code: str) -> None:
    (run / "labels.csv").write_bytes(content)
    result = invoke("--run", run, "--labels", run / "labels.csv")
    assert result.exit_code == 64
    assert result.stderr.startswith(f"{code} (labels): ")


def test_labels_are_never_written_over(run: Path) -> None:
    table = filled(labelled(run), run.parent / "mine.csv")
    before = table.read_bytes()
    result = invoke("--run", run, "--output", table)
    assert result.exit_code == 64
    assert "perhaps with labels" in result.stderr
    assert table.read_bytes() == before


def test_options_that_would_do_nothing_are_refused(run: Path) -> None:
    table = filled(labelled(run), run.parent / "t.csv")
    for options in (["--json"], ["--labels", table, "--output", "x.csv"], ["--labels", table, "--answers"]):
        result = invoke("--run", run, *options)
        assert result.exit_code == 64
        assert result.stderr.startswith("invalid_combination (")
    assert not Path("x.csv").exists()


def test_what_is_no_finished_run_is_told(run: Path, tmp_path: Path) -> None:
    assert invoke("--run", tmp_path / "nothing").stderr.startswith("invalid_value (run): ")
    report_file = run / "report.json"
    body = json.loads(report_file.read_text())
    body["audit"]["images"][0]["adapted"] = "purple"
    write_json(report_file, body)
    assert invoke("--run", run).stderr.startswith("artifact_corrupt (run): ")
    del body["audit"]  # as reports of the first versions are
    write_json(report_file, body)
    assert "a version that proposed no images" in invoke("--run", run).stderr
    report_file.write_text("{")
    assert invoke("--run", run).stderr.startswith("artifact_corrupt (run): ")


def test_odd_paths_and_names_come_back(tmp_path: Path) -> None:
    """Names that are not UTF-8, and a class named like the words for none."""
    classes = ["none of the classes", "ירוק", "=1+1"]
    paths = [Path(os.fsdecode(b"caf\xe9")) / f'{i}, "quoted"\n.png' for i in range(NUM_IMAGES)]
    run = finish(tmp_path / "run", paths, classes)
    rows = proposed(run)
    assert rows[0]["image"].startswith("caf\\udce9/")
    for i, row in enumerate(rows):
        row["label"] = [*classes, "(none of the classes)"][i % 4]
    told = invoke("--run", run, "--labels", filled(rows, tmp_path / "odd.csv"))
    assert told.exit_code == 0, told.output


@pytest.mark.parametrize("form", ["as written", "without the mark"])
def test_no_cell_is_a_formula(tmp_path: Path, form: str) -> None:
    """Nor are two images one row: a name may begin with the mark itself."""
    classes = ["=1+1", "@SUM(1)", "-blue"]
    paths = [Path(f"{'=+-@'[i % 4]}{i}.png") for i in range(NUM_IMAGES - 2)] + [Path("\tx.png"), Path("'=0.png")]
    run = finish(tmp_path / "run", paths, classes)
    rows = proposed(run, "--answers")
    assert {cell[:1] for row in rows for cell in row.values() if cell} == {"'"}
    by_name = {row["image"].removeprefix("'"): row for row in rows}
    assert set(by_name) == {str(paths[image.position]) for image in report().audit.images}
    rows = [{"image": row["image"], "label": row["adapted"]} for row in rows]
    if form == "without the mark":
        rows = [{name: cell.removeprefix("'") for name, cell in row.items()} for row in rows]
    told = invoke("--run", run, "--labels", filled(rows, tmp_path / "filled.csv"), "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert (found["num_labels"], found["adapted"]["estimate"]) == (50, 1.0)


@pytest.mark.parametrize("cell", ["=0.png", "'=0.png", "''=0.png"])
def test_names_that_begin_with_the_mark_are_told_apart(cell: str) -> None:
    plan = _Plan(1, 1, {"=0.png": {}, "'=0.png": {}}, WrittenLabels(CLASSES))
    assert _path(plan, cell) == ("'=0.png" if cell.startswith("''") else "=0.png")
    assert {_path(plan, _cell(path)) for path in plan.images} == set(plan.images)

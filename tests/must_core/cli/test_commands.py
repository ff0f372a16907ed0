"""The command line, as a person types it."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner, Result

from app.cli.main import app as must
from must_core.bundle import load_bundle
from must_core.cli.main import app
from must_core.config import HYPERPARAMETERS
from must_core.errors import InvalidConfig
from must_core.run_folder import RunFolder
from tests.support import torchrun
from tests.support.tiny import CLASSES, make_base, make_images

NUM_IMAGES = 24


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def adapt_arguments(folder: Path) -> list[object]:
    """Arguments for a short run on images that lie in folders of their classes."""
    for i, path in enumerate(make_images(folder / "made", NUM_IMAGES)):
        target = folder / "images" / CLASSES[i % 3] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return [
        "adapt", "--images", folder / "images", "--classes", folder / "classes.txt", "--model",
        make_base(folder / "base"), "--output", folder / "run", "--set", "epochs=2", "--set", "batch_size=8",
        "--workers", 0,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a base model and a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    result = invoke(*adapt_arguments(folder), "--labels", "folders", "--preset", "pets", "--set", "mask_patch_size=4")
    assert result.exit_code == 0, result.output
    return folder


def test_the_run_folder_explains_itself(finished: Path) -> None:
    run = finished / "run"
    assert load_bundle(run / "bundle").class_names == tuple(CLASSES)
    listed = {line.split("`")[1].rstrip("/") for line in (run / "README.md").read_text().splitlines() if "| `" in line}
    there = {path.name for path in run.iterdir()} - {"README.md"}
    assert there <= listed
    assert listed - there == {"checkpoints", "decoded"}  # gone, now that the run is finished

    request = json.loads((run / "request.json").read_text())
    assert request["num_images"] == NUM_IMAGES
    assert request["preset"] == "pets"
    assert "openai/CLIP" in request["templates_source"]
    assert request["software"]["torch"]
    chosen = json.loads((run / "hyperparameters.json").read_text())
    assert set(chosen) == set(HYPERPARAMETERS)
    assert chosen["epochs"] == {"value": 2, "reason": "As requested."}
    assert chosen["learning_rate_per_256"] == {"value": 1e-5, "reason": "The paper's setting for pets."}


def test_metrics_are_the_papers_for_student_and_teacher(finished: Path) -> None:
    metrics = json.loads((finished / "run" / "metrics.json").read_text())
    for who in ("zero_shot", "student", "teacher"):
        assert 0 <= metrics[f"{who}_top1_low"] <= metrics[f"{who}_top1"] <= metrics[f"{who}_top1_high"] <= 1
        assert 0 <= metrics[f"{who}_mean_per_class"] <= 1
        assert metrics[f"{who}_num_labelled"] == NUM_IMAGES


def test_the_report_names_images_and_classes(finished: Path) -> None:
    report = json.loads((finished / "run" / "report.json").read_text())
    metrics = json.loads((finished / "run" / "metrics.json").read_text())
    assert (report["num_images"], report["num_held_out"]) == (NUM_IMAGES, 0)
    assert report["num_changed"] == len(report["changed"]) == round(metrics["changed_answers"] * NUM_IMAGES)
    assert {c["class"] for c in report["classes"]} == set(CLASSES)
    assert sum(c["answers_adapted"] for c in report["classes"]) == NUM_IMAGES
    assert len(report["uncertain"]) == NUM_IMAGES
    assert all(Path(image["image"]).is_file() for image in report["uncertain"])


def test_a_finished_run_can_be_audited(finished: Path, tmp_path: Path) -> None:
    written = invoke("audit", "--run", finished / "run", "--output", tmp_path / "to-label.csv", "--answers")
    assert written.exit_code == 0, written.output
    with (tmp_path / "to-label.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == NUM_IMAGES
    for row in rows:
        row["label"] = Path(row["image"]).parent.name
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    counted = invoke("audit", "--run", finished / "run", "--labels", tmp_path / "labels.csv", "--json")
    assert counted.exit_code == 0, counted.output
    found, metrics = json.loads(counted.stdout), json.loads((finished / "run" / "metrics.json").read_text())
    assert found["num_labels"] == NUM_IMAGES
    for ours, theirs in (("zero_shot", "zero_shot_top1"), ("adapted", "teacher_top1")):
        assert found[ours]["estimate"] == pytest.approx(metrics[theirs]), (
            "all images are labelled: nothing is estimated"
        )


def test_curves_can_be_looked_at(finished: Path) -> None:
    board = EventAccumulator(str(finished / "run" / "tensorboard"))
    board.Reload()
    lines = [json.loads(line) for line in (finished / "run" / "progress.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == lines[-1]["total_steps"] == 6
    curve = board.Scalars("training/loss")
    assert [(p.step, pytest.approx(p.value)) for p in curve] == [(x["step"], x["metrics"]["loss"]) for x in lines]
    assert {"training/learning_rate", "training/images_per_second", "result/teacher_top1"} <= set(
        board.Tags()["scalars"]
    )


def test_a_finished_run_is_not_written_over(finished: Path) -> None:
    result = invoke(*adapt_arguments_again(finished))
    assert result.exit_code == 64
    assert "name another folder" in result.stderr


def adapt_arguments_again(folder: Path) -> list[object]:
    return [
        "adapt", "--images", folder / "images", "--classes", folder / "classes.txt", "--model",
        f"local-dir:{folder / 'base'}", "--output", folder / "run",
    ]  # fmt: skip


def test_evaluate_agrees_with_the_run(finished: Path) -> None:
    metrics = json.loads((finished / "run" / "metrics.json").read_text())
    bundle, images = finished / "run" / "bundle", finished / "images"
    common = ["--images", images, "--labels", "folders", "--workers", 0, "--json"]
    adapted = invoke("evaluate", "--classifier", bundle, *common)
    assert adapted.exit_code == 0, adapted.output
    measured = json.loads(adapted.stdout)
    assert measured["top1"] == metrics["teacher_top1"]
    assert measured["mean_per_class"] == metrics["teacher_mean_per_class"]
    model = ["--model", f"local-dir:{finished / 'base'}", "--classes", finished / "classes.txt", "--preset", "pets"]
    assert json.loads(invoke("evaluate", *model, *common).stdout)["top1"] == metrics["zero_shot_top1"]

    table = invoke("evaluate", "--classifier", bundle, "--images", images, "--labels", "folders", "--workers", 0)
    assert f"{measured['top1']:.2%}" in table.stdout


def test_labels_from_a_csv_are_the_same_as_from_folders(finished: Path) -> None:
    bundle, images = finished / "run" / "bundle", finished / "images"
    with (finished / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "label"])
        writer.writerows([str(p.relative_to(images)), p.parent.name] for p in images.rglob("*.png"))
    common = ["evaluate", "--classifier", bundle, "--images", images, "--workers", 0, "--json", "--labels"]
    assert invoke(*common, finished / "labels.csv").stdout == invoke(*common, "folders").stdout


def test_classify_says_what_is_in_images_and_what_cannot_be_read(finished: Path, tmp_path: Path) -> None:
    bundle = finished / "run" / "bundle"
    fine = sorted((finished / "images").rglob("*.png"))[0]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    result = invoke("classify", "--classifier", bundle, "--top-k", 2, "--json", fine, broken)
    assert result.exit_code == 1
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["file"] == str(fine)
    assert len(first["predictions"]) == 2
    assert {p["label"] for p in first["predictions"]} <= set(CLASSES)
    assert "error" in second

    folder = invoke("classify", "--classifier", bundle, finished / "images")
    assert folder.exit_code == 0
    assert len(folder.stdout.splitlines()) == NUM_IMAGES


def test_classify_says_which_images_are_unknown(finished: Path, tmp_path: Path) -> None:
    bundle = finished / "run" / "bundle"
    limit = load_bundle(bundle).unknown_below
    assert limit is not None
    arguments = "classify", "--classifier", bundle, finished / "images"
    answers = [json.loads(line) for line in invoke(*arguments, "--json").stdout.splitlines()]
    scores = sorted(answer["raw_score"] for answer in answers)
    assert scores[0] == pytest.approx(limit, abs=1e-5), "of 24 images, the one that is least like its class"
    assert not any(answer["unknown"] for answer in answers[1:] if answer["raw_score"] > scores[0])

    shutil.copytree(bundle, tmp_path / "strict")
    manifest = json.loads((bundle / "classifier.json").read_text())
    manifest["unknown_below"] = (scores[4] + scores[5]) / 2
    (tmp_path / "strict" / "classifier.json").write_text(json.dumps(manifest))
    lines = invoke("classify", "--classifier", tmp_path / "strict", finished / "images").stdout.splitlines()
    expected = [answer["raw_score"] < manifest["unknown_below"] for answer in answers]
    assert [line.endswith(" (unknown)") for line in lines] == expected
    assert sum(expected) == 5

    del manifest["unknown_below"]  # as bundles of the first versions are
    (tmp_path / "strict" / "classifier.json").write_text(json.dumps(manifest))
    old = invoke("classify", "--classifier", tmp_path / "strict", "--json", finished / "images").stdout.splitlines()
    assert {json.loads(line)["unknown"] for line in old} == {None}


@pytest.mark.parametrize("to", ["open_clip", "onnx"])
def test_export_makes_a_folder(finished: Path, tmp_path: Path, to: str) -> None:
    result = invoke("export", "--classifier", finished / "run" / "bundle", "--to", to, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "README.md").is_file()
    assert (
        invoke(
            "export", "--classifier", finished / "run" / "bundle", "--to", to, "--output", tmp_path / "out"
        ).exit_code
        == 64
    )


@pytest.mark.parametrize(
    ("classes", "setting", "code"),
    [
        ("cat", "epochs=1", "too_few_classes"),
        ("cat\ndog", "epochs=0", "out_of_range"),
        ("cat\ndog", "no_such=1", "unknown_field"),
        ("cat\ndog", "mask_patch_size=5", "invalid_combination"),
        ("cat\ndog", "batch_size=1000", "invalid_combination"),
        ("cat\ndog", "precision=float16", "invalid_value"),
    ],
)
def test_wrong_input_is_told_by_its_code(tmp_path: Path, classes: str, setting: str, code: str) -> None:
    arguments = adapt_arguments(tmp_path)
    (tmp_path / "classes.txt").write_text(classes)
    result = invoke(*arguments, "--set", setting)
    assert result.exit_code == 64
    assert result.stderr.startswith(code)


def test_an_unknown_preset_is_told_with_those_there_are(tmp_path: Path) -> None:
    result = invoke(*adapt_arguments(tmp_path), "--preset", "cifar")
    assert result.exit_code == 64
    assert "imagenet" in result.stderr


def test_models_say_which_and_why() -> None:
    one = invoke("models", "ViT-B-16")
    assert "masked training" in one.stdout
    assert "ViT-B-16/openai" in one.stdout
    resnet = json.loads(invoke("models", "RN50", "--json").stdout)
    assert resnet["masked"] is False
    assert resnet["reason"]
    assert invoke("models", "no-such").exit_code == 64


def test_the_services_command_has_them_too() -> None:
    help_text = CliRunner().invoke(must, ["--help"]).stdout
    for command in ("serve", "adapt", "evaluate", "classify", "export", "audit", "models", "presets"):
        assert command in help_text


def test_help_does_not_wait_for_torch() -> None:
    program = "import sys, app.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "must_core", *map(str, adapt_arguments(tmp_path))]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert load_bundle(tmp_path / "run" / "bundle").class_names == tuple(CLASSES)


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from must_core.data import packed  # noqa: PLC0415

    opened: list[object] = []
    original = packed.PackedImages.image

    def image(self: packed.PackedImages, index: int) -> Image.Image:
        opened.append(index)
        return original(self, index)

    monkeypatch.setattr(packed.PackedImages, "image", image)
    assert invoke(*adapt_arguments(tmp_path)).exit_code == 0
    assert len(opened) == 2 * NUM_IMAGES


def test_a_folder_that_is_no_run_is_left_as_it_is(tmp_path: Path) -> None:
    arguments = adapt_arguments(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("mine")
    assert invoke(*arguments).exit_code == 64
    assert (tmp_path / "run" / "README.md").read_text() == "mine"


def test_wrong_input_leaves_no_folder_behind(tmp_path: Path) -> None:
    assert invoke(*adapt_arguments(tmp_path), "--set", "epochs=zzz").exit_code == 64
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["banana", "cuda:99", "mps", "cuda:x"])
def test_a_device_that_is_not_here_is_told(tmp_path: Path, device: str) -> None:
    result = invoke(*adapt_arguments(tmp_path), "--device", device)
    assert result.exit_code == 64
    assert result.stderr.startswith("unknown_device")


def test_names_that_look_like_markup_are_printed_as_they_are(finished: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a:cat:[red].png"
    odd.write_bytes(sorted((finished / "images").rglob("*.png"))[0].read_bytes())
    bundle = finished / "run" / "bundle"
    answer = json.loads(invoke("classify", "--classifier", bundle, "--json", odd).stdout)
    assert answer["file"] == str(odd)
    assert str(odd) in invoke("classify", "--classifier", bundle, odd).stdout
    exported = invoke("export", "--classifier", bundle, "--to", "onnx", "--output", tmp_path / "o[/x]")
    assert exported.exit_code == 0
    assert "o[/x]" in exported.stdout


def test_a_missing_file_does_not_silence_the_others(finished: Path, tmp_path: Path) -> None:
    fine = sorted((finished / "images").rglob("*.png"))[0]
    result = invoke("classify", "--classifier", finished / "run" / "bundle", "--json", tmp_path / "no.png", fine)
    assert result.exit_code == 1
    missing, answered = map(json.loads, result.stdout.splitlines())
    assert "error" in missing
    assert "predictions" in answered


def test_labels_of_no_image_are_told(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("filename,label\nelsewhere/0.png,red\n")
    result = invoke(
        "evaluate", "--classifier", finished / "run" / "bundle", "--images", finished / "images", "--workers", 0,
        "--labels", tmp_path / "labels.csv",
    )  # fmt: skip
    assert result.exit_code == 64
    assert "none of them belongs to an image" in result.stderr


def test_settings_are_read_as_they_are_printed(tmp_path: Path) -> None:
    result = invoke(*adapt_arguments(tmp_path), "--set", "masking=False", "--set", "horizontal_flip=True")
    assert result.exit_code == 0, result.output
    assert "masking = False: As requested." in result.stdout


def test_class_names_that_look_alike_are_told(tmp_path: Path) -> None:
    arguments = adapt_arguments(tmp_path)
    (tmp_path / "classes.txt").write_text("red\nr\u0435d\n", encoding="utf-8")
    assert "warning:" in invoke(*arguments).stderr


def test_a_folder_takes_one_run_at_a_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*adapt_arguments(tmp_path), "--set", "epochs=10000", "--workers", 1]
    first = subprocess.Popen([sys.executable, "-m", "must_core", *map(str, arguments)], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 240
        while not (run / "progress.jsonl").exists():
            assert first.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        request = (run / "request.json").read_bytes()
        second = invoke(*arguments)
        assert second.exit_code == 64
        assert second.stderr == (
            f"invalid_combination (output): Another run is writing to {run}; "
            "wait for its end, or name another folder.\n"
        )
        assert (run / "request.json").read_bytes() == request
    finally:
        first.kill()
        first.wait()
    # At once: its loader process lives on for some seconds.
    RunFolder(run).require_free()


def test_a_run_that_came_in_between_is_noticed(tmp_path: Path) -> None:
    late = RunFolder(tmp_path / "run")
    late.require_free()
    program = (
        "import sys; from pathlib import Path; from must_core.run_folder import RunFolder; "
        "folder = RunFolder(Path(sys.argv[1])); folder.start({}); print('started', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"started\n"
        with pytest.raises(InvalidConfig, match="Another run is writing"):
            late.start({})
    late.start({})
    late.close()


def test_a_lock_alone_does_not_make_a_folder_something_else(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    RunFolder(tmp_path).require_free()


def test_compiling_without_a_compiler_is_told(tmp_path: Path) -> None:
    from torch._inductor import config  # noqa: PLC0415 - takes seconds to load

    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        result = invoke(*adapt_arguments(tmp_path), "--set", "compiled=true", "--device", "cpu")
    assert result.exit_code == 64
    assert result.stderr.startswith("invalid_combination (compiled): ")
    assert "g++" in result.stderr


def test_paths_need_not_be_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    result = invoke(*adapt_arguments(folder), "--model", make_base(tmp_path / "base"))
    assert result.exit_code == 0, result.output
    run = folder / "run"
    assert f"{tmp_path}/caf\\udce9/run/bundle" in result.stdout
    assert json.loads((run / "request.json").read_text())["images"] == str(folder / "images")
    assert [path.name.split(".")[0] for path in (run / "tensorboard").iterdir()] == ["events"]
    evaluated = invoke("evaluate", "--classifier", run / "bundle", "--images", folder / "images", "--workers", 0)
    assert evaluated.exit_code == 0, evaluated.output
    board = EventAccumulator(str(run.rename(tmp_path / "run") / "tensorboard"))
    board.Reload()
    assert board.Scalars("training/loss")


def test_accuracies_are_shown_with_their_interval(tmp_path: Path) -> None:
    result = invoke(*adapt_arguments(tmp_path), "--labels", "folders")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    low, high = (f"{metrics[f'teacher_top1_{end}']:.1%}" for end in ("low", "high"))
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("teacher: ")]
    assert f"(95 % interval {low} to {high})" in line
    assert line.endswith(f"; {NUM_IMAGES} labelled images")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--classifier", "run/bundle", "--classes", "classes.txt"], "classes"),
        (["--classifier", "run/bundle", "--templates", "templates.txt"], "templates"),
        (["--classifier", "run/bundle", "--preset", "pets"], "preset"),
        (["--classifier", "run/bundle", "--preset", "pets", "--labels", "folders", "--json"], "preset"),
        (
            ["--model", "local-dir:base", "--classes", "classes.txt", "--templates", "t.txt", "--preset", "pets"],
            "preset",
        ),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], named: str
) -> None:
    monkeypatch.chdir(finished)
    for name in ("templates.txt", "t.txt"):
        Path(name).write_text("a photo of a {}.")
    result = invoke("evaluate", "--images", "images", "--workers", 0, *options)
    assert result.exit_code == 64
    assert result.stderr.startswith(f"invalid_combination ({named}): ")


def test_a_preset_makes_its_metric_stand_out(finished: Path) -> None:
    result = invoke(
        "evaluate", "--images", finished / "images", "--workers", 0, "--classifier", finished / "run" / "bundle",
        "--preset", "pets", "--labels", "folders",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("classes", "setting", "code"),
    [
        pytest.param("cat", "epochs=1", "too_few_classes", id="every rank finds it"),
        pytest.param("cat\ndog", "no_such=1", "unknown_field", id="the first rank finds it"),
    ],
)
def test_ranks_say_once_what_is_wrong(tmp_path: Path, classes: str, setting: str, code: str) -> None:
    arguments = [*adapt_arguments(tmp_path), "--set", setting]
    (tmp_path / "classes.txt").write_text(classes)
    process = torchrun.start(["-m", "must_core", *map(str, arguments)], processes=2)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert len([line for line in printed.splitlines() if line.startswith(code)]) == 1, printed
    assert "Connection closed" not in printed
    assert not (tmp_path / "run").exists()

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from must_core.__main__ import main
from must_core.augment import Views
from must_core.auto import Evidence, choose
from must_core.backbone import Preprocess, load_base
from must_core.bundle import load_bundle
from must_core.config import HYPERPARAMETERS, AdaptConfig, check_hyperparameters
from must_core.errors import InvalidConfig
from must_core.presets import PRESETS, preset
from tests.support.tiny import CLASSES, make_base, make_images


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "must_core", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_the_command_line_adapts_and_writes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path / "images", 24)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    arguments = [
        "adapt", "--images", str(tmp_path / "images"), "--classes", str(tmp_path / "classes.txt"), "--model",
        make_base(tmp_path / "base"), "--output", str(tmp_path / "run"), "--set", "epochs=2", "--set", "batch_size=8",
    ]  # fmt: skip
    done = run_cli(*arguments)
    assert done.returncode == 0, done.stderr
    bundle = load_bundle(tmp_path / "run" / "bundle")
    assert bundle.class_names == tuple(CLASSES)
    chosen = json.loads((tmp_path / "run" / "hyperparameters.json").read_text())
    assert chosen["epochs"] == {"value": 2, "reason": "As requested."}
    assert set(chosen) == set(HYPERPARAMETERS)
    assert all(choice["reason"] for choice in chosen.values())

    assert main(arguments) == 64
    assert "name another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("classes", "setting", "code"),
    [
        ("cat", "epochs=1", "too_few_classes"),
        ("cat\ndog", "epochs=0", "out_of_range"),
        ("cat\ndog", "no_such=1", "unknown_field"),
        ("cat\ndog", "mask_patch_size=5", "invalid_combination"),
        ("cat\ndog", "batch_size=1000", "invalid_combination"),
    ],
)
def test_wrong_input_is_told_by_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: str, setting: str, code: str
) -> None:
    make_images(tmp_path / "images", 16)
    (tmp_path / "classes.txt").write_text(classes)
    arguments = [
        "adapt", "--images", str(tmp_path / "images"), "--classes", str(tmp_path / "classes.txt"), "--model",
        make_base(tmp_path / "base"), "--output", str(tmp_path / "run"), "--set", setting,
    ]  # fmt: skip
    assert main(arguments) == 64
    assert capsys.readouterr().err.startswith(code)


def test_a_value_given_always_wins(tmp_path: Path) -> None:
    base = load_base(make_base(tmp_path))
    evidence = Evidence(num_images=1000, num_classes=3, flip_disagreement=0.5)
    config, choices = choose({"epochs": 3, "horizontal_flip": True, "batch_size": "auto"}, evidence, base, seed=9)
    assert (config.epochs, config.horizontal_flip, config.seed) == (3, True, 9)
    assert choices["epochs"].reason == choices["horizontal_flip"].reason == "As requested."
    assert choices["batch_size"].reason != "As requested."


@pytest.mark.parametrize("given", [{"ema_decay": 0.5}, {"ema_decay_init": 0.9995}, {"ema_decay": 0.99}])
def test_a_given_decay_moves_the_one_that_chooses_itself(tmp_path: Path, given: dict[str, float]) -> None:
    base = load_base(make_base(tmp_path))
    for num_images in (100, 900, 1_280_000):
        config, _ = choose(given, Evidence(num_images, 3, 0.0), base, seed=0)
        assert config.ema_decay_init <= config.ema_decay
        assert {name: getattr(config, name) for name in given} == given


@pytest.mark.parametrize("policy", ["rand-m0", "rand-m10-mstd2-n5-inc0", "rand-m9-mstd0.5-inc1", "rand-m1"])
def test_every_policy_that_is_accepted_works(policy: str) -> None:
    check_hyperparameters({"rand_augment": policy})
    preprocess = Preprocess(16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic", "shortest", 0)
    views = Views(preprocess, AdaptConfig(rand_augment=policy))
    for key in range(150):
        views(Image.new("RGB", (20, 20), (9, 99, 199)), key)


@pytest.mark.parametrize(("disagreement", "flip"), [(0.0, True), (0.09, True), (0.1, False), (0.8, False)])
def test_mirroring_is_off_where_it_changes_answers(tmp_path: Path, disagreement: float, flip: bool) -> None:  # noqa: FBT001
    base = load_base(make_base(tmp_path))
    config, _ = choose({}, Evidence(1000, 3, disagreement), base, seed=0)
    assert config.horizontal_flip is flip


@pytest.mark.parametrize("num_images", [2, 9, 100, 900, 60_000])
def test_choices_fit_any_number_of_images(tmp_path: Path, num_images: int) -> None:
    base = load_base(make_base(tmp_path))
    config, _ = choose({}, Evidence(num_images, 3, 0.0), base, seed=0)
    assert config.batch_size <= num_images
    assert config.ema_decay_init <= config.ema_decay


def test_presets_are_the_papers() -> None:
    assert len(PRESETS) == 8
    assert preset("imagenet", patch_size=16) == AdaptConfig()
    gtsrb = preset("gtsrb", patch_size=14)
    assert (gtsrb.mask_patch_size, gtsrb.confidence_threshold, gtsrb.ema_warmup_steps) == (56, 0.2, 500)
    with pytest.raises(InvalidConfig):
        preset("pets", patch_size=14)

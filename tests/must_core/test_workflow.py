import errno
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from must_core import adapt as loop
from must_core import workflow
from must_core.adapt import CheckpointSaved, Stopped
from must_core.adaptation import Adaptation
from must_core.auto import Evidence, choose
from must_core.backbone import Preprocess, load_base
from must_core.config import AUTO, HYPERPARAMETERS, AdaptConfig, check_hyperparameters
from must_core.data.augment import Views
from must_core.data.packed import PackedImages
from must_core.files import sha256_of
from must_core.memory import Memory
from must_core.presets import PRESETS
from must_core.text.prompts import ClassSpec
from must_core.workflow import AdaptRequest, Completed, Event, PhaseStarted, Resumed, RunFolders, Worked, run_adaptation
from tests.support.tiny import CLASSES, make_base, make_images


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


def test_a_preset_is_the_papers_where_nothing_is_asked_for(tmp_path: Path) -> None:
    base = load_base(make_base(tmp_path))
    requested = {"epochs": 3, "horizontal_flip": AUTO, "mask_patch_size": 4}
    evidence = Evidence(num_images=1000, num_classes=3, flip_disagreement=0.5)
    config, choices = choose(requested, evidence, base, seed=0, preset=PRESETS["dtd"])
    papers = PRESETS["dtd"].config(patch_size=4)
    assert (config.epochs, config.mask_patch_size) == (3, 4)
    assert config.horizontal_flip is False  # chosen: the user said auto
    for name in set(HYPERPARAMETERS) - {*requested, "batch_size", "micro_batch_size", "masking"}:
        assert getattr(config, name) == getattr(papers, name)
        assert choices[name].reason == "The paper's setting for dtd."
    assert choices["epochs"].reason == "As requested."


@pytest.mark.parametrize(("limit", "packed"), [(10**9, True), (100, False)])
def test_images_are_packed_where_there_is_room(tmp_path: Path, limit: int, packed: bool) -> None:  # noqa: FBT001
    outcome = run_to_the_end(tmp_path, limit)
    assert outcome.trained_on_cache is packed
    assert not outcome.folders.cache.exists()  # type: ignore[union-attr]


def test_a_disk_that_fills_up_costs_the_cache_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = run_to_the_end(tmp_path / "roomy", 10**9)

    def full(*_args: object, **_options: object) -> Iterator[int]:
        yield 1
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workflow, "packing", full)
    short = run_to_the_end(tmp_path / "short", 10**9)
    assert not short.trained_on_cache
    assert sha256_of(short.folders.bundle / "weights.safetensors") == sha256_of(
        roomy.folders.bundle / "weights.safetensors"
    )


@dataclass(frozen=True)
class Outcome:
    folders: RunFolders
    trained_on_cache: bool


def run_to_the_end(folder: Path, limit: int) -> Outcome:
    """A short run, and what its training was given."""
    request = AdaptRequest(
        base_model=make_base(folder / "base"),
        classes=tuple(map(ClassSpec, CLASSES)),
        templates=("{}",),
        images=make_images(folder / "images", 16),
        hyperparameters={"epochs": 2, "batch_size": 8},
    )
    folders = RunFolders(
        bundle=folder / "bundle",
        checkpoints=folder / "checkpoints",
        cache=folder / "decoded",
        cache_at_most_bytes=limit,
    )
    given: list[object] = []

    def adapt(run: Adaptation, images: object, preprocess: Preprocess, **options: Any) -> Iterator[object]:
        given.append(images)
        return loop.adapt(run, images, preprocess, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "adapt", adapt)
        assert isinstance(list(run_adaptation(request, folders, num_workers=0))[-1], Completed)
    return Outcome(folders, isinstance(given[0], PackedImages))


def test_a_run_that_must_take_parts_goes_on_with_other_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = AdaptRequest(
        base_model=make_base(tmp_path / "base"),
        classes=tuple(map(ClassSpec, CLASSES)),
        templates=("{}",),
        images=make_images(tmp_path / "images", 16),
        hyperparameters={"epochs": 2, "batch_size": 8},
        guarded=False,
    )
    folders = RunFolders(bundle=tmp_path / "bundle", checkpoints=tmp_path / "checkpoints")
    taken: list[int | None] = []

    def adapt(run: Adaptation, *args: Any, **options: Any) -> Iterator[object]:
        taken.append(run.micro_batch_size)
        return loop.adapt(run, *args, **options)

    monkeypatch.setattr(workflow, "adapt", adapt)
    memory = Memory(free=300, fixed=0, views=0, kept=100)
    monkeypatch.setattr(workflow, "memory_of", lambda *_args, **_options: memory)
    events: list[Event] = []

    def saved() -> bool:
        return any(isinstance(event, CheckpointSaved) for event in events)

    for event in run_adaptation(request, folders, num_workers=0, checkpoint_interval_s=0, stop=saved):
        events.append(event)
    assert isinstance(events[-1], Stopped)
    memory = replace(memory, free=10**6)
    events = list(run_adaptation(request, folders, num_workers=0))
    assert taken == [2, 8]
    assert any(isinstance(event, Resumed) for event in events)
    assert isinstance(events[-1], Completed)


def test_long_work_without_steps_tells_of_its_parts(tmp_path: Path) -> None:
    """A thousand classes' texts, the first look, the cache: whoever watches must see that each gets on."""
    request = AdaptRequest(
        base_model=make_base(tmp_path / "base"),
        classes=tuple(ClassSpec(f"thing {n}") for n in range(1000)),
        templates=("a {}.", "the {}."),
        images=make_images(tmp_path / "images", 40),
        hyperparameters={"epochs": 1, "batch_size": 16},
    )
    folders = RunFolders(bundle=tmp_path / "bundle", checkpoints=tmp_path / "checkpoints", cache=tmp_path / "cache")
    events = list(run_adaptation(request, folders, num_workers=0, device="cpu"))
    told = [event.num_done for event in events if isinstance(event, Worked)]
    assert told == list(range(1, len(told) + 1)), "the count only grows, whatever is counted"
    phases = [event for event in events if isinstance(event, PhaseStarted)]
    assert [each.phase for each in phases] == ["preparing", "training", "evaluating", "publishing"], "told once each"
    parts: dict[str, int] = {}
    phase = ""
    for event in events:
        if isinstance(event, PhaseStarted):
            phase = event.phase
        parts[phase] = parts.get(phase, 0) + isinstance(event, Worked)
    texts, looks = 2000 // 256, 40 // 8
    assert parts["preparing"] >= texts + looks + 40, "batches of texts, batches looked at, images packed"
    assert parts["evaluating"] >= looks

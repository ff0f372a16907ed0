"""The loop: the same bits however often it is interrupted, and no surprise in bad weather."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from must_core import adapt as loop
from must_core.adapt import CheckpointSaved, Progress, Stopped, adapt
from must_core.adaptation import Adaptation
from must_core.backbone import BaseModel, load_base
from must_core.checkpoint import Checkpoints
from must_core.config import AdaptConfig
from must_core.data.loader import steps_per_epoch, training_batches
from must_core.errors import Diverged, InvalidConfig, UnreadableImage
from must_core.student import Student
from must_core.text.prompts import ClassSpec, build_class_weights
from tests.support.tiny import CLASSES, make_base, make_images, weights_digest

NUM_IMAGES = 30
IDENTITY = {"config": "c", "images": "i"}
CONFIG = AdaptConfig(
    epochs=3, batch_size=8, learning_rate_per_256=1e-2, mask_patch_size=4, confidence_threshold=0.3,
    ema_decay_init=0.5, ema_decay=0.9, ema_warmup_steps=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(make_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"), NUM_IMAGES)


@pytest.fixture
def make_run(base: BaseModel) -> Callable[..., Adaptation]:
    def make(config: AdaptConfig = CONFIG) -> Adaptation:
        weights = build_class_weights(base, [ClassSpec(c) for c in CLASSES], ["{}"])
        student = Student.from_base(base, weights, seed=config.seed)
        return Adaptation(student, config, steps_per_epoch=steps_per_epoch(NUM_IMAGES, config.batch_size))

    return make


def checkpoint(folder: Path, step: str) -> Path:
    """The one checkpoint of a step."""
    (found,) = folder.glob(f"{step}-*")
    return found


def test_an_interrupted_run_ends_with_the_same_bits(
    make_run: Callable[..., Adaptation], base: BaseModel, images: list[Path], tmp_path: Path
) -> None:
    straight = make_run()
    for _ in adapt(straight, images, base.preprocess):
        pass
    assert straight.step_index == straight.total_steps == 9

    for interrupt_at in (1, 3, 5, 8):  # mid-epoch, and at an epoch's end
        run = make_run()
        store = Checkpoints(tmp_path, IDENTITY)
        store.resume(run)
        reports = list(
            adapt(run, images, base.preprocess, checkpoints=store, stop=lambda n=interrupt_at, r=run: r.step_index >= n)
        )
        assert reports[-1] == Stopped(interrupt_at)
    run = make_run()
    assert Checkpoints(tmp_path, IDENTITY).resume(run) is not None
    assert run.step_index == 8
    for _ in adapt(run, images, base.preprocess, num_workers=1):
        pass
    assert weights_digest(run.student) == weights_digest(straight.student)
    assert weights_digest(run.teacher) == weights_digest(straight.teacher)


def test_a_resume_without_the_optimizer_would_be_noticed(
    make_run: Callable[..., Adaptation], base: BaseModel, images: list[Path], tmp_path: Path
) -> None:
    """Negative control of the test above."""
    straight, halted, resumed = make_run(), make_run(), make_run()
    for _ in adapt(straight, images, base.preprocess):
        pass
    for _ in adapt(halted, images, base.preprocess, stop=lambda: halted.step_index == 4):
        pass
    state = {k: v * (not k.startswith("optimizer/")) for k, v in halted.tensors().items()}
    resumed.load_tensors(state, step_index=4)
    for _ in adapt(resumed, images, base.preprocess):
        pass
    assert weights_digest(resumed.student) != weights_digest(straight.student)


@pytest.mark.parametrize("checked", [True, False])
def test_checkpoints_are_bounded_and_a_damaged_one_is_passed_over(
    make_run: Callable[..., Adaptation], base: BaseModel, images: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, *, checked: bool,
) -> None:  # fmt: skip
    """Unchecked, the control, a flipped bit goes unnoticed."""
    if not checked:
        monkeypatch.setattr("must_core.checkpoint.sha256_of", lambda _: "0" * 64)
    run = make_run()
    store = Checkpoints(tmp_path, IDENTITY)
    saved = [
        r.step
        for r in adapt(run, images, base.preprocess, checkpoints=store, checkpoint_interval_s=0)
        if isinstance(r, CheckpointSaved)
    ]
    assert saved == list(range(1, 10))
    assert sorted(p.name[:13] for p in tmp_path.iterdir()) == ["step-00000008", "step-00000009"]

    newest = checkpoint(tmp_path, "step-00000009") / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    again = make_run()
    assert store.resume(again) == checkpoint(tmp_path, "step-00000008" if checked else "step-00000009")
    assert again.step_index == (8 if checked else 9)
    assert Checkpoints(tmp_path, {**IDENTITY, "images": "others"}).resume(make_run()) is None


def test_checkpoints_may_lie_where_the_path_is_not_utf_8(make_run: Callable[..., Adaptation], tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / os.fsdecode(b"caf\xe9"), IDENTITY)
    saved = store.save(make_run())
    assert store.resume(make_run()) == saved


def test_a_crash_while_writing_leaves_the_previous_checkpoint(
    make_run: Callable[..., Adaptation], base: BaseModel, images: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = make_run()
    store = Checkpoints(tmp_path, IDENTITY)
    for _ in adapt(run, images, base.preprocess, stop=lambda: run.step_index == 2):
        pass
    store.save(run)

    def crash(*_args: object) -> None:
        raise KeyboardInterrupt

    run.step_index = 3
    with monkeypatch.context() as patch:
        patch.setattr("must_core.checkpoint.publish_folder", crash)
        with pytest.raises(KeyboardInterrupt):
            store.save(run)
    again = make_run()
    store.resume(again)
    assert again.step_index == 2
    store.save(run)
    assert (checkpoint(tmp_path, "step-00000003") / "meta.json").exists()


def test_a_batch_without_a_confident_sample_trains_on(
    make_run: Callable[..., Adaptation], base: BaseModel, images: list[Path]
) -> None:
    run = make_run(AdaptConfig(**{**CONFIG.to_dict(), "confidence_threshold": 1.0}))  # type: ignore[arg-type]
    before = weights_digest(run.student)
    reports = [r for r in adapt(run, images, base.preprocess, report_interval_s=0) if isinstance(r, Progress)]
    assert run.step_index == run.total_steps
    assert {r.metrics["self_training"] for r in reports} == {0.0}
    assert {r.metrics["confident_ratio"] for r in reports} == {0.0}
    assert weights_digest(run.student) != before


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(
    make_run: Callable[..., Adaptation], base: BaseModel, images: list[Path], tmp_path: Path
) -> None:
    run = make_run()
    store = Checkpoints(tmp_path, IDENTITY)

    def poison_after_step_4() -> None:
        for report in adapt(run, images, base.preprocess, checkpoints=store, checkpoint_interval_s=0):
            if report == CheckpointSaved(4):
                with torch.no_grad():
                    run.student.classifier.fill_(float("nan"))

    with pytest.raises(Diverged):
        poison_after_step_4()
    assert json.loads((checkpoint(tmp_path, "step-00000004") / "meta.json").read_text())["step"] == 4
    assert not list(tmp_path.glob("step-00000005-*"))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_is_named(
    make_run: Callable[..., Adaptation], base: BaseModel, images: list[Path], tmp_path: Path, num_workers: int
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(UnreadableImage, match=rf"/{tmp_path.name}/broken\.png: "):
        list(adapt(make_run(), [*images[:-1], broken], base.preprocess, num_workers=num_workers))


def test_weights_that_are_not_finite_are_never_saved(
    make_run: Callable[..., Adaptation], base: BaseModel, images: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = make_run()

    def poison(*_args: object) -> None:
        with torch.no_grad():
            run.student.classifier.fill_(float("nan"))

    run.optimizer.register_step_post_hook(poison)
    with pytest.raises(Diverged):
        list(adapt(run, images, base.preprocess, checkpoints=Checkpoints(tmp_path, IDENTITY), checkpoint_interval_s=0))
    assert not list(tmp_path.iterdir())


def test_a_moving_average_survives_a_resume(
    make_run: Callable[..., Adaptation], base: BaseModel, images: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("must_core.objective.MOVING_AVERAGE_MIN_CLASSES", 2)
    straight, halted, resumed = make_run(), make_run(), make_run()
    for _ in adapt(straight, images, base.preprocess):
        pass
    store = Checkpoints(tmp_path, IDENTITY)
    for _ in adapt(halted, images, base.preprocess, checkpoints=store, stop=lambda: halted.step_index == 4):
        pass
    store.resume(resumed)
    assert resumed.marginal_K is not None
    for _ in adapt(resumed, images, base.preprocess):
        pass
    assert weights_digest(resumed.student) == weights_digest(straight.student)


def test_batches_are_the_same_wherever_one_starts(base: BaseModel, images: list[Path]) -> None:
    def batches(first_step: int, num_workers: int) -> list[torch.Tensor]:
        views = loop.Views(base.preprocess, CONFIG)
        return [
            strong
            for _, strong in training_batches(
                images, views, batch_size=8, epochs=2, seed=1, first_step=first_step, num_workers=num_workers
            )
        ]

    whole = batches(0, 0)
    assert len(whole) == 6
    for start, workers in ((0, 2), (2, 0), (4, 1)):
        part = batches(start, workers)
        assert len(part) == 6 - start
        assert all(torch.equal(a, b) for a, b in zip(part, whole[start:], strict=True))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(InvalidConfig) as caught:
        steps_per_epoch(7, 8)
    assert caught.value.param == "batch_size"


def test_views_finished_on_the_device_are_resumed_exactly(
    make_run: Callable[..., Adaptation], base: BaseModel, images: list[Path], tmp_path: Path
) -> None:
    config = replace(CONFIG, augment_on="device")
    straight, halted, resumed, plain = make_run(config), make_run(config), make_run(config), make_run()
    for run in (straight, plain):
        for _ in adapt(run, images, base.preprocess, num_workers=1):
            pass
    store = Checkpoints(tmp_path, IDENTITY)
    for _ in adapt(halted, images, base.preprocess, checkpoints=store, stop=lambda: halted.step_index == 4):
        pass
    store.resume(resumed)
    for _ in adapt(resumed, images, base.preprocess):
        pass
    assert weights_digest(resumed.student) == weights_digest(straight.student)
    assert weights_digest(plain.student) != weights_digest(straight.student)


def test_another_runs_checkpoints_in_the_folder_stay_and_do_not_disturb(
    make_run: Callable[..., Adaptation], base: BaseModel, images: list[Path], tmp_path: Path
) -> None:
    def run_until(step: int, identity: dict[str, str]) -> None:
        run = make_run()
        store = Checkpoints(tmp_path, identity)
        for _ in adapt(run, images, base.preprocess, checkpoints=store, checkpoint_interval_s=0,
                       stop=lambda: run.step_index >= step):  # fmt: skip
            pass

    other = {**IDENTITY, "config": "another"}
    run_until(7, IDENTITY)
    run_until(4, other)
    for identity, step in ((IDENTITY, 7), (other, 4)):
        run = make_run()
        assert Checkpoints(tmp_path, identity).resume(run) is not None
        assert run.step_index == step


def test_a_damaged_checkpoint_is_written_again(
    make_run: Callable[..., Adaptation], base: BaseModel, images: list[Path], tmp_path: Path
) -> None:
    store = Checkpoints(tmp_path, IDENTITY)
    for _ in adapt(make_run(), images, base.preprocess, checkpoints=store, checkpoint_interval_s=0):
        pass
    state = checkpoint(tmp_path, "step-00000009") / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    again = make_run()
    store.resume(again)
    assert again.step_index == 8
    for _ in adapt(again, images, base.preprocess, checkpoints=store):
        pass
    final = make_run()
    store.resume(final)
    assert final.step_index == 9


def test_the_accepted_checkpoint_is_kept(
    make_run: Callable[..., Adaptation], base: BaseModel, images: list[Path], tmp_path: Path
) -> None:
    run, store = make_run(), Checkpoints(tmp_path, IDENTITY)
    for report in adapt(run, images, base.preprocess, checkpoints=store, checkpoint_interval_s=0):
        if report == CheckpointSaved(2):
            store.accept(2)
    assert sorted(p.name[:13] for p in tmp_path.glob("step-*")) == ["step-00000002", "step-00000008", "step-00000009"]
    store.accept(8)
    assert sorted(p.name[:13] for p in tmp_path.glob("step-*")) == ["step-00000008", "step-00000009"]
    with pytest.raises(FileNotFoundError):
        store.accept(2)

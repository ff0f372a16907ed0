"""The guard within a run: looks, acceptance, the way back, and what is told at the end."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from must_core.adapt import CheckpointSaved, Progress, Stopped
from must_core.adaptation import Adaptation
from must_core.backbone import load_base
from must_core.bundle import load_bundle
from must_core.checkpoint import Checkpoints
from must_core.config import AdaptConfig
from must_core.files import sha256_of
from must_core.guard import watch as watching
from must_core.guard.panel import Panel, hold_out
from must_core.guard.vetoes import Opinion, Veto
from must_core.guard.watch import Seen, Watch
from must_core.student import Student
from must_core.text.prompts import ClassSpec
from must_core.workflow import AdaptRequest, Completed, Event, Resumed, RolledBack, RunFolders, Settled, run_adaptation
from tests.support.tiny import CLASSES, make_base, make_images, weights_digest

COLLAPSE = Veto("feature_rank", 0.1, 0.4, "They have collapsed.")
LOOKED = [6, 12, 18, 24]
"""208 of 260 images, four epochs of six batches of 32."""


def request(folder: Path, *, guarded: bool = True) -> AdaptRequest:
    images = folder / "images"
    return AdaptRequest(
        base_model=make_base(folder / "base"),
        classes=tuple(map(ClassSpec, CLASSES)),
        templates=("{}",),
        images=sorted(images.iterdir()) if images.exists() else make_images(images, 260),
        hyperparameters={"epochs": 4, "batch_size": 32, "confidence_threshold": 0.0, "rand_augment": ""},
        guarded=guarded,
    )


def run(folder: Path, *, guarded: bool = True) -> list[Event]:
    folders = RunFolders(bundle=folder / "bundle", checkpoints=folder / "checkpoints")
    return [*run_adaptation(request(folder, guarded=guarded), folders, num_workers=0, device="cpu")]


def collapse_at(monkeypatch: pytest.MonkeyPatch, *looks: int) -> None:
    seen = 0

    def vetoes(_before: Opinion, _after: Opinion) -> tuple[Veto, ...]:
        nonlocal seen
        seen += 1
        return (COLLAPSE,) if seen in looks else ()

    monkeypatch.setattr(watching, "vetoes", vetoes)


def test_a_run_ends_with_a_verdict(tmp_path: Path) -> None:
    events = run(tmp_path)
    assert {e.step for e in events if isinstance(e, CheckpointSaved)} >= set(LOOKED)
    completed = events[-1]
    assert isinstance(completed, Completed)
    assert completed.verdict is not None
    assert completed.verdict.gain.num_held_out == 52
    manifest = load_bundle(completed.bundle).manifest
    assert manifest["provenance"]["verdict"] == json.loads(json.dumps(completed.verdict.to_dict()))
    assert manifest["provenance"]["classifier"] == completed.verdict.candidate
    assert manifest["provenance"]["num_held_out"] == 52

    report = completed.report
    assert report is not None
    assert (report.num_images, report.num_held_out) == (260, 52)
    assert report.num_changed == round(completed.metrics["changed_answers"] * 260)
    assert report.num_changed == completed.verdict.gain.num_disagreements
    assert report.audit.num_disagreed + report.audit.num_agreed == 52
    held_out = set(hold_out(260, seed=0).held_out.tolist())
    assert {image.position for image in report.audit.images} <= held_out
    assert {i.position for i in report.changed if i.held_out} == {i.position for i in report.changed} & held_out


def test_without_the_guard_every_image_is_trained_on(tmp_path: Path) -> None:
    events = run(tmp_path, guarded=False)
    progress = [e for e in events if isinstance(e, Progress)]
    assert progress[-1].total_steps == 32  # 260 images, eight batches an epoch
    assert isinstance(events[-1], Completed)
    assert events[-1].verdict is None


@pytest.mark.parametrize(("looks", "to_step", "last_step"), [((3,), 12, 18), ((1,), None, 6), ((4,), 18, 24)])
def test_a_collapse_ends_training_and_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: tuple[int, ...], to_step: int | None, last_step: int
) -> None:
    collapse_at(monkeypatch, *looks)
    events = run(tmp_path)
    assert [e for e in events if isinstance(e, RolledBack)] == [RolledBack((COLLAPSE,), to_step)]
    assert max(e.step for e in events if isinstance(e, Progress)) == last_step
    completed = events[-1]
    assert isinstance(completed, Completed)
    assert load_bundle(completed.bundle).manifest["provenance"]["steps"] == (to_step or last_step)


def test_a_look_that_a_crash_prevented_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_before: Opinion, _after: Opinion) -> tuple[Veto, ...]:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching, "vetoes", crash)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    collapse_at(monkeypatch, 1)
    events = run(tmp_path)
    assert not any(isinstance(e, Progress) for e in events)  # nothing is trained on top of a collapse
    assert RolledBack((COLLAPSE,), None) in events


@pytest.fixture
def watched(tmp_path: Path) -> Callable[[float], tuple[Watch, Adaptation]]:
    def make(threshold: float) -> tuple[Watch, Adaptation]:
        base = load_base(make_base(tmp_path / "base"))
        config = AdaptConfig(confidence_threshold=threshold, epochs=2, batch_size=4, masking=False)
        run = Adaptation(Student.from_base(base, torch.eye(16)[:, :3]), config, steps_per_epoch=4)
        images = make_images(tmp_path / "images", 250)
        panel = Panel(images, hold_out(250, seed=0), base.preprocess, num_classes=3, device="cpu", num_workers=0)
        opinion = _finished(panel.opinion(run.teacher))
        return Watch(panel.opinion, opinion, run, Checkpoints(tmp_path / "checkpoints", {"run": "this"})), run

    return make


def _finished(work):  # type: ignore[no-untyped-def]
    while True:
        try:
            next(work)
        except StopIteration as e:
            return e.value


def test_back_is_where_the_accepted_teacher_was(watched: Callable[[float], tuple[Watch, Adaptation]]) -> None:
    watch, run = watched(0.0)
    view_BCHW = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    run.step(view_BCHW, view_BCHW, None)
    watch._checkpoints.save(run)
    assert _finished(watch.look()) == Seen()
    teacher, student = weights_digest(run.teacher), weights_digest(run.student)
    for _ in range(2):
        run.step(view_BCHW, view_BCHW, None)
    assert weights_digest(run.teacher) != teacher
    assert watch.roll_back() == 1
    assert (weights_digest(run.teacher), weights_digest(run.student)) == (teacher, student)


def test_a_teacher_that_is_never_sure_ends_the_run(tmp_path: Path) -> None:
    folders = RunFolders(bundle=tmp_path / "bundle", checkpoints=tmp_path / "checkpoints")
    asked = request(tmp_path)
    asked = replace(asked, hyperparameters={**asked.hyperparameters, "confidence_threshold": 1.0})
    events = [*run_adaptation(asked, folders, num_workers=0, device="cpu")]
    (back,) = [e for e in events if isinstance(e, RolledBack)]
    assert ([veto.name for veto in back.vetoes], back.to_step) == (["no_confident_image"], None)
    assert isinstance(events[-1], Completed)
    assert events[-1].verdict is not None
    assert events[-1].verdict.outcome == "zero_shot"


def test_what_an_earlier_attempt_accepted_is_gone_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service gives each attempt a checkpoint folder of its own."""
    asked = request(tmp_path)
    first = RunFolders(bundle=tmp_path / "bundle", checkpoints=tmp_path / "first")
    for event in run_adaptation(asked, first, num_workers=0, device="cpu"):
        if isinstance(event, CheckpointSaved) and event.step == LOOKED[1]:
            break  # it accepted the first look and dies before the second
    second = RunFolders(bundle=tmp_path / "bundle", checkpoints=tmp_path / "second", resume_from=[first.checkpoints])
    collapse_at(monkeypatch, 2)  # the second look, made up for, is fine; the third is not
    events = [*run_adaptation(asked, second, num_workers=0, device="cpu")]
    assert RolledBack((COLLAPSE,), LOOKED[1]) in events
    collapse_at(monkeypatch, 1)
    third = replace(second, bundle=tmp_path / "other", checkpoints=tmp_path / "third")
    events = [*run_adaptation(asked, third, num_workers=0, device="cpu")]
    assert RolledBack((COLLAPSE,), LOOKED[0]) in events


def test_runs_in_one_folder_do_not_take_each_others_place(
    tmp_path: Path, watched: Callable[[float], tuple[Watch, Adaptation]]
) -> None:
    watch, run = watched(0.0)
    mine, other = (Checkpoints(tmp_path / "checkpoints", {"run": name}) for name in ("this", "other"))
    run.step_index = 1
    for store in (mine, other):
        store.save(run)
        store.accept(1)
    for run.step_index in (2, 3, 4):
        mine.save(run)
    assert mine.restore_accepted(run) == 1
    (tmp_path / "checkpoints" / other._path(1).name / "meta.json").unlink()
    assert other.restore_accepted(run) is None
    assert watch.roll_back() == 1


def test_a_stop_is_heeded_within_a_look(tmp_path: Path) -> None:
    asked = request(tmp_path)
    folders = RunFolders(bundle=tmp_path / "bundle", checkpoints=tmp_path / "checkpoints")
    events: list[Event] = []

    def looking() -> bool:
        return CheckpointSaved(LOOKED[0]) in events

    for event in run_adaptation(asked, folders, stop=looking, num_workers=0, device="cpu"):
        events.append(event)
    assert events[-1] == Stopped(LOOKED[0])
    assert not (tmp_path / "bundle").exists()
    going_on = [*run_adaptation(asked, folders, num_workers=0, device="cpu")]
    assert Resumed(LOOKED[0]) in going_on
    assert isinstance(going_on[-1], Completed)


def test_a_run_that_was_interrupted_publishes_what_a_straight_one_does(tmp_path: Path) -> None:
    """Weights bit for bit, and the verdict."""
    asked = request(tmp_path)
    straight = RunFolders(bundle=tmp_path / "straight", checkpoints=tmp_path / "checkpoints")
    *_, expected = run_adaptation(asked, straight, num_workers=0, device="cpu")
    folders = RunFolders(bundle=tmp_path / "interrupted", checkpoints=tmp_path / "0")
    for attempt, stop_at in enumerate((4, LOOKED[1], 20)):
        events = run_adaptation(asked, folders, checkpoint_interval_s=0, num_workers=0, device="cpu")
        next(e for e in events if isinstance(e, CheckpointSaved) and e.step == stop_at)
        events.close()  # type: ignore[attr-defined]
        earlier = [folders.checkpoints, *folders.resume_from]
        folders = replace(folders, checkpoints=tmp_path / str(attempt + 1), resume_from=earlier)
    *_, completed = run_adaptation(asked, folders, num_workers=0, device="cpu")
    assert isinstance(completed, Completed)
    assert isinstance(expected, Completed)
    assert (completed.verdict, completed.metrics) == (expected.verdict, expected.metrics)
    digests = [sha256_of(folder / "weights.safetensors") for folder in (straight.bundle, folders.bundle)]
    assert digests[0] == digests[1]


def unhurried(folder: Path, *, epochs: int | str) -> AdaptRequest:
    asked = request(folder)
    return replace(asked, hyperparameters={**asked.hyperparameters, "epochs": epochs})


def test_a_run_whose_answers_have_settled_ends_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("must_core.auto._STEPS_WANTED", 24)
    monkeypatch.setattr(watching, "SETTLED", 1.1)  # every look after the first is settled
    folders = RunFolders(bundle=tmp_path / "bundle", checkpoints=tmp_path / "checkpoints")
    asked = unhurried(tmp_path, epochs="auto")
    events = [*run_adaptation(asked, folders, num_workers=0, device="cpu")]
    (total,) = {e.total_steps for e in events if isinstance(e, Progress)}
    assert [e for e in events if isinstance(e, Settled)] == [Settled(total // 2)]
    assert max(e.step for e in events if isinstance(e, Progress)) == total // 2
    assert isinstance(events[-1], Completed)
    # An attempt that finds the run there ends it there too, though the look before has left nothing.
    again = replace(folders, bundle=tmp_path / "again", checkpoints=tmp_path / "2", resume_from=[folders.checkpoints])
    events = [*run_adaptation(asked, again, num_workers=0, device="cpu")]
    assert Settled(total // 2) in events
    assert not any(isinstance(e, Progress) for e in events)
    assert sha256_of(again.bundle / "weights.safetensors") == sha256_of(folders.bundle / "weights.safetensors")


def test_epochs_asked_for_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SETTLED", 1.1)
    folders = RunFolders(bundle=tmp_path / "bundle", checkpoints=tmp_path / "checkpoints")
    events = [*run_adaptation(unhurried(tmp_path, epochs=4), folders, num_workers=0, device="cpu")]
    assert not any(isinstance(e, Settled) for e in events)
    assert max(e.step for e in events if isinstance(e, Progress)) == LOOKED[-1]


def test_settled_is_when_few_answers_changed_since_the_last_look(
    monkeypatch: pytest.MonkeyPatch, watched: Callable[[float], tuple[Watch, Adaptation]]
) -> None:
    monkeypatch.setattr(watching, "vetoes", lambda _before, _after: ())
    said = [Opinion(torch.eye(3), torch.zeros(3, 1))]  # zero-shot's

    def opinion(_panel: Panel, _classifier: Student):  # type: ignore[no-untyped-def]
        yield
        return said.pop()

    monkeypatch.setattr(Panel, "opinion", opinion)
    watch, run = watched(0.0)
    answers_N = torch.arange(200) % 3
    seen = []
    for num_changed in (0, 2, 1):  # none before the first look; a hundredth is too many; half of that is not
        answers_N[:num_changed] = (answers_N[:num_changed] + 1) % 3
        said.append(Opinion(9.0 * torch.nn.functional.one_hot(answers_N, 3), torch.zeros(200, 1)))
        run.step_index += 1
        seen.append(_finished(watch.look()).settled)
    assert seen == [False, False, True]


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("note", ["", "{", "[]", '{"answers": "x"}', '{"answers": [0, 1]}', '{"settled": 1}'])
def test_a_note_that_says_nothing_settles_nothing(
    note: str, step: int, watched: Callable[[float], tuple[Watch, Adaptation]]
) -> None:
    watch, run = watched(0.0)
    watch._checkpoints.save(run)
    watch._checkpoints.accept(0, note)
    run.step_index = step
    assert not _finished(watch.look()).settled


def test_a_look_is_not_compared_with_a_later_one(watched: Callable[[float], tuple[Watch, Adaptation]]) -> None:
    """A damaged checkpoint sends a run back behind what it accepted."""
    watch, run = watched(0.0)
    run.step_index = 2
    assert not _finished(watch.look()).settled
    run.step_index = 1
    assert not _finished(watch.look()).settled
    run.step_index = 2
    assert _finished(watch.look()).settled  # the control: the same answers as the look before

"""A step in parts is the step in one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from must_core import objective
from must_core.adaptation import Adaptation
from must_core.gradient import BatchGradient
from must_core.student import Student
from tests.support.runs import CONFIG, history, make_run, train

CASES = [
    pytest.param({}, True, 10, id="masked"),
    pytest.param({}, False, 10, id="without masks"),
    pytest.param({}, True, 600, id="moving average"),
    pytest.param({"fairness_form": "running"}, True, 10, id="running marginal"),
    pytest.param({"confidence_threshold": 1.0}, True, 10, id="none confident"),
    pytest.param({"mask_patch_size": 16}, True, 10, id="blocks of four patches"),
]


def distance(a: Adaptation, b: Adaptation) -> float:
    """Largest difference between two runs' students and teachers."""
    return max(
        float((tensor - b.tensors()[name]).abs().max())
        for name, tensor in a.tensors().items()
        if not name.startswith("optimizer/")
    )


def largest_difference(a: list[list[float]], b: list[list[float]]) -> float:
    return float((torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)).abs().max())


@pytest.mark.parametrize(("changes", "masked", "num_classes"), CASES)
@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
def test_parts_give_the_numbers_of_the_whole(
    changes: dict[str, Any], masked: bool, num_classes: int, micro_batch_size: int  # noqa: FBT001
) -> None:  # fmt: skip
    config = replace(CONFIG, **changes)
    whole, parts = (
        make_run(config, num_classes=num_classes, micro_batch_size=size) for size in (None, micro_batch_size)
    )
    expected = history(train(whole, masked=masked))
    assert largest_difference(history(train(parts, masked=masked)), expected) < 1e-9
    assert distance(whole, parts) < 1e-8


def test_fairness_of_each_part_alone_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: gradient accumulation as it is usually written."""
    original = BatchGradient._fairness

    def of_the_part(self: BatchGradient, own_K: Tensor, whole: object) -> tuple[Tensor, Tensor | None]:
        return objective.fairness(own_K / own_K.sum()), original(self, own_K, whole)[1]  # type: ignore[arg-type]

    whole, parts = make_run(), make_run(micro_batch_size=4)
    train(whole)
    monkeypatch.setattr(BatchGradient, "_fairness", of_the_part)
    train(parts)
    assert distance(whole, parts) > 1e-4


def limited(student: Student, limit: int) -> None:
    """Let a student run out of memory for more than so many images."""

    def refuse(_module: object, arguments: tuple[Tensor, ...]) -> None:
        if len(arguments[0]) > limit:
            raise torch.OutOfMemoryError("pretended")

    student.register_forward_pre_hook(refuse)


@pytest.mark.parametrize(("limit", "settles_at"), [(4, 4), (3, 2), (1, 1)])
def test_too_little_memory_makes_the_parts_smaller_and_changes_nothing_else(limit: int, settles_at: int) -> None:
    whole, short = make_run(), make_run()
    limited(short.student, limit)
    assert largest_difference(history(train(short)), history(train(whole))) < 1e-9
    assert short.micro_batch_size == settles_at
    assert distance(whole, short) < 1e-8


def test_a_teacher_that_does_not_fit_counts_too() -> None:
    whole, short = make_run(), make_run()
    limited(short.teacher, 2)
    train(whole), train(short)
    assert short.micro_batch_size == 2
    assert distance(whole, short) < 1e-8


def test_memory_for_no_image_at_all_is_an_error() -> None:
    run = make_run()
    limited(run.student, 0)
    with pytest.raises(torch.OutOfMemoryError):
        train(run, steps=1)


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_out_of_memory_leaves_no_gradient_behind(part: str) -> None:
    """A failed attempt's gradients must not add to the next one's."""
    whole, short = make_run(), make_run()
    module: Student = getattr(short, part)
    calls: list[int] = []
    original: Callable[..., object] = module.forward

    def fail_late(*args: Tensor) -> object:
        calls.append(len(args[0]))
        if calls == [8] or (part == "student" and len(calls) == 3):  # later: between two parts
            raise torch.OutOfMemoryError("pretended")
        return original(*args)

    module.forward = fail_late  # type: ignore[method-assign]
    train(whole), train(short)
    assert distance(whole, short) < 1e-8

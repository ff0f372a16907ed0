"""What torch.compile makes of the passes.

The backend ``aot_eager`` traces and differentiates like the real one and needs no compiler; ``fullgraph`` makes it an
error if something cannot be translated.
"""

from dataclasses import replace

import pytest
import torch

from must_core.adaptation import Adaptation
from tests.support.runs import CONFIG, batch, make_run, make_student, train


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: original(module, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()


@pytest.mark.parametrize("masked", [True, False])
def test_a_compiled_run_gives_the_same_numbers(masked: bool) -> None:  # noqa: FBT001
    plain, compiled = make_run(), make_run(replace(CONFIG, compiled=True))
    for ours, expected in zip(
        train(compiled, steps=4, masked=masked), train(plain, steps=4, masked=masked), strict=True
    ):
        for name, value in vars(expected.losses).items():
            assert float(getattr(ours.losses, name)) == pytest.approx(float(value), rel=1e-9), name
    for name, tensor in plain.tensors().items():
        assert torch.allclose(compiled.tensors()[name], tensor, rtol=0, atol=1e-9), name


def test_names_in_a_checkpoint_are_the_same() -> None:
    def names(run: Adaptation) -> set[str]:
        return set(run.tensors())

    assert names(make_run(replace(CONFIG, compiled=True))) == names(make_run())


def test_the_first_batch_does_not_decide_the_size() -> None:
    """Parts of another size, after a step down, run too."""
    student = torch.compile(make_student())
    for size in (8, 4, 3):
        _, strong_BCHW, mask = batch(0, size=size)
        assert student(strong_BCHW, mask).logits_BK.shape == (size, 10)

"""The plain form of the step, written from the paper's text, and ours agree where no recorded run of the original goes.

Both are in float64, where nothing hides behind rounding; `tests/must_core/test_golden.py` has the recorded runs.
"""

from dataclasses import replace

import pytest
import torch

from bench.plain import PlainAdaptation
from must_core import objective
from tests.support.runs import CONFIG, STEPS, batch, make_run

CASES = {
    "as recorded": {},
    "no layer decay": {"layer_decay": 1.0},
    "blocks of four patches": {"mask_patch_size": 16},
    "none confident": {"confidence_threshold": 1.0},
    "all confident": {"confidence_threshold": 0.0},
    "no fairness, no alignment": {"fairness_weight": 0.0, "alignment_weight": 0.0},
    "no ramp": {"ema_warmup_steps": 0},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_both_forms_agree(changes: dict[str, float]) -> None:
    config = replace(CONFIG, **changes)
    ours = make_run(config)
    plain = PlainAdaptation(make_run(config).student, config, total_steps=ours.total_steps)
    for step in range(STEPS):
        weak_BCHW, strong_BCHW, mask = batch(step, mask_patch_size=config.mask_patch_size)
        losses = ours.step(weak_BCHW, strong_BCHW, mask).losses
        for name, value in plain.step(weak_BCHW, strong_BCHW, mask).items():
            assert float(getattr(losses, name)) == pytest.approx(value, rel=1e-9, abs=1e-12), (step, name)
    for mine, theirs in ((ours.student, plain.student), (ours.teacher, plain.teacher)):
        for name, tensor in theirs.state_dict().items():
            assert torch.allclose(mine.state_dict()[name], tensor, rtol=0, atol=1e-8), name


def test_a_perturbed_term_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    original = objective.alignment
    monkeypatch.setattr(objective, "alignment", lambda *args: original(*args) * (1 + 1e-6))
    with pytest.raises(AssertionError):
        test_both_forms_agree({})

"""Every step against the original implementation's numbers."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from must_core import adaptation, ema, objective, optim
from must_core.config import AdaptConfig
from tests.support.golden import OUR_NAMES, Case, differences, replay, without_key_bias

CASES = ["mixed", "nomask", "k600"]
LOSSES = ["total", "self_training", "fairness", "reconstruction", "alignment"]


@pytest.fixture(scope="module")
def mixed() -> Case:
    return Case.load("mixed")


@pytest.mark.parametrize("name", CASES)
def test_float64_matches_the_original(name: str) -> None:
    case = Case.load(name)
    found = differences(case, *replay(case, torch.float64))
    for loss in LOSSES:
        assert found.get(loss, 0.0) < 1e-9, found
    for exact in ("confident_ratio", "ema_decay", "lr_max"):
        assert found[exact] < 1e-12, found
    for tensor in ("student", "teacher", "logits"):
        assert found[tensor] < 1e-8, found


@pytest.mark.parametrize("name", CASES)
def test_float32_matches_the_original(name: str) -> None:
    case = Case.load(name)
    run, results = replay(case, torch.float32)
    for i, (recorded, result) in enumerate(zip(case.meta["steps"], results, strict=True)):
        for loss in LOSSES:
            if loss in recorded:
                tolerance = 1e-5 if i == 0 else 1e-3
                assert float(getattr(result.losses, loss).detach()) == pytest.approx(recorded[loss], rel=tolerance)
        assert float(result.confident_B.float().mean()) == recorded["confident_ratio"]
        assert torch.equal(result.pseudo_label_B, torch.from_numpy(case.arrays["pseudo_label"][i]).long())
    initial = case.weights("init", torch.float32)
    for prefix, module in (("student", run.student), ("teacher", run.teacher)):
        state = module.state_dict()
        for key, expected in case.weights(prefix, torch.float32).items():
            moved = without_key_bias(key, expected - initial[key]).norm()
            assert without_key_bias(key, state[key] - expected).norm() <= 0.005 * moved, key
    with torch.inference_mode():
        logits = run.teacher(torch.from_numpy(case.arrays["eval/images"]))
    assert (logits - torch.from_numpy(case.arrays["eval/logits_teacher"])).abs().max() < 0.02


def test_parameter_groups_are_the_originals(mixed: Case) -> None:
    ours = {
        name: (group["lr_scale"], group["weight_decay"])
        for group in optim.parameter_groups(mixed.student(torch.float32), layer_decay=0.65, weight_decay=0.05)
        for name in group["names"]
    }
    theirs = {
        OUR_NAMES.get(name, name): (pytest.approx(group["lr_scale"]), group["weight_decay"])
        for group in mixed.meta["param_groups"]
        for name in group["params"]
    }
    assert ours == theirs


# Negative controls: the comparison above must notice each of these. The second entry is what must move.


def _scaled(term: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Make one loss term one part in a million larger."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        original: Callable[..., Tensor] = getattr(objective, term)
        patch.setattr(objective, term, lambda *args: original(*args) * (1 + 1e-6))

    return apply


def _with(module: ModuleType, name: str, value: object) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(module, name, value)


def _config(**changes: float) -> Callable[[AdaptConfig], AdaptConfig]:
    return lambda config: replace(config, **changes)


@pytest.mark.parametrize("term", ["self_training", "fairness", "reconstruction", "alignment"])
def test_notices_a_perturbed_loss_term(mixed: Case, monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    _scaled(term)(monkeypatch)
    found = differences(mixed, *replay(mixed, torch.float64))
    assert found[term] > 1e-9
    assert found["total"] > 1e-9


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_config(fairness_weight=1.001), id="w_fair"),
        pytest.param(_config(alignment_weight=0.2002), id="w_align"),
        pytest.param(_config(layer_decay=0.651), id="layer decay"),
        pytest.param(_config(layer_decay=1.0), id="no layer decay"),
        pytest.param(_config(weight_decay=0.051), id="weight decay"),
        pytest.param(_config(ema_decay_init=0.901), id="EMA start"),
        pytest.param(_config(ema_warmup_steps=7), id="EMA ramp"),
        pytest.param(_config(learning_rate_per_256=0.03201), id="learning rate"),
        pytest.param(_config(min_learning_rate_per_256=1e-5), id="last learning rate"),
        pytest.param(_config(confidence_threshold=0.5), id="τ"),
    ],
)
def test_notices_a_perturbed_setting(mixed: Case, change: Callable[[AdaptConfig], AdaptConfig]) -> None:
    found = differences(mixed, *replay(mixed, torch.float64, change(mixed.config)))
    assert max(found["student"], found["teacher"]) > 1e-8
    assert found["logits"] > 1e-8


@pytest.mark.parametrize(
    "break_it",
    [
        pytest.param(
            _with(adaptation, "decay_at", lambda step, **k: ema.decay_at(step + 1, **k)),
            id="EMA ramp a step early",
        ),
        pytest.param(
            _with(adaptation, "lr_at", lambda step, **k: optim.lr_at(step + 1, **k)),
            id="schedule a step early",
        ),
    ],
)
def test_notices_a_schedule_off_by_one(
    mixed: Case, monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    break_it(monkeypatch)
    found = differences(mixed, *replay(mixed, torch.float64))
    assert found["teacher"] > 1e-8
    assert max(found["ema_decay"], found["lr_max"]) > 1e-6


def test_notices_a_moving_average_that_outlives_its_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.load("k600")
    remembered: list[Tensor] = []
    original = objective.fairness_moving_average

    def never_restart(marginal_K: Tensor, previous_K: Tensor | None) -> tuple[Tensor, Tensor]:
        loss, average_K = original(marginal_K, remembered[-1] if remembered else previous_K)
        remembered.append(average_K)
        return loss, average_K

    monkeypatch.setattr(objective, "fairness_moving_average", never_restart)
    assert differences(case, *replay(case, torch.float64))["fairness"] > 1e-3

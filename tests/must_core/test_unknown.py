"""When an image is of none of the classes, found out without labels."""

import pytest
import torch
from torch import Tensor

from must_core.unknown import FLAGGED_SHARE, Calibration, calibrate, lower_limit, raw_scores

SCALE = 50.0


def logits(scores_N: Tensor) -> Tensor:
    """Of two classes, the first being the best."""
    return torch.stack([scores_N, torch.full_like(scores_N, -1)], dim=1) * SCALE


def test_the_raw_score_is_the_best_classes_cosine() -> None:
    scores_N = torch.tensor([0.3, -0.2])
    assert raw_scores(logits(scores_N), SCALE).tolist() == pytest.approx([0.3, -0.2])


@pytest.mark.parametrize("num_images", [19, 50, 200])
def test_no_more_than_a_twentieth_of_new_images_is_flagged(num_images: int) -> None:
    generator = torch.Generator().manual_seed(0)
    flagged = []
    for _ in range(400):
        seen_N, new_N = torch.randn(num_images + 200, generator=generator).exp().split([num_images, 200])
        limit = lower_limit(seen_N)
        assert limit is not None
        flagged.append(float((new_N < limit).double().mean()))
    mean, error = torch.tensor(flagged).mean(), torch.tensor(flagged).std() / 20
    assert mean < FLAGGED_SHARE + 2 * error
    assert mean > 0.6 * FLAGGED_SHARE, "the limit is of use"


def test_too_few_images_give_no_limit() -> None:
    assert lower_limit(torch.rand(18)) is None
    assert lower_limit(torch.rand(0)) is None
    assert lower_limit(torch.arange(19.0)) == 0


def test_held_out_images_alone_decide() -> None:
    held_out_N = torch.arange(80) < 40
    zero_shot_N, adapted_N = torch.linspace(0.1, 0.2, 80), torch.linspace(0.3, 0.4, 80)
    found = calibrate(logits(zero_shot_N), logits(adapted_N), held_out_N, logit_scale=SCALE)
    assert (found.num_images, found.held_out) == (40, True)
    assert found.zero_shot_below == pytest.approx(float(zero_shot_N[1]))
    assert found.adapted_below == pytest.approx(float(adapted_N[1]))
    moved_N = torch.where(held_out_N, adapted_N, adapted_N - 5)
    assert calibrate(logits(zero_shot_N), logits(moved_N), held_out_N, logit_scale=SCALE) == found


def test_negative_control_a_limit_from_images_trained_on_flags_more_of_the_new() -> None:
    """Training raises the scores of what it sees."""
    generator = torch.Generator().manual_seed(0)
    new_N, held_out_scores_N, trained_on_N = torch.randn(3, 1000, generator=generator) / 100
    seen_N = torch.cat([held_out_scores_N, trained_on_N + 0.01])
    held_out_N = torch.arange(2000) < 1000

    def share(calibration: Calibration) -> float:
        assert calibration.adapted_below is not None
        return float((new_N < calibration.adapted_below).double().mean())

    right = calibrate(logits(seen_N), logits(seen_N), held_out_N, logit_scale=SCALE)
    wrong = calibrate(logits(seen_N), logits(seen_N), ~held_out_N, logit_scale=SCALE)
    assert share(right) < 0.075
    assert share(wrong) > 0.15


def test_where_nothing_is_held_out_all_images_decide_and_that_is_told() -> None:
    scores_N = torch.linspace(0.1, 0.2, 40)
    found = calibrate(logits(scores_N), logits(scores_N), torch.zeros(40, dtype=torch.bool), logit_scale=SCALE)
    assert (found.num_images, found.held_out) == (40, False)
    assert found.adapted_below == pytest.approx(float(scores_N[1]))

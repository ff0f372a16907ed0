"""Each sign of a collapse alone. Shapes: N images, K classes, D width."""

import torch
from torch import Tensor

from must_core.guard.vetoes import Opinion, effective_rank, never_sure, vetoes

N, K, D = 400, 8, 32


def opinion(answers_N: Tensor, *, sharpness: float = 8.0, rank: int = D) -> Opinion:
    """Logits that favour these answers, the first images' the most, and features of so many dimensions."""
    generator = torch.Generator().manual_seed(0)
    logits_NK = torch.nn.functional.one_hot(answers_N, K).float()
    logits_NK *= sharpness + 4 * torch.linspace(1, 0, len(answers_N))[:, None]
    features_ND = torch.randn(N, D, generator=generator)
    features_ND[:, rank:] = 0
    return Opinion(logits_NK, torch.nn.functional.normalize(features_ND, dim=-1))


def even() -> Tensor:
    return torch.arange(N) % K


def names(before: Opinion, after: Opinion) -> set[str]:
    return {veto.name for veto in vetoes(before, after)}


def test_small_changes_are_no_reason() -> None:
    after_N = even()
    after_N[N // 2 :: 4] = 0
    assert names(opinion(even()), opinion(after_N)) == set()


def test_lost_classes() -> None:
    after_N = torch.where(even() >= 4, even() - 4, even())
    found = names(opinion(even()), opinion(after_N))
    assert "effective_classes" in found
    assert "largest_share" not in found


def test_one_class_takes_over() -> None:
    after_N = torch.where(torch.arange(N) % 16 < 7, 0, even())
    assert "largest_share" in names(opinion(even()), opinion(after_N))


def test_features_that_collapsed() -> None:
    assert names(opinion(even()), opinion(even(), rank=6)) == {"feature_rank"}


def test_what_zero_shot_was_sure_of() -> None:
    after_N = even()
    after_N[: N // 30] = (after_N[: N // 30] + 1) % K  # few, and all among the surest
    assert names(opinion(even()), opinion(after_N)) == {"sure_changes"}
    elsewhere_N = even()
    elsewhere_N[-N // 30 :] = (elsewhere_N[-N // 30 :] + 1) % K
    assert names(opinion(even()), opinion(elsewhere_N)) == set()


def test_more_changed_than_not() -> None:
    after_N = even()
    after_N[N * 2 // 5 :] = (after_N[N * 2 // 5 :] + 1) % K
    found = vetoes(opinion(even()), opinion(after_N))
    assert {veto.name for veto in found} == {"disagreement"}
    assert not found[0].collapsed  # it may yet come closer again
    assert "60%" in found[0].reason


def test_numbers_that_are_none_are_a_collapse() -> None:
    broken = Opinion(torch.full((N, K), torch.nan), torch.full((N, D), torch.nan))
    found = {veto.name for veto in vetoes(opinion(even()), broken) if veto.collapsed}
    assert {"effective_classes", "feature_rank"} <= found


def test_a_teacher_that_is_sure_of_nothing() -> None:
    (veto,) = never_sure(opinion(even(), sharpness=0.0), 0.99)
    assert veto.collapsed
    assert f"{veto.value:.2f}" in veto.reason
    assert never_sure(opinion(even(), sharpness=0.0), 0.5) == ()


def test_rank_counts_dimensions() -> None:
    features_ND = torch.linalg.qr(torch.randn(N, D, generator=torch.Generator().manual_seed(1)))[0]
    features_ND[:, 12:] = 0
    assert abs(effective_rank(features_ND) - 12) < 1e-3

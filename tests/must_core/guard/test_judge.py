"""The judge, on clusters whose true classes are known. Shapes: N images, K classes, D width."""

import math

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from must_core.backbone import load_base
from must_core.guard.judge import Evidence, crop, discriminant, estimate_gain, features_from_sides, judge
from must_core.student import Student
from tests.support.tiny import make_base

N, K, D = 600, 4, 16
SURE_N = torch.arange(N) % 8 < 2
"""A quarter of the images is easy: nobody is wrong there."""


def clusters(seed: int = 0, spread: float = 0.6) -> tuple[Evidence, Tensor]:
    """Evidence whose text knows nothing, and the true classes."""
    generator = torch.Generator().manual_seed(seed)
    truth_N = torch.arange(N) % K
    means_KD = torch.nn.functional.normalize(torch.randn(K, D, generator=generator), dim=-1)
    features_ND = means_KD[truth_N] + spread * torch.randn(N, D, generator=generator) / math.sqrt(D)
    return Evidence(features_ND, torch.zeros(N, K)), truth_N


def wrong_at(truth_N: Tensor, share: float, seed: int) -> Tensor:
    """Answers of which a share is wrong, among those that are not easy."""
    generator = torch.Generator().manual_seed(seed)
    wrong_N = (torch.rand(N, generator=generator) < share) & ~SURE_N
    return torch.where(wrong_N, (truth_N + torch.randint(1, K, (N,), generator=generator)) % K, truth_N)


def test_votes_are_for_whom_is_right() -> None:
    evidence, truth_N = clusters()
    zero_shot_N, adapted_N = wrong_at(truth_N, 0.3, 1), wrong_at(truth_N, 0.1, 2)
    votes_N = judge(evidence, zero_shot_N, adapted_N)
    assert (votes_N[zero_shot_N == adapted_N] == 0).all()
    decided_N = (zero_shot_N == truth_N) != (adapted_N == truth_N)
    right_N = votes_N == (adapted_N == truth_N).float() - (zero_shot_N == truth_N).float()
    assert right_N[decided_N].double().mean() > 0.9
    gain = (adapted_N == truth_N).double().mean() - (zero_shot_N == truth_N).double().mean()
    assert float(votes_N.mean()) == pytest.approx(float(gain), abs=0.03)


def test_it_takes_no_side_by_itself() -> None:
    evidence, truth_N = clusters()
    first_N, second_N = wrong_at(truth_N, 0.3, 1), wrong_at(truth_N, 0.3, 2)
    assert torch.equal(judge(evidence, first_N, second_N), -judge(evidence, second_N, first_N))


def test_a_class_that_was_lost_counts_against_who_lost_it() -> None:
    evidence, truth_N = clusters()
    merged_N = torch.where(truth_N == 3, 2, truth_N)  # worse: a quarter of the answers is wrong now
    votes_N = judge(evidence, truth_N, merged_N)
    assert (votes_N[truth_N == 3] == -1).all()
    assert (votes_N[truth_N != 3] == 0).all()
    # A class that only the adapted one ever names is no loss, and nothing to vote on either.
    assert not judge(evidence, merged_N, truth_N).any()
    # With agreed images of the class, the judge comes to the same by itself.
    merged_N[3] = 3
    assert judge(evidence, truth_N, merged_N)[truth_N == 3].mean() < -0.9


def test_text_decides_where_features_say_nothing() -> None:
    zero_shot_N = torch.tensor([0, 0, 1, 1, 0, 1])
    adapted_N = torch.tensor([0, 0, 1, 1, 1, 0])
    log_scores_NK = torch.tensor([[0.9, 0.1]] * 6).log()
    votes_N = judge(Evidence(torch.ones(6, 3), log_scores_NK), zero_shot_N, adapted_N)
    assert votes_N.tolist() == [0, 0, 0, 0, -1, 1]


@pytest.mark.parametrize("shift", [0, 1])
def test_without_anything_to_learn_from_or_to_decide_there_are_no_votes(shift: int) -> None:
    evidence, truth_N = clusters()
    assert not judge(evidence, truth_N, (truth_N + shift) % K).any()


def test_the_discriminant_is_scikit_learns() -> None:
    evidence, truth_N = clusters(spread=2.0)
    kept_N = (torch.arange(N) < 400) & ((truth_N != 1) | (torch.arange(N) % 3 == 0))
    learn, ask = evidence.features_ND[kept_N].double(), evidence.features_ND[400:].double()
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
    theirs.fit(learn.numpy(), truth_N[kept_N].numpy())
    ours = discriminant(learn, truth_N[kept_N], ask, K)
    expected = torch.from_numpy(theirs.decision_function(ask.numpy()))
    # Scores are up to a constant for each image.
    assert torch.allclose(ours - ours[:, :1], expected - expected[:, :1], atol=1e-8)


def test_a_class_that_nobody_saw_gets_no_score() -> None:
    evidence, truth_N = clusters()
    scores_MK = discriminant(evidence.features_ND, truth_N, evidence.features_ND, K + 1)
    assert (scores_MK[:, K] == -math.inf).all()
    assert scores_MK[:, :K].isfinite().all()


@pytest.mark.parametrize(("ups", "downs", "num"), [(30, 10, 200), (0, 12, 100), (6, 0, 50)])
def test_the_interval_is_that_of_a_mean_of_votes(ups: int, downs: int, num: int) -> None:
    votes_N = torch.tensor([1.0] * ups + [-1.0] * downs + [0.0] * (num - ups - downs))
    held_out_N = torch.arange(num) < 10
    gain = estimate_gain(votes_N, votes_N != 0, held_out_N, seed=3)
    assert gain == estimate_gain(votes_N, votes_N != 0, held_out_N, seed=3)
    assert gain.held_out_estimate == pytest.approx(float(votes_N[:10].mean()))
    assert (gain.estimate, gain.num_for_adapted, gain.num_for_zero_shot) == ((ups - downs) / num, ups, downs)
    half = 1.96 * float(votes_N.double().std()) / math.sqrt(num)
    assert gain.low == pytest.approx(gain.estimate - half, abs=0.3 * half)
    assert gain.high == pytest.approx(gain.estimate + half, abs=0.3 * half)


def test_no_images_no_gain() -> None:
    none = torch.zeros(0, dtype=torch.bool)
    gain = estimate_gain(torch.zeros(0), none, none)
    assert (gain.estimate, gain.low, gain.high, gain.num_images, gain.num_held_out) == (0, 0, 0, 0, 0)


def test_sides_do_not_depend_on_the_batch(tmp_path) -> None:  # type: ignore[no-untyped-def]
    base = load_base(make_base(tmp_path))
    zero_shot = Student.from_base(base, torch.eye(16)[:, :3])
    images_BCHW = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    together = features_from_sides(zero_shot, images_BCHW)
    apart = torch.cat([features_from_sides(zero_shot, image[None]) for image in images_BCHW])
    assert torch.allclose(together, apart, atol=1e-6)
    assert not torch.allclose(together, zero_shot.features(images_BCHW), atol=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_crop_has_the_size_of_its_image(share: float) -> None:
    images_BCHW = torch.randn(2, 3, 16, 16)
    assert crop(images_BCHW, enlarged=share, top=1 - share, left=share).shape == images_BCHW.shape

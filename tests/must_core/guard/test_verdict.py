"""What is decided for classifiers whose true accuracies are known."""

import pytest
import torch
from torch import Tensor

from must_core.guard.judge import Evidence
from must_core.guard.verdict import MIN_HELD_OUT, Verdict, compare, decide, too_few_images
from must_core.guard.vetoes import Opinion, never_sure
from tests.must_core.guard.test_judge import SURE_N, K, N, clusters, wrong_at

HELD_OUT_N = torch.arange(N) < N // 3


def opinion(evidence: Evidence, answers_N: Tensor) -> Opinion:
    sharpness_N1 = torch.where(SURE_N, 8.0, 4.0)[:, None]
    return Opinion(sharpness_N1 * torch.nn.functional.one_hot(answers_N, K), evidence.features_ND)


def verdict_on(wrong_before: float, *wrong_after: float) -> Verdict:
    evidence, truth_N = clusters()
    zero_shot = opinion(evidence, wrong_at(truth_N, wrong_before, 1))
    candidates = {f"c{i}": opinion(evidence, wrong_at(truth_N, wrong, 2 + i)) for i, wrong in enumerate(wrong_after)}
    return decide(evidence, zero_shot, candidates, HELD_OUT_N)


@pytest.mark.parametrize(
    ("before", "after", "outcome"), [(0.3, 0.08, "adapted"), (0.08, 0.3, "zero_shot"), (0.2, 0.2, "inconclusive")]
)
def test_the_better_one_is_told(before: float, after: float, outcome: str) -> None:
    verdict = verdict_on(before, after)
    assert verdict.outcome == outcome
    assert verdict.gain.low <= verdict.gain.estimate <= verdict.gain.high
    assert verdict.gain.num_held_out == int(HELD_OUT_N.sum())
    assert str(verdict.gain.num_disagreements) in verdict.reasons[0]


def test_the_best_candidate_is_compared() -> None:
    assert verdict_on(0.3, 0.2, 0.05, 0.15).candidate == "c1"


def test_a_candidate_that_changes_nothing_hides_no_harm() -> None:
    evidence, truth_N = clusters()
    zero_shot, worse = opinion(evidence, truth_N), opinion(evidence, wrong_at(truth_N, 0.3, 2))
    verdict = decide(evidence, zero_shot, {"teacher": worse, "near": zero_shot}, HELD_OUT_N)
    assert (verdict.outcome, verdict.candidate) == ("zero_shot", "teacher")
    collapsed = opinion(evidence, torch.zeros_like(truth_N))
    verdict = decide(evidence, zero_shot, {"teacher": collapsed, "near": zero_shot}, HELD_OUT_N)
    assert (verdict.outcome, verdict.candidate, bool(verdict.vetoes)) == ("zero_shot", "teacher", True)


def test_a_candidate_that_may_not_be_shipped_does_not_keep_another_back() -> None:
    """The first has the higher bound, and held-out images that say otherwise."""
    evidence, truth_N = clusters()
    zero_shot_N = wrong_at(truth_N, 0.4, 1)
    by_heart_N = torch.where(HELD_OUT_N, zero_shot_N, truth_N)
    better_N = torch.where(torch.arange(N) % 2 == 0, truth_N, zero_shot_N)
    candidates = {"by heart": opinion(evidence, by_heart_N), "better": opinion(evidence, better_N)}
    verdict = decide(evidence, opinion(evidence, zero_shot_N), candidates, HELD_OUT_N)
    lows = [compare(evidence, opinion(evidence, zero_shot_N), c, HELD_OUT_N).gain.low for c in candidates.values()]
    assert lows[0] > lows[1]
    assert (verdict.outcome, verdict.candidate) == ("adapted", "better")


def test_too_few_votes_decide_nothing() -> None:
    evidence, truth_N = clusters()
    before_N = truth_N.clone()
    before_N[:5] = (before_N[:5] + 1) % K
    verdict = decide(evidence, opinion(evidence, before_N), {"c": opinion(evidence, truth_N)}, HELD_OUT_N)
    assert (verdict.gain.num_for_adapted, verdict.gain.low > 0) == (5, True)
    assert verdict.outcome == "inconclusive"


def test_a_gain_that_only_images_trained_on_show_is_none() -> None:
    evidence, truth_N = clusters()
    zero_shot = opinion(evidence, torch.where(HELD_OUT_N, truth_N, wrong_at(truth_N, 0.4, 1)))
    better = {"c": opinion(evidence, truth_N)}
    verdict = decide(evidence, zero_shot, better, HELD_OUT_N)
    assert (verdict.outcome, verdict.gain.low > 0, verdict.gain.held_out_estimate) == ("inconclusive", True, 0)
    # The control: held out, some of the same images would have shown it.
    assert decide(evidence, zero_shot, better, torch.arange(N) >= N // 2).outcome == "adapted"


def test_a_veto_outweighs_the_judge() -> None:
    """The control: a collapse that the judge alone would take for a gain."""
    evidence, truth_N = clusters()
    collapsed_N = torch.zeros_like(truth_N)
    for k in range(1, K):  # an agreed image or two of each other class are all that is left of them
        collapsed_N[torch.nonzero(truth_N == k)[:2]] = k
    elsewhere = Evidence(
        evidence.features_ND[torch.randperm(N, generator=torch.Generator().manual_seed(5))], evidence.log_scores_NK
    )
    zero_shot, collapsed = opinion(evidence, truth_N), opinion(evidence, collapsed_N)
    alone = compare(elsewhere, zero_shot, collapsed, HELD_OUT_N)
    assert alone.gain.low > 0  # wrong: three of four answers got worse
    verdict = decide(elsewhere, zero_shot, {"c": collapsed}, HELD_OUT_N)
    assert verdict.outcome == "zero_shot"
    assert any("classes" in reason for reason in verdict.reasons)


def test_a_veto_on_the_run_counts_for_every_candidate() -> None:
    evidence, truth_N = clusters()
    zero_shot, better = opinion(evidence, wrong_at(truth_N, 0.3, 1)), opinion(evidence, truth_N)
    assert decide(evidence, zero_shot, {"c": better}, HELD_OUT_N).outcome == "adapted"
    others = never_sure(better, 1.0)
    vetoed = decide(evidence, zero_shot, {"c": better}, HELD_OUT_N, others=others)
    assert vetoed.outcome == "zero_shot"
    assert vetoed.reasons[0] == others[0].reason


def test_few_images_are_said_to_be_few() -> None:
    verdict = too_few_images(40)
    assert (verdict.outcome, verdict.gain.num_held_out) == ("inconclusive", 0)
    assert "40" in verdict.reasons[0]
    assert str(MIN_HELD_OUT) in verdict.reasons[0]

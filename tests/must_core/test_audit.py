"""The audit against simulated classifiers whose accuracies are known."""

import numpy as np
import pytest
import torch

from must_core.audit import MOST_IMAGES, Audit, Labelled, TooFewLabels, estimate, propose

DISAGREED, UP, DOWN, RIGHT = 0.2, 0.7, 0.2, 0.85
"""Shares: of images disagreed on; of those, where the adapted and where zero-shot is right; of the others, both."""
TRUTH = {
    "zero_shot": DISAGREED * DOWN + (1 - DISAGREED) * RIGHT,
    "adapted": DISAGREED * UP + (1 - DISAGREED) * RIGHT,
    "difference": DISAGREED * (UP - DOWN),
}
NUM_TRIALS = 400


def population(generator: np.random.Generator, num_images: int) -> list[Labelled]:
    """Images with all their labels; zero-shot always says 0 and the adapted classifier 1 where it disagrees."""
    disagreed = generator.random(num_images) < DISAGREED
    labels = np.where(
        disagreed,
        generator.choice([1, 0, 2], num_images, p=[UP, DOWN, 1 - UP - DOWN]),
        generator.choice([0, 2], num_images, p=[RIGHT, 1 - RIGHT]),
    )
    return [
        Labelled(zero_shot=0, adapted=int(d), label=None if label == 2 else int(label))
        for d, label in zip(disagreed.tolist(), labels.tolist(), strict=True)
    ]


def audited(images: list[Labelled], seed: int) -> Audit:
    disagree_N = torch.tensor([image.disagreed for image in images])
    drawn = [images[i] for i in propose(disagree_N, seed=seed)]
    num_disagreed = int(disagree_N.sum())
    return estimate(drawn, num_disagreed=num_disagreed, num_agreed=len(images) - num_disagreed)


@pytest.fixture(scope="module")
def trials() -> list[tuple[Audit, list[Labelled]]]:
    generator = np.random.default_rng(0)
    drawn = [population(generator, 400) for _ in range(NUM_TRIALS)]
    return [(audited(images, seed), images) for seed, images in enumerate(drawn)]


@pytest.mark.parametrize("name", TRUTH)
def test_estimates_are_unbiased_and_intervals_hold(trials: list[tuple[Audit, list[Labelled]]], name: str) -> None:
    found = [getattr(audit, name) for audit, _ in trials]
    values = np.array([each.estimate for each in found])
    assert abs(values.mean() - TRUTH[name]) < 3 * values.std() / NUM_TRIALS**0.5
    covered = np.mean([each.low <= TRUTH[name] <= each.high for each in found])
    assert 0.92 <= covered <= 0.985  # 95 %, within what 400 trials can tell


def test_negative_control_labels_that_count_alike_are_biased(trials: list[tuple[Audit, list[Labelled]]]) -> None:
    """The same labels without the strata's shares."""
    naive, covered = [], []
    for seed, (audit, images) in enumerate(trials):
        drawn = [images[i] for i in propose(torch.tensor([image.disagreed for image in images]), seed=seed)]
        naive.append(np.mean([(i.label == i.adapted) - (i.label == i.zero_shot) for i in drawn]))
        half = (audit.difference.high - audit.difference.low) / 2
        covered.append(abs(naive[-1] - TRUTH["difference"]) <= half)
    assert np.mean(naive) > 2 * TRUTH["difference"]
    assert np.mean(covered) < 0.1


def test_drawing_by_strata_is_tighter_than_drawing_at_random(trials: list[tuple[Audit, list[Labelled]]]) -> None:
    at_random = []
    for _, images in trials:
        drawn = images[:MOST_IMAGES]  # the population is in no order
        at_random.append(np.mean([(i.label == i.adapted) - (i.label == i.zero_shot) for i in drawn]))
    by_strata = np.array([audit.difference.estimate for audit, _ in trials])
    assert by_strata.std() < 0.6 * np.std(at_random)


def test_a_part_of_the_labels_is_unbiased_too() -> None:
    generator = np.random.default_rng(1)
    values = []
    for seed in range(NUM_TRIALS):
        images = population(generator, 400)
        disagree_N = torch.tensor([image.disagreed for image in images])
        first = [images[i] for i in propose(disagree_N, seed=seed)[:30]]
        num_disagreed = int(disagree_N.sum())
        audit = estimate(first, num_disagreed=num_disagreed, num_agreed=400 - num_disagreed)
        values.append(audit.difference.estimate)
    assert abs(np.mean(values) - TRUTH["difference"]) < 3 * np.std(values) / NUM_TRIALS**0.5


@pytest.mark.parametrize(
    ("num_disagreed", "num_agreed", "expected"),
    [(100, 300, (30, 20)), (12, 300, (12, 38)), (100, 5, (45, 5)), (0, 80, (0, 50)), (7, 6, (7, 6)), (0, 0, (0, 0))],
)
def test_what_is_proposed(num_disagreed: int, num_agreed: int, expected: tuple[int, int]) -> None:
    disagree_N = torch.tensor([True] * num_disagreed + [False] * num_agreed, dtype=torch.bool)
    drawn = propose(disagree_N, seed=3)
    assert len(set(drawn)) == len(drawn)
    assert (sum(i < num_disagreed for i in drawn), sum(i >= num_disagreed for i in drawn)) == expected
    assert drawn == propose(disagree_N, seed=3)
    if len(drawn) == 50 and num_disagreed:
        assert drawn != propose(disagree_N, seed=4)
        assert any(i >= num_disagreed for i in drawn[:25]), "the order tells no stratum"


def labels(num_disagreed: int, num_agreed: int) -> list[Labelled]:
    """All in favour of the adapted classifier, and all right."""
    return [Labelled(zero_shot=0, adapted=1, label=1)] * num_disagreed + [
        Labelled(zero_shot=0, adapted=0, label=0)
    ] * num_agreed


@pytest.mark.parametrize(("num_disagreed", "num_agreed"), [(5, 4), (4, 30), (30, 4), (0, 50)])
def test_too_few_labels_say_nothing(num_disagreed: int, num_agreed: int) -> None:
    with pytest.raises(TooFewLabels):
        estimate(labels(num_disagreed, num_agreed), num_disagreed=60, num_agreed=300)


def test_labels_that_all_say_the_same_leave_doubt() -> None:
    audit = estimate(labels(30, 20), num_disagreed=60, num_agreed=240)
    assert (audit.zero_shot.estimate, audit.adapted.estimate, audit.difference.estimate) == pytest.approx((0.8, 1, 0.2))
    assert audit.adapted.low < 0.97
    assert audit.adapted.high == 1.0
    assert 0.1 < audit.difference.low < 0.18
    assert audit.sentence.startswith("By 50 labels, zero-shot is right on 80.0% of the images and the adapted")
    assert audit.sentence.endswith("The adapted classifier is better.")


def test_where_both_always_agree_there_is_no_difference() -> None:
    audit = estimate(labels(0, 50), num_disagreed=0, num_agreed=300)
    assert audit.difference.estimate == 0.0
    assert -0.01 < audit.difference.low < 0.0 < audit.difference.high < 0.01
    assert audit.sentence.endswith("That may be chance.")

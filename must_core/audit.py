"""An audit by labels: which few images to label, and what their labels say of two classifiers' accuracies.

Both answers to every image are known without labels, and only where the two differ can labels show a difference. So
most images to label are drawn from those, the others from where both agree, and each of the two strata counts by its
share of all images, not of the labels: two-phase sampling for stratification (Neyman, 1938; Cochran, Sampling
Techniques, 1977, chapter 12). Labels that count alike would speak of an imaginary set that is mostly disagreement.

Shapes: N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from must_core.seeding import AUDIT, AUDIT_INTERVAL, derive_seed

MOST_IMAGES = 50
"""To be labelled by a person in some minutes."""
_DISAGREEMENTS = 30
MIN_LABELS = 10
MIN_OF_STRATUM = 5
_NUM_DRAWS = 4000


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One image: what zero-shot and the adapted classifier answer, as class indices, and what a person says it is.

    A ``label`` of None is none of the classes.
    """

    zero_shot: int
    adapted: int
    label: int | None

    @property
    def disagreed(self) -> bool:
        """Of which stratum it is."""
        return self.zero_shot != self.adapted


@dataclass(frozen=True)
class Estimate:
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Accuracies, 0 to 1, and how much higher the adapted classifier's is."""

    zero_shot: Estimate
    adapted: Estimate
    difference: Estimate
    num_labels: int

    @property
    def sentence(self) -> str:
        """The same in words."""
        difference = self.difference
        said = "That may be chance."
        if difference.low > 0:
            said = "The adapted classifier is better."
        elif difference.high < 0:
            said = "Zero-shot is better."
        return (
            f"By {self.num_labels} labels, zero-shot is right on {self.zero_shot.estimate:.1%} of the images and the "
            f"adapted classifier on {self.adapted.estimate:.1%}: {100 * difference.estimate:+.1f} points "
            f"({100 * difference.low:+.1f} to {100 * difference.high:+.1f}). {said}"
        )


class TooFewLabels(ValueError):
    """The labels are too few, or of one stratum too few, to say anything."""


def propose(disagree_N: Tensor, *, seed: int) -> list[int]:
    """Draw the images to label: indices, in an order that does not tell the strata apart. 50, or all when fewer.

    Within a stratum each image is as likely as another, and so it stays when only the first of them get labels.
    """
    generator = torch.Generator().manual_seed(derive_seed(AUDIT, seed))
    order = torch.randperm(len(disagree_N), generator=generator)
    disagreed, agreed = order[disagree_N[order]], order[~disagree_N[order]]
    num_disagreed = min(len(disagreed), max(_DISAGREEMENTS, MOST_IMAGES - len(agreed)))
    drawn = torch.cat([disagreed[:num_disagreed], agreed[: MOST_IMAGES - num_disagreed]])
    shuffled: list[int] = drawn[torch.randperm(len(drawn), generator=generator)].tolist()
    return shuffled


def estimate(labelled: Sequence[Labelled], *, num_disagreed: int, num_agreed: int) -> Audit:
    """What labels of images that `propose` drew say of all images like them.

    ``num_disagreed`` and ``num_agreed`` are the strata's sizes among the images that `propose` was given. The point
    estimates are unbiased (Horvitz and Thompson, 1952). The intervals are of posterior draws: the strata's shares and
    what is right within each follow from the counts and Jeffreys' prior (Brown, Cai and DasGupta, 2001), which holds
    where all labels say the same too. Raises `TooFewLabels`.
    """
    disagreed = [each for each in labelled if each.disagreed]
    agreed = [each for each in labelled if not each.disagreed]
    for found, size in ((disagreed, num_disagreed), (agreed, num_agreed)):
        if len(labelled) < MIN_LABELS or len(found) < min(MIN_OF_STRATUM, size):
            raise TooFewLabels
    ups = sum(each.label == each.adapted for each in disagreed)
    downs = sum(each.label == each.zero_shot for each in disagreed)
    rights = sum(each.label == each.adapted for each in agreed)
    share = num_disagreed / (num_disagreed + num_agreed)
    up, down, right = ups / max(1, len(disagreed)), downs / max(1, len(disagreed)), rights / max(1, len(agreed))

    generator = np.random.default_rng(derive_seed(AUDIT_INTERVAL))
    share_S = generator.beta(num_disagreed + 0.5, num_agreed + 0.5, _NUM_DRAWS)
    counts = np.array([ups, downs, len(disagreed) - ups - downs])
    up_S, down_S, _ = generator.dirichlet(counts + 0.5, _NUM_DRAWS).T
    right_S = generator.beta(rights + 0.5, len(agreed) - rights + 0.5, _NUM_DRAWS)
    both_S = (1 - share_S) * right_S
    return Audit(
        zero_shot=_with_interval(share * down + (1 - share) * right, share_S * down_S + both_S),
        adapted=_with_interval(share * up + (1 - share) * right, share_S * up_S + both_S),
        difference=_with_interval(share * (up - down), share_S * (up_S - down_S)),
        num_labels=len(labelled),
    )


def _with_interval(value: float, draws_S: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(draws_S, [0.025, 0.975]).tolist()
    return Estimate(value, min(low, value), max(high, value))  # at 0 and 1 the draws stay on one side

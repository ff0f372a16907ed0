"""Signs that training went wrong, from what a classifier says of images before and after.

Shapes: N images, K classes, D width of features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_BALANCE = 0.7
"""Effective number of classes after over before."""
MAX_LARGEST_SHARE = 3.0
"""Share of the most frequent answer, after over before."""
MIN_RANK = 0.4
"""Effective rank of the features, after over before. Good runs go down to 0.55, collapsed ones below 0.1."""
MAX_SURE_CHANGES = 0.1
"""Share of changed answers within the quarter of images that zero-shot is surest of."""
MAX_DISAGREEMENT = 0.5
"""The judge learns from images that both agree on; they must be more than the others."""


@dataclass(frozen=True)
class Opinion:
    """What a classifier says of the images looked at: ``logits_NK``, and its own ``features_ND`` of unit length."""

    logits_NK: Tensor
    features_ND: Tensor

    @property
    def answers_N(self) -> Tensor:  # noqa: N802 - named by its shape
        """Class indices."""
        return self.logits_NK.argmax(dim=-1)

    @classmethod
    def joined(cls, parts: "Sequence[Opinion]") -> "Opinion":
        """Opinions of batches as one."""
        return cls(torch.cat([p.logits_NK for p in parts]), torch.cat([p.features_ND for p in parts]))


@dataclass(frozen=True)
class Veto:
    """A sign that training went wrong: the statistic, its value, the limit it is beyond, and the same in a sentence."""

    name: str
    value: float
    limit: float
    reason: str

    @property
    def collapsed(self) -> bool:
        """It will not get better: training may as well end. The others only count at the end."""
        return self.name in _COLLAPSES


_COLLAPSES = {"effective_classes", "feature_rank", "largest_share", "no_confident_image"}


def never_sure(opinion: Opinion, confidence_threshold: float) -> tuple[Veto, ...]:
    """A veto where a teacher is confident of no image at all: it teaches nothing of the classes."""
    surest = float(opinion.logits_NK.softmax(dim=-1).max())
    if surest > confidence_threshold:
        return ()
    reason = f"The teacher is sure enough of no image at all: its highest score is {surest:.2f}."
    return (Veto("no_confident_image", surest, confidence_threshold, reason),)


def vetoes(before: Opinion, after: Opinion) -> tuple[Veto, ...]:
    """Compare an adapted classifier's statistics with zero-shot's, on the same images; empty when all is well."""
    ratios = (
        ("effective_classes", _effective_classes(after) / _effective_classes(before), MIN_BALANCE),
        ("feature_rank", effective_rank(after.features_ND) / effective_rank(before.features_ND), MIN_RANK),
    )
    shares = (
        ("largest_share", _largest_share(after) / _largest_share(before), MAX_LARGEST_SHARE),
        ("sure_changes", _sure_changes(before, after), MAX_SURE_CHANGES),
        ("disagreement", float((before.answers_N != after.answers_N).double().mean()), MAX_DISAGREEMENT),
    )
    found = [Veto(name, value, low, _SENTENCES[name].format(value)) for name, value, low in ratios if not value >= low]
    found += [
        Veto(name, value, high, _SENTENCES[name].format(value)) for name, value, high in shares if not value <= high
    ]
    return tuple(found)


_SENTENCES = {
    "effective_classes": "The answers are spread over {:.2f} times as many classes as before: some have been lost.",
    "feature_rank": "The features fill {:.2f} times as many dimensions as before: they have collapsed.",
    "largest_share": "The most frequent answer is {:.1f} times as frequent as before.",
    "sure_changes": "{:.0%} of the answers that zero-shot was surest of have changed.",
    "disagreement": "{:.0%} of all answers have changed: too little is left that both agree on to judge by.",
}


def effective_rank(features_ND: Tensor) -> float:
    """exp of the entropy of the singular values' shares (RankMe; Garrido et al., ICML 2023): 1 to D, or NaN."""
    if not features_ND.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(features_ND.double())
    shares = values / values.sum().clamp(min=1e-12) + 1e-12
    return float(torch.exp(-(shares * shares.log()).sum()))


def _effective_classes(opinion: Opinion) -> float:
    marginal_K = opinion.logits_NK.double().softmax(dim=-1).mean(dim=0)
    return float(torch.exp(-(marginal_K * marginal_K.clamp(min=1e-12).log()).sum()))


def _largest_share(opinion: Opinion) -> float:
    return float(torch.bincount(opinion.answers_N).max()) / len(opinion.answers_N)


def _sure_changes(before: Opinion, after: Opinion) -> float:
    score_N = before.logits_NK.softmax(dim=-1).max(dim=-1).values
    surest = score_N.argsort(descending=True)[: max(1, len(score_N) // 4)]
    return float((before.answers_N != after.answers_N)[surest].double().mean())

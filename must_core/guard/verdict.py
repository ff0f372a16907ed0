"""The decision: adapted, zero-shot, or no telling.

Shapes: N images.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from must_core.guard.judge import Evidence, Gain, estimate_gain, judge
from must_core.guard.vetoes import Opinion, Veto, vetoes

Outcome = Literal["adapted", "zero_shot", "inconclusive"]

MIN_HELD_OUT = 50
"""With fewer images to decide on, nothing is decided."""
MIN_VOTES = 6
"""Fewer votes of the judge can all be for one side by chance (6 of 6: 3 %)."""

_HEADLINES: Mapping[Outcome, str] = {
    "adapted": "The adapted classifier is better than zero-shot",
    "zero_shot": "Zero-shot is better than the adapted classifier",
    "inconclusive": "The adapted classifier is not known to be better than zero-shot",
}


def headline(outcome: Outcome) -> str:
    """The outcome in words, without a full stop."""
    return _HEADLINES[outcome]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was decided and why. ``candidate`` names the classifier that was compared with zero-shot."""

    outcome: Outcome
    candidate: str
    reasons: tuple[str, ...]
    gain: Gain
    vetoes: tuple[Veto, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: a number that is none becomes None."""
        plain = asdict(self)
        for veto in plain["vetoes"]:
            veto["value"] = veto["value"] if math.isfinite(veto["value"]) else None
        return plain


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How a candidate compares with zero-shot: each image's vote, the gain they add up to, and signs of a collapse."""

    votes_N: Tensor
    gain: Gain
    vetoes: tuple[Veto, ...]


def compare(
    evidence: Evidence, zero_shot: Opinion, candidate: Opinion, held_out_N: Tensor, *, seed: int = 0
) -> Compared:
    """Have the judge decide the disagreements, and count its votes."""
    votes_N = judge(evidence, zero_shot.answers_N, candidate.answers_N)
    disagree_N = zero_shot.answers_N != candidate.answers_N
    gain = estimate_gain(votes_N, disagree_N, held_out_N, seed=seed)
    return Compared(votes_N=votes_N, gain=gain, vetoes=vetoes(zero_shot, candidate))


def decide(
    evidence: Evidence,
    zero_shot: Opinion,
    candidates: Mapping[str, Opinion],
    held_out_N: Tensor,
    *,
    seed: int = 0,
    others: tuple[Veto, ...] = (),
) -> Verdict:
    """Choose among zero-shot and the candidates, of which there is at least one.

    ``held_out_N`` marks the images that nobody trained on. A candidate is ``adapted`` when the gain's lower bound is
    above 0, the held-out images by themselves have more votes for it than against it, and there is no veto (``others``
    are vetoes from elsewhere); ``zero_shot`` when there is a veto, or the upper bound is below 0 and the held-out
    images agree; and else ``inconclusive``. The verdict is that of the adapted candidate with the highest lower bound,
    or else the first candidate's.
    """
    compared = {
        name: compare(evidence, zero_shot, opinion, held_out_N, seed=seed) for name, opinion in candidates.items()
    }
    return choose_among(compared, others)


def choose_among(compared: Mapping[str, Compared], others: tuple[Veto, ...] = ()) -> Verdict:
    """What `decide` makes of its comparisons."""
    verdicts = [_verdict(name, each, others) for name, each in compared.items()]
    adapted = [verdict for verdict in verdicts if verdict.outcome == "adapted"]
    return max(adapted, key=lambda v: (v.gain.low, v.gain.estimate), default=verdicts[0])


def too_few_images(num_images: int) -> Verdict:
    """For a run that held nothing out."""
    reason = f"{num_images} images are too few to hold {MIN_HELD_OUT} of them out of training and decide on those."
    nothing = torch.zeros(0, dtype=torch.bool)
    return Verdict(
        outcome="inconclusive",
        candidate="teacher",
        reasons=(reason,),
        gain=estimate_gain(nothing.float(), nothing, nothing),
        vetoes=(),
    )


def _verdict(name: str, compared: Compared, others: tuple[Veto, ...]) -> Verdict:
    found = others + tuple(veto for veto in compared.vetoes if veto not in others)
    outcome, reasons = _outcome(compared.gain, found)
    return Verdict(outcome=outcome, candidate=name, reasons=reasons, gain=compared.gain, vetoes=found)


def _outcome(gain: Gain, found: tuple[Veto, ...]) -> tuple[Outcome, tuple[str, ...]]:
    told = (
        f"Of {gain.num_images} images, {gain.num_disagreements} got another answer; the judge takes the adapted "
        f"classifier's side {gain.num_for_adapted} times and zero-shot's {gain.num_for_zero_shot} times: an estimated "
        f"gain of {100 * gain.estimate:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}; "
        f"{100 * gain.held_out_estimate:+.1f} on the {gain.num_held_out} that nobody trained on)."
    )
    if found:
        return "zero_shot", (*(veto.reason for veto in found), told)
    if gain.num_for_adapted + gain.num_for_zero_shot < MIN_VOTES:
        return "inconclusive", (told, "Those are too few to tell the two apart.")
    if gain.low > 0 and gain.held_out_estimate <= 0:
        return "inconclusive", (told, "The gain does not show on images that nobody trained on, so zero-shot stays.")
    if gain.low > 0:
        return "adapted", (told,)
    if gain.high < 0 and gain.held_out_estimate < 0:
        return "zero_shot", (told,)
    return "inconclusive", (told, "That may be chance, so zero-shot stays.")

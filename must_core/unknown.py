"""Images of none of the classes: how a classifier comes to say "unknown", learned from unlabeled images alone.

An image is unknown when its raw score, the cosine to its best class, is below that of nearly all images of the kind
that the classifier was made for. Which score to go by was measured (`bench/unknown.py`).

Shapes: N images, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FLAGGED_SHARE = 0.05
"""Of images like those held out, at most so many are taken for unknown."""


@dataclass(frozen=True)
class Calibration:
    """Raw scores below which an image is unknown, to zero-shot and to the adapted classifier; None: too few images.

    Without ``held_out`` the images were trained on, and nothing promises that new ones are scored alike.
    """

    zero_shot_below: float | None
    adapted_below: float | None
    num_images: int
    held_out: bool


def calibrate(zero_shot_NK: Tensor, adapted_NK: Tensor, held_out_N: Tensor, *, logit_scale: float) -> Calibration:
    """Find both limits from logits of the guard's images: of those held out or, where there are none, of all."""
    held_out = bool(held_out_N.any())
    asked_N = held_out_N if held_out else torch.ones_like(held_out_N)
    return Calibration(
        zero_shot_below=lower_limit(raw_scores(zero_shot_NK[asked_N], logit_scale)),
        adapted_below=lower_limit(raw_scores(adapted_NK[asked_N], logit_scale)),
        num_images=int(asked_N.sum()),
        held_out=held_out,
    )


def raw_scores(logits_NK: Tensor, logit_scale: float) -> Tensor:
    """Cosine between each image and its best class: ``scores_N``."""
    return logits_NK.max(dim=-1).values / logit_scale


def lower_limit(scores_N: Tensor) -> float | None:
    """The limit that a new score is below with a probability of `FLAGGED_SHARE` at most; None where N is below 19.

    That holds for any distribution, as long as the new score is drawn like these: it is as likely to take each of the
    N + 1 places among them (conformal prediction; Vovk et al., 2005).
    """
    place = int(FLAGGED_SHARE * (len(scores_N) + 1) + 1e-9)
    return float(scores_N.kthvalue(place).values) if place else None

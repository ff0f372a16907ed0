"""Who is right where two classifiers disagree, by a judge that saw none of the training.

The judge multiplies two things that the frozen base model says of an image, looked at from several sides:

- what its text says, as zero-shot does, but of the mean of several crops' features;
- how the image lies among others: a linear discriminant on those features, learned from the images on which both
  classifiers agree.

Neither of the two classifiers uses the second, and the adapted one has moved away from the first.

Shapes: B images of a batch, N images, S of them agreed on, M disagreed on, K classes, D embedding width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from must_core.seeding import BOOTSTRAP, SIDES, derive_seed
from must_core.student import Student

NUM_SIDES = 8
_MOST_ENLARGED = 0.2
_MARGIN = 1 / 16
_SHRINKAGE = 0.1
_NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Evidence:
    """What the judge knows of each image: ``features_ND``, a mean over several sides, and the text's log-scores."""

    features_ND: Tensor
    log_scores_NK: Tensor

    @classmethod
    def joined(cls, parts: "Sequence[Evidence]") -> "Evidence":
        """The evidence of batches as one."""
        return cls(torch.cat([p.features_ND for p in parts]), torch.cat([p.log_scores_NK for p in parts]))


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The judge's estimate of how much more often a candidate is right than zero-shot, with a 95 % interval.

    ``estimate``, ``low`` and ``high`` are shares of the images looked at, −1 to 1; ``held_out_estimate`` is the same of
    those alone that were held out of training.
    """

    estimate: float
    low: float
    high: float
    held_out_estimate: float
    num_images: int
    num_held_out: int
    num_disagreements: int
    num_for_adapted: int
    num_for_zero_shot: int


@torch.inference_mode()
def features_from_sides(zero_shot: Student, images_BCHW: Tensor) -> Tensor:
    """The mean ``features_BD`` of each image as it is and of `NUM_SIDES` − 1 crops of it, the same ones for all.

    A crop is enlarged by up to a fifth and shifted by up to a sixteenth beyond the edge.
    """
    generator = torch.Generator().manual_seed(derive_seed(SIDES))
    total_BD = zero_shot.features(images_BCHW)
    for _ in range(NUM_SIDES - 1):
        enlarged, top, left = torch.rand(3, generator=generator).tolist()
        total_BD = total_BD + zero_shot.features(crop(images_BCHW, enlarged=enlarged, top=top, left=left))
    return total_BD / NUM_SIDES


def crop(images_BCHW: Tensor, *, enlarged: float, top: float, left: float) -> Tensor:
    """Crop images to their size again after enlarging them; each argument is a share, 0 to 1, of the most allowed."""
    size = images_BCHW.shape[-1]
    side = size + int(enlarged * (1 + size * _MOST_ENLARGED))
    if side > size:
        images_BCHW = F.interpolate(images_BCHW, (side, side), mode="bicubic", antialias=True)
    padded_BCHW = F.pad(images_BCHW, (max(1, round(size * _MARGIN)),) * 4, mode="replicate")
    room = padded_BCHW.shape[-1] - size
    y, x = round(top * room), round(left * room)
    return padded_BCHW[..., y : y + size, x : x + size]


def judge(evidence: Evidence, zero_shot_N: Tensor, adapted_N: Tensor) -> Tensor:
    """Decide each disagreement: ``votes_N``, +1 for the adapted answer, −1 for zero-shot's, 0 where both agree.

    A class that no agreed image shows is one that the judge knows nothing of. Where it is the adapted answer's, or both
    are unknown, there is no vote. Where it is zero-shot's, the adapted classifier has lost a class, and that counts
    against it: learned from agreement, every judge would vote such a class away.
    """
    num_classes = evidence.log_scores_NK.shape[1]
    agreed_N = zero_shot_N == adapted_N
    votes_N = torch.zeros(len(agreed_N))
    if not agreed_N.any() or agreed_N.all():
        return votes_N
    features_ND = evidence.features_ND.double()
    labels_S, theirs_M, ours_M = zero_shot_N[agreed_N], zero_shot_N[~agreed_N], adapted_N[~agreed_N]
    scores_MK = discriminant(features_ND[agreed_N], labels_S, features_ND[~agreed_N], num_classes)
    scores_MK = scores_MK + evidence.log_scores_NK[~agreed_N].double()
    known_K = torch.bincount(labels_S, minlength=num_classes) > 0
    votes_M = (scores_MK.gather(1, ours_M[:, None]) - scores_MK.gather(1, theirs_M[:, None])).squeeze(1).sign()
    lost_M = known_K[ours_M] & ~known_K[theirs_M]
    votes_M = torch.where(known_K[ours_M] & known_K[theirs_M], votes_M, -lost_M.double())
    votes_N[~agreed_N] = votes_M.float()
    return votes_N


def discriminant(learn_SD: Tensor, labels_S: Tensor, ask_MD: Tensor, num_classes: int) -> Tensor:
    """Log-likelihood ``scores_MK`` of each class, up to a constant for each image; −∞ for classes with no image.

    One covariance for all classes (Fisher, 1936), shrunk towards a multiple of the identity (Friedman, 1989); a class
    is as frequent as among the images learned from.
    """
    centre_D = learn_SD.mean(dim=0)
    learn_SD, ask_MD = learn_SD - centre_D, ask_MD - centre_D
    count_K = torch.bincount(labels_S, minlength=num_classes)
    means_KD = learn_SD.new_zeros(num_classes, learn_SD.shape[1]).index_add_(0, labels_S, learn_SD)
    means_KD /= count_K.clamp(min=1)[:, None]
    within_SD = learn_SD - means_KD[labels_S]
    covariance_DD = within_SD.T @ within_SD / len(within_SD)
    spread = covariance_DD.diagonal().mean().clamp(min=1e-12)
    covariance_DD *= 1 - _SHRINKAGE
    covariance_DD.diagonal().add_(_SHRINKAGE * spread)
    weights_DK = torch.linalg.solve(covariance_DD, means_KD.T)
    scores_MK: Tensor = ask_MD @ weights_DK - 0.5 * (means_KD * weights_DK.T).sum(dim=1) + count_K.log()
    return scores_MK.masked_fill(count_K == 0, -math.inf)


def estimate_gain(votes_N: Tensor, disagree_N: Tensor, held_out_N: Tensor, *, seed: int = 0) -> Gain:
    """The mean vote and its 95 % interval, by resampling images (Efron, 1979)."""
    num, ups, downs = len(votes_N), int((votes_N > 0).sum()), int((votes_N < 0).sum())
    low = high = 0.0
    if num:
        # Of a mean of −1, 0 and 1 only the counts matter; they are multinomial, drawn as two binomials.
        generator = torch.Generator().manual_seed(derive_seed(BOOTSTRAP, seed))
        many = torch.full((_NUM_RESAMPLES,), float(num), dtype=torch.float64)
        drawn_up = torch.binomial(many, torch.full_like(many, ups / num), generator=generator)
        share_of_rest = torch.full_like(many, downs / max(1, num - ups))
        drawn_down = torch.binomial(many - drawn_up, share_of_rest, generator=generator)
        ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
        low, high = torch.quantile((drawn_up - drawn_down) / num, ends).tolist()
    return Gain(
        estimate=(ups - downs) / max(1, num),
        low=low,
        high=high,
        held_out_estimate=float(votes_N[held_out_N].mean()) if held_out_N.any() else 0.0,
        num_images=num,
        num_held_out=int(held_out_N.sum()),
        num_disagreements=int(disagree_N.sum()),
        num_for_adapted=ups,
        num_for_zero_shot=downs,
    )

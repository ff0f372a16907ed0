"""What a run changed, image by image and class by class, to be looked at by a person.

Bounded whatever the number of images and classes. Images are positions in the request's list, classes indices.

Shapes: N images of the panel, B of a part of them, K classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from must_core.audit import propose

MAX_CLASSES = 500
MAX_CHANGED = 60
MAX_UNCERTAIN = 40
_PART = 256


@dataclass(frozen=True, kw_only=True)
class ClassShare:
    """How often a class is answered, and its mean score over all images, before and after."""

    index: int
    answers_zero_shot: int
    answers_adapted: int
    mean_score_zero_shot: float
    mean_score_adapted: float


@dataclass(frozen=True)
class Answer:
    """The class answered and its softmax probability."""

    index: int
    score: float


@dataclass(frozen=True, kw_only=True)
class ReportedImage:
    """One image with both answers. ``margin`` is the adapted classifier's best score minus its second."""

    position: int
    held_out: bool
    zero_shot: Answer
    adapted: Answer
    margin: float


@dataclass(frozen=True, kw_only=True)
class AuditImage:
    """An image to label, with the class indices that the two classifiers answer."""

    position: int
    zero_shot: int
    adapted: int


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """Images to label, drawn of ``num_disagreed + num_agreed``: those held out, or the whole panel where none are."""

    num_disagreed: int
    num_agreed: int
    images: tuple[AuditImage, ...]


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Zero-shot beside the classifier that was compared with it, on the guard's panel.

    ``classes`` are the 500 with the highest mean score before or after, in the order of their indices; ``changed`` are
    images that got another answer, held-out ones first, then those that both classifiers are surest of; ``uncertain``
    are those of the smallest margin.
    """

    num_images: int
    num_held_out: int
    num_changed: int
    num_classes: int
    classes: tuple[ClassShare, ...]
    changed: tuple[ReportedImage, ...]
    uncertain: tuple[ReportedImage, ...]
    audit: AuditPlan

    def to_dict(self, class_names: Sequence[str], images: Sequence[Path]) -> dict[str, Any]:
        """Plain values with names and paths, for JSON that people read."""

        def told(image: ReportedImage) -> dict[str, Any]:
            return {
                "image": str(images[image.position]),
                "held_out": image.held_out,
                "zero_shot": {"class": class_names[image.zero_shot.index], "score": image.zero_shot.score},
                "adapted": {"class": class_names[image.adapted.index], "score": image.adapted.score},
                "margin": image.margin,
            }

        return {
            "num_images": self.num_images,
            "num_held_out": self.num_held_out,
            "num_changed": self.num_changed,
            "classes": [{"class": class_names[c.index], **_without_index(c)} for c in self.classes],
            "changed": [told(image) for image in self.changed],
            "uncertain": [told(image) for image in self.uncertain],
            "audit": {
                "num_disagreed": self.audit.num_disagreed,
                "num_agreed": self.audit.num_agreed,
                "images": [
                    {
                        "image": str(images[image.position]),
                        "zero_shot": class_names[image.zero_shot],
                        "adapted": class_names[image.adapted],
                    }
                    for image in self.audit.images
                ],
            },
        }


def make_report(
    zero_shot_NK: Tensor, adapted_NK: Tensor, positions_N: Tensor, held_out_N: Tensor, *, seed: int
) -> RunReport:
    """Compare two classifiers' logits for the same images; ``seed`` draws those to label."""
    before, after = _Said.of(zero_shot_NK), _Said.of(adapted_NK)
    changed_N = before.answer_N != after.answer_N
    surest_N = torch.minimum(before.score_N, after.score_N) + held_out_N.float()
    changed = [i for i in surest_N.argsort(descending=True, stable=True).tolist() if changed_N[i]]
    uncertain = after.margin_N.argsort(stable=True).tolist()

    def told(i: int) -> ReportedImage:
        return ReportedImage(
            position=int(positions_N[i]),
            held_out=bool(held_out_N[i]),
            zero_shot=before.answer(i),
            adapted=after.answer(i),
            margin=_rounded(after.margin_N[i]),
        )

    return RunReport(
        num_images=len(changed_N),
        num_held_out=int(held_out_N.sum()),
        num_changed=int(changed_N.sum()),
        num_classes=zero_shot_NK.shape[1],
        classes=_shares(before, after),
        changed=tuple(map(told, changed[:MAX_CHANGED])),
        uncertain=tuple(map(told, uncertain[:MAX_UNCERTAIN])),
        audit=_plan(before, after, positions_N, held_out_N, seed=seed),
    )


@dataclass(frozen=True)
class _Said:
    """A classifier's answers; scores that are no numbers count as 0."""

    answer_N: Tensor
    score_N: Tensor
    margin_N: Tensor
    mean_score_K: Tensor

    @classmethod
    def of(cls, logits_NK: Tensor) -> "_Said":
        answers, scores, margins = [], [], []
        total_K = torch.zeros(logits_NK.shape[1], dtype=torch.float64)
        for logits_BK in logits_NK.split(_PART):  # so that no second N x K tensor is made
            scores_BK = logits_BK.softmax(dim=-1).nan_to_num(0.0)
            best_B2 = scores_BK.topk(min(2, scores_BK.shape[1]), dim=-1).values
            answers.append(logits_BK.argmax(dim=-1))
            scores.append(best_B2[:, 0])
            margins.append(best_B2[:, 0] - best_B2[:, -1])
            total_K += scores_BK.double().sum(dim=0)
        return cls(torch.cat(answers), torch.cat(scores), torch.cat(margins), total_K / len(logits_NK))

    def answer(self, i: int) -> Answer:
        return Answer(int(self.answer_N[i]), _rounded(self.score_N[i]))


def _shares(before: _Said, after: _Said) -> tuple[ClassShare, ...]:
    num_classes = len(before.mean_score_K)
    most_K = torch.maximum(before.mean_score_K, after.mean_score_K)
    kept = most_K.argsort(descending=True, stable=True)[:MAX_CLASSES].sort().values.tolist()
    before_K, after_K = (torch.bincount(said.answer_N, minlength=num_classes) for said in (before, after))
    return tuple(
        ClassShare(
            index=k,
            answers_zero_shot=int(before_K[k]),
            answers_adapted=int(after_K[k]),
            mean_score_zero_shot=_rounded(before.mean_score_K[k]),
            mean_score_adapted=_rounded(after.mean_score_K[k]),
        )
        for k in kept
    )


def _plan(before: _Said, after: _Said, positions_N: Tensor, held_out_N: Tensor, *, seed: int) -> AuditPlan:
    counted_N = held_out_N if held_out_N.any() else torch.ones_like(held_out_N)
    counted = counted_N.nonzero().squeeze(1)
    disagree = (before.answer_N != after.answer_N)[counted]
    drawn = counted[propose(disagree, seed=seed)].tolist()
    return AuditPlan(
        num_disagreed=int(disagree.sum()),
        num_agreed=int((~disagree).sum()),
        images=tuple(
            AuditImage(position=int(positions_N[i]), zero_shot=int(before.answer_N[i]), adapted=int(after.answer_N[i]))
            for i in drawn
        ),
    )


def _rounded(value: Tensor) -> float:
    return round(float(value), 6)


def _without_index(share: ClassShare) -> dict[str, Any]:
    plain = asdict(share)
    del plain["index"]
    return plain

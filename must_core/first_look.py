"""What zero-shot says of the unlabeled images before training: what settings are chosen by and the guard compares with.

Shapes: N images of the panel, K classes.
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from must_core import evaluate
from must_core.guard.judge import Evidence, crop
from must_core.guard.panel import Panel, evidence_of, opinion_of
from must_core.guard.vetoes import Opinion
from must_core.student import Student

_LOW = 0.05


@dataclass(frozen=True)
class FirstLook:
    """Answers to the panel, the judge's evidence, and how steady the answers are.

    ``flip_disagreement`` and ``crop_disagreement`` are the shares of images, 0 to 1, whose answer changes when they are
    mirrored, and when they are cropped a little.
    """

    zero_shot: Opinion
    evidence: Evidence | None
    flip_disagreement: float
    crop_disagreement: float


def first_look(zero_shot: Student, panel: Panel, *, for_the_judge: bool) -> Generator[None, None, FirstLook]:
    """Look at every image of the panel; yields after each batch. The judge's evidence takes eight times as long."""
    opinions: list[Opinion] = []
    evidence: list[Evidence] = []
    mirrored: list[Tensor] = []
    cropped: list[Tensor] = []
    for images_BCHW in panel.batches():
        opinions.append(opinion_of(zero_shot, images_BCHW))
        mirrored.append(_answers(zero_shot, images_BCHW.flip(-1)))
        cropped.append(_answers(zero_shot, crop(images_BCHW, enlarged=0.5, top=0.5, left=0.5)))
        if for_the_judge:
            evidence.append(evidence_of(zero_shot, images_BCHW))
        yield
    opinion = Opinion.joined(opinions)
    return FirstLook(
        opinion,
        Evidence.joined(evidence) if for_the_judge else None,
        _share_changed(opinion, mirrored),
        _share_changed(opinion, cropped),
    )


def _answers(classifier: Student, images_BCHW: Tensor) -> Tensor:
    return evaluate.logits_of(classifier, images_BCHW).argmax(dim=-1)


def _share_changed(opinion: Opinion, answers: list[Tensor]) -> float:
    return float((torch.cat(answers) != opinion.answers_N).double().mean())


def low_score(zero_shot: Opinion) -> float:
    """The score, 0 to 1, that a twentieth of the answers fall short of."""
    return float(zero_shot.logits_NK.softmax(dim=-1).max(dim=-1).values.double().quantile(_LOW))

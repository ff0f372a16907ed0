"""What a classifier says of a set of images, and how good that is where labels happen to be known.

Labels are for metrics alone: nothing here chooses a checkpoint or a setting.

Shapes: N images, B images of a batch, K classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from must_core.backbone import Preprocess
from must_core.data.labels import UNKNOWN
from must_core.data.loader import ImageSource, evaluation_batches

_BATCH = 256
_Z_95 = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""


def logits_batches(
    classifier: nn.Module,
    images: Sequence[Path] | ImageSource,
    preprocess: Preprocess,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = _BATCH,
    num_workers: int = 0,
) -> Iterator[Tensor]:
    """Classify images batch by batch: yields ``logits_BK``, float32 on the CPU, in the order of ``images``.

    Nothing is kept, so any number of images will do; raises `UnreadableImage`.
    """
    classifier.eval()
    for images_BCHW in evaluation_batches(images, preprocess, batch_size=batch_size, num_workers=num_workers):
        yield logits_of(classifier, images_BCHW.to(device))


def logits_of(classifier: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Classify a batch: ``logits_BK``, float32 on the CPU; see `in_memory`."""
    (logits_BK,) = in_memory(lambda part_BCHW: (classifier(part_BCHW),), images_BCHW)
    return logits_BK


def in_memory(ask: Callable[[Tensor], tuple[Tensor, ...]], images_BCHW: Tensor) -> tuple[Tensor, ...]:
    """What ``ask`` says of a batch, row by row, float32 on the CPU and without gradients.

    Asked half by half where the GPU's memory is too small.
    """
    try:
        with torch.inference_mode():
            return tuple(rows.float().cpu() for rows in ask(images_BCHW))
    except torch.OutOfMemoryError:
        if len(images_BCHW) == 1:
            raise
    # Outside the handler: the exception's traceback keeps the failed attempt's tensors.
    torch.cuda.empty_cache()
    halves = [in_memory(ask, half_BCHW) for half_BCHW in images_BCHW.chunk(2)]
    return tuple(torch.cat(rows) for rows in zip(*halves, strict=True))


def predict(
    classifier: nn.Module,
    images: Sequence[Path] | ImageSource,
    preprocess: Preprocess,
    *,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
) -> Tensor:
    """Classify images and keep every logit: ``logits_NK``, 4·N·K bytes. For many images, `Tally` `logits_batches`."""
    return torch.cat(list(logits_batches(classifier, images, preprocess, device=device, num_workers=num_workers)))


class Tally:
    """What the metrics need of logits that are not kept: 12 bytes an image and a few numbers a class.

    Add every batch in order, then read ``answers_N``, ``scores_N``, `summary` and, where labels came along,
    `accuracy`.
    """

    def __init__(self) -> None:
        self._answers: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._marginal_K: Tensor | None = None
        self._correct_K: Tensor | None = None
        self._count_K: Tensor | None = None

    def add(self, logits_BK: Tensor, labels_B: Tensor | None = None) -> None:
        """Take a batch in; labels are class indices, −1 where unknown. Raises `ValueError` for labels of no class."""
        scores_BK = logits_BK.softmax(dim=-1)
        score_B, _ = scores_BK.max(dim=-1)
        answer_B = logits_BK.argmax(dim=-1)
        self._answers.append(answer_B)
        self._scores.append(score_B)
        marginal_K = scores_BK.double().sum(dim=0)
        self._marginal_K = marginal_K if self._marginal_K is None else self._marginal_K + marginal_K
        if labels_B is not None:
            self._add_labels(answer_B, labels_B, logits_BK.shape[1])

    def _add_labels(self, answer_B: Tensor, labels_B: Tensor, num_classes: int) -> None:
        if labels_B.shape != answer_B.shape:
            raise ValueError("there must be a label for each image")
        if len(labels_B) and not UNKNOWN <= int(labels_B.min()) <= int(labels_B.max()) < num_classes:
            raise ValueError("a label is the index of no class")
        known_B = labels_B != UNKNOWN
        labels_B, right_B = labels_B[known_B], (answer_B == labels_B)[known_B]
        count_K = torch.bincount(labels_B, minlength=num_classes)
        correct_K = torch.bincount(labels_B[right_B], minlength=num_classes)
        self._count_K = count_K if self._count_K is None else self._count_K + count_K
        self._correct_K = correct_K if self._correct_K is None else self._correct_K + correct_K

    @property
    def answers_N(self) -> Tensor:  # noqa: N802 - named by its shape
        """The class index that each image got, int64."""
        return torch.cat(self._answers) if self._answers else torch.zeros(0, dtype=torch.int64)

    @property
    def scores_N(self) -> Tensor:  # noqa: N802 - named by its shape
        """The softmax probability of each answer, float32."""
        return torch.cat(self._scores) if self._scores else torch.zeros(0)

    def summary(self) -> Iterator[tuple[str, float]]:
        """Yield what can be said without labels, as `summary` does."""
        scores_N = self.scores_N
        if self._marginal_K is None or not len(scores_N):
            return
        marginal_K = self._marginal_K / len(scores_N)
        yield "mean_score", float(scores_N.double().mean())
        yield "effective_classes", float(torch.exp(-(marginal_K * marginal_K.clamp(min=1e-12).log()).sum()))

    def accuracy(self) -> Iterator[tuple[str, float]]:
        """Yield how often the answers were right, as `accuracy` does; nothing when no labels were added."""
        if self._count_K is None or self._correct_K is None:
            return
        num_labelled, num_correct = int(self._count_K.sum()), int(self._correct_K.sum())
        if num_labelled:
            low, high = wilson_interval(num_correct, num_labelled)
            seen_K = self._count_K > 0
            yield "top1", num_correct / num_labelled
            yield "mean_per_class", float((self._correct_K[seen_K].double() / self._count_K[seen_K]).mean())
            yield "top1_low", low
            yield "top1_high", high
        yield "num_labelled", float(num_labelled)


def count_into(
    tally: Tally,
    classifier: nn.Module,
    images: Sequence[Path] | ImageSource,
    preprocess: Preprocess,
    labels_N: Tensor | None = None,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = _BATCH,
    num_workers: int = 0,
) -> Iterator[int]:
    """Classify images and add them to a tally; yields how many are done after each batch, and keeps no logits.

    Raises `ValueError` when ``labels_N`` are not as many as the images.
    """
    if labels_N is not None and len(labels_N) != len(images):
        raise ValueError("there must be a label for each image")
    start = 0
    for logits_BK in logits_batches(
        classifier, images, preprocess, device=device, batch_size=batch_size, num_workers=num_workers
    ):
        end = start + len(logits_BK)
        tally.add(logits_BK, None if labels_N is None else labels_N[start:end])
        start = end
        yield end


def evaluate(
    classifier: nn.Module,
    images: Sequence[Path] | ImageSource,
    preprocess: Preprocess,
    labels_N: Tensor | None = None,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = _BATCH,
    num_workers: int = 0,
) -> Iterator[tuple[str, float]]:
    """Classify images and yield `summary`'s metrics, then `accuracy`'s where there are labels; see `count_into`."""
    tally = Tally()
    for _ in count_into(
        tally, classifier, images, preprocess, labels_N, device=device, batch_size=batch_size, num_workers=num_workers
    ):
        pass
    yield from tally.summary()
    yield from tally.accuracy()


def accuracy(logits_NK: Tensor, labels_N: Tensor) -> Iterator[tuple[str, float]]:
    """Yield ``top1``, ``mean_per_class`` (0 to 1), ``top1_low`` and ``top1_high``, and ``num_labelled``.

    Images whose label is −1 do not count; when none is left, ``num_labelled`` comes alone. The second is what the
    paper reports for Pets and Caltech101: the mean of each class's own accuracy; classes without an image do not
    count. Low and high are the ends of top1's 95 % interval (`wilson_interval`).
    """
    return _tallied(logits_NK, labels_N).accuracy()


def summary(logits_NK: Tensor) -> Iterator[tuple[str, float]]:
    """Yield what can be said without labels: mean score, and how evenly the answers are spread.

    ``effective_classes`` is exp of the entropy of the mean prediction: K when all classes are predicted equally
    often, 1 when a single one is. Both go up when a model merely becomes surer; neither says that it is right.
    """
    return _tallied(logits_NK).summary()


def what_changed(zero_shot_NK: Tensor, adapted_NK: Tensor) -> dict[str, float]:
    """What changed between two classifiers' answers, said without labels."""
    metrics = {f"zero_shot_{name}": value for name, value in summary(zero_shot_NK)}
    metrics |= {f"adapted_{name}": value for name, value in summary(adapted_NK)}
    changed_N = zero_shot_NK.argmax(dim=-1) != adapted_NK.argmax(dim=-1)
    metrics["changed_answers"] = float(changed_N.double().mean())
    return metrics


def wilson_interval(num_correct: int, num_labelled: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927), for images drawn independently; (0, 1) when there are none."""
    if not num_labelled:
        return 0.0, 1.0
    share, z2 = num_correct / num_labelled, _Z_95**2 / num_labelled
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * share * (1 - share) + (z2 / 2) ** 2) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def _tallied(logits_NK: Tensor, labels_N: Tensor | None = None) -> Tally:
    tally = Tally()
    for start in range(0, max(1, len(logits_NK)), _BATCH):  # in parts, so that no second N x K tensor is made
        part = slice(start, start + _BATCH)
        tally.add(logits_NK[part], None if labels_N is None else labels_N[part])
    return tally

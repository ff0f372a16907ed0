"""What a classifier says of a set of images, and how good that is where labels happen to be known.

Shapes: N images, K classes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from must_core.backbone import Preprocess
from must_core.data import evaluation_batches


@torch.inference_mode()
def predict(
    classifier: nn.Module,
    paths: Sequence[Path],
    preprocess: Preprocess,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Classify images: ``logits_NK``, float32 on the CPU, in the order of ``paths``."""
    classifier.eval()
    batches = [
        classifier(images_BCHW.to(device)).float().cpu() for images_BCHW in evaluation_batches(paths, preprocess)
    ]
    return torch.cat(batches)


def accuracy(logits_NK: Tensor, labels_N: Tensor) -> Iterator[tuple[str, float]]:
    """Yield ``("top1", …)`` and ``("mean_per_class", …)``, both from 0 to 1.

    The second is what the paper reports for Pets and Caltech101; classes without an image do not count.
    """
    correct_N = (logits_NK.argmax(dim=-1) == labels_N).double()
    yield "top1", float(correct_N.mean())
    yield (
        "mean_per_class",
        float(torch.stack([correct_N[labels_N == k].mean() for k in labels_N.unique()]).mean()),
    )


def summary(logits_NK: Tensor) -> Iterator[tuple[str, float]]:
    """Yield what can be said without labels: mean score, and how evenly the answers are spread.

    ``effective_classes`` is exp of the entropy of the mean prediction: K when all classes are predicted equally
    often, 1 when a single one is. Both go up when a model merely becomes surer; neither says that it is right.
    """
    scores_NK = logits_NK.softmax(dim=-1)
    marginal_K = scores_NK.mean(dim=0)
    yield "mean_score", float(scores_NK.max(dim=-1).values.mean())
    yield "effective_classes", float(torch.exp(-(marginal_K * marginal_K.clamp(min=1e-12).log()).sum()))

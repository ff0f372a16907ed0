import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from must_core.backbone import BaseModel, load_base
from must_core.data.loader import find_images
from must_core.evaluate import Tally, accuracy, evaluate, logits_batches, predict, summary, wilson_interval
from must_core.student import Student
from must_core.text.prompts import ClassSpec, build_class_weights
from tests.support.tiny import CLASSES, make_base, make_images

NUM_IMAGES = 23


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(make_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def classifier(base: BaseModel) -> Student:
    return Student.from_base(base, build_class_weights(base, [ClassSpec(c) for c in CLASSES], ["a {}"]))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return list(make_images(tmp_path_factory.mktemp("images"), NUM_IMAGES))


def answers(*right: bool, labels: list[int], num_classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits that answer the label where ``right``, and the class after it elsewhere."""
    answered = [label if ok else (label + 1) % num_classes for ok, label in zip(right, labels, strict=True)]
    return torch.eye(num_classes)[answered], torch.tensor(labels)


def test_both_means_of_accuracy() -> None:
    logits_NK, labels_N = answers(True, True, True, False, labels=[0, 0, 0, 1])
    found = dict(accuracy(logits_NK, labels_N))
    assert found["top1"] == 0.75
    assert found["mean_per_class"] == 0.5  # class 0 all right, class 1 all wrong, class 2 without an image
    assert found["num_labelled"] == 4
    assert list(found)[:2] == ["top1", "mean_per_class"]


def test_images_without_a_label_do_not_count() -> None:
    logits_NK, labels_N = answers(True, False, True, labels=[0, 1, 2])
    unlabelled = torch.tensor([0, -1, 2])
    assert dict(accuracy(logits_NK, unlabelled))["top1"] == 1.0
    assert dict(accuracy(logits_NK, unlabelled))["num_labelled"] == 2
    assert dict(accuracy(logits_NK, labels_N))["top1"] == pytest.approx(2 / 3)


def test_without_any_label_there_is_no_accuracy() -> None:
    assert dict(accuracy(torch.eye(3), torch.full((3,), -1))) == {"num_labelled": 0.0}
    assert dict(accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))) == {"num_labelled": 0.0}
    assert dict(summary(torch.zeros(0, 3))) == {}


@pytest.mark.parametrize("label", [-2, 3])
def test_a_label_of_no_class_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match="no class"):
        dict(accuracy(torch.eye(3), torch.tensor([0, 1, label])))


def test_labels_must_be_as_many_as_images(base: BaseModel, classifier: Student, images: list[Path]) -> None:
    with pytest.raises(ValueError, match="each image"):
        dict(evaluate(classifier, images, base.preprocess, torch.zeros(NUM_IMAGES - 1, dtype=torch.int64)))
    with pytest.raises(ValueError, match="each image"):
        dict(accuracy(torch.eye(3), torch.tensor([0, 1])))


@pytest.mark.parametrize(
    ("num_correct", "num_labelled", "low", "high"),
    [
        # By scipy.stats.binomtest(correct, labelled).proportion_ci(method="wilson").
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (50, 100, 0.4038315, 0.5961685),
        (777, 1000, 0.7501681, 0.8017119),
    ],
)
def test_the_interval_is_wilsons(num_correct: int, num_labelled: int, low: float, high: float) -> None:
    assert wilson_interval(num_correct, num_labelled) == pytest.approx((low, high), abs=1e-6)


def test_the_interval_solves_its_own_equation() -> None:
    share, num_labelled, z = 0.9, 500, 1.959963984540054
    for end in wilson_interval(450, num_labelled):
        assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / num_labelled))


def test_the_interval_covers_what_it_should() -> None:
    generator = torch.Generator().manual_seed(0)
    true_share, num_labelled, num_trials = 0.93, 200, 2000
    counts = (torch.rand(num_trials, num_labelled, generator=generator) < true_share).sum(dim=1).tolist()
    covered = sum(low <= true_share <= high for low, high in (wilson_interval(c, num_labelled) for c in counts))
    assert 0.93 < covered / num_trials < 0.97


def test_streaming_says_what_all_logits_at_once_say(base: BaseModel, classifier: Student, images: list[Path]) -> None:
    labels_N = torch.arange(NUM_IMAGES) % 4 - 1
    logits_NK = predict(classifier, images, base.preprocess)
    assert logits_NK.shape == (NUM_IMAGES, 3)
    whole = dict(summary(logits_NK)) | dict(accuracy(logits_NK, labels_N))
    for batch_size in (1, 5, 256):
        streamed = dict(evaluate(classifier, images, base.preprocess, labels_N, batch_size=batch_size))
        assert streamed.keys() == whole.keys()
        for name in ("top1", "mean_per_class", "top1_low", "top1_high", "num_labelled"):
            assert streamed[name] == whole[name]
        assert streamed == pytest.approx(whole, rel=1e-6)  # a batch of another size is another matrix product
    # Plain arithmetic over the logits, none of it ours.
    known_N = labels_N >= 0
    right_N = logits_NK.argmax(dim=1) == labels_N
    assert whole["top1"] == pytest.approx(float(right_N[known_N].double().mean()))
    per_class = [float(right_N[labels_N == k].double().mean()) for k in range(3)]
    assert whole["mean_per_class"] == pytest.approx(sum(per_class) / 3)
    scores_NK = logits_NK.softmax(dim=1)
    assert whole["mean_score"] == pytest.approx(float(scores_NK.max(dim=1).values.mean()), rel=1e-5)
    marginal_K = scores_NK.mean(dim=0)
    assert whole["effective_classes"] == pytest.approx(
        math.exp(-float((marginal_K * marginal_K.log()).sum())), rel=1e-5
    )


def test_without_labels_only_the_summary_comes(base: BaseModel, classifier: Student, images: list[Path]) -> None:
    assert set(dict(evaluate(classifier, images, base.preprocess))) == {"mean_score", "effective_classes"}


def test_loader_processes_and_compact_lists_change_nothing(
    base: BaseModel, classifier: Student, images: list[Path]
) -> None:
    alone = predict(classifier, images, base.preprocess)
    assert torch.equal(predict(classifier, find_images(images[0].parent), base.preprocess, num_workers=2), alone)


def test_answers_and_scores_are_kept_and_nothing_else_that_grows() -> None:
    tally = Tally()
    logits_BK = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    for _ in range(100):
        tally.add(logits_BK, torch.tensor([1, 2]))
    assert tally.answers_N.tolist() == [1, 0] * 100
    assert tally.scores_N[:2].tolist() == pytest.approx(logits_BK.softmax(dim=1).max(dim=1).values.tolist())
    assert dict(tally.accuracy())["top1"] == 0.5
    held = [value for value in vars(tally).values() if isinstance(value, Tensor)]
    assert {tuple(value.shape) for value in held} == {(3,)}
    lists = [value for value in vars(tally).values() if isinstance(value, list)]
    assert sum(t.numel() * t.element_size() for held in lists for t in held) == 200 * 12


def test_no_inference_mode_reaches_the_caller(base: BaseModel, classifier: Student, images: list[Path]) -> None:
    for _ in logits_batches(classifier, images, base.preprocess, batch_size=8):
        assert not torch.is_inference_mode_enabled()
        assert torch.ones(1, requires_grad=True).mul(2).requires_grad

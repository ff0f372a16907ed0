"""What a report shows of two classifiers' logits."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from must_core.report import MAX_CHANGED, MAX_CLASSES, MAX_UNCERTAIN, RunReport, make_report


def logits(*rows: list[float]) -> Tensor:
    """From probabilities."""
    return torch.tensor(rows).log()


def report_of(before_NK: Tensor, after_NK: Tensor, num_held_out: int = 0) -> RunReport:
    num_images = len(before_NK)
    held_out_N = torch.arange(num_images) < num_held_out
    return make_report(before_NK, after_NK, 100 + torch.arange(num_images), held_out_N, seed=0)


def test_what_changed_and_how_sure_both_were() -> None:
    before_NK = logits([0.6, 0.3, 0.1], [0.9, 0.05, 0.05], [0.8, 0.1, 0.1], [0.1, 0.7, 0.2])
    after_NK = logits([0.2, 0.7, 0.1], [0.95, 0.03, 0.02], [0.05, 0.05, 0.9], [0.1, 0.5, 0.4])
    report = report_of(before_NK, after_NK, num_held_out=1)
    assert (report.num_images, report.num_held_out, report.num_changed, report.num_classes) == (4, 1, 2, 3)
    first, second = report.changed
    assert (first.position, first.held_out) == (100, True), "held-out ones come first"
    assert (second.position, second.held_out) == (102, False)
    assert (first.zero_shot.index, first.zero_shot.score) == (0, pytest.approx(0.6, abs=1e-6))
    assert (first.adapted.index, first.adapted.score) == (1, pytest.approx(0.7, abs=1e-6))
    assert first.margin == pytest.approx(0.5, abs=1e-6)
    assert [image.position for image in report.uncertain] == [103, 100, 102, 101]
    assert [(c.index, c.answers_zero_shot, c.answers_adapted) for c in report.classes] == [
        (0, 3, 1), (1, 1, 2), (2, 0, 1),
    ]  # fmt: skip
    assert report.classes[2].mean_score_zero_shot == pytest.approx(0.1125)
    assert report.classes[2].mean_score_adapted == pytest.approx(0.355)


def test_the_surest_changes_come_first() -> None:
    before_NK = logits([0.6, 0.4], [0.9, 0.1], [0.7, 0.3])
    after_NK = logits([0.1, 0.9], [0.2, 0.8], [0.4, 0.6])
    assert [image.position for image in report_of(before_NK, after_NK).changed] == [101, 100, 102]


def test_what_is_audited_was_held_out_where_there_is_such() -> None:
    before_NK, after_NK = torch.randn(300, 4), torch.randn(300, 4)
    held_out = report_of(before_NK, after_NK, num_held_out=60).audit
    assert held_out.num_disagreed + held_out.num_agreed == 60
    assert all(100 <= image.position < 160 for image in held_out.images)
    everything = report_of(before_NK, after_NK).audit
    assert everything.num_disagreed + everything.num_agreed == 300
    assert any(image.position >= 160 for image in everything.images)
    for image in everything.images:
        i = image.position - 100
        assert (image.zero_shot, image.adapted) == (int(before_NK[i].argmax()), int(after_NK[i].argmax()))


def test_it_is_bounded_whatever_there_is_to_say() -> None:
    before_NK, after_NK = torch.randn(4000, 10_000), torch.randn(4000, 10_000)
    after_NK[:, 9_999] += 5
    report = report_of(before_NK, after_NK, num_held_out=2000)
    assert (len(report.changed), len(report.uncertain), len(report.classes)) == (
        MAX_CHANGED,
        MAX_UNCERTAIN,
        MAX_CLASSES,
    )
    assert report.num_classes == 10_000
    kept = [share.index for share in report.classes]
    assert kept == sorted(kept)
    assert 9_999 in kept
    assert len(json.dumps(asdict(report))) < 120_000


@pytest.mark.parametrize("num_images", [1, 2, 30])
def test_few_images_and_scores_that_are_no_numbers_make_a_report_too(num_images: int) -> None:
    report = report_of(torch.randn(num_images, 3), torch.full((num_images, 3), float("nan")))
    json.dumps(asdict(report), allow_nan=False)
    assert all(image.adapted.score == 0.0 for image in report.uncertain)
    assert len(report.audit.images) == num_images


def test_people_read_names_and_paths() -> None:
    report = make_report(logits([0.6, 0.4]), logits([0.1, 0.9]), torch.tensor([1]), torch.tensor([False]), seed=0)
    plain = report.to_dict(["cat", "dog"], [Path("a.png"), Path("b.png")])
    (changed,) = plain["changed"]
    assert (changed["image"], changed["zero_shot"]["class"], changed["adapted"]["class"]) == ("b.png", "cat", "dog")
    assert [c["class"] for c in plain["classes"]] == ["cat", "dog"]
    json.dumps(plain)

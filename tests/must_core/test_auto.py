"""What is chosen from the model and the unlabeled images."""

from pathlib import Path
from typing import Any

import pytest
import torch

from must_core.auto import Evidence, _learning_rate, choose
from must_core.backbone import load_base
from must_core.first_look import low_score
from must_core.guard.vetoes import Opinion
from tests.support.tiny import make_base


@pytest.mark.parametrize(("low", "threshold"), [(0.05, 0.3), (0.3, 0.3), (0.456, 0.46), (0.7, 0.7), (0.99, 0.7)])
def test_the_threshold_follows_the_scores_within_the_papers_range(tmp_path: Path, low: float, threshold: float) -> None:
    evidence = Evidence(num_images=1000, num_classes=3, flip_disagreement=0.0, low_score=low)
    config, choices = choose({}, evidence, load_base(make_base(tmp_path)), seed=0)
    assert config.confidence_threshold == threshold
    assert f"{low:.2f}" in choices["confidence_threshold"].reason


def test_a_twentieth_of_the_answers_is_below_the_low_score() -> None:
    generator = torch.Generator().manual_seed(0)
    opinion = Opinion(3 * torch.randn(2000, 5, generator=generator), torch.zeros(2000, 1))
    scores_N = opinion.logits_NK.softmax(dim=-1).max(dim=-1).values
    assert float((scores_N < low_score(opinion)).double().mean()) == pytest.approx(0.05, abs=1e-3)


def test_the_rate_is_the_papers_for_the_papers_tower() -> None:
    assert _learning_rate(768)[0] == 2e-5
    assert _learning_rate(64)[0] == _learning_rate(128)[0] == 100 * _learning_rate(768)[0]
    assert _learning_rate(1024)[0] == 2e-5  # it trains ViT-L/14 with no smaller one


@pytest.mark.parametrize(
    ("num_classes", "asked", "form"),
    [
        (32, {}, "paper"),
        (33, {}, "running"),
        (10, {"batch_size": 16}, "running"),
        (8, {"batch_size": 16}, "paper"),
        (33, {"fairness_form": "paper"}, "paper"),
    ],
)
def test_fairness_remembers_earlier_batches_where_one_is_few_for_the_classes(
    tmp_path: Path, num_classes: int, asked: dict[str, Any], form: str
) -> None:
    evidence = Evidence(num_images=1000, num_classes=num_classes, flip_disagreement=0.0)
    config, _ = choose(asked, evidence, load_base(make_base(tmp_path)), seed=0)
    assert config.batch_size == asked.get("batch_size", 64)
    assert config.fairness_form == form

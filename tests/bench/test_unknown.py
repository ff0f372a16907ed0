"""The bench of what is unknown: its arithmetic, and that every task has strangers."""

import pytest
import torch

from bench.unknown import SCORES, auroc, tasks


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    known_N, strange_N = torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0, 4.0])
    assert auroc(known_N, strange_N) == pytest.approx((1 + 1 + 0 + 1 + 0.5 + 0) / 6)
    assert auroc(known_N, known_N) == 0.5


def test_every_score_is_higher_for_what_is_known() -> None:
    logits_NK = torch.tensor([[30.0, 5.0, 2.0], [10.0, 9.0, 8.0]])
    for name, ask in SCORES.items():
        known, strange = ask(logits_NK, 100.0)
        assert known > strange, name
    assert SCORES["margin"](logits_NK, 100.0)[0] == pytest.approx(1, abs=1e-6)


def test_every_task_has_strangers() -> None:
    assert len({task.name for task in tasks()}) == len(tasks())
    assert all(task.strangers is not None for task in tasks())

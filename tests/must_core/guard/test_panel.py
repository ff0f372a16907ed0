"""Which images are held out, and what the panel shows of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from must_core.backbone import load_base
from must_core.guard.panel import Panel, hold_out, no_held_out
from must_core.guard.verdict import MIN_HELD_OUT
from must_core.student import Student
from tests.support.tiny import make_base, make_images


@pytest.mark.parametrize(("num_images", "expected"), [(249, 0), (250, MIN_HELD_OUT), (1000, 200), (50_000, 2000)])
def test_a_fifth_is_held_out_and_two_thousand_at_most(num_images: int, expected: int) -> None:
    split = hold_out(num_images, seed=0)
    assert len(split.held_out) == expected
    assert np.array_equal(np.sort(np.concatenate([split.training, split.held_out])), np.arange(num_images))
    assert (np.diff(split.training) > 0).all()


def test_the_seed_decides() -> None:
    first, again, other = hold_out(500, seed=1), hold_out(500, seed=1), hold_out(500, seed=2)
    assert np.array_equal(first.held_out, again.held_out)
    assert not np.array_equal(first.held_out, other.held_out)


def test_the_panel_shows_what_was_held_out_and_as_many_others_as_the_judge_needs(tmp_path: Path) -> None:
    paths = make_images(tmp_path / "images", 260)
    base = load_base(make_base(tmp_path / "base"))
    split = hold_out(len(paths), seed=0)
    panel = Panel(paths, split, base.preprocess, num_classes=3, device="cpu", num_workers=0)
    assert [*panel.images[:52]] == [paths[i] for i in split.held_out]
    assert len(panel.images) == 260
    assert [*panel.images] == [paths[i] for i in panel.positions_N]
    assert panel.held_out_N.tolist() == [True] * 52 + [False] * 208

    classifier = Student.from_base(base, torch.eye(16)[:, :3])
    asking = panel.opinion(classifier)
    signs = 0
    while True:
        try:
            next(asking)
        except StopIteration as e:
            opinion = e.value
            break
        signs += 1
    assert signs == 33  # one after each eight images
    assert opinion.logits_NK.shape == (260, 3)
    assert torch.allclose(opinion.features_ND.norm(dim=-1), torch.ones(260))


@pytest.mark.parametrize(("num_classes", "at_most"), [(3, 1024), (500, 10_000), (1000, 20_000), (10_000, 2000)])
def test_a_long_list_is_thinned_out(num_classes: int, at_most: int) -> None:
    """More classes need more images to learn them from, until the logits would need much memory."""
    paths = [Path(f"/images/{i}.png") for i in range(60_000)]
    panel = Panel(paths, no_held_out(60_000), None, num_classes=num_classes, device="cpu", num_workers=0)  # type: ignore[arg-type]
    assert 0.8 * at_most <= len(panel.images) <= at_most
    assert not panel.held_out_N.any()

"""The guard bench's data: the same whenever drawn, and labelled as it says."""

import numpy as np
import pytest

from bench.tasks import DIGITS, all_tasks, leaving_out, seed_of

NUM = 60


@pytest.mark.parametrize("name", sorted(all_tasks()))
def test_a_task_is_a_function_of_its_seed(name: str) -> None:
    task = all_tasks()[name]
    first, again, other = (task.draw(NUM, np.random.default_rng(seed_of(name, seed))) for seed in (1, 1, 2))
    assert np.array_equal(first.images_NHWC, again.images_NHWC)
    assert np.array_equal(first.labels_N, again.labels_N)
    assert not np.array_equal(first.images_NHWC, other.images_NHWC)
    assert first.images_NHWC.shape == (len(first.labels_N), 32, 32, 3)
    assert abs(len(first.labels_N) - NUM) <= 5  # shares are rounded
    assert 0 <= first.labels_N.min() <= first.labels_N.max() < len(task.classes)


def test_classes_are_missing_and_rare_where_that_is_the_task() -> None:
    tasks = all_tasks()
    missing = tasks["digits-missing"].draw(200, np.random.default_rng(0)).labels_N
    assert set(missing.tolist()) == {0, 1, 2, 3}
    falling = np.bincount(tasks["scans-imbalanced"].draw(300, np.random.default_rng(0)).labels_N, minlength=10)
    assert falling[0] > 10 * falling[9] > 0


def test_classes_left_out_become_strangers() -> None:
    task = leaving_out(all_tasks()["digits-clean"])
    assert task.classes == tuple(name for k, name in enumerate(DIGITS) if k not in {4, 9})
    known = task.draw(100, np.random.default_rng(0))
    assert len(known.labels_N) == 100
    assert set(known.labels_N.tolist()) == set(range(8))
    assert task.strangers is not None
    strange = task.strangers(30, np.random.default_rng(0))
    assert len(strange.labels_N) == 30
    assert set(strange.labels_N.tolist()) == {-1}

    # The same images come from the whole task, under its own labels.
    whole = all_tasks()["digits-clean"].sample(240, np.random.default_rng(0))
    assert np.array_equal(strange.images_NHWC, whole.images_NHWC[np.isin(whole.labels_N, (4, 9))][:30])

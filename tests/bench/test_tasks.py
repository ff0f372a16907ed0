"""The guard bench's data: the same whenever drawn, and labelled as it says."""

import numpy as np
import pytest

from bench.tasks import all_tasks, seed_of

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

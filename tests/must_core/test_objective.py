"""Fairness by a running marginal; the paper's losses are held to the original's numbers in `test_golden`."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from must_core.objective import batch_marginal, fairness, fairness_running
from tests.support.runs import CONFIG, STEPS, STEPS_PER_EPOCH, batch, make_run, train

RUNNING = replace(CONFIG, fairness_form="running")


def logits(step: int, *, batch_size: int = 4, num_classes: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(batch_size, num_classes, generator=generator, dtype=torch.float64).requires_grad_()


def test_the_first_step_is_the_batch_alone() -> None:
    logits_BK = logits(0)
    loss, average_K = fairness_running(batch_marginal(logits_BK), None, batch_size=4, step_index=0)
    (gradient,) = torch.autograd.grad(loss, logits_BK)
    expected = fairness(batch_marginal(logits_BK))
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, *torch.autograd.grad(expected, logits_BK))
    assert not average_K.requires_grad


def test_it_is_a_plain_mean_until_two_images_per_class_are_seen_and_forgets_from_there() -> None:
    marginals = [batch_marginal(logits(step)).detach() for step in range(30)]  # 4 images, 10 classes: memory 0.8
    average_K = None
    for step, marginal_K in enumerate(marginals):
        previous_K = average_K
        _, average_K = fairness_running(marginal_K, average_K, batch_size=4, step_index=step)
        if step < 5:
            torch.testing.assert_close(average_K, torch.stack(marginals[: step + 1]).mean(dim=0))
        else:
            torch.testing.assert_close(average_K, 0.8 * previous_K + 0.2 * marginal_K)  # type: ignore[operator]


def test_the_gradient_is_that_of_a_batch_with_the_average_for_its_marginal() -> None:
    logits_BK = logits(0)
    previous_K = batch_marginal(logits(1)).detach()
    marginal_K = batch_marginal(logits_BK)
    loss, average_K = fairness_running(marginal_K, previous_K, batch_size=4, step_index=50)
    (gradient_K,) = torch.autograd.grad(loss, marginal_K)
    torch.testing.assert_close(gradient_K, -1 / (10 * average_K))


def test_enough_images_in_a_batch_need_no_memory() -> None:
    marginal_K, previous_K = batch_marginal(logits(0, batch_size=20)), batch_marginal(logits(1))
    loss, average_K = fairness_running(marginal_K, previous_K, batch_size=20, step_index=50)
    assert torch.equal(loss, fairness(marginal_K))
    assert torch.equal(average_K, marginal_K)


@pytest.mark.parametrize(("form", "remembers"), [("running", True), ("paper", False)])
def test_a_run_remembers_beyond_its_epochs(form: str, remembers: bool) -> None:  # noqa: FBT001
    """The paper's form is the control: 600 classes, and the average begins anew with each epoch."""
    run = make_run(replace(CONFIG, fairness_form=form), num_classes=600)
    train(run, steps=STEPS_PER_EPOCH)
    run.marginal_K = torch.full((600,), 100.0, dtype=torch.float64)
    run.step(*batch(STEPS_PER_EPOCH))
    assert (float(run.marginal_K.sum()) > 2) is remembers


def test_a_run_goes_on_with_its_marginal() -> None:
    straight, interrupted, resumed = (make_run(RUNNING) for _ in range(3))
    train(straight, steps=STEPS)
    train(interrupted, steps=STEPS // 2 - 3)
    resumed.load_tensors(
        {name: tensor.clone() for name, tensor in interrupted.tensors().items()}, step_index=interrupted.step_index
    )
    for step in range(interrupted.step_index, STEPS):
        resumed.step(*batch(step))
    assert all(torch.equal(tensor, straight.tensors()[name]) for name, tensor in resumed.tensors().items())

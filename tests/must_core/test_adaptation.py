"""A step never waits for its device: nothing in it is counted, compared or read back by the host."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from must_core.towers.tower import taken
from tests.support.runs import batch, make_run

_aten = torch.ops.aten
_WAITING = {
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.masked_select,
    _aten.equal,
    _aten.is_nonzero,
    _aten._unique2,
    _aten.bincount,
    _aten.unique_dim,
    _aten.histc,
}


class NobodyWaits(TorchDispatchMode):
    """Raises where a GPU would have to be waited for."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet = func.overloadpacket
        by_mask = packet in {_aten.index, _aten.index_put, _aten.index_put_} and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if packet in _WAITING or by_mask:
            raise AssertionError(f"{func} waits")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("num_classes", [10, 600])
def test_a_step_does_not_wait(masked: bool, micro_batch_size: int | None, num_classes: int) -> None:  # noqa: FBT001
    run = make_run(num_classes=num_classes, micro_batch_size=micro_batch_size)
    weak_BCHW, strong_BCHW, mask = batch(0)
    with NobodyWaits():
        for _ in range(2):
            run.step(weak_BCHW, strong_BCHW, mask if masked else None)


def test_picking_by_a_mask_would_be_noticed() -> None:
    """Negative control."""
    tokens_BNW = torch.randn(8, 16, 4)
    _, _, mask = batch(0)
    by_mask_MW = tokens_BNW[mask.mask_BN]
    with NobodyWaits():
        assert taken(tokens_BNW, mask.hidden_BJ).shape == (8, mask.hidden_BJ.shape[1], 4)
        with pytest.raises(AssertionError, match="waits"):
            tokens_BNW[mask.mask_BN]
        with pytest.raises(AssertionError, match="waits"):
            float(tokens_BNW.sum())
    assert torch.equal(taken(tokens_BNW, mask.hidden_BJ).flatten(0, 1), by_mask_MW)

"""Linear layers in float32 on a CPU by oneDNN, whose products are some 10 % faster than torch's default, MKL's.

Elsewhere, and under autocast, it is ``torch.nn.functional.linear``, which takes the fastest way there by itself. The
gradient of the weights stays with MKL: there oneDNN gains nothing.

Shapes: any number of rows R, I inputs, O outputs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _one_dnn() -> Any:
    # What torch's own compiler calls for linear layers; part of every build with oneDNN.
    try:
        return torch.ops.mkldnn._linear_pointwise
    except AttributeError:
        return None


_POINTWISE = _one_dnn()


def _product(rows_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    rows_RO: Tensor = _POINTWISE(rows_RI, weight_OI, bias_O, "none", [], "")
    return rows_RO


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
        ctx.save_for_backward(rows_RI, weight_OI)
        return _product(rows_RI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows_RI, weight_OI = ctx.saved_tensors
        grad_RO = grads[0]
        needs_rows, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad_RO, weight_OI.t(), None) if needs_rows else None,
            grad_RO.t() @ rows_RI if needs_weight else None,
            grad_RO.sum(dim=0) if needs_bias else None,
        )


def linear(rows: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """``rows · weightᵀ + bias`` over the last dimension, as ``torch.nn.functional.linear``."""
    if (
        _POINTWISE is None
        or rows.device.type != "cpu"
        or rows.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    ):
        plain: Tensor = F.linear(rows, weight_OI, bias_O)
        return plain
    rows_RO: Tensor = _Linear.apply(rows.flatten(0, -2), weight_OI, bias_O)  # type: ignore[no-untyped-call]
    return rows_RO.view(*rows.shape[:-1], -1)

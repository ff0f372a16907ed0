"""Strong views finished on the device, a batch at a time: flip, timm's RandAugment, normalisation.

timm's own code draws on the CPU what is to be done to each image. The pixels are then Pillow's arithmetic written for
batches of tensors, with its roundings and in float64 where it has double, so that they are those that timm makes with
Pillow from the same crops. Nothing waits for the device.

Shapes: B images of a batch or of a group that gets the same operation, C = 3 channels, H, W. V the 256 values of a
pixel, P the parameters of an operation.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Resampling
from torch import Tensor

from must_core.backbone import Preprocess
from must_core.config import AdaptConfig
from must_core.data.augment import rand_augment, seeded
from must_core.errors import InvalidConfig
from must_core.seeding import STRONG_VIEWS


@dataclass(frozen=True)
class Operation:
    """One of RandAugment's operations as drawn for one image; ``resample`` is Pillow's filter, if it moves pixels."""

    name: str
    args: tuple[float, ...]
    resample: Resampling | None


@dataclass(frozen=True)
class Recipe:
    """What is done to the strong view of one image: mirrored or not, then the operations in turn."""

    mirrored: bool
    operations: tuple[Operation, ...]


class BatchAugment:
    """Finishes the uint8 views that `must_core.data.augment.Views` makes with ``augment_on="device"``.

    Raises `InvalidConfig` for a policy with an operation that is not known here.
    """

    def __init__(self, preprocess: Preprocess, config: AdaptConfig) -> None:
        self._mean_C11 = torch.tensor(preprocess.mean)[:, None, None]
        self._std_C11 = torch.tensor(preprocess.std)[:, None, None]
        self._flip = config.horizontal_flip
        self._fill: tuple[int, ...] = (0, 0, 0)
        self._rand_augment = rand_augment(config.rand_augment, preprocess) if config.rand_augment else None
        for op in self._rand_augment.ops if self._rand_augment else ():
            name = op.name.removesuffix("Increasing")
            if name not in _LOWERED:
                raise InvalidConfig(f"{op.name} cannot be done on the device.", param="rand_augment")
            op.aug_fn = _recorder(name)
            self._fill = op.kwargs["fillcolor"]

    def __call__(
        self, weak_BCHW: Tensor, strong_BCHW: Tensor, *, key: tuple[int, int], share: slice, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """Return both views as float32, normalised, on the device they are on.

        They are the rows ``share`` of a batch of ``batch_size``, drawn for whole from ``key`` (seed, step): an image
        gets the same however a batch is split. Raises ValueError for other than square RGB uint8 images, and for
        another number of them than the share has.
        """
        recipes = self.recipes(key, batch_size)[share]
        _require_pixels(weak_BCHW, len(recipes))
        _require_pixels(strong_BCHW, len(recipes))
        return self._normalised(weak_BCHW), self._normalised(augmented(strong_BCHW, recipes, self._fill))

    def recipes(self, key: tuple[int, int], num_images: int) -> list[Recipe]:
        """Draw what is done to the images of a batch, as `Views` and timm draw it for one image after the other."""
        with seeded(STRONG_VIEWS, *key):
            return [self._recipe() for _ in range(num_images)]

    def _recipe(self) -> Recipe:
        mirrored = self._flip and random.random() < 0.5
        return Recipe(mirrored, self._rand_augment(()) if self._rand_augment is not None else ())

    def _normalised(self, pixels_BCHW: Tensor) -> Tensor:
        device = pixels_BCHW.device
        # On GPUs, division by a Python number is multiplication by its rounded inverse.
        top = torch.full((), 255.0, device=device)
        mean_C11 = self._mean_C11.to(device, non_blocking=True)
        std_C11 = self._std_C11.to(device, non_blocking=True)
        return (pixels_BCHW / top).sub_(mean_C11).div_(std_C11)


def _require_pixels(images_BCHW: Tensor, num_images: int) -> None:
    side = images_BCHW.shape[-1]
    if images_BCHW.dtype != torch.uint8 or images_BCHW.shape != (num_images, 3, side, side):
        raise ValueError(f"{images_BCHW.dtype} of {tuple(images_BCHW.shape)} for a share of {num_images} images")


def _recorder(name: str) -> Callable[..., tuple[Operation, ...]]:
    """Stands in for what timm does to an image: notes it, and draws what timm draws at that place."""

    def record(done: tuple[Operation, ...], *args: float, resample: Any, **_: Any) -> tuple[Operation, ...]:
        drawn = random.choice(resample) if name in _MATRICES else None
        return (*done, Operation(name, args, drawn))

    return record


def augmented(images_BCHW: Tensor, recipes: Sequence[Recipe], fill: Sequence[int]) -> Tensor:
    """The uint8 images after their recipes; places that come from outside an image get the colour ``fill``."""
    device = images_BCHW.device
    mirrored_B111 = torch.tensor([recipe.mirrored for recipe in recipes], dtype=torch.bool)[:, None, None, None]
    images_BCHW = torch.where(mirrored_B111.to(device, non_blocking=True), images_BCHW.flip(-1), images_BCHW)
    fill_C1 = torch.tensor(fill, dtype=torch.float64)[:, None].to(device, non_blocking=True)
    for turn in zip_longest(*(recipe.operations for recipe in recipes)):
        groups: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
        for row, operation in enumerate(turn):
            if operation is not None:
                kernel, parameters_P = _LOWERED[operation.name](operation, images_BCHW.shape[-1])
                groups[kernel].append(np.array([row, *parameters_P], dtype=np.float64))
        for kernel, lines in groups.items():
            # One small transfer a group: which images, and their parameters.
            lines_BP = torch.from_numpy(np.stack(lines)).to(device, non_blocking=True)
            rows_B = lines_BP[:, 0].long()
            group_BCHW = images_BCHW.index_select(0, rows_B)
            images_BCHW.index_copy_(0, rows_B, _KERNELS[kernel](group_BCHW, lines_BP[:, 1:], fill_C1))
    return images_BCHW


# From an operation to the kernel that does it and its parameters. All of this is on the CPU.

Parameters = Sequence[float] | NDArray[Any]


def _rotation(degrees: float, side: int) -> Parameters:
    """From places in the result to places in the image, about its centre, as ``Image.rotate`` computes it."""
    angle = -math.radians(degrees % 360)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    centre = side / 2
    return (cos, sin, cos * -centre + sin * -centre + centre, -sin, cos, -sin * -centre + cos * -centre + centre)


_MATRICES: dict[str, Callable[[float, int], Parameters]] = {
    "Rotate": _rotation,
    "ShearX": lambda factor, _: (1, factor, 0, 0, 1, 0),
    "ShearY": lambda factor, _: (1, 0, 0, factor, 1, 0),
    "TranslateXRel": lambda part, side: (1, 0, part * side, 0, 1, 0),
    "TranslateYRel": lambda part, side: (1, 0, 0, 0, 1, part * side),
}

_TABLES: dict[str, Callable[..., Parameters]] = {
    "Invert": lambda values_V: 255 - values_V,
    "Posterize": lambda values_V, bits: values_V >> (8 - bits) << (8 - bits),
    "Solarize": lambda values_V, threshold: np.where(values_V < threshold, values_V, 255 - values_V),
    "SolarizeAdd": lambda values_V, add: np.where(values_V < 128, np.minimum(values_V + add, 255), values_V),
    "Brightness": lambda values_V, factor: np.minimum(np.float32(factor) * values_V.astype(np.float32), 255),
}

_AS_THEY_ARE = ("AutoContrast", "Equalize", "Color", "Contrast", "Sharpness")

_MOVES: dict[Resampling | None, str] = {Resampling.BILINEAR: "bilinear", Resampling.BICUBIC: "bicubic"}

_LOWERED: dict[str, Callable[[Operation, int], tuple[str, Parameters]]] = {
    **dict.fromkeys(_MATRICES, lambda op, side: (_MOVES[op.resample], _MATRICES[op.name](op.args[0], side))),
    **dict.fromkeys(_TABLES, lambda op, _: ("Table", _TABLES[op.name](np.arange(256), *op.args))),
    **dict.fromkeys(_AS_THEY_ARE, lambda op, _: (op.name, op.args)),
}


# Kernels: Pillow's arithmetic on the device. Each gets a group of images, their parameters and the fill colour.


def _table(images_BCHW: Tensor, tables_BV: Tensor, _fill: Tensor) -> Tensor:
    return _looked_up(images_BCHW, tables_BV.to(torch.uint8)[:, None].expand(-1, 3, -1))


def _looked_up(images_BCHW: Tensor, tables_BCV: Tensor) -> Tensor:
    return tables_BCV.gather(2, images_BCHW.flatten(2).long()).view_as(images_BCHW)


def _auto_contrast(images_BCHW: Tensor, _parameters: Tensor, _fill: Tensor) -> Tensor:
    low_BC1 = images_BCHW.amin((2, 3)).double()[..., None]
    span_BC1 = images_BCHW.amax((2, 3)).double()[..., None] - low_BC1
    values_V = torch.arange(256, dtype=torch.float64, device=images_BCHW.device)
    # Not 255 / span: torch makes that 255 times a rounded inverse.
    scale_BC1 = torch.full_like(span_BC1, 255).div_(span_BC1.clamp(min=1))
    stretched_BCV = (values_V * scale_BC1 + -low_BC1 * scale_BC1).clamp_(0, 255)
    return _looked_up(images_BCHW, torch.where(span_BC1 > 0, stretched_BCV, values_V).to(torch.uint8))


def _equalize(images_BCHW: Tensor, _parameters: Tensor, _fill: Tensor) -> Tensor:
    num_images, num_channels, height, width = images_BCHW.shape
    device = images_BCHW.device
    index_BCN = images_BCHW.flatten(2).long()
    offset_BC1 = torch.arange(0, num_images * num_channels * 256, 256, device=device).view(num_images, num_channels, 1)
    places_N = (index_BCN + offset_BC1).flatten()
    counts_N = torch.zeros(num_images * num_channels * 256, dtype=torch.int64, device=device)
    counts_BCV = counts_N.scatter_add_(0, places_N, torch.ones_like(places_N)).view(num_images, num_channels, 256)
    highest_BC1 = counts_BCV.gather(2, images_BCHW.amax((2, 3)).long()[..., None])
    step_BC1 = (height * width - highest_BC1) // 255
    below_BCV = counts_BCV.cumsum(2) - counts_BCV
    flat_BCV = ((step_BC1 // 2 + below_BCV) // step_BC1.clamp(min=1)).clamp_(max=255)
    table_BCV = torch.where(step_BC1 > 0, flat_BCV, torch.arange(256, device=device)).to(torch.uint8)
    return table_BCV.gather(2, index_BCN).view_as(images_BCHW)


def _blended(plain_BCHW: Tensor, images_BCHW: Tensor, factors_B1: Tensor) -> Tensor:
    """``Image.blend``: from ``plain`` by the factor towards the image and beyond, in float32, cut off to a byte."""
    plain_BCHW = plain_BCHW.float()
    factor_B111 = factors_B1.float()[..., None, None]
    return (plain_BCHW + factor_B111 * (images_BCHW.float() - plain_BCHW)).clamp_(0, 255).to(torch.uint8)


def _grey(images_BCHW: Tensor) -> Tensor:
    """Pillow's conversion to L, int32 of one channel."""
    red_BHW, green_BHW, blue_BHW = images_BCHW.int().unbind(1)
    return ((19595 * red_BHW + 38470 * green_BHW + 7471 * blue_BHW + 32768) >> 16)[:, None]


def _color(images_BCHW: Tensor, factors_B1: Tensor, _fill: Tensor) -> Tensor:
    return _blended(_grey(images_BCHW), images_BCHW, factors_B1)


def _contrast(images_BCHW: Tensor, factors_B1: Tensor, _fill: Tensor) -> Tensor:
    num_pixels = images_BCHW.shape[2] * images_BCHW.shape[3]
    sums_B111 = _grey(images_BCHW).sum((1, 2, 3), keepdim=True)
    return _blended((2 * sums_B111 + num_pixels) // (2 * num_pixels), images_BCHW, factors_B1)


def _sharpness(images_BCHW: Tensor, factors_B1: Tensor, _fill: Tensor) -> Tensor:
    """``plain`` is Pillow's SMOOTH: ones about a five, rounded, and the border as it was."""
    plain_BCHW = images_BCHW.int()
    columns_BCHW = plain_BCHW[..., :-2] + plain_BCHW[..., 1:-1] + plain_BCHW[..., 2:]
    box_BCHW = columns_BCHW[..., :-2, :] + columns_BCHW[..., 1:-1, :] + columns_BCHW[..., 2:, :]
    inner_BCHW = plain_BCHW[..., 1:-1, 1:-1]
    inner_BCHW.copy_((2 * (box_BCHW + 4 * inner_BCHW) + 13) // 26)
    return _blended(plain_BCHW, images_BCHW, factors_B1)


def _moved(images_BCHW: Tensor, matrices_BP: Tensor, fill_C1: Tensor, *, num_taps: int) -> Tensor:
    """``Image.transform`` of kind AFFINE: bilinear from two taps a side, bicubic from four; edges are extended."""
    height, width = images_BCHW.shape[2:]
    a, b, c, d, e, f = matrices_BP[:, :, None, None].unbind(1)
    x_1W = torch.arange(width, dtype=torch.float64, device=images_BCHW.device) + 0.5
    y_H1 = (torch.arange(height, dtype=torch.float64, device=images_BCHW.device) + 0.5)[:, None]
    x_BHW, y_BHW = a * x_1W + b * y_H1 + c, d * x_1W + e * y_H1 + f
    inside_B1HW = ((x_BHW >= 0) & (x_BHW < width) & (y_BHW >= 0) & (y_BHW < height))[:, None]

    columns, right_B1N = _taps(x_BHW, width, num_taps)
    rows, down_B1N = _taps(y_BHW, height, num_taps)
    flat_BCN = images_BCHW.flatten(2)

    def pixels(row_B1N: Tensor, column_B1N: Tensor) -> Tensor:
        return flat_BCN.gather(2, (row_B1N * width + column_B1N).expand(-1, 3, -1)).short()

    lines = [_between([pixels(row, column) for column in columns], right_B1N) for row in rows]
    moved_BCHW = _between(lines, down_B1N).clamp_(0, 255).view(images_BCHW.shape)
    return torch.where(inside_B1HW, moved_BCHW, fill_C1[..., None]).to(torch.uint8)


def _taps(place_BHW: Tensor, size: int, num_taps: int) -> tuple[list[Tensor], Tensor]:
    """Along one axis: the pixels about each place, and how far it is past the middle of the one before it."""
    place_B1N = place_BHW.flatten(1)[:, None] - 0.5
    before_B1N = place_B1N.floor()
    first = 1 - num_taps // 2
    taps = [(before_B1N + i).clamp_(0, size - 1).long() for i in range(first, first + num_taps)]
    return taps, place_B1N - before_B1N


def _between(values: list[Tensor], way: Tensor) -> Tensor:
    """Interpolate over two or four values. Pillow's cubic here is a = -1, steeper than the one it resizes with."""
    if len(values) == 2:
        return values[0] + (values[1] - values[0]) * way
    v1, v2, v3, v4 = values
    return v2 + way * (v3 - v1 + way * (2 * (v1 - v2) + v3 - v4 + way * (v2 - v1 - v3 + v4)))


_KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "Table": _table,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "bilinear": lambda *args: _moved(*args, num_taps=2),
    "bicubic": lambda *args: _moved(*args, num_taps=4),
}

"""Against timm and Pillow themselves: what is drawn, each operation's pixels, and whole views.

Shapes: B images, C = 3 channels, H, W; F features of a view.
"""

import math
import platform
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.Image import Resampling
from timm.data import auto_augment
from timm.data.auto_augment import NAME_TO_OP, RandAugment
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import functional as TF

from must_core.backbone import Preprocess
from must_core.config import AdaptConfig
from must_core.data import augment_batch
from must_core.data.augment import Views, rand_augment, seeded
from must_core.data.augment_batch import BatchAugment, Operation, Recipe, augmented
from must_core.errors import InvalidConfig
from must_core.seeding import STRONG_VIEWS

PREPROCESS = Preprocess(48, (0.48145466, 0.4578275, 0.40821073), (0.27, 0.26, 0.28), "bicubic", "shortest", 0)
CONFIG = AdaptConfig(augment_on="device")
FILL = (123, 117, 104)

LEVELS = 0 if platform.machine() in {"x86_64", "AMD64"} else 1
"""How far from Pillow a value may be: elsewhere compilers fuse multiplication and addition in Pillow's own code."""


def photo(seed: int, width: int = 48, height: int = 48) -> Image.Image:
    """Smooth colours of some range, and a little noise."""
    generator = np.random.default_rng(seed)
    low, high = sorted(generator.integers(0, 256, 2).tolist())
    colours = Image.fromarray(generator.integers(low, high + 1, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + generator.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8))


def pictures() -> list[Image.Image]:
    """Photos, and what is peculiar: one colour, two colours, noise, every value, few values."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)
    ramp = np.resize(np.arange(256, dtype=np.uint8), (48, 48, 3))
    return [
        *map(photo, range(4)),
        Image.new("RGB", (48, 48), (200, 3, 77)),
        ImageOps.mirror(Image.fromarray(np.where(ramp > 99, 255, 7).astype(np.uint8))),
        Image.fromarray(noise),
        Image.fromarray(ramp),
        Image.fromarray(noise // 64 + 100),
    ]


def stacked(images: list[Image.Image]) -> Tensor:
    return torch.stack([TF.pil_to_tensor(image) for image in images])


def assert_same_pixels(ours_BCHW: Tensor, pillows_BCHW: Tensor) -> None:
    difference_BCHW = (ours_BCHW.int() - pillows_BCHW.int()).abs()
    assert difference_BCHW.max() <= LEVELS
    assert difference_BCHW.float().mean() < 1e-3


FACTORS = [0.1, 0.37, 0.9999, 1.0, 1.234, 1.9]
SIGNED = [-0.45, -0.2871, 0.0, 0.13, 0.3]
CASES: dict[str, list[tuple[float, ...]]] = {
    "AutoContrast": [()],
    "Equalize": [()],
    "Invert": [()],
    "Posterize": [(1,), (2,), (3,), (4,)],
    "Solarize": [(0,), (26,), (128,), (256,)],
    "SolarizeAdd": [(0,), (99,), (110,)],
    "Brightness": [(factor,) for factor in FACTORS],
    "Color": [(factor,) for factor in FACTORS],
    "Contrast": [(factor,) for factor in FACTORS],
    "Sharpness": [(factor,) for factor in FACTORS],
    "Rotate": [(-30.0,), (-0.4,), (0.0,), (7.3,), (27.0,)],
    "ShearX": [(value,) for value in SIGNED],
    "ShearY": [(value,) for value in SIGNED],
    "TranslateXRel": [(value,) for value in SIGNED],
    "TranslateYRel": [(value,) for value in SIGNED],
}
MOVING = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}


def test_every_operation_of_both_sets_has_a_case() -> None:
    names = auto_augment._RAND_TRANSFORMS + auto_augment._RAND_INCREASING_TRANSFORMS
    assert {name.removesuffix("Increasing") for name in names} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_operation_makes_the_pixels_of_pillow(name: str) -> None:
    """In one batch, so that each image must get its own parameters."""
    filters = [Resampling.BILINEAR, Resampling.BICUBIC] if name in MOVING else [None]
    cases = [(image, args, f) for image in pictures() for args in CASES[name] for f in filters]
    expected = stacked([NAME_TO_OP[name](image, *args, resample=f, fillcolor=FILL) for image, args, f in cases])
    images = stacked([image for image, _, _ in cases])
    before = images.clone()
    recipes = [Recipe(mirrored=False, operations=(Operation(name, args, f),)) for _, args, f in cases]
    assert_same_pixels(augmented(images, recipes, FILL), expected)
    assert torch.equal(images, before), "the caller's images are not touched"
    assert not torch.equal(before, expected), "there was something to do"


def test_a_slightly_different_operation_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: rounding to the nearest level, and the cubic that images are resized with."""
    resized_with = 0.5

    def gentler(values: list[Tensor], way: Tensor) -> Tensor:
        v1, v2, v3, v4 = values
        a = resized_with
        return v2 + way * (a * (v3 - v1) + way * (2 * a * v1 - (3 - a) * v2 + (3 - 2 * a) * v3 - a * v4
                           + way * (-a * v1 + (2 - a) * v2 - (2 - a) * v3 + a * v4)))  # fmt: skip

    original = augment_batch._between
    monkeypatch.setattr(augment_batch, "_between", lambda v, way: (gentler if len(v) == 4 else original)(v, way))
    with pytest.raises(AssertionError):
        test_operation_makes_the_pixels_of_pillow("Rotate")
    monkeypatch.setattr(augment_batch, "_between", lambda v, way: original(v, way) + 0.5)
    with pytest.raises(AssertionError):
        test_operation_makes_the_pixels_of_pillow("TranslateXRel")
    blended = augment_batch._blended
    monkeypatch.setattr(augment_batch, "_blended", lambda plain, images, f: blended(plain, images, f * 1.02))
    with pytest.raises(AssertionError):
        test_operation_makes_the_pixels_of_pillow("Color")


POLICIES = ["rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5-inc0", "rand-m5-n3-mstd2", "rand-m10-n5-inc1", "rand-m0"]


def drawn_by_timm(augment: RandAugment, num_images: int, monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """What timm does to images one after the other, seen from within."""
    seen: list[Operation] = []
    filters: list[Resampling] = []

    def watched(name: str, original: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
        def apply(image: Image.Image, *args: Any, **options: Any) -> Image.Image:
            filters.clear()
            result = original(image, *args, **options)
            seen.append(Operation(name.removesuffix("Increasing"), args, filters[0] if filters else None))
            return result

        return apply

    choose = auto_augment._interpolation

    def watched_choice(options: dict[str, Any]) -> Resampling:
        filters.append(choose(options))
        return filters[-1]

    for op in augment.ops:
        op.aug_fn = watched(op.name, op.aug_fn)
    recipes = []
    with monkeypatch.context() as patch:
        patch.setattr(auto_augment, "_interpolation", watched_choice)
        for _ in range(num_images):
            seen.clear()
            mirrored = random.random() < 0.5
            augment(Image.new("RGB", (4, 4)))
            recipes.append(Recipe(mirrored, tuple(seen)))
    return recipes


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_drawn_is_what_timm_draws(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations, probabilities, magnitudes with their noise, signs and filters: all from the same stream."""
    ours = BatchAugment(PREPROCESS, replace(CONFIG, rand_augment=policy)).recipes((3, 4), 1000)
    with seeded(STRONG_VIEWS, 3, 4):
        theirs = drawn_by_timm(rand_augment(policy, PREPROCESS), 1000, monkeypatch)
    assert ours == theirs
    assert len({operation.name for recipe in ours for operation in recipe.operations}) == len(CASES)


def whole_views(augment: BatchAugment, policy: str, images: list[Image.Image], key: tuple[int, int]) -> Tensor:
    """What the loader would make of these crops from the same stream, normalised."""
    raw = rand_augment(policy, PREPROCESS)
    with seeded(STRONG_VIEWS, *key):
        views = [raw(ImageOps.mirror(image) if random.random() < 0.5 else image) for image in images]
    mean, std = list(PREPROCESS.mean), list(PREPROCESS.std)
    return torch.stack([TF.normalize(TF.to_tensor(view), mean, std) for view in views])


@pytest.mark.parametrize("policy", POLICIES)
def test_whole_views_are_those_of_timm(policy: str) -> None:
    """From the same crops and the same stream, operations on top of one another."""
    augment = BatchAugment(PREPROCESS, replace(CONFIG, rand_augment=policy))
    images = [photo(seed) for seed in range(60)]
    pixels_BCHW = stacked(images)
    weak, strong = augment(pixels_BCHW, pixels_BCHW, key=(1, 2), share=slice(None), batch_size=60)
    mean, std = list(PREPROCESS.mean), list(PREPROCESS.std)
    assert torch.equal(weak, torch.stack([TF.normalize(TF.to_tensor(image), mean, std) for image in images]))
    expected = whole_views(augment, policy, images, (1, 2))
    if LEVELS == 0:
        assert torch.equal(strong, expected)
    assert (strong - expected).abs().mean() < 0.01
    assert (strong - whole_views(augment, policy, images, (1, 3))).abs().mean() > 0.1  # the control


def batch(num_images: int = 24) -> tuple[Tensor, Tensor]:
    return stacked([photo(i) for i in range(num_images)]), stacked([photo(i + 99) for i in range(num_images)])


def test_a_batch_may_be_split_anyhow() -> None:
    augment = BatchAugment(PREPROCESS, CONFIG)
    weak, strong = batch()
    whole = augment(weak, strong, key=(0, 7), share=slice(None), batch_size=24)
    shares = [slice(0, 8), slice(8, 23), slice(23, 24)]
    parts = [
        BatchAugment(PREPROCESS, CONFIG)(weak[share], strong[share], key=(0, 7), share=share, batch_size=24)
        for share in shares
    ]
    for view in range(2):
        assert torch.equal(whole[view], torch.cat([part[view] for part in parts]))
    misplaced = augment(weak[8:23], strong[8:23], key=(0, 7), share=slice(0, 15), batch_size=24)
    assert not torch.equal(misplaced[1], parts[1][1])


def test_views_are_a_function_of_the_key() -> None:
    weak, strong = batch()

    def view(*key: int) -> Tensor:
        return BatchAugment(PREPROCESS, CONFIG)(weak, strong, key=key, share=slice(None), batch_size=24)[1]  # type: ignore[arg-type]

    first = view(5, 6)
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    assert torch.equal(first, view(5, 6))
    assert (random.random(), np.random.rand()) == expected, "the global generators are given back"
    assert not torch.equal(first, view(5, 7))
    assert not torch.equal(first, view(6, 6))


def test_without_a_policy_views_are_only_mirrored_and_normalised() -> None:
    weak, strong = batch()
    bare = replace(CONFIG, rand_augment="")
    mean_C11, std_C11 = (torch.tensor(v)[:, None, None] for v in (PREPROCESS.mean, PREPROCESS.std))
    normalised = ((strong / 255) - mean_C11) / std_C11
    for flip in (True, False):
        augment = BatchAugment(PREPROCESS, replace(bare, horizontal_flip=flip))
        _, views = augment(weak, strong, key=(0, 0), share=slice(None), batch_size=24)
        mirrored = [torch.equal(view, image.flip(-1)) for view, image in zip(views, normalised, strict=True)]
        as_it_was = [torch.equal(view, image) for view, image in zip(views, normalised, strict=True)]
        assert all(a != b for a, b in zip(mirrored, as_it_was, strict=True))
        assert set(mirrored) == ({True, False} if flip else {False})


def test_half_of_the_views_are_mirrored_and_none_when_off() -> None:
    drawn = [r.mirrored for r in BatchAugment(PREPROCESS, CONFIG).recipes((0, 0), 4000)]
    assert abs(sum(drawn) - 2000) < 4 * math.sqrt(1000)
    still = BatchAugment(PREPROCESS, replace(CONFIG, horizontal_flip=False)).recipes((0, 0), 4000)
    assert not any(r.mirrored for r in still)


class NothingWaits(TorchDispatchMode):
    """Refuses what makes the CPU wait for the device, or what must be known before work can be queued."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [a for a in args if isinstance(a, Tensor)]
        made = [r for r in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(r, Tensor)]
        comes_back = any(r.device.type == "cpu" for r in made) and any(a.device.type == "cuda" for a in given)
        goes_there = any(r.device.type == "cuda" for r in made) and all(a.device.type == "cpu" for a in given) and given
        if comes_back or (goes_there and not kwargs.get("non_blocking")):
            raise AssertionError(f"{func} waits for the device")
        return result


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Tensors on "cuda" that have a shape and a device but no values: whoever asks for a value gets an error."""
    with FakeTensorMode(allow_non_fake_inputs=True), NothingWaits():
        yield


def test_nothing_waits_for_the_device() -> None:
    augment = BatchAugment(PREPROCESS, replace(CONFIG, rand_augment="rand-m9-mstd0.5-n5-inc1"))
    drawn = {operation.name for recipe in augment.recipes((0, 0), 64) for operation in recipe.operations}
    assert drawn == set(CASES)
    with pretended_gpu():
        pixels = torch.empty(64, 3, 48, 48, dtype=torch.uint8, device="cuda")
        views = augment(pixels, pixels, key=(0, 0), share=slice(None), batch_size=64)
        assert all(view.device.type == "cuda" and view.shape == pixels.shape for view in views)
        assert all(view.dtype == torch.float32 for view in views)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.max().item(),
        lambda x: x[x > 1],
        lambda x: x.cpu(),
        lambda x: torch.ones(2).to(x.device),
        lambda x: x.index_select(0, torch.zeros(1, dtype=torch.long)),  # an index that is on the CPU
    ],
)
def test_waiting_would_be_noticed(wait: Callable[[Tensor], object]) -> None:
    """Negative control."""
    with pretended_gpu():
        pixels = torch.empty(4, 3, dtype=torch.uint8, device="cuda")
        with pytest.raises(Exception):  # noqa: B017, PT011 - by different names
            wait(pixels)


def test_pixels_that_are_not_the_share_are_refused() -> None:
    augment = BatchAugment(PREPROCESS, CONFIG)
    weak, strong = batch(4)
    for a, b, share in (
        (weak, strong, slice(0, 3)),
        (weak[:3], strong, slice(0, 4)),
        (weak, strong.float(), slice(0, 4)),
        (weak, strong[:, :2], slice(0, 4)),
        (weak[..., :9], strong, slice(0, 4)),
    ):
        with pytest.raises(ValueError, match="for a share of"):
            augment(a, b, key=(0, 0), share=share, batch_size=8)
    augment(weak, strong, key=(0, 0), share=slice(4, 8), batch_size=8)


def test_an_operation_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    blurring = auto_augment.rand_augment_transform("rand-m9-t3a", {})
    monkeypatch.setattr(augment_batch, "rand_augment", lambda *_: blurring)
    with pytest.raises(InvalidConfig, match="Desaturate") as e:
        BatchAugment(PREPROCESS, CONFIG)
    assert e.value.param == "rand_augment"


NUM_PHOTOS = 400


def features(views_BCHW: Tensor, plain_BCHW: Tensor) -> Tensor:
    """Of each view: means and deviations of its channels, its histogram, and how far it is from its bare crop."""
    mean_C11, std_C11 = (torch.tensor(v)[:, None, None] for v in (PREPROCESS.mean, PREPROCESS.std))
    views_BCN = (views_BCHW * std_C11 + mean_C11).flatten(2)
    bins = (views_BCN.flatten(1) * 8).long().clamp(0, 7)
    histogram_BF = torch.nn.functional.one_hot(bins, 8).float().mean(1)
    distance_B = (views_BCHW - plain_BCHW).abs().mean((1, 2, 3))
    return torch.cat(
        [views_BCN.mean(2), views_BCN.std(2), histogram_BF, distance_B[:, None], (distance_B < 0.01).float()[:, None]],
        dim=1,
    )


def made_by_loader(images: list[Image.Image], policy: str) -> Tensor:
    views = Views(PREPROCESS, replace(CONFIG, rand_augment=policy, horizontal_flip=False, augment_on="loader"))
    return torch.stack([views(image, 0, i)[1] for i, image in enumerate(images)])


def made_on_device(images: list[Image.Image], augment: BatchAugment) -> Tensor:
    views = Views(PREPROCESS, replace(CONFIG, augment_on="device"))
    pairs = [views(image, 0, i) for i, image in enumerate(images)]
    weak_BCHW, strong_BCHW = (torch.stack(side) for side in zip(*pairs, strict=True))
    return augment(weak_BCHW, strong_BCHW, key=(0, 0), share=slice(None), batch_size=len(images))[1]


def deviations(a_BF: Tensor, b_BF: Tensor) -> Tensor:
    """How many standard errors the mean of each feature differs by, over the same photos."""
    difference_BF = a_BF - b_BF
    return (difference_BF.mean(0) / (difference_BF.std(0) / math.sqrt(len(difference_BF))).clamp(min=1e-9)).abs()


def test_both_ways_have_the_same_statistics() -> None:
    """From photo to view with other draws: no feature's mean differs by 4 standard errors.

    The controls are above 5: every operation applied, instead of half of them; one an image, instead of two; and a
    smaller magnitude.
    """
    images = [photo(seed, 80, 60) for seed in range(NUM_PHOTOS)]
    plain = made_by_loader(images, "")
    loader = features(made_by_loader(images, CONFIG.rand_augment), plain)

    def deviation(policy: str = CONFIG.rand_augment, prob: float = 0.5) -> float:
        augment = BatchAugment(PREPROCESS, replace(CONFIG, rand_augment=policy, horizontal_flip=False))
        for op in augment._rand_augment.ops:
            op.prob = prob
        return float(deviations(loader, features(made_on_device(images, augment), plain)).max())

    assert deviation() < 4
    assert deviation(prob=1.0) > 5
    assert deviation("rand-m9-mstd0.5-n1-inc1") > 5
    assert deviation("rand-m1-mstd0.5-inc1") > 5

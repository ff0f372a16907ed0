import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from must_core.backbone import Preprocess
from must_core.config import AdaptConfig
from must_core.data.augment import Views, rand_augment

PREPROCESS = Preprocess(32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bicubic", "shortest", 0)


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8))


def test_views_are_a_function_of_the_key() -> None:
    views = Views(PREPROCESS, AdaptConfig())
    first = views(picture(), 1, 2, 3)
    random.random()
    torch.rand(3)
    again = Views(PREPROCESS, AdaptConfig())(picture(), 1, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], views(picture(), 1, 2, 4)[1])
    assert [v.shape for v in first] == [(3, 32, 32)] * 2


def test_global_generators_are_given_back_as_they_were() -> None:
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    Views(PREPROCESS, AdaptConfig())(picture(), 0)
    assert (random.random(), np.random.rand()) == expected


def test_flip_can_be_switched_off() -> None:
    still = AdaptConfig(rand_augment="", crop_scale_min=1.0, horizontal_flip=False)
    square = picture().resize((32, 32))
    plain = Views(PREPROCESS, still)(square, 0)[1]
    flipping = Views(PREPROCESS, replace(still, horizontal_flip=True))
    seen = {torch.equal(flipping(square, key)[1], plain.flip(-1)) for key in range(40)}
    assert seen == {True, False}
    steady = Views(PREPROCESS, still)
    assert all(torch.equal(steady(square, key)[1], plain) for key in range(40))


def test_posterize_is_never_asked_for_no_bits() -> None:
    """Pillow refuses 0 bits, which timm's own policy asks for: the control shows that it does."""
    policy = "rand-m9-mstd0.5-inc1"

    def bits(augment: object) -> set[int]:
        (op,) = [op for op in augment.ops if op.name == "PosterizeIncreasing"]  # type: ignore[attr-defined]
        return {op.level_fn(level, {})[0] for level in np.linspace(0, 10, 101)}

    assert 0 in bits(rand_augment_transform(policy, {}))
    assert min(bits(rand_augment(policy, PREPROCESS))) == 1


@pytest.mark.parametrize("augment_on", ["loader", "device"])
@pytest.mark.parametrize("size", [(8, 8), (8, 300), (300, 8), (1000, 700)])
def test_any_shape_gives_two_views(size: tuple[int, int], augment_on: str) -> None:
    weak, strong = Views(PREPROCESS, AdaptConfig(augment_on=augment_on))(picture().resize(size), 0)
    assert weak.shape == strong.shape == (3, 32, 32)


def as_bytes(normalised_CHW: torch.Tensor) -> torch.Tensor:
    """Undo `Views`' normalisation."""
    mean_C11, std_C11 = (torch.tensor(v)[:, None, None] for v in (PREPROCESS.mean, PREPROCESS.std))
    return (normalised_CHW * std_C11 + mean_C11).mul(255).round().to(torch.uint8)


def photo(seed: int) -> Image.Image:
    """Smooth colours and a little noise."""
    generator = np.random.default_rng(seed)
    colours = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + generator.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8))


def distances(a: torch.Tensor, b: torch.Tensor) -> tuple[int, float]:
    """The largest difference, in levels, and the mean one."""
    difference = (a.int() - b.int()).abs()
    return int(difference.max()), float(difference.float().mean())


def test_crops_for_the_device_are_those_of_the_loader() -> None:
    """Resized by torch: at most 2 levels away, under half a level on average. The control is another key's crop."""
    plain = AdaptConfig(rand_augment="", horizontal_flip=False)
    loader, device = Views(PREPROCESS, plain), Views(PREPROCESS, replace(plain, augment_on="device"))
    for key in range(10):
        views = loader(photo(key), key)
        for normalised_CHW, pixels_CHW in zip(views, device(photo(key), key), strict=True):
            assert pixels_CHW.dtype == torch.uint8
            assert pixels_CHW.is_contiguous()
            highest, mean = distances(as_bytes(normalised_CHW), pixels_CHW)
            assert highest <= 2
            assert mean < 0.5
        _, other_CHW = device(photo(key), key + 1)
        assert distances(as_bytes(views[1]), other_CHW)[1] > 2


def test_what_the_device_does_is_not_done_twice() -> None:
    """Neither mirrored nor augmented: the settings for that change nothing."""
    bare = AdaptConfig(rand_augment="", horizontal_flip=False, augment_on="device")
    full = replace(bare, rand_augment="rand-m9-mstd0.5-inc1", horizontal_flip=True)
    for key in range(20):
        a, b = Views(PREPROCESS, bare)(picture(), key), Views(PREPROCESS, full)(picture(), key)
        assert all(map(torch.equal, a, b))

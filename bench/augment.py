"""Strong views made on the device against strong views made in the loader: ``python -m bench.augment``.

The loader's side is timed in one process on JPEG files of generated photos, both ways in interleaved pairs, so that a
noisy machine is noisy for both; a ratio is the median over pairs. `BatchAugment` is timed by itself.

Then how far apart the two ways are: in the crops, which torch resizes instead of Pillow; in finished views from the
same crops and draws; and in statistics of many views that each way draws for itself, where what two sets of the
loader's own differ by is the yardstick.
"""

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import functional as TF

from bench.measuring import CLIP_MEAN, CLIP_STD, Clock, interleaved, make_photos
from must_core.backbone import Preprocess
from must_core.config import AdaptConfig
from must_core.data.augment import Views, rand_augment, seeded
from must_core.data.augment_batch import BatchAugment
from must_core.data.loader import ImageFiles
from must_core.seeding import STRONG_VIEWS

LOADER, DEVICE = AdaptConfig(augment_on="loader"), AdaptConfig(augment_on="device")


def timed(work: Callable[[], Any], clock: Clock) -> float:
    """Seconds."""
    start = clock.now()
    work()
    return clock.now() - start


def compare_loaders(preprocess: Preprocess, source: ImageFiles, num_pairs: int) -> None:
    """Images a second of one loader process, without decoding and with it."""
    clock = Clock("cpu")
    decoded = [source.image(i) for i in range(len(source))]
    loader, device = Views(preprocess, LOADER), Views(preprocess, DEVICE)

    def passes(image_of: Callable[[int], Image.Image], views: Views) -> Callable[[], float]:
        return lambda: timed(lambda: [views(image_of(i), 0, 0, i) for i in range(len(source))], clock)

    print(f"{'images/s':18}{'loader':>10}{'device':>10}{'ratio':>8}  lowest–highest of {num_pairs} pairs")
    for name, image_of in (("views", decoded.__getitem__), ("decode and views", source.image)):
        pairs = interleaved(passes(image_of, loader), passes(image_of, device), num_pairs)
        ratios = [theirs / ours for theirs, ours in pairs]
        theirs, ours = (len(source) / statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"{name:18}{theirs:10.0f}{ours:10.0f}{statistics.median(ratios):7.2f}×  {min(ratios):.2f}–{max(ratios):.2f}"
        )


def many(views: Views, source: ImageFiles, num_views: int, *, epoch: int = 0) -> tuple[Tensor, Tensor]:
    """Both views, of the images in turn."""
    pairs = [views(source.image(i % len(source)), 0, epoch, i) for i in range(num_views)]
    weak, strong = zip(*pairs, strict=True)
    return torch.stack(weak), torch.stack(strong)


def time_batch(preprocess: Preprocess, source: ImageFiles, batch_size: int, device: str, num_calls: int) -> None:
    """`BatchAugment` at another step each time, and what of it is drawing."""
    clock = Clock(device)
    augment = BatchAugment(preprocess, DEVICE)
    weak, strong = (view.to(device) for view in many(Views(preprocess, DEVICE), source, batch_size))

    def whole(step: int) -> float:
        key = (0, step)
        return timed(lambda: augment(weak, strong, key=key, share=slice(None), batch_size=batch_size), clock)

    def drawing(step: int) -> float:
        return timed(lambda: augment.recipes((0, step), batch_size), clock)

    whole(0), whole(1)
    seconds, draws = (statistics.median(map(work, range(num_calls))) for work in (whole, drawing))
    print(
        f"a batch of {batch_size} on {device}: {seconds * 1e3:.1f} ms, {batch_size / seconds:.0f} images/s; "
        f"{draws * 1e3:.1f} ms of it to draw what is done"
    )


def print_distances(preprocess: Preprocess, source: ImageFiles, num_views: int, device: str) -> None:
    """How far apart the two ways are."""
    bare = replace(LOADER, rand_augment="", horizontal_flip=False)
    by_torch = many(Views(preprocess, DEVICE), source, len(source))
    by_pillow = map(as_bytes, many(Views(preprocess, bare), source, len(source)))
    for name, ours, theirs in zip(("weak", "strong"), by_torch, by_pillow, strict=True):
        print(f"{name} crops, torch and Pillow: {distance(ours, theirs)}")

    augment = BatchAugment(preprocess, DEVICE)
    _, strong = (view.to(device) for view in many(Views(preprocess, DEVICE), source, num_views))
    on_device = as_bytes(augment(strong, strong, key=(0, 0), share=slice(None), batch_size=num_views)[1].cpu())
    print(f"finished views, device and timm: {distance(on_device, by_timm(preprocess, strong.cpu()))}")

    loader, again = (as_bytes(many(Views(preprocess, LOADER), source, num_views, epoch=e)[1]) for e in (0, 1))
    print(f"statistics of {num_views} views, device and loader: {statistics_apart(on_device, loader)}")
    print(f"statistics of {num_views} views, loader and loader: {statistics_apart(again, loader)}")


def as_bytes(normalised_BCHW: Tensor) -> Tensor:
    """What was normalised."""
    mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (normalised_BCHW * std_C11 + mean_C11).mul(255).round().to(torch.uint8)


def by_timm(preprocess: Preprocess, strong_BCHW: Tensor) -> Tensor:
    """Views of these crops from the draws of key (0, 0), one after the other."""
    policy = rand_augment(DEVICE.rand_augment, preprocess)
    views = []
    with seeded(STRONG_VIEWS, 0, 0):
        for pixels_CHW in strong_BCHW:
            image: Image.Image = TF.to_pil_image(pixels_CHW)
            views.append(TF.pil_to_tensor(policy(ImageOps.mirror(image) if random.random() < 0.5 else image)))
    return torch.stack(views)


def distance(a_BCHW: Tensor, b_BCHW: Tensor) -> str:
    """Of pixels, in levels of 255."""
    apart = (a_BCHW.int() - b_BCHW.int()).abs()
    unequal = (apart > 0).double().mean().item()
    return f"at most {int(apart.max())}, {apart.double().mean().item():.4f} on average, {unequal:.2%} of values differ"


def statistics_apart(a_BCHW: Tensor, b_BCHW: Tensor) -> str:
    """Of the whole sets, by channel: the worst."""
    a_CN, b_CN = (views.double().transpose(0, 1).flatten(1) for views in (a_BCHW, b_BCHW))
    means = (a_CN.mean(1) - b_CN.mean(1)).abs().max()
    deviations = (a_CN.std(1) - b_CN.std(1)).abs().max()
    shares = [[torch.histc(channel, 32, 0, 256) / channel.numel() for channel in channels] for channels in (a_CN, b_CN)]
    histograms = max((a - b).abs().sum() / 2 for a, b in zip(*shares, strict=True))
    return f"means {means:.2f} levels, deviations {deviations:.2f} levels, histograms {histograms:.1%}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=500, help="of the photos")
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=224, help="that the model takes")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--views", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    preprocess = Preprocess(a.image_size, CLIP_MEAN, CLIP_STD, "bicubic", "shortest", 0)
    print(
        f"{a.images} photos of {a.width}x{a.height}, views of {a.image_size} pixels, {a.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__} "
        f"({torch.backends.cpu.get_cpu_capability()}), Pillow {PIL.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        source = ImageFiles(make_photos(Path(folder) / "photos", a.images, (a.width, a.height)))
        compare_loaders(preprocess, source, a.pairs)
        time_batch(preprocess, source, a.batch_size, a.device, a.pairs)
        print_distances(preprocess, source, a.views, a.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())

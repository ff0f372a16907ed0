"""Memory and speed of data at scale: ``python -m bench.scale``.

Paths: what it costs to hold 1,300,000 of them and to start loading from them, as a list of `Path` and as an
`ImageList`, each in a process of its own; ``--tree N`` also finds N real (empty) files. Resident memory is above what
the process had before; a loader process's is what it does not share with others.

Cache: images a second of `training_batches` from JPEG files and from the packed cache, in interleaved pairs with the
same number of loader processes, whole epochs with their start; a ratio is the median over pairs.

Classes: time (the fastest of ten) and peak memory of one adaptation step of a tiny tower with up to 10,000 classes.
"""

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F

from bench.digits import BASE_MODEL
from bench.measuring import interleaved, make_photos
from must_core.adaptation import Adaptation
from must_core.backbone import Preprocess, load_base
from must_core.config import AdaptConfig
from must_core.data.augment import Views
from must_core.data.image_list import ImageList
from must_core.data.loader import ImageSource, epoch_order, training_batches
from must_core.data.packed import PackedImages, packed_bytes, packing
from must_core.masking import PatchMasker
from must_core.student import Student

NUM_PATHS = 1_300_000
NUM_BATCHES = 100
"""Batches of 64 after which a loader process's memory is looked at."""
MB = 1e6


class NamedImages:
    """A source of one grey image under many names, each looked up when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, index: int) -> Image.Image:
        return Image.new("L", (32, 32), len(self._paths[index].name)).convert("RGB")


def generated_paths() -> Iterator[Path]:
    """Names like those of ImageNet, a thousand folders."""
    return (Path(f"/data/train/n{i // 1300:08}/n{i // 1300:08}_{i}.JPEG") for i in range(NUM_PATHS))


def memory(field: str, pid: int | str = "self", file: str = "status") -> int:
    """A figure of /proc, in bytes. (`getrusage` would start from what the parent process had.)"""
    lines = Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure_paths(kind: str) -> dict[str, float]:
    """Body of a process: hold the paths, draw an order, start two loader processes and take some batches."""
    start = memory("VmRSS")
    started = time.perf_counter()
    paths: Sequence[Path] = list(generated_paths()) if kind == "list" else ImageList.of(generated_paths())
    figures = {"built in, s": time.perf_counter() - started, "peak while building, MB": (memory("VmHWM") - start) / MB}
    figures["held, MB"] = (memory("VmRSS") - start) / MB
    started = time.perf_counter()
    epoch_order(len(paths), seed=0, epoch=0)
    figures["an epoch's order, ms"] = (time.perf_counter() - started) * 1e3
    figures |= measure_loader(paths)
    figures["peak of the process, MB"] = (memory("VmHWM") - start) / MB
    figures["pickled, MB"] = len(pickle.dumps(paths)) / MB
    return figures


def measure_loader(paths: Sequence[Path]) -> dict[str, float]:
    """Two loader processes over the paths."""
    views = Views(Preprocess(16, (0.5,) * 3, (0.5,) * 3, "bicubic", "shortest", 0), AdaptConfig())
    started = time.perf_counter()
    batches = training_batches(NamedImages(paths), views, batch_size=64, epochs=1, seed=0, num_workers=2)
    with closing(batches):
        next(batches)
        first_batch_s = time.perf_counter() - started
        for _ in range(NUM_BATCHES - 1):
            next(batches)
        children = Path("/proc/thread-self/children").read_text(encoding="utf-8").split()
        own = [memory("Private_", pid, "smaps_rollup") for pid in map(int, children)]
    return {
        "first batch after, s": first_batch_s,
        f"a loader process after {NUM_BATCHES} batches, MB": statistics.mean(own) / MB,
    }


def measure_tree(num_files: int) -> dict[str, float]:
    """Body of a process: find real files, a thousand a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(num_files):
            if i % 1000 == 0:
                (folder := Path(scratch) / f"{i // 1000:05}").mkdir()
            os.close(os.open(folder / f"{i:08}.jpg", os.O_CREAT))
        start = memory("VmRSS")
        started = time.perf_counter()
        found = ImageList.below(Path(scratch))
        figures = {"found": float(len(found)), "found in, s": time.perf_counter() - started}
        figures["peak while finding, MB"] = (memory("VmHWM") - start) / MB
        started = time.perf_counter()
        found.digest()
        figures["digest in, s"] = time.perf_counter() - started
    return figures


def measure_classes(num_classes: int) -> dict[str, float]:
    """Body of a process: ten steps with so many classes."""
    base = load_base(BASE_MODEL)
    weights_DK = F.normalize(torch.randn(base.visual_config["embed_dim"], num_classes), dim=0)
    config = AdaptConfig(batch_size=64, mask_patch_size=8, confidence_threshold=0.0)
    size, patch = base.preprocess.image_size, base.visual_config["vision_cfg"]["patch_size"]
    masker = PatchMasker(image_size=size, patch_size=patch, mask_patch_size=8, mask_ratio=0.3)
    weak_BCHW, strong_BCHW = torch.randn(2, 64, 3, size, size)
    mask = masker.sample(64, torch.Generator().manual_seed(0))
    start = memory("VmRSS")
    run = Adaptation(Student.from_base(base, weights_DK), config, steps_per_epoch=100)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        run.step(weak_BCHW, strong_BCHW, mask)
        seconds.append(time.perf_counter() - started)
    return {"ms a step": min(seconds) * 1e3, "peak, MB": (memory("VmHWM") - start) / MB}


MEASURES: dict[str, Callable[[str], dict[str, float]]] = {
    "paths": measure_paths,
    "tree": lambda number: measure_tree(int(number)),
    "classes": lambda number: measure_classes(int(number)),
}


def in_own_process(measure: str, argument: object) -> dict[str, float]:
    """Figures of a measure, taken in a process that has done nothing else."""
    command = [sys.executable, "-m", "bench.scale", "--measure", measure, str(argument)]
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return figures


def print_columns(columns: dict[str, dict[str, float]]) -> None:
    """A table: a row a figure."""
    print(f"{'':42}" + "".join(f"{name:>14}" for name in columns))
    for figure in next(iter(columns.values())):
        print(f"{figure:42}" + "".join(f"{column[figure]:14,.1f}" for column in columns.values()), flush=True)


def images_per_second(images: ImageSource | Sequence[Path], image_size: int, num_workers: int) -> float:
    """Of one epoch, from the start of the loader to its last batch."""
    views = Views(Preprocess(image_size, (0.5,) * 3, (0.25,) * 3, "bicubic", "shortest", 0), AdaptConfig())
    started = time.perf_counter()
    batches = training_batches(images, views, batch_size=16, epochs=1, seed=0, num_workers=num_workers)
    num_images = sum(len(weak_BCHW) for weak_BCHW, _ in batches)
    return num_images / (time.perf_counter() - started)


def compare_cache(a: argparse.Namespace, scratch: Path) -> None:
    """Files against the cache."""
    photos = make_photos(scratch / "photos", a.images, tuple(a.photo))
    num_bytes = sum(path.stat().st_size for path in photos)
    wanted = packed_bytes(photos, max_short_side=a.max_short_side)
    started = time.perf_counter()
    for _ in packing(photos, scratch / "packed", max_short_side=a.max_short_side, num_workers=a.workers):
        pass
    seconds = time.perf_counter() - started
    packed = PackedImages(scratch / "packed")
    limit = f", short side at most {a.max_short_side}" if a.max_short_side else ""
    print(
        f"{len(photos)} photos of {a.photo[0]} x {a.photo[1]}{limit}: files {num_bytes / MB:.0f} MB, cache "
        f"{wanted / MB:.0f} MB, made at {len(photos) / seconds:.0f} images/s; views of {a.image_size} pixels, "
        f"{a.workers} loader processes"
    )
    pairs = interleaved(
        lambda: images_per_second(packed, a.image_size, a.workers),
        lambda: images_per_second(photos, a.image_size, a.workers),
        a.pairs,
    )
    cached, files = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [x / y for x, y in pairs]
    print(
        f"images/s: files {files:.1f}, cache {cached:.1f}, {statistics.median(ratios):.2f} times; "
        f"{min(ratios):.2f} to {max(ratios):.2f} over {a.pairs} pairs",
        flush=True,
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip", action="append", default=[], choices=["paths", "cache", "classes"])
    parser.add_argument("--tree", type=int, metavar="N", help="also find N real files")
    parser.add_argument("--images", type=int, default=320, help="photos of the cache's comparison")
    parser.add_argument("--photo", type=int, nargs=2, default=[500, 375], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--max-short-side", type=int, help="shrink larger photos in the cache")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        name, argument = a.measure
        print(json.dumps(MEASURES[name](argument)))
        return 0
    if "paths" not in a.skip:
        print(f"{NUM_PATHS:,} paths")
        print_columns({kind: in_own_process("paths", kind) for kind in ("list", "ImageList")})
    if a.tree:
        print_columns({f"{a.tree:,} files": in_own_process("tree", a.tree)})
    if "cache" not in a.skip:
        with tempfile.TemporaryDirectory() as scratch:
            compare_cache(a, Path(scratch))
    if "classes" not in a.skip:
        print("one step, batch 64, by the number of classes")
        print_columns({f"{number:,}": in_own_process("classes", number) for number in (10, 1000, 10_000)})
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Speed of one MUST step and of the class head, ours over plain: ``python -m bench.train``.

Both steps run in one process from the same weights on the same views, in interleaved pairs, so that a noisy machine is
noisy for both; a ratio is the median over pairs. Weights are random (shapes decide the speed), accuracy is
`bench.digits`' business. The share of the limit is the step's own arithmetic over its time, against the fastest of a
few matrix products of the tower's shapes in the same run. Peak memory is of a process of its own for each. Last comes
our whole loop with data, from photos in a packed cache.

``--sweep`` prints our step's time over batch, classes and image size as a table and, with ``--plot FILE``, a picture.
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench.measuring import CLIP_MEAN, CLIP_STD, Clock, interleaved, make_photos
from bench.plain import PlainAdaptation, plain_class_weights
from must_core.adapt import Progress, adapt
from must_core.adaptation import Adaptation
from must_core.backbone import BaseModel, Preprocess
from must_core.config import PRECISIONS, AdaptConfig
from must_core.data.packed import pack
from must_core.masking import PatchMask, PatchMasker
from must_core.objective import MOVING_AVERAGE_MIN_CLASSES
from must_core.student import Student
from must_core.text.prompts import ClassSpec, build_class_weights
from must_core.towers.linear import linear
from must_core.workflow import default_num_workers

TOTAL_STEPS = 1000
PROMPTS = ("a photo of a {}.", "a blurry photo of the {}.", "a {} in the wild.", "itap of my {}.", "a drawing of a {}.")


@dataclass(frozen=True)
class Setting:
    """What is run."""

    model: str
    batch_size: int
    num_classes: int
    image_size: int
    precision: str
    compiled: bool
    device: str

    def config(self) -> AdaptConfig:
        """The paper's ImageNet setting at this batch; τ such that random weights have confident samples."""
        return AdaptConfig(
            batch_size=self.batch_size,
            precision=self.precision,
            compiled=self.compiled,
            augment_on="loader" if self.device == "cpu" else "device",
            confidence_threshold=0.01,
        )

    def student(self) -> Student:
        """A tower of the model's shape with random weights and class weights."""
        torch.manual_seed(0)
        config = open_clip.get_model_config(self.model)
        config["vision_cfg"]["image_size"] = self.image_size
        visual = open_clip.model._build_vision_tower(
            config["embed_dim"], config["vision_cfg"], quick_gelu=config.get("quick_gelu", False)
        )
        weights_DK = F.normalize(torch.randn(config["embed_dim"], self.num_classes), dim=0)
        return Student(visual, weights_DK, logit_scale=100.0).to(self.device)

    def inputs(self) -> tuple[Tensor, Tensor, PatchMask]:
        """Two views and a mask."""
        generator = torch.Generator().manual_seed(1)
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        weak_BCHW, strong_BCHW = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        patch = open_clip.get_model_config(self.model)["vision_cfg"]["patch_size"]
        block = 2 * patch if self.image_size % (2 * patch) == 0 else patch
        masker = PatchMasker(image_size=self.image_size, patch_size=patch, mask_patch_size=block, mask_ratio=0.3)
        mask = masker.sample(self.batch_size, generator)
        return weak_BCHW.to(self.device), strong_BCHW.to(self.device), mask.to(self.device)


def ours(setting: Setting, student: Student) -> Adaptation:
    """must_core's adaptation."""
    return Adaptation(student, setting.config(), steps_per_epoch=TOTAL_STEPS // setting.config().epochs)


def plain(setting: Setting, student: Student) -> PlainAdaptation:
    """The yardstick."""
    return PlainAdaptation(student, setting.config(), total_steps=TOTAL_STEPS)


def measured_step(run: Any, inputs: tuple[Tensor, Tensor, PatchMask], clock: Clock) -> dict[str, float]:
    with clock.measuring("whole step"):
        run.step(*inputs)
    return clock.take()


def watch_phases(mine: Adaptation, theirs: PlainAdaptation, clock: Clock) -> None:
    """Backward is what remains of the step."""
    clock.wrap(mine, "_pseudo_label", "teacher labels")
    clock.wrap(mine._gradient, "_losses", "student forward")
    clock.wrap(mine.optimizer, "step", "optimizer")
    clock.wrap(mine._update_teacher, "apply", "teacher update")
    clock.wrap(theirs, "label", "teacher labels")
    clock.wrap(theirs, "losses", "student forward")
    clock.wrap(theirs.optimizer, "step", "optimizer")
    clock.wrap(theirs, "update_teacher", "teacher update")


def matmul_peak(setting: Setting, clock: Clock) -> float:
    """Operations per second of the fastest product among the tower's own, in the step's precision."""
    vision = open_clip.get_model_config(setting.model)["vision_cfg"]
    width = vision["width"]
    rows = setting.batch_size * ((setting.image_size // vision["patch_size"]) ** 2 + 1)
    dtype = getattr(torch, setting.precision)
    best = 0.0
    for m, k, n in ((rows, width, 3 * width), (rows, width, 4 * width), (rows, 4 * width, width)):
        rows_mk = torch.randn(m, k, device=setting.device, dtype=dtype)
        weight_nk = torch.randn(n, k, device=setting.device, dtype=dtype)
        bias_n = torch.zeros(n, device=setting.device, dtype=dtype)
        for product in (F.linear, linear) * 8:
            start = clock.now()
            product(rows_mk, weight_nk, bias_n)
            best = max(best, 2 * m * k * n / (clock.now() - start))
    return best


def peak_memory(variant: str, setting: Setting) -> float:
    """Bytes that a process needs at most for two steps, above what it has before it builds the model."""
    command = [sys.executable, "-m", "bench.train", "--peak-of", variant, *_flags(setting)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_own_peak(variant: str, setting: Setting) -> None:
    """Body of `peak_memory`'s process."""
    inputs = setting.inputs()
    before = _peak_resident_bytes()
    build: Callable[..., Any] = {"ours": ours, "plain": plain}[variant]
    run = build(setting, setting.student())
    for _ in range(2):
        run.step(*inputs)
    if setting.device == "cpu":
        print(_peak_resident_bytes() - before)
    else:
        print(torch.cuda.max_memory_allocated())


def _peak_resident_bytes() -> int:
    """Of this program; ``getrusage`` would start from what the parent process had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _flags(setting: Setting) -> list[str]:
    return [
        f"--model={setting.model}",
        f"--batch-size={setting.batch_size}",
        f"--classes={setting.num_classes}",
        f"--image-size={setting.image_size}",
        f"--precision={setting.precision}",
        *(["--compiled"] if setting.compiled else []),
        f"--device={setting.device}",
    ]


def compare_steps(setting: Setting, num_pairs: int, baseline_precision: str) -> None:
    """The main table."""
    clock = Clock(setting.device)
    student = setting.student()
    inputs = setting.inputs()
    yardstick = Setting(**{**vars(setting), "precision": baseline_precision})
    mine, theirs = ours(setting, deepcopy(student)), plain(yardstick, student)
    if setting.precision == baseline_precision:
        own = {name: float(value) for name, value in vars(mine.step(*inputs).losses).items()}
        plains = theirs.step(*inputs)
        worst = max(abs(own[name] - value) / max(abs(value), 1e-12) for name, value in plains.items())
        print(f"losses of the first step differ by {worst:.1e}")
    for _ in range(2):
        mine.step(*inputs), theirs.step(*inputs)

    whole = interleaved(
        lambda: measured_step(mine, inputs, clock), lambda: measured_step(theirs, inputs, clock), num_pairs
    )
    with FlopCounterMode(display=False, custom_mapping=_FLOPS) as counter:
        mine.step(*inputs)
    peak = matmul_peak(setting, clock)
    watch_phases(mine, theirs, clock)
    by_phase = interleaved(
        lambda: measured_step(mine, inputs, clock), lambda: measured_step(theirs, inputs, clock), num_pairs
    )
    for pair in by_phase:
        for seconds in pair:
            seconds["backward"] = 2 * seconds["whole step"] - sum(seconds.values())

    print(f"{'':18}{'plain ms':>10}{'ours ms':>10}{'ratio':>8}  lowest–highest of {num_pairs} pairs")
    for phase in ("teacher labels", "student forward", "backward", "optimizer", "teacher update"):
        _print_row(phase, [(a[phase], b[phase]) for a, b in by_phase])
    _print_row("whole step", [(a["whole step"], b["whole step"]) for a, b in whole])
    step_s = statistics.median(a["whole step"] for a, _ in whole)
    flops = counter.get_total_flops()
    print(
        f"{setting.batch_size / step_s:.1f} images/s; {flops / step_s / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s, "
        f"{flops / step_s / peak:.0%} of the fastest matrix product"
    )


def _print_row(name: str, pairs: list[tuple[float, float]]) -> None:
    ratios = [theirs / ours for ours, theirs in pairs]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{name:18}{theirs * 1e3:10.1f}{mine * 1e3:10.1f}{statistics.median(ratios):7.2f}×  "
        f"{min(ratios):.2f}–{max(ratios):.2f}"
    )


def _attention_flops(q: Any, k: Any, *_args: Any, **_kwargs: Any) -> int:
    b, h, rows, e = q
    return 4 * b * h * rows * k[2] * e


def _linear_flops(rows: Any, weight: Any, *_args: Any, **_kwargs: Any) -> int:
    return 2 * math.prod(rows) * int(weight[0])


def _attention_backward_flops(_grad: Any, q: Any, k: Any, *_args: Any, **_kwargs: Any) -> int:
    return 5 * _attention_flops(q, k) // 2


_FLOPS: dict[Any, Any] = {
    # What torch's counter has never heard of.
    torch.ops.mkldnn._linear_pointwise: _linear_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def compare_class_heads(setting: Setting, num_pairs: int) -> None:
    """Class weights of a few classes, from prompts."""
    torch.manual_seed(0)
    config = open_clip.get_model_config(setting.model)
    model = open_clip.create_model(setting.model).eval()
    base = BaseModel(f"{setting.model}/random", model, config)
    names = ["tabby cat", "golden retriever", "school bus", "espresso maker", "great white shark", "teapot"]
    classes = [ClassSpec(name) for name in names]
    clock = Clock("cpu")

    def one(build: Callable[[], Tensor]) -> Callable[[], tuple[float, Tensor]]:
        def timed() -> tuple[float, Tensor]:
            start = clock.now()
            return_value = build()
            return clock.now() - start, return_value

        return timed

    pairs = interleaved(
        one(lambda: build_class_weights(base, classes, PROMPTS)),
        one(lambda: plain_class_weights(model, names, PROMPTS)),
        num_pairs,
    )
    difference = max(float((a - b).abs().max()) for (_, a), (_, b) in pairs)
    _print_row("class head", [(a, b) for (a, _), (b, _) in pairs])
    print(f"class weights differ by {difference:.1e}")


def with_data(setting: Setting, num_steps: int) -> None:
    """Our loop as it is run, from a packed cache of photos, against the same step on views that are there already."""
    clock = Clock(setting.device)
    run, inputs = ours(setting, setting.student()), setting.inputs()
    run.step(*inputs)
    alone_s = statistics.median(measured_step(run, inputs, clock)["whole step"] for _ in range(num_steps))
    preprocess = Preprocess(setting.image_size, CLIP_MEAN, CLIP_STD, "bicubic", "shortest", 0)
    with tempfile.TemporaryDirectory() as scratch:
        photos = make_photos(Path(scratch) / "photos", max(256, setting.batch_size), (500, 375))
        images = pack(photos, Path(scratch) / "decoded", num_workers=default_num_workers())
        reports = adapt(run, images, preprocess, report_interval_s=0, num_workers=default_num_workers())
        rates = [report.images_per_second for report in islice(reports, num_steps + 2) if isinstance(report, Progress)]
        reports.close()
    rate = statistics.median(rates[2:])  # the first ones wait for the loader to start
    print(
        f"with data from a packed cache, views finished on the {run.config.augment_on}, {default_num_workers()} loader "
        f"processes: {rate:.1f} images/s, {rate * alone_s / setting.batch_size:.0%} of the step alone"
    )


def sweep(setting: Setting, plot: str | None) -> None:
    """Our step over batch, classes and image size, the others as given."""
    clock = Clock(setting.device)
    axes: dict[str, list[int]] = {
        "batch_size": [2, 4, 8, 16],
        "num_classes": [10, 100, 1000, 10_000],
        "image_size": [112, 160, 224, 288],
    }
    results: dict[str, list[float]] = {}
    for axis, values in axes.items():
        results[axis] = []
        for value in values:
            changed = Setting(**{**vars(setting), axis: value})
            run, inputs = ours(changed, changed.student()), changed.inputs()
            run.step(*inputs)
            seconds = min(measured_step(run, inputs, clock)["whole step"] for _ in range(3))
            results[axis].append(seconds)
            print(f"{axis:12}{value:8}{seconds * 1e3:10.0f} ms{changed.batch_size / seconds:8.1f} images/s", flush=True)
    if plot:
        _plot(axes, results, plot)


def _plot(axes: dict[str, list[int]], results: dict[str, list[float]], file: str) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415 - nothing else here needs it

    figure, panels = plt.subplots(1, len(axes), figsize=(11, 3.2), layout="constrained", sharey=True)
    for panel, (axis, values) in zip(panels, axes.items(), strict=True):
        panel.plot(values, results[axis], marker="o")
        panel.set(xlabel=axis.replace("_", " "), xscale="log", xticks=values, ylim=(0, None))
        panel.set_xticklabels([f"{value:,}" for value in values])
        panel.minorticks_off()
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("seconds a step")
    figure.savefig(file)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16-quickgelu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--baseline-precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--compiled", action="store_true", help="ours by torch.compile; the plain step stays eager")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--skip", action="append", default=[], choices=["steps", "memory", "head", "data"])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--peak-of", choices=["ours", "plain"], help=argparse.SUPPRESS)
    a = parser.parse_args()
    if "steps" not in a.skip and not a.sweep and a.classes >= MOVING_AVERAGE_MIN_CLASSES:
        parser.error("the plain step has no moving average; take fewer classes, or --skip steps")
    setting = Setting(a.model, a.batch_size, a.classes, a.image_size, a.precision, a.compiled, a.device)
    if a.peak_of:
        print_own_peak(a.peak_of, setting)
        return 0
    print(
        f"{a.model}, batch {a.batch_size}, {a.image_size} pixels, {a.classes} classes, {a.precision} against "
        f"{a.baseline_precision}, {a.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    if a.sweep:
        sweep(setting, a.plot)
        return 0
    if "steps" not in a.skip:
        compare_steps(setting, a.pairs, a.baseline_precision)
    if "memory" not in a.skip:
        yardstick = Setting(**{**vars(setting), "precision": a.baseline_precision})
        mine, theirs = peak_memory("ours", setting), peak_memory("plain", yardstick)
        print(f"peak memory: plain {theirs / 2**30:.2f} GiB, ours {mine / 2**30:.2f} GiB, {mine / theirs:.2f} of it")
    if "head" not in a.skip:
        compare_class_heads(setting, a.pairs)
    if "data" not in a.skip:
        with_data(setting, a.pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How many images go through a step at once."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from must_core.auto import Evidence, choose
from must_core.backbone import load_base
from must_core.config import AdaptConfig
from must_core.memory import Memory, available_ram, free_bytes, memory_of
from tests.support.runs import make_student
from tests.support.tiny import make_base

TOWERS = [
    [{"image_size": 32, "layers": 2, "width": 128, "head_width": 32, "patch_size": 4}, 64, 0],
    [{"image_size": 64, "layers": 4, "width": 256, "head_width": 64, "patch_size": 8}, 64, 16],
    [{"image_size": 64, "layers": 4, "width": 256, "head_width": 64, "patch_size": 8}, 64, 0],
]


def test_the_estimate_is_above_what_a_step_takes_and_not_far_above() -> None:
    command = [sys.executable, "-m", "tests.support.peak_main", json.dumps(TOWERS)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for tower, line in zip(TOWERS, lines, strict=True):
        estimate, peak = map(int, line.split())
        assert peak < estimate < 2.5 * peak, (tower, estimate / peak)


def test_what_is_kept_grows_with_the_tower() -> None:
    small, large = (
        memory_of(make_student(layers=layers, dtype=torch.float32), 32, bfloat16=False) for layers in (3, 6)
    )
    assert 1.6 * small.kept < large.kept < 2.4 * small.kept
    assert large.fixed > small.fixed
    assert large.views == small.views == 2 * 3 * 32 * 32 * 4


@pytest.mark.parametrize(
    ("free", "part"), [(None, 48), (1000, 48), (735, 48), (734, 32), (535, 32), (534, 16), (148, 1), (0, 1)]
)
def test_all_images_or_a_power_of_two_that_fits(free: int | None, part: int) -> None:
    assert Memory(free=free, fixed=60, views=1, kept=10).part_of(48) == part


def test_the_choice_says_what_is_needed_and_what_is_free(tmp_path: Path) -> None:
    base, evidence = load_base(make_base(tmp_path)), Evidence(1000, 3, 0.0)
    roomy = Memory(free=20 * 10**9, fixed=10**9, views=0, kept=10**7)
    tight = replace(roomy, free=21 * 10**8)

    def chosen(memory: Memory | None, **requested: int) -> tuple[int, str]:
        config, choices = choose(requested, evidence, base, seed=0, memory=memory)
        return config.micro_batch_size, choices["micro_batch_size"].reason

    assert chosen(roomy) == (64, "All 64 images at once: a step needs about 1.6 GB of the 20 GB that are free.")
    assert chosen(tight) == (64, "All 64 images at once: a step needs about 1.6 GB of the 2.1 GB that are free.")
    size, reason = chosen(replace(roomy, free=15 * 10**8))
    assert size == 16
    assert reason == "A step with all 64 images needs about 1.6 GB, one in parts 1.2 GB; 1.5 GB are free."
    assert chosen(replace(roomy, num_ranks=4))[0] == 16
    assert chosen(None)[0] == 64
    assert chosen(tight, micro_batch_size=5) == (5, "As requested.")


def test_parts_are_no_part_of_what_a_run_is() -> None:
    assert AdaptConfig(micro_batch_size=4).digest == AdaptConfig().digest
    assert AdaptConfig(batch_size=32).digest != AdaptConfig().digest  # control


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def host(root: Path, cgroup: str) -> Path:
    write(root / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 1000 kB\n")
    write(root / "proc/self/cgroup", cgroup)
    return root


def limit(folder: Path, version: int, limit: str, used: int, cache: int) -> None:
    names = {1: ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"), 2: ("max", "current", "inactive_file")}
    write(folder / f"memory.{names[version][0]}", limit)
    write(folder / f"memory.{names[version][1]}", str(used))
    write(folder / "memory.stat", f"anon 1\n{names[version][2]} {cache}\n")


def test_free_memory_is_what_the_tightest_limit_leaves(tmp_path: Path) -> None:
    assert available_ram(tmp_path) is None
    second = host(tmp_path / "2", "0::/a/b\n")
    assert available_ram(second) == 1000 * 1024
    limit(second / "sys/fs/cgroup/a/b", 2, "max", 100, 0)
    assert available_ram(second) == 1000 * 1024
    limit(second / "sys/fs/cgroup/a", 2, "5000", 4000, 300)
    assert available_ram(second) == 1300
    limit(second / "sys/fs/cgroup", 2, "2000", 3000, 0)
    assert available_ram(second) == 0
    first = host(tmp_path / "1", "5:cpu:/c\n4:memory:/of/the/host\n")
    limit(first / "sys/fs/cgroup/memory", 1, "5000", 4000, 200)
    assert available_ram(first) == 1200


def test_this_machine_has_some() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 10**6

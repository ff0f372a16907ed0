"""A run that is killed ends with the bits of one that is not."""

import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from must_core.files import sha256_of
from tests.support import torchrun
from tests.support.tiny import make_base, make_images

NUM_STEPS = 4 * (30 // 8)
NEVER = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and a base model, and next to them a folder for each run."""
    root = tmp_path_factory.mktemp("crash")
    make_images(root / "images", 30)
    make_base(root / "base")
    return root


def start(run: Path, kill_at: int, *manner: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.support.crash_main", str(run), str(kill_at), "0", *manner],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def weights(run: Path) -> str:
    return sha256_of(run / "bundle" / "weights.safetensors")


@pytest.fixture(scope="module")
def straight(folder: Path) -> str:
    """What the weights are when nothing happens."""
    done = start(folder / "straight", NEVER)
    assert done.returncode == 0, done.stderr
    return weights(folder / "straight")


def test_killed_three_times_at_random_steps(folder: Path, straight: str) -> None:
    run = folder / "killed"
    steps = sorted(random.Random(20).sample(range(2, NUM_STEPS), 3))
    assert any(step % (30 // 8) for step in steps)  # in the middle of an epoch, too
    for i, step in enumerate(steps):
        killed = start(run, step)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        resumed = re.findall(r"resumed at (\d+)", killed.stdout)
        previous = steps[i - 1] if i else 0
        # The newest checkpoint before the step at which the life before ended; at most one interval is done again.
        assert resumed == ([str((previous - 1) // 2 * 2)] if previous > 2 else [])
    done = start(run, NEVER)
    assert done.returncode == 0, done.stderr
    assert weights(run) == straight


def test_killed_while_a_checkpoint_is_written(folder: Path, straight: str) -> None:
    """Written aside and renamed, nobody sees the half of it. In its place, the control, half a checkpoint stands under
    the name of a whole one, and only its digest tells."""
    run = folder / "torn"
    for step, manner in ((4, "aside"), (8, "in-place")):
        killed = start(run, step, manner)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert "passed over" not in killed.stderr
        assert bool(list((run / "checkpoints").glob(f"step-{step:08}-*"))) == (manner == "in-place")
    assert "resumed at 2" in killed.stdout
    done = start(run, NEVER)
    assert done.returncode == 0, done.stderr
    assert "resumed at 6" in done.stdout
    assert done.stderr.count("passed over: step-00000008") == 1
    assert weights(run) == straight


def test_a_checkpoint_that_lost_a_moment_would_be_noticed(folder: Path, straight: str) -> None:
    """Negative control: one number of the optimizer's state is another."""
    run = folder / "spoiled"
    assert start(run, 7).returncode == -signal.SIGKILL
    newest = max((run / "checkpoints").glob("step-*"))
    state = load_file(newest / "state.safetensors")
    name = next(name for name in state if name.startswith("optimizer/exp_avg/visual") and name.endswith("weight"))
    state[name].view(-1)[0] += 0.1
    save_file(state, newest / "state.safetensors")
    meta = (newest / "meta.json").read_text()
    digest = sha256_of(newest / "state.safetensors")
    (newest / "meta.json").write_text(re.sub(r'"sha256": "\w+"', f'"sha256": "{digest}"', meta))
    assert start(run, NEVER).returncode == 0
    assert weights(run) != straight


def test_torchrun_starts_a_killed_rank_again_and_nothing_is_lost(folder: Path) -> None:
    """Elastic: the second of two ranks dies; both start anew, and the first one's checkpoint serves both."""
    runs = {"calm": NEVER, "elastic": 7}
    printed = {}
    for name, kill_at in runs.items():
        program = ["-m", "tests.support.crash_main", str(folder / name), str(kill_at), "1"]
        printed[name] = torchrun.finished(torchrun.start(program, processes=2, restarts=1))
    assert "resumed" not in printed["calm"]
    assert printed["elastic"].count("resumed at 6") == 2
    assert weights(folder / "elastic") == weights(folder / "calm")

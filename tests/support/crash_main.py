"""A whole adaptation that kills itself: ``crash_main RUN STEP RANK [aside | in-place]``.

RUN holds ``images/`` and ``base/``; the bundle goes to ``RUN/bundle``. A checkpoint is saved after every second step.
The process of rank RANK sends itself SIGKILL before step STEP is saved, unless torchrun has started it anew. With a
fourth argument it does so in the middle of saving it: where it is written aside, as it is, or in its place.
"""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from must_core import checkpoint
from must_core.adapt import Progress
from must_core.adaptation import Adaptation
from must_core.checkpoint import Checkpoints
from must_core.data.loader import find_images
from must_core.parallel import joined
from must_core.text.prompts import ClassSpec
from must_core.workflow import AdaptRequest, PhaseStarted, Resumed, RunFolders, run_adaptation
from tests.support.tiny import CLASSES

EVERY = 2


def say(line: str) -> None:
    """Write a line in one piece: torchrun's ranks share a pipe and are not buffered."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def die_writing(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write half of a checkpoint, and no more."""
    if sys.argv[4] == "in-place":
        path = path.parent.rename(path.parent.with_name(path.parent.stem.removeprefix("."))) / path.name
    content = save(dict(tensors))
    path.write_bytes(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run, perhaps not to the end."""
    root, kill_at, victim = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    while_saving = len(sys.argv) > 4
    first_life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    request = AdaptRequest(
        base_model=f"local-dir:{root.parent / 'base'}",
        classes=tuple(map(ClassSpec, CLASSES)),
        templates=("a {} thing",),
        images=find_images(root.parent / "images"),
        hyperparameters={
            "epochs": 4, "batch_size": 8, "learning_rate_per_256": 1e-2, "confidence_threshold": 0.3,
            "ema_decay_init": 0.5, "ema_decay": 0.9,
        },
        seed=3,
    )  # fmt: skip
    steps_done = -1  # not yet training
    original = Checkpoints.save

    def save_some(self: Checkpoints, run: Adaptation) -> Path:
        if while_saving and run.step_index == kill_at:
            checkpoint.save_tensors = die_writing
        return original(self, run) if run.step_index % EVERY == 0 else self.folder

    Checkpoints.save = save_some  # type: ignore[method-assign]
    with joined("cpu") as ranks:

        def stop() -> bool:
            nonlocal steps_done
            if steps_done < 0:
                return False
            steps_done += 1
            if first_life and ranks.rank == victim and not while_saving and resumed_at + steps_done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return False

        resumed_at = 0
        folders = RunFolders(bundle=root / "bundle", checkpoints=root / "checkpoints", cache=root / "decoded")
        for event in run_adaptation(request, folders, checkpoint_interval_s=0, stop=stop, num_workers=1, ranks=ranks):
            if isinstance(event, Resumed):
                resumed_at = event.step
                say(f"resumed at {event.step}")
            if event == PhaseStarted("training"):
                steps_done = 0
            if isinstance(event, Progress):
                say(f"step {event.step}")


if __name__ == "__main__":
    main()

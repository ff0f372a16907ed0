"""A run's folder on disk, made so that whoever opens it a year later knows what it is."""

import fcntl
import json
import logging
import platform
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from must_core import __version__
from must_core.adapt import CheckpointSaved, Progress
from must_core.errors import CorruptArtifact, InvalidConfig
from must_core.files import write_json
from must_core.workflow import Chosen, Completed, Event, Resumed, RunFolders

logger = logging.getLogger(__name__)

_REQUEST = "request.json"
_REPORT = "report.json"
_LOCK = "lock"

_README = """\
# An adaptation by MUST (masked unsupervised self-training)

| here | what it is |
|---|---|
| `request.json` | what was asked for, and with which software |
| `hyperparameters.json` | every hyper-parameter with the reason for its value |
| `progress.jsonl` | losses, rates and speed, a line a report |
| `tensorboard/` | the same as curves: `tensorboard --logdir tensorboard` |
| `checkpoints/` | the newest two and the last accepted one, while unfinished: the same command goes on from there |
| `decoded/` | pixels of the images, while the run is not finished; may be deleted |
| `bundle/` | the adapted classifier, once the run is finished |
| `verdict.json` | whether it is better than zero-shot, decided without labels, and why (unless the guard was off) |
| `report.json` | what changed, image by image and class by class, and what to label, once the run is finished |
| `metrics.json` | what changed and, where labels were given, accuracies, once the run is finished |
| `lock` | empty; keeps a second command out while one writes here |

```sh
must classify --classifier bundle IMAGE…
must evaluate --classifier bundle --images FOLDER --labels folders
must export --classifier bundle --to open_clip --output FOLDER
must audit --run . --output to-label.csv
```
"""


class RunFolder:
    """Writes what happens in a run into ``root``; a run that goes on in the same folder adds to it.

    One process at a time: from `start` on, and from `require_free` on where a run is there already, the folder is held
    until `close` or the process's end.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._writer: SummaryWriter | None = None
        self._held = False
        self._open = ExitStack()

    @property
    def folders(self) -> RunFolders:
        """Where the run itself writes."""
        return RunFolders(
            bundle=self.root / "bundle", checkpoints=self.root / "checkpoints", cache=self.root / "decoded"
        )

    def require_free(self) -> None:
        """Raise `InvalidConfig` ``output`` for a folder with a finished run, one that goes on, or what is no run."""
        if self.folders.bundle.exists():
            raise InvalidConfig(f"{self.folders.bundle} is there already; name another folder.", param="output")
        if (self.root / _REQUEST).exists():
            self._hold()
        elif self.root.exists() and any(path.name != _LOCK for path in self.root.iterdir()):
            raise InvalidConfig(f"{self.root} holds something else; name another folder.", param="output")

    def start(self, request: Mapping[str, Any]) -> None:
        """Make the folder and say what it is. Raises as `require_free`: another may have come in the meantime."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._hold()
        self.require_free()
        (self.root / "README.md").write_text(_README, encoding="utf-8")
        software = {name: version(name) for name in ("torch", "open_clip_torch", "timm", "pillow")}
        write_json(
            self.root / _REQUEST,
            {
                **request,
                "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "software": {"must_core": __version__, "python": platform.python_version(), **software},
                "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
                "command": sys.argv,
            },
        )

    def record(self, event: Event) -> None:
        """Keep what an event tells."""
        match event:
            case Chosen(choices):
                write_json(self.root / "hyperparameters.json", {name: asdict(c) for name, c in choices.items()})
            case Resumed(step):
                self._curves(purge_step=step)
            case Progress():
                self._add(event)
            case CheckpointSaved():
                self._curves().flush()
            case Completed(_, metrics, verdict):
                write_json(self.root / "metrics.json", metrics)
                if verdict is not None:
                    write_json(self.root / "verdict.json", verdict.to_dict())
                shutil.rmtree(self.folders.checkpoints, ignore_errors=True)
                for name, value in metrics.items():
                    self._curves().add_scalar(f"result/{name}", value)

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Keep what is to be looked at by a person."""
        write_json(self.root / _REPORT, report)

    def read_report(self) -> tuple[list[str], Mapping[str, Any]]:
        """The class names and what `write_report` kept. Raises `InvalidConfig` ``run`` where no run has finished."""
        report = self.root / _REPORT
        if not report.exists():
            raise InvalidConfig(
                f"{self.root} is no folder of a finished run: there is no {_REPORT}.", code="invalid_value", param="run"
            )
        try:
            request = json.loads((self.root / _REQUEST).read_text(encoding="utf-8"))
            return [each["name"] for each in request["classes"]], json.loads(report.read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError) as e:
            raise CorruptArtifact(f"{self.root} holds something else than what the run wrote.", param="run") from e

    def close(self) -> None:
        """Write out what is still in memory, and let others have the folder."""
        self._open.close()
        self._writer, self._held = None, False

    def _hold(self) -> None:
        """Keep other processes out.

        By a lock of the process: one of the open file (``flock``) would be shared with the loader processes, which
        outlive a run that was killed by some seconds.
        """
        if self._held:
            return
        file = self._open.enter_context((self.root / _LOCK).open("ab"))
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as e:
            raise InvalidConfig(
                f"Another run is writing to {self.root}; wait for its end, or name another folder.", param="output"
            ) from e
        except OSError as e:
            logger.warning("no locks on this file system (%s): two runs in one folder would not be noticed", e.strerror)
        self._held = True

    def _add(self, progress: Progress) -> None:
        curves = self._curves()
        for name, value in progress.metrics.items():
            curves.add_scalar(f"training/{name}", value, progress.step)
        curves.add_scalar("training/images_per_second", progress.images_per_second, progress.step)
        with (self.root / "progress.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(progress)) + "\n")

    def _curves(self, purge_step: int | None = None) -> SummaryWriter:
        if self._writer is None:
            # Points after purge_step were of steps that are now done again.
            self._writer = SummaryWriter(self._tensorboard(), purge_step=purge_step)
            self._open.callback(self._writer.close)
        return self._writer

    def _tensorboard(self) -> str:
        """The folder of the curves, by a name that TensorBoard can write to: it takes none that is not UTF-8."""
        folder = self.root / "tensorboard"
        try:
            str(folder).encode()
        except UnicodeEncodeError:
            folder.mkdir(exist_ok=True)
            link = Path(self._open.enter_context(TemporaryDirectory(prefix="must-"))) / "tensorboard"
            link.symlink_to(folder.absolute(), target_is_directory=True)
            return str(link)
        return str(folder)

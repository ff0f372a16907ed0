"""Checkpoints of a run: safetensors and a meta.json, written aside and renamed, verified before use.

A folder ``step-00000042`` holds ``state.safetensors`` (student, teacher, optimizer, moving average) and ``meta.json``
(step, run digest, sha256). Crops, masks and order are functions of seed and step, so no random state is in it.
"""

import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from must_core.adaptation import Adaptation
from must_core.errors import CorruptArtifact
from must_core.files import publish_folder, sha256_of, write_json

logger = logging.getLogger(__name__)

_STATE = "state.safetensors"
_META = "meta.json"
_PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint folder of one attempt; keeps the newest ``keep``.

    ``run_digest`` names what the run is (configuration, model, classes, images): a checkpoint of another run is never
    resumed from.
    """

    folder: Path
    run_digest: str
    keep: int = 2

    def save(self, run: Adaptation) -> Path:
        """Write the run's state and remove what is older than ``keep``; the checkpoint is on disk when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"{_PREFIX}{run.step_index:08}"
        if final.exists():
            return final
        staged = self.folder / f".{final.name}.tmp"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in run.tensors().items()}, staged / _STATE)
        write_json(
            staged / _META,
            {
                "step": run.step_index,
                "run_digest": self.run_digest,
                "sha256": sha256_of(staged / _STATE),
            },
        )
        publish_folder(staged, final)
        for old in self._newest_first([self.folder])[self.keep :]:
            shutil.rmtree(old)
        return final

    def resume(self, run: Adaptation, others: Iterable[Path] = ()) -> Path | None:
        """Load the newest sound checkpoint of this run from this folder or others; None when there is none.

        A damaged one is logged and the one before it is used.
        """
        for path in self._newest_first([self.folder, *others]):
            try:
                self._load(path, run)
            except CorruptArtifact as e:
                logger.warning("checkpoint passed over: %s: %s", path.name, e.message)
            else:
                return path
        return None

    def _load(self, path: Path, run: Adaptation) -> None:
        try:
            meta = json.loads((path / _META).read_text(encoding="utf-8"))
            if meta["run_digest"] != self.run_digest:
                raise CorruptArtifact("It belongs to another run.")
            if sha256_of(path / _STATE) != meta["sha256"]:
                raise CorruptArtifact("Its bytes are not those that were written.")
            run.load_tensors(load_file(path / _STATE), step_index=int(meta["step"]))
        except (OSError, ValueError, KeyError, SafetensorError) as e:
            raise CorruptArtifact("It cannot be read.") from e

    @staticmethod
    def _newest_first(folders: Iterable[Path]) -> list[Path]:
        found = [p for folder in folders if folder.is_dir() for p in folder.glob(f"{_PREFIX}*")]
        return sorted(found, key=lambda p: p.name, reverse=True)

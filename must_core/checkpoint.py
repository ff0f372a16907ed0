"""Checkpoints of a run: safetensors and a meta.json, written aside and renamed, verified before use.

A folder ``step-00000042-1a2b3c4d`` (the end stands for the run's identity) holds ``state.safetensors`` (student,
teacher, optimizer, moving average) and ``meta.json`` (step, identity, sha256). The schedule is a function of the step;
crops, masks and order, and so the sampler's position, are functions of seed and step (docs/decisions/001): no random
state is in it.

A file ``accepted-1a2b3c4d`` names the checkpoint to go back to, and has a line that whoever accepted it wrote.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from must_core.adaptation import Adaptation
from must_core.errors import CorruptArtifact
from must_core.files import load_tensors, publish_folder, save_tensors, sha256_of, write_durably, write_json

logger = logging.getLogger(__name__)

_STATE = "state.safetensors"
_META = "meta.json"
_PREFIX = "step-"
_ACCEPTED = "accepted"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint folder of one attempt; keeps the newest ``keep`` and the accepted one.

    ``identity`` names what the run is, part by part (configuration, model, classes, images): a checkpoint of another
    run is neither resumed from nor removed.
    """

    folder: Path
    identity: Mapping[str, str]
    keep: int = 2

    def save(self, run: Adaptation) -> Path:
        """Write the run's state and remove what is older than ``keep``; the checkpoint is on disk when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self._path(run.step_index)
        if final.exists():
            return final
        staged = self.folder / f".{final.name}.tmp"
        for leftover in self.folder.glob(f".{_PREFIX}*.tmp"):
            shutil.rmtree(leftover)
        staged.mkdir()
        save_tensors({name: tensor.contiguous() for name, tensor in run.tensors().items()}, staged / _STATE)
        meta = {"step": run.step_index, "identity": dict(self.identity), "sha256": sha256_of(staged / _STATE)}
        write_json(staged / _META, meta)
        publish_folder(staged, final)
        self._prune()
        return final

    def accept(self, step: int, note: str = "") -> None:
        """Keep the checkpoint of ``step``, however old it gets, until another is accepted, and a line with it."""
        if not self._path(step).is_dir():
            raise FileNotFoundError(f"there is no checkpoint of step {step}")
        write_durably(self.folder / f"{_ACCEPTED}-{self._mark}", f"{self._path(step).name}\n{note}")
        self._prune()

    def accepted(self, others: Iterable[Path] = (), *, up_to: int) -> tuple[int, str] | None:
        """Step and note of the last checkpoint of this run that was accepted, in this folder or others, by a step."""
        marks = [mark for folder in (self.folder, *others) if (mark := self._accepted_in(folder))]
        steps = [(int(name.removeprefix(_PREFIX).split("-")[0]), note) for name, note in marks]
        return max((each for each in steps if each[0] <= up_to), default=None)

    def restore_accepted(self, run: Adaptation, others: Iterable[Path] = ()) -> int | None:
        """Load the last accepted checkpoint of this run from this folder or others; returns its step.

        None when there is none that is sound.
        """
        named = [folder / mark[0] for folder in (self.folder, *others) if (mark := self._accepted_in(folder))]
        for path in sorted(named, key=lambda p: p.name, reverse=True):
            try:
                step, state = self._read(path, run)
            except CorruptArtifact as e:
                logger.warning("accepted checkpoint passed over: %s: %s", path.name, e.message)
                continue
            run.load_tensors(state, step_index=step)
            return step
        return None

    def resume(self, run: Adaptation, others: Iterable[Path] = ()) -> Path | None:
        """Load the newest sound checkpoint of this run from this folder or others; None when there is none.

        A damaged one is logged, removed if it lies in this folder, and the one before it is used. With several ranks
        the first one reads and the others get it from there: no folder needs to be shared.
        """
        path: Path | None = None
        step, state = 0, dict[str, Tensor]()
        for candidate in self._newest_first([self.folder, *others]) if run.ranks.first else []:
            try:
                step, state = self._read(candidate, run)
            except CorruptArtifact as e:
                logger.warning("checkpoint passed over: %s: %s", candidate.name, e.message)
                if candidate.parent == self.folder:
                    shutil.rmtree(candidate)  # it would stand in the way of the one that will be written again
            else:
                path = candidate
                break
        path, step = run.ranks.agreed((path, step))
        if path is not None:
            run.load_tensors(run.ranks.agreed_tensors(state), step_index=step)
        return path

    def _read(self, path: Path, run: Adaptation) -> tuple[int, dict[str, Tensor]]:
        try:
            meta = json.loads((path / _META).read_text(encoding="utf-8"))
            step, identity, digest = int(meta["step"]), dict(meta["identity"]), meta["sha256"]
            others = sorted(k for k in {*identity, *self.identity} if identity.get(k) != self.identity.get(k))
            if others:
                raise CorruptArtifact(f"It belongs to another run, of other {', '.join(others)}.")
            if sha256_of(path / _STATE) != digest:
                raise CorruptArtifact("Its bytes are not those that were written.")
            state = load_tensors(path / _STATE)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
            raise CorruptArtifact("It cannot be read.") from e
        if any(name not in state or state[name].shape != t.shape for name, t in run.tensors().items()):
            raise CorruptArtifact("It holds other tensors.")
        return step, state

    def _path(self, step: int) -> Path:
        return self.folder / f"{_PREFIX}{step:08}-{self._mark}"

    @property
    def _mark(self) -> str:
        return hashlib.sha256(json.dumps(dict(self.identity), sort_keys=True).encode()).hexdigest()[:8]

    def _prune(self) -> None:
        accepted = self._accepted_in(self.folder)
        for old in self._newest_first([self.folder])[self.keep :]:
            if accepted is None or old.name != accepted[0]:
                shutil.rmtree(old)

    def _accepted_in(self, folder: Path) -> tuple[str, str] | None:
        """Name and note of this run's accepted checkpoint in a folder; whatever else stands there is no name."""
        mark = folder / f"{_ACCEPTED}-{self._mark}"
        name, _, note = (
            mark.read_text(encoding="utf-8", errors="replace").partition("\n") if mark.exists() else ("",) * 3
        )
        return (name, note) if re.fullmatch(rf"{_PREFIX}\d+-{self._mark}", name) else None

    def _newest_first(self, folders: Iterable[Path]) -> list[Path]:
        found = [p for folder in folders if folder.is_dir() for p in folder.glob(f"{_PREFIX}*-{self._mark}")]
        return sorted(found, key=lambda p: p.name, reverse=True)

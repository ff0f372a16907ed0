"""The guard during training: looks at the teacher, the way back when it has collapsed, the end when it has settled.

Shapes: N images of the panel.
"""

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from must_core.adapt import CheckpointSaved, Report
from must_core.adaptation import Adaptation
from must_core.checkpoint import Checkpoints
from must_core.guard.vetoes import Opinion, Veto, never_sure, vetoes
from must_core.student import Student

LOOKS = 4
"""How often in a run, the end included."""
SETTLED = 0.01
"""Training has settled when fewer answers than this share changed since the look before."""


@dataclass(frozen=True)
class Seen:
    """What a look found: signs of a collapse, and whether there is any use in going on."""

    collapse: tuple[Veto, ...] = ()
    settled: bool = False


class Watch:
    """Follows a run's reports. Checkpoints that pass are accepted: the last one is where `roll_back` goes.

    ``ask`` has a classifier say what it thinks of the images that ``zero_shot`` was asked about, and yields meanwhile.
    ``earlier`` are checkpoint folders of earlier attempts, where one may have been accepted.
    """

    def __init__(
        self,
        ask: Callable[[Student], Generator[None, None, Opinion]],
        zero_shot: Opinion,
        run: Adaptation,
        checkpoints: Checkpoints,
        earlier: Sequence[Path] = (),
    ) -> None:
        self._ask = ask
        self._zero_shot = zero_shot
        self._run = run
        self._checkpoints = checkpoints
        self._earlier = earlier
        self.milestones = frozenset(round(run.total_steps * look / LOOKS) for look in range(1, LOOKS + 1)) - {0}
        """Steps after which the teacher is looked at."""

    def heed(self, report: Report) -> Generator[None, None, Seen]:
        """Take a report in; returns what was seen, nothing where it is none to look at. Yields while it looks.

        Every rank calls it with its own reports; the first one looks for all.
        """
        if isinstance(report, CheckpointSaved) and report.step in self.milestones:
            return (yield from self.look())
        return Seen()

    def look(self) -> Generator[None, None, Seen]:
        """Look at the teacher as it is: accept its checkpoint, or return the signs of a collapse."""
        seen = Seen()
        with self._run.ranks.failing_together():
            if self._run.ranks.first:
                opinion = yield from self._ask(self._run.teacher)
                found = tuple(veto for veto in vetoes(self._zero_shot, opinion) if veto.collapsed)
                found += never_sure(opinion, self._run.config.confidence_threshold)
                seen = Seen(found) if found else self._accept(opinion.answers_N)
        return self._run.ranks.agreed(seen)

    def roll_back(self) -> int | None:
        """Load the accepted checkpoint; returns its step, or None when none was accepted. For the first rank."""
        return self._checkpoints.restore_accepted(self._run, self._earlier) if self._run.ranks.first else None

    def _accept(self, answers_N: Tensor) -> Seen:
        step = self._run.step_index
        settled = self._settled(step, answers_N)
        self._checkpoints.save(self._run)  # an earlier attempt's checkpoint is in another folder
        self._checkpoints.accept(step, json.dumps({"settled": settled, "answers": answers_N.tolist()}))
        return Seen(settled=settled)

    def _settled(self, step: int, answers_N: Tensor) -> bool:
        before = self._checkpoints.accepted(self._earlier, up_to=step)
        if before is None:
            return False
        try:
            note = json.loads(before[1])
            if before[0] == step:  # an attempt that ended after this very look left nothing of the one before
                return note["settled"] is True
            answers_before_N = answers_N.new_tensor(note["answers"])
            return float((answers_N != answers_before_N).double().mean()) < SETTLED
        except (ValueError, KeyError, TypeError, RuntimeError):  # no note, or one about other images
            return False

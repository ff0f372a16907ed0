"""The guard during training: a look at the teacher now and then, and the way back when it has collapsed."""

from collections.abc import Generator, Sequence
from pathlib import Path

from must_core.adapt import CheckpointSaved, Report
from must_core.adaptation import Adaptation
from must_core.checkpoint import Checkpoints
from must_core.guard.panel import Panel
from must_core.guard.vetoes import Opinion, Veto, never_sure, vetoes

LOOKS = 4
"""How often in a run, the end included."""


class Watch:
    """Follows a run's reports. Checkpoints that pass are accepted: the last one is where `roll_back` goes.

    ``earlier`` are checkpoint folders of earlier attempts, where one may have been accepted.
    """

    def __init__(
        self,
        panel: Panel,
        zero_shot: Opinion,
        run: Adaptation,
        checkpoints: Checkpoints,
        earlier: Sequence[Path] = (),
    ) -> None:
        self._panel = panel
        self._zero_shot = zero_shot
        self._run = run
        self._checkpoints = checkpoints
        self._earlier = earlier
        self.milestones = frozenset(round(run.total_steps * look / LOOKS) for look in range(1, LOOKS + 1)) - {0}
        """Steps after which the teacher is looked at."""

    def heed(self, report: Report) -> Generator[None, None, tuple[Veto, ...]]:
        """Take a report in; returns the signs of a collapse, none when all is well. Yields while it looks.

        Every rank calls it with its own reports; the first one looks for all.
        """
        if isinstance(report, CheckpointSaved) and report.step in self.milestones:
            return (yield from self.look())
        return ()

    def look(self) -> Generator[None, None, tuple[Veto, ...]]:
        """Look at the teacher as it is: accept its checkpoint, or return the signs of a collapse."""
        found: tuple[Veto, ...] = ()
        with self._run.ranks.failing_together():
            if self._run.ranks.first:
                opinion = yield from self._panel.opinion(self._run.teacher)
                found = tuple(veto for veto in vetoes(self._zero_shot, opinion) if veto.collapsed)
                found += never_sure(opinion, self._run.config.confidence_threshold)
                if not found:
                    self._checkpoints.save(self._run)  # an earlier attempt's checkpoint is in another folder
                    self._checkpoints.accept(self._run.step_index)
        return self._run.ranks.agreed(found)

    def roll_back(self) -> int | None:
        """Load the accepted checkpoint; returns its step, or None when none was accepted. For the first rank."""
        return self._checkpoints.restore_accepted(self._run, self._earlier) if self._run.ranks.first else None

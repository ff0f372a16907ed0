"""The guard during training: a look at the teacher now and then, and the way back when it has collapsed."""

from collections.abc import Generator

from must_core.adapt import CheckpointSaved, Progress, Report
from must_core.adaptation import Adaptation
from must_core.checkpoint import Checkpoints
from must_core.guard.panel import Panel
from must_core.guard.vetoes import Opinion, Veto, no_confident_image, vetoes

LOOKS = 4
"""How often in a run, the end included."""


class Watch:
    """Follows a run's reports. Checkpoints that pass are accepted: the last one is where `roll_back` goes."""

    def __init__(self, panel: Panel, zero_shot: Opinion, run: Adaptation, checkpoints: Checkpoints) -> None:
        self._panel = panel
        self._zero_shot = zero_shot
        self._run = run
        self._checkpoints = checkpoints
        self.milestones = frozenset(round(run.total_steps * look / LOOKS) for look in range(1, LOOKS + 1))
        """Steps after which the teacher is looked at."""
        self._sure_at = run.step_index

    def heed(self, report: Report) -> Generator[None, None, tuple[Veto, ...]]:
        """Take a report in; returns the signs of a collapse, none when all is well. Yields while it looks.

        Every rank calls it with its own reports; the first one looks for all.
        """
        if isinstance(report, Progress) and report.metrics["confident_ratio"] > 0:
            self._sure_at = report.step
        if isinstance(report, CheckpointSaved) and report.step in self.milestones:
            return (yield from self.look())
        return ()

    def look(self) -> Generator[None, None, tuple[Veto, ...]]:
        """Look at the teacher as it is: accept its checkpoint, or return the signs of a collapse."""
        found: tuple[Veto, ...] = ()
        if self._run.ranks.first:
            opinion = yield from self._panel.opinion(self._run.teacher)
            found = tuple(veto for veto in vetoes(self._zero_shot, opinion) if veto.collapsed) + self.vetoes
            if not found:
                self._checkpoints.accept(self._run.step_index)
        return self._run.ranks.agreed(found)

    def roll_back(self) -> int | None:
        """Load the accepted checkpoint; returns its step, or None when none was accepted. For the first rank."""
        return self._checkpoints.restore_accepted(self._run) if self._run.ranks.first else None

    @property
    def vetoes(self) -> tuple[Veto, ...]:
        """What speaks against the run as a whole, whatever its teacher says of the panel."""
        unsure = self._run.step_index - self._sure_at
        return (no_confident_image(),) if unsure >= self._run.steps_per_epoch else ()

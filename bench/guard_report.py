"""Tables of the guard's bench: what each rule shipped and kept, how well gains were estimated, what settings did."""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from must_core.evaluate import wilson_interval

_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Result:
    """One trial: the truth, from labels, and what was said without them. Gains are over zero-shot, −1 to 1."""

    version: int
    task: str
    seed: int
    setting: str
    zero_shot: float
    """Accuracy on the test images, as are the gains."""
    gains: dict[str, float]
    """Of each candidate."""
    unwatched: float
    """Of the teacher, had nobody looked at it during training; 0 where training diverged then."""
    ended_at: float
    """When training ended: 1 at the end, less when it had settled or collapsed."""
    collapsed: bool
    """It ended for that, and the candidates are of the last teacher that passed a look, if one did."""
    outcome: str
    candidate: str
    estimate: float
    low: float
    high: float
    vetoes: list[str]
    candidate_here: float
    """True gain of the compared candidate on the unlabeled images themselves, which the estimate is of."""
    judge_alone: str | None
    """What would be shipped without the vetoes."""
    vetoes_alone: str | None
    """What would be shipped without the judge."""
    more_confident: bool
    """The teacher's mean score is above zero-shot's."""
    more_informed: bool
    """The teacher's answers carry more information about the images (InfoMax): balance less doubt."""

    @property
    def possible(self) -> float:
        """What who sees the labels would gain."""
        return max(0.0, *self.gains.values())

    def gain_of(self, shipped: str | None) -> float:
        """Of shipping this classifier, or zero-shot."""
        return {None: 0.0, "unwatched": self.unwatched, **self.gains}[shipped]

    @property
    def guarded(self) -> str | None:
        """What the guard ships."""
        return self.candidate if self.outcome == "adapted" else None


RULES: dict[str, Callable[[Result], str | None]] = {
    "guard": lambda r: r.guarded,
    "guard without vetoes": lambda r: r.judge_alone,
    "guard without judge": lambda r: r.vetoes_alone,
    "always adapt": lambda _: "unwatched",
    "always half-way": lambda _: "half_way",
    "if surer (mean score)": lambda r: "teacher" if r.more_confident else None,
    "if InfoMax grows": lambda r: "teacher" if r.more_informed else None,
    "labels (oracle)": lambda r: max((None, *r.gains), key=r.gain_of),
}


def print_report(results: Sequence[Result]) -> None:
    """All tables."""
    tasks, settings = sorted({r.task for r in results}), list(dict.fromkeys(r.setting for r in results))
    print(
        f"{len(results)} trials: {len(tasks)} tasks, {len({r.seed for r in results})} seeds, {len(settings)} settings"
    )
    print("\nAll settings, good and bad")
    _print_rules(results)
    print("\nSettings that chose themselves (auto)")
    _print_rules([r for r in results if r.setting == "auto"])
    _print_calibration(results)
    _print_by("setting", settings, results)
    _print_by("task", tasks, [r for r in results if r.setting == "auto"])


def _print_rules(results: Sequence[Result]) -> None:
    print(f"{'rule':24}{'shipped':>8}{'worse':>7}  {'of all, 95 %':16}{'worst':>7}{'kept of the gain, 95 %':>28}")
    for name, rule in RULES.items():
        gains = [r.gain_of(rule(r)) for r in results]
        shipped = sum(rule(r) is not None for r in results)
        worse = sum(gain < 0 for gain in gains)
        low, high = wilson_interval(worse, len(results))
        kept_low, kept_high = _kept_interval(results, rule)
        print(
            f"{name:24}{shipped:8}{worse:7}  {f'{low:.1%} to {high:.1%}':16}{min(gains):+7.3f}"
            f"{_kept(results, rule):9.0%} ({kept_low:.0%} to {kept_high:.0%})"
        )


def _kept(results: Sequence[Result], rule: Callable[[Result], str | None]) -> float:
    possible = sum(r.possible for r in results)
    return sum(r.gain_of(rule(r)) for r in results) / possible if possible else 0.0


def _kept_interval(results: Sequence[Result], rule: Callable[[Result], str | None]) -> tuple[float, float]:
    """Resampling tasks and seeds, whose trials share their images."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for r in results:
        groups.setdefault((r.task, r.seed), []).append(r)
    generator, scenes = random.Random(0), list(groups.values())
    drawn = sorted(
        _kept([r for scene in generator.choices(scenes, k=len(scenes)) for r in scene], rule) for _ in range(_RESAMPLES)
    )
    return drawn[round(0.025 * _RESAMPLES)], drawn[round(0.975 * _RESAMPLES)]


def _print_calibration(results: Sequence[Result]) -> None:
    sound = [r for r in results if not r.vetoes]
    errors = [r.estimate - r.candidate_here for r in sound]
    covered = sum(r.low <= r.candidate_here <= r.high for r in sound)
    print(
        f"\nEstimated gain of the {len(sound)} trials without a veto, against the true one of the same images: "
        f"mean error {statistics.mean(errors):+.3f}, mean absolute error {statistics.mean(map(abs, errors)):.3f}, "
        f"true gain within the 95 % interval in {covered / len(sound):.0%}"
    )


def _print_by(column: str, values: Sequence[str], results: Sequence[Result]) -> None:
    print(
        f"\n{column:20}{'trials':>7}{'zero-shot':>11}{'unwatched':>11}{'teacher':>9}{'half-way':>10}{'guard':>8}"
        f"{'worse':>7}{'vetoed':>8}{'collapsed':>11}{'ended at':>10}"
    )
    for value in values:
        some = [r for r in results if getattr(r, column) == value]
        mean = {
            "zero-shot": statistics.mean(r.zero_shot for r in some),
            "unwatched": statistics.mean(r.unwatched for r in some),
            "teacher": statistics.mean(r.gains["teacher"] for r in some),
            "half-way": statistics.mean(r.gains["half_way"] for r in some),
            "guard": statistics.mean(r.gain_of(r.guarded) for r in some),
        }
        worse = sum(r.gain_of(r.guarded) < 0 for r in some)
        print(
            f"{value:20}{len(some):7}{mean['zero-shot']:11.3f}{mean['unwatched']:+11.3f}{mean['teacher']:+9.3f}"
            f"{mean['half-way']:+10.3f}{mean['guard']:+8.3f}{worse:7}{sum(bool(r.vetoes) for r in some):8}"
            f"{sum(r.collapsed for r in some):11}{statistics.mean(r.ended_at for r in some):10.0%}"
        )

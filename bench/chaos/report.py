"""The tables of storms that were."""

import signal
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from bench.chaos.audit import Audit, Recovery
from bench.figures import percentile

COUNTS = {
    "accepted": "jobs accepted (202)",
    "succeeded": "succeeded",
    "attempts": "attempts of all jobs",
    "lost": "lost",
    "not_succeeded": "ended otherwise",
    "submitted_twice": "made twice of one submission",
    "published_otherwise_than_once": "not published exactly once",
    "written_by_the_dead": "with events of an attempt that had lost it",
    "illegal_moves": "with illegal moves",
    "damaged": "classifier files damaged",
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One storm."""

    stack: str
    seed: int
    seconds: float
    num_workers: int
    lease_s: float
    sweep_s: float
    faults: dict[str, int]
    """By kind."""
    audit: Audit
    recoveries: list[Recovery]
    exit_codes: list[int]
    """Of the workers that were told to stop, in the storm and at its end."""
    trainers_left: int

    @property
    def is_clean(self) -> bool:
        """Nothing is as it must not be."""
        return not self.audit.defects and not any(self.exit_codes) and not self.trainers_left

    @classmethod
    def parse(cls, row: dict[str, object]) -> "Result":
        """From what `asdict` made of it."""
        values: dict[str, object] = {
            **row,
            "audit": Audit(**row["audit"]),  # type: ignore[arg-type]
            "recoveries": [Recovery(**r) for r in row["recoveries"]],  # type: ignore[attr-defined]
        }
        return cls(**values)  # type: ignore[arg-type]


def tables(results: Sequence[Result]) -> str:
    """Markdown: what became of the jobs, and how soon each fault was overcome; a column, or a part, for each storm."""
    return "\n".join([*_counts(results), "", *_recoveries(results)])


def _counts(results: Sequence[Result]) -> Iterator[str]:
    yield "| | " + " | ".join(result.stack for result in results) + " |"
    yield "|---" * (len(results) + 1) + "|"

    def line(name: str, values: Sequence[object]) -> str:
        return f"| {name} | " + " | ".join(str(value) for value in values) + " |"

    yield line("storm, seconds", [f"{result.seconds:.0f}" for result in results])
    yield line("workers", [result.num_workers for result in results])
    yield line("lease / sweep, seconds", [f"{result.lease_s:g} / {result.sweep_s:g}" for result in results])
    yield line("faults", [sum(result.faults.values()) for result in results])
    for column in fields(Audit):
        yield line(COUNTS[column.name], [getattr(result.audit, column.name) for result in results])
    yield line("workers told to stop: exit 0 / ended by the signal / otherwise", [_exits(r) for r in results])
    yield line("trainers left running", [result.trainers_left for result in results])


def _exits(result: Result) -> str:
    zero, by_signal = (result.exit_codes.count(code) for code in (0, -signal.SIGTERM))
    return f"{zero} / {by_signal} / {len(result.exit_codes) - zero - by_signal}"


def _recoveries(results: Sequence[Result]) -> Iterator[str]:
    yield (
        "| fault | injected | jobs it hit | unharmed, or ended by an earlier fault "
        "| taken up after, seconds: median | p95 | longest |"
    )
    yield "|---" * 7 + "|"
    faults = sum((Counter(result.faults) for result in results), Counter[str]())
    for kind, num in sorted(faults.items()):
        some = [r for result in results for r in result.recoveries if r.kind == kind]
        seconds = sorted(r.seconds for r in some if r.seconds is not None)
        shown = ["", "", ""]
        if seconds:
            figures = (statistics.median(seconds), percentile(seconds, 0.95), seconds[-1])
            shown = [f"{value:.1f}" for value in figures]
        yield f"| {kind} | {num} | {len(some)} | {len(some) - len(seconds)} | " + " | ".join(shown) + " |"

"""Curves, bars and intervals as SVG has them: numbers turned into places on a drawing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 320.0, 170.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 312.0, 8.0, 144.0
"""Of the field within the axes, in the drawing's units."""
_LARGEST, _NARROWEST = 1e300, 1e-300
"""Numbers beyond the first are drawn as that one, and a span below the second as none: differences stay floats."""


@dataclass(frozen=True)
class Tick:
    """A number on an axis and where it stands there."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over one pair of axes; ``lines`` has each one's kind and its points as SVG writes them."""

    title: str
    note: str
    told: str
    """The same in words, for who does not see it."""
    x_name: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate on the axis from 0 to 100 %."""

    kind: str
    low: float
    at: float
    high: float


def chart(
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    title: str,
    told: str,
    x_name: str,
    note: str = "",
    percent: bool = False,
    from_zero: bool = False,
) -> Chart:
    """Draw curves, each a kind and its points (x, y) in ascending x; at least two different x altogether."""
    lines = [(kind, [(x, _bounded(y)) for x, y in points]) for kind, points in lines]
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    y_values = round_numbers(0.0 if from_zero else min(ys), max(ys), cover=True)
    x_low, x_high, y_low, y_high = min(xs), max(xs), y_values[0], y_values[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (RIGHT - LEFT) * (x - x_low) / (x_high - x_low),
            BOTTOM - (BOTTOM - TOP) * (y - y_low) / (y_high - y_low),
        )

    return Chart(
        title=title,
        note=note,
        told=told,
        x_name=x_name,
        x_ticks=[Tick(place(x, y_low)[0], f"{x:.0f}") for x in round_numbers(x_low, x_high) if x == round(x)],
        y_ticks=[Tick(place(x_low, y)[1], f"{100 * y:.3g} %" if percent else f"{y:.4g}") for y in y_values],
        lines=[
            (kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points)))
            for kind, points in lines
        ],
    )


def interval(kind: str, low: float, estimate: float, high: float) -> Interval:
    """Place shares, 0 to 1, between the axes."""
    low, at, high = (LEFT + (RIGHT - LEFT) * share for share in (low, estimate, high))
    return Interval(kind=kind, low=low, at=at, high=high)


def round_numbers(low: float, high: float, *, cover: bool = False, most: int = 5) -> list[float]:
    """At most ``most`` evenly spaced numbers that people like; with ``cover`` up to the next ones outside.

    Numbers too close to be told apart are spread about their mean.
    """
    low, high = _bounded(low), _bounded(high)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), _NARROWEST):
        about = abs(high) / 2 if abs(high) > _NARROWEST else 0.5
        low, high = low - about, high + about
    for exponent in range(math.floor(math.log10((high - low) / most)), 400):
        for digit in (1, 2, 5):
            step = digit * 10.0**exponent
            first, last = low / step, high / step
            start, end = (math.floor(first), math.ceil(last)) if cover else (math.ceil(first), math.floor(last))
            if end - start < most:
                return [float(f"{k * step:.10g}") for k in range(start, end + 1)]
    raise AssertionError  # pragma: no cover - no float is as large


def _bounded(number: float) -> float:
    return max(-_LARGEST, min(_LARGEST, number))

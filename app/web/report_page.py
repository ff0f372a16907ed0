"""A job's report as a page: no script, nothing from elsewhere, light and dark."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.schemas.reports import ClassShareOut, CurveOut, ReportOut

MAX_CLASSES_SHOWN = 40
_WIDTH, _HEIGHT = 240.0, 80.0
"""Of a curve, in the units of its drawing."""
_BAR = 160.0
_VERDICTS = {
    "adapted": "The adapted classifier is better than zero-shot",
    "zero_shot": "Zero-shot is better than the adapted classifier",
    "inconclusive": "The adapted classifier is not known to be better than zero-shot",
    None: "Nothing was decided: the guard was off",
}

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,  # class and file names are strangers'
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_STYLE = base64.b64encode(hashlib.sha256(_templates.get_template("report.css").render().encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; img-src 'self'; style-src 'sha256-{_STYLE}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""To be sent along: pictures of this service and the page's own style, and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A curve, drawn: ``points`` as SVG has them, and the numbers to write beside it."""

    metric: str
    points: str
    low: float
    high: float
    last: float
    first_step: int
    last_step: int


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A class's shares of the answers, 0 to 1, and the lengths of their bars."""

    label: str
    before: float
    after: float
    before_length: float
    after_length: float


def report_page(report: ReportOut) -> str:
    """The page's HTML; send `CONTENT_SECURITY_POLICY` with it."""
    bars = _bars(report.classes, report.num_images)
    return _templates.get_template("report.html").render(
        report=report,
        heading=_VERDICTS[None if report.verdict is None else report.verdict.outcome],
        charts=[_chart(curve) for curve in report.curves if len(curve.steps) > 1],
        width=_WIDTH,
        height=_HEIGHT,
        bar=_BAR,
        bars=bars,
        num_classes_left_out=report.num_classes - len(bars),
    )


def _chart(curve: CurveOut) -> Chart:
    low, high = min(curve.values), max(curve.values)
    first, last = curve.steps[0], curve.steps[-1]
    points = [
        f"{_WIDTH * (step - first) / (last - first):.1f},{_HEIGHT * (1 - _share(value, low, high)):.1f}"
        for step, value in zip(curve.steps, curve.values, strict=True)
    ]
    return Chart(
        metric=curve.metric.replace("_", " "),
        points=" ".join(points),
        low=low,
        high=high,
        last=curve.values[-1],
        first_step=first,
        last_step=last,
    )


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _bars(classes: Sequence[ClassShareOut], num_images: int) -> list[Bars]:
    """The classes answered most, in their own order."""
    most = sorted(classes, key=lambda c: max(c.answers_zero_shot, c.answers_adapted), reverse=True)[:MAX_CLASSES_SHOWN]
    shown = {c.label for c in most}
    longest = max((max(c.answers_zero_shot, c.answers_adapted) for c in most), default=0) or 1
    return [
        Bars(
            label=c.label,
            before=c.answers_zero_shot / num_images,
            after=c.answers_adapted / num_images,
            before_length=_BAR * c.answers_zero_shot / longest,
            after_length=_BAR * c.answers_adapted / longest,
        )
        for c in classes
        if c.label in shown
    ]

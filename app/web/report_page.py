"""A job's report as a page: the verdict first, then what it rests on, and a form for a few labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.schemas.reports import ClassShareOut, CurveOut, ReportOut
from app.web import charts
from app.web.audit_page import label_form
from app.web.charts import Chart, chart
from app.web.pages import render

MAX_CLASSES_SHOWN = 40
_BAR = 160.0
"""The longest bar, in the units of its drawing."""
_CANDIDATES = {
    "quarter_way": "a quarter of the way",
    "half_way": "half-way",
    "three_quarters_way": "three quarters of the way",
}
_CURVES = {
    "loss": ("Loss", "the weighted sum of the four below"),
    "self_training": ("Self-training loss", "cross-entropy with the teacher's labels"),
    "fairness": ("Fairness loss", "smallest, {even:.3f}, when all classes are answered alike"),
    "reconstruction": ("Reconstruction loss", "mean absolute error of hidden pixels"),
    "alignment": ("Alignment loss", "squared distance of hidden patches to their image"),
    "confident_ratio": ("Confident images", "of a batch: the teacher's label counts"),
    "learning_rate": ("Learning rate", "of the topmost layer"),
    "ema_decay": ("Teacher's decay", "what the teacher keeps of itself a step"),
}


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A class's shares of the answers, 0 to 1, and the lengths of their bars."""

    label: str
    before: float
    after: float
    before_length: float
    after_length: float

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before


@dataclass(frozen=True, kw_only=True)
class Marginal:
    """How the answers spread over the classes, on one side."""

    largest: float
    largest_label: str
    num_never: int


def report_page(report: ReportOut, class_names: Sequence[str]) -> str:
    """The page's HTML. ``class_names`` are all of the job's, in order."""
    bars = _bars(report.classes, report.num_images)
    many = len(bars) > MAX_CLASSES_SHOWN
    return render(
        "report.html",
        report=report,
        heading=report.verdict.headline if report.verdict else "Nothing was decided: the guard was off",
        gain=report.verdict.gain if report.verdict and report.verdict.gain.num_held_out else None,
        way=_CANDIDATES.get(report.verdict.candidate) if report.verdict else None,
        files_gone=any(image.file is None for image in report.audit.images),
        axes=charts,
        curves=[_curve(c, report.num_classes) for c in report.curves if len(c.steps) > 1 and any(c.values)],
        bar=_BAR,
        bars=sorted(_most_changed(bars), key=lambda b: -b.change) if many else bars,
        all_bars=bars if many else [],
        ranks=_ranks(bars) if many else None,
        before=_marginal(bars, "before"),
        after=_marginal(bars, "after"),
        form=label_form(report.job_id, report.audit.images, class_names),
    )


def _curve(curve: CurveOut, num_classes: int) -> Chart:
    title, note = _CURVES.get(curve.metric, (curve.metric.replace("_", " "), ""))
    first, last, low, high = curve.values[0], curve.values[-1], min(curve.values), max(curve.values)
    told = (
        f"{title} over the steps: {first:.4g} at step {curve.steps[0]}, {last:.4g} at step {curve.steps[-1]}; "
        f"between {low:.4g} and {high:.4g}."
    )
    return chart(
        [("after", list(zip(curve.steps, curve.values, strict=True)))],
        title=f"{title}: {last:.4g}",
        note=note.format(even=math.log(num_classes)) if num_classes else note,
        told=told,
        x_name="step",
        percent=curve.metric == "confident_ratio",
    )


def _bars(classes: Sequence[ClassShareOut], num_images: int) -> list[Bars]:
    longest = max((max(c.answers_zero_shot, c.answers_adapted) for c in classes), default=0) or 1
    return [
        Bars(
            label=c.label,
            before=c.answers_zero_shot / num_images,
            after=c.answers_adapted / num_images,
            before_length=_BAR * c.answers_zero_shot / longest,
            after_length=_BAR * c.answers_adapted / longest,
        )
        for c in classes
    ]


def _most_changed(bars: Sequence[Bars]) -> list[Bars]:
    return sorted(bars, key=lambda b: (abs(b.change), b.before), reverse=True)[:MAX_CLASSES_SHOWN]


def _marginal(bars: Sequence[Bars], side: str) -> Marginal | None:
    if not bars:
        return None
    most = max(bars, key=lambda b: float(getattr(b, side)))
    return Marginal(
        largest=getattr(most, side), largest_label=most.label, num_never=sum(not getattr(b, side) for b in bars)
    )


def _ranks(bars: Sequence[Bars]) -> Chart:
    """Shares from the most answered class to the least: what is left of single classes where there are many."""

    def ranked(side: str) -> list[tuple[float, float]]:
        shares = sorted((float(getattr(b, side)) for b in bars), reverse=True)
        return [(float(rank), share) for rank, share in enumerate(shares, start=1)]

    before, after = ranked("before"), ranked("after")
    return chart(
        [("before", before), ("after", after)],
        title="Share of the answers, from the most answered class to the least",
        told=f"The most answered class has {before[0][1]:.1%} of the answers before and {after[0][1]:.1%} after.",
        x_name="class, by rank",
        percent=True,
        from_zero=True,
    )

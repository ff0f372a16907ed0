"""The form for a few labels, and what they say: a page that keeps what was filled in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.inference.audits import MIN_LABELS, words_for_none
from app.schemas.reports import AuditImageOut, AuditOut
from app.web import charts
from app.web.pages import render

MAX_CHOICES = 60
"""Classes in a drop-down list; more are typed, and the browser completes them."""


@dataclass(frozen=True, kw_only=True)
class LabelForm:
    """Images to label. ``texts`` are what was written so far, ``wrong`` what is wrong with it, both by position."""

    job_id: str
    images: Sequence[AuditImageOut]
    class_names: Sequence[str]
    none: str
    texts: Mapping[int, str] = field(default_factory=dict)
    wrong: Mapping[int, str] = field(default_factory=dict)

    @property
    def chosen(self) -> bool:
        """Whether labels are chosen from a list rather than typed."""
        return len(self.class_names) <= MAX_CHOICES

    def number_of(self, position: int) -> int:
        """The number that an image has on the page, from 1."""
        return 1 + [image.position for image in self.images].index(position)

    @property
    def enough(self) -> bool:
        """Whether there are images enough, and pictures of them to look at."""
        return len(self.images) >= MIN_LABELS and any(image.file for image in self.images)


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """An image with its label, None for none of the classes, and both answers."""

    image: AuditImageOut
    label: str | None
    zero_shot: str
    adapted: str


def label_form(job_id: str, images: Sequence[AuditImageOut], class_names: Sequence[str]) -> LabelForm:
    """One that nothing is written into yet."""
    return LabelForm(job_id=job_id, images=images, class_names=class_names, none=words_for_none(class_names))


def audit_page(
    form: LabelForm, *, name: str | None, audit: AuditOut, labelled: Sequence[LabelledImage], request: str
) -> str:
    """The page's HTML: what the labels say. ``request`` is the audit's body as the API takes it."""
    return render(
        "audit.html",
        form=form,
        name=name,
        heading=_heading(audit),
        audit=audit,
        problem=None,
        request=request,
        disagreed=[each for each in labelled if each.zero_shot != each.adapted],
        agreed=[each for each in labelled if each.zero_shot == each.adapted],
        axes=charts,
        intervals=[
            charts.interval(kind, each.low, each.estimate, each.high)
            for kind, each in (("before", audit.zero_shot), ("after", audit.adapted))
        ],
    )


def problem_page(form: LabelForm, *, name: str | None, problem: str) -> str:
    """The page's HTML where the labels cannot be counted: why, and the form as it was filled in."""
    return render(
        "audit.html",
        form=form,
        name=name,
        heading="These labels cannot be counted yet",
        audit=None,
        problem=problem,
    )


def _heading(audit: AuditOut) -> str:
    found = "the two classifiers cannot be told apart"
    if audit.difference.low > 0:
        found = "the adapted classifier is better"
    elif audit.difference.high < 0:
        found = "zero-shot is better"
    return f"By {audit.num_labels} labels, {found}"

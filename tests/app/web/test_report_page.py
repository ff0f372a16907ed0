"""The page of a report, without a service."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from app.schemas.jobs import VerdictOut
from app.schemas.reports import (
    AnswerOut,
    AuditImageOut,
    AuditPlanOut,
    ClassShareOut,
    CurveOut,
    ReportedFileOut,
    ReportedImageOut,
    ReportOut,
)
from app.web.report_page import CONTENT_SECURITY_POLICY, MAX_CLASSES_SHOWN, report_page
from tests.support.jobs import verdict

ODD = "<script>alert(1)</script>\"'&{{7*7}}"


def make(num_classes: int = 3, **fields: Any) -> ReportOut:
    """A report in which every text of a stranger's is odd."""
    file = ReportedFileOut(id="0" * 64, filename=ODD, thumbnail="/datasets/ds_1/images/0/thumbnail")
    image = ReportedImageOut(
        position=7, held_out=True, file=file, zero_shot=AnswerOut(label=ODD, score=0.5),
        adapted=AnswerOut(label="dog", score=0.75), margin=0.5,
    )  # fmt: skip
    classes = [
        ClassShareOut(
            label=f"{ODD} {k}", answers_zero_shot=k, answers_adapted=0, mean_score_zero_shot=0.1, mean_score_adapted=0.1
        )
        for k in range(num_classes)
    ]
    to_label = [AuditImageOut(position=7, file=file), AuditImageOut(position=8, file=None)]
    values: dict[str, Any] = {
        "job_id": "job_1",
        "name": ODD,
        "verdict": VerdictOut.of(verdict("adapted")),
        "num_images": 100,
        "num_held_out": 20,
        "num_changed": 1,
        "num_classes": num_classes,
        "curves": [
            CurveOut(metric="loss", steps=[10, 20, 40], values=[4.0, 2.0, 3.0]),
            CurveOut(metric="constant", steps=[10, 20], values=[1.0, 1.0]),
            CurveOut(metric="lonely", steps=[10], values=[1.0]),
        ],
        "classes": classes,
        "changed": [image],
        "uncertain": [image],
        "audit": AuditPlanOut(num_disagreed=1, num_agreed=1, images=to_label),
    }
    return ReportOut(**{**values, **fields})


class Tags(HTMLParser):
    """Checks that tags close in order, and collects them with their attributes."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_the_page_is_whole_and_nothing_in_it_runs_or_comes_from_elsewhere() -> None:
    tags = Tags(report_page(make())).found
    names = {name for name, _ in tags}
    assert names.isdisjoint({"script", "link", "iframe", "form", "object", "a"})
    for name, attributes in tags:
        assert not any(key.startswith("on") or key == "style" for key in attributes), name
    assert {a["src"] for name, a in tags if name == "img"} == {"/datasets/ds_1/images/0/thumbnail"}
    assert {a["title"] for name, a in tags if name == "img"} == {ODD}, "a quote ends no attribute"


def test_the_policy_allows_the_pages_own_style() -> None:
    (style,) = re.findall("<style>(.*?)</style>", report_page(make()), flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in CONTENT_SECURITY_POLICY
    assert "prefers-color-scheme: dark" in style


def test_curves_are_drawn() -> None:
    page = report_page(make())
    assert '<polyline points="0.0,0.0 80.0,80.0 240.0,40.0"/>' in page
    assert '<polyline points="0.0,40.0 240.0,40.0"/>' in page
    assert "lonely" not in page, "one point is no curve"


def test_many_classes_are_cut_to_those_answered_most() -> None:
    page = report_page(make(num_classes=100))
    assert page.count('<th scope="row">') == MAX_CLASSES_SHOWN
    assert "60 more classes" in page
    assert " 99</th>" in page
    assert " 59</th>" not in page


@pytest.mark.parametrize(
    ("outcome", "heading"),
    [
        ("adapted", "The adapted classifier is better"),
        ("zero_shot", "Zero-shot is better"),
        ("inconclusive", "is not known to be better"),
        (None, "Nothing was decided"),
    ],
)
def test_the_verdict_is_in_words(outcome: str | None, heading: str) -> None:
    page = report_page(make(verdict=None if outcome is None else VerdictOut.of(verdict(outcome))))
    assert re.search(f"<h1>.*{heading}.*</h1>", page)
    assert (f"<p>It is {outcome}.</p>" in page) is (outcome is not None)


def test_a_report_with_nothing_in_it_is_a_page_too() -> None:
    empty = AuditPlanOut(num_disagreed=0, num_agreed=0, images=[])
    Tags(report_page(make(0, curves=[], changed=[], uncertain=[], audit=empty, name=None)))

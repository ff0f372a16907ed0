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
from app.web.audit_page import MAX_CHOICES, label_form
from app.web.pages import CONTENT_SECURITY_POLICY, signed_points
from app.web.report_page import MAX_CLASSES_SHOWN
from app.web.report_page import report_page as page_of
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
    to_label = [AuditImageOut(position=i, file=file if i else None) for i in range(12)]
    values: dict[str, Any] = {
        "job_id": "job_1",
        "name": ODD,
        "verdict": VerdictOut.of(verdict("adapted")),
        "classifier_id": "clf_1",
        "adapted_classifier_id": "clf_1",
        "training_end": None,
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


def report_page(report: ReportOut) -> str:
    return page_of(report, [each.label for each in report.classes])


class Tags(HTMLParser):
    """Checks that tags close in order, and collects them with their attributes."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

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
    assert names.isdisjoint({"script", "iframe", "object"})
    for name, attributes in tags:
        assert not any(key.startswith("on") or key == "style" for key in attributes), name
    assert {a["src"] for name, a in tags if name == "img"} == {"/datasets/ds_1/images/0/thumbnail"}
    assert {a["href"] for name, a in tags if name == "link"} == {"/icon.svg"}
    assert all((a["href"] or "").startswith("#") for name, a in tags if name == "a")
    assert [a["action"] for name, a in tags if name == "form"] == ["/jobs/job_1/audit"]
    assert ODD in {a["title"] for name, a in tags if name == "bdi" and "title" in a}, "a quote ends no attribute"


def test_the_policy_allows_the_pages_own_style_and_forms_to_this_service() -> None:
    (style,) = re.findall("<style>(.*?)</style>", report_page(make()), flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in CONTENT_SECURITY_POLICY
    assert "form-action 'self'" in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "prefers-color-scheme: dark" in style


def test_curves_are_drawn_with_their_axes() -> None:
    page = report_page(make())
    assert '<polyline class="after" points="46.0,8.0 134.7,144.0 312.0,76.0"/>' in page
    assert '<polyline class="after" points="46.0,76.0 312.0,76.0"/>' in page, "constant 1, between 0.5 and 1.5"
    assert "Loss over the steps: 4 at step 10, 3 at step 40; between 2 and 4." in page
    for tick in ("2", "2.5", "3", "3.5", "4"):
        assert f'text-anchor="end">{tick}</text>' in page
    assert "lonely" not in page, "one point is no curve"


def test_few_classes_are_in_one_table_in_their_order() -> None:
    page = report_page(make(num_classes=3))
    assert "<details>" not in page
    assert [f"{k}</bdi></th>" in page for k in range(3)] == [True] * 3
    assert page.index(" 0</bdi></th>") < page.index(" 2</bdi></th>")
    assert "an even share is 33.3 %" in page
    assert "Of 3 classes, 1 is never answered before, and 3 after." in page


def test_of_many_classes_those_that_changed_most_come_first_and_all_can_be_unfolded() -> None:
    first, _, rest = report_page(make(num_classes=100)).partition("<details>")
    assert first.count('<th scope="row">') == MAX_CLASSES_SHOWN
    assert " 99</bdi></th>" in first
    assert " 59</bdi></th>" not in first
    assert first.index(" 60</bdi></th>") < first.index(" 99</bdi></th>"), "from the greatest gain to the greatest loss"
    assert rest.count('<th scope="row">') == 100
    assert "All 100 classes, in their order" in rest
    assert 'class="before" points=' in first, "what is left of single classes is drawn"


def test_many_classes_are_typed_and_few_are_chosen() -> None:
    few = Tags(report_page(make(num_classes=MAX_CHOICES))).found
    many = Tags(report_page(make(num_classes=MAX_CHOICES + 1))).found
    assert [name for name, a in few if (a.get("name") or "").startswith("label.")] == ["select"] * 12
    assert [a["list"] for _, a in many if (a.get("name") or "").startswith("label.")] == ["classes"] * 12
    assert sum(name == "option" for name, _ in many) == MAX_CHOICES + 2, "the list is there once"
    for tags in (few, many):
        labelled = {a["for"] for name, a in tags if name == "label"}
        assert labelled == {a["id"] for _, a in tags if (a.get("name") or "").startswith("label.")}


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
    assert ("Estimated gain" in page) is (outcome is not None)


def test_what_the_job_answers_with_is_told() -> None:
    assert "answers with the adapted classifier." in report_page(make())
    assert "answers with zero-shot; the adapted classifier is kept" in report_page(make(classifier_id="clf_2"))


def test_a_candidate_on_the_way_is_told_and_how_training_ended() -> None:
    half = VerdictOut.of({**verdict("adapted"), "candidate": "half_way"})
    page = report_page(make(verdict=half, training_end="It went back."))
    assert "the one that is half-way from zero-shot" in page
    assert "<p>It went back.</p>" in page


def test_a_report_with_nothing_in_it_is_a_page_too() -> None:
    empty = AuditPlanOut(num_disagreed=0, num_agreed=0, images=[])
    page = report_page(make(0, curves=[], changed=[], uncertain=[], audit=empty, name=None, num_images=0))
    Tags(page)
    assert "There are too few images for that" in page
    assert "<form" not in page


def test_who_cannot_look_at_pictures_is_not_asked_for_labels() -> None:
    images = [AuditImageOut(position=i, file=None) for i in range(12)]
    page = report_page(make(audit=AuditPlanOut(num_disagreed=1, num_agreed=11, images=images)))
    assert "The pictures are gone" in page
    assert "<form" not in page
    assert not label_form("job_1", images, ["a", "b"]).enough


@pytest.mark.parametrize(
    ("share", "told"),
    [(0.123, "+12.3"), (-0.123, "−12.3"), (0.0, "0.0"), (-0.0001, "0.0"), (0.0001, "0.0"), (0.2, "+20.0")],
)
def test_points_have_a_sign_that_is_read(share: float, told: str) -> None:
    assert signed_points(share) == told

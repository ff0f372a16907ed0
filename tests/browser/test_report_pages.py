"""The report's pages in a real browser: do they load whole and quietly, fit a phone, and can everybody read them?

Skipped where there is no Chromium. Each kind of fault is also made once, to show that it would be noticed.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn

from app.config import Settings
from app.database import make_engine, make_sessionmaker
from app.jobs.ledger import Ledger
from app.jobs.messages import EventType
from app.main import create_app
from must_core.report import make_report
from tests.support.browser import DESK, PHONE, Tab, browser, chromium
from tests.support.images import sound
from tests.support.reports import publish
from tests.support.service import free_port
from tests.support.tiny import make_base
from worker.trainer import reported

NUM_IMAGES = 60
ODD_CLASSES = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "ירוק כהה", "🦩 flamingo", "x" * 200, "a b" * 60,
    "{{ 7 * 7 }}", "none of the classes",
]  # fmt: skip

WIDTH = "document.documentElement.scrollWidth"
PICTURES = "[...document.images].map(i => [i.naturalWidth > 0, i.alt.trim() !== ''])"
FAINT = """(() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const part = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    const ground = e => {
        for (; e; e = e.parentElement) {
            const found = numbers(getComputedStyle(e).backgroundColor);
            if (found.length < 4 || found[3] > 0) return found;
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const e of document.querySelectorAll('body *')) {
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
        const style = getComputedStyle(e);
        const ink = light(numbers(e instanceof SVGElement ? style.fill : style.color)), paper = light(ground(e));
        const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        if (contrast < 4.5) found.push(`${e.tagName} ${contrast.toFixed(2)} ${e.textContent.trim().slice(0, 40)}`);
    }
    return found;
})()"""
"""Texts whose contrast is below that of WCAG 2, AA."""
UNTOLD = """[
    ...[...document.querySelectorAll('th')].filter(e => !e.scope),
    ...[...document.querySelectorAll('select, input')].filter(e => !e.labels.length),
    ...[...document.querySelectorAll('svg')].filter(
        e => e.getAttribute('aria-hidden') !== 'true' && !(e.getAttribute('role') === 'img' && e.ariaLabel)),
    ...[...document.querySelectorAll('a[href^="#"]')].filter(e => !document.querySelector(e.getAttribute('href'))),
].map(e => e.outerHTML.slice(0, 100))"""
"""Things that a screen reader cannot tell about, and links that lead nowhere."""
HEADINGS = "[...document.querySelectorAll('h1, h2, h3')].map(e => e.tagName)"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A job's report. The adapted classifier changes every third answer."""

    heading: str
    num_images: int = NUM_IMAGES
    num_classes: int = 3
    classes: tuple[str, ...] = ()
    outcome: str | None = "adapted"
    changed: bool = True
    deleted: bool = False
    events: tuple[tuple[EventType, Mapping[str, Any]], ...] = ()
    texts: tuple[str, ...] = field(default=())
    """To be read on the page."""


SCENES = {
    "adapted": Scene(heading="The adapted classifier is better than zero-shot", texts=("Estimated gain", "Ten labels")),
    "odd names": Scene(
        heading="Zero-shot is better than the adapted classifier",
        classes=tuple(ODD_CLASSES),
        outcome="zero_shot",
        events=((EventType.ROLLED_BACK, {"reasons": ["Classes were lost."], "to_step": None}),),
        texts=("Training collapsed, was ended, and had no earlier state to go back to. Classes were lost.", "7 * 7"),
    ),
    "many classes": Scene(
        heading="The adapted classifier is not known to be better than zero-shot",
        num_classes=1000,
        outcome="inconclusive",
        texts=("Of 1000 classes, the 500 with the highest scores are counted here", "All 500 classes counted"),
    ),
    "nothing changed": Scene(
        heading="Nothing was decided: the guard was off", outcome=None, changed=False, texts=("No answer changed",)
    ),
    "few images, deleted": Scene(
        heading="The adapted classifier is not known to be better than zero-shot",
        num_images=8,
        outcome="inconclusive",
        deleted=True,
        texts=("The dataset was deleted", "There are too few images", "all images were trained on"),
    ),
}


class Stage:
    """An application that listens, and the reports in it."""

    def __init__(self, address: str, ledger: Ledger) -> None:
        self.address = address
        self._ledger = ledger

    def make(self, name: str, scene: Scene) -> str:
        """Make a scene's job; returns its page's address."""
        classes = list(scene.classes) or [f"class {k}" for k in range(scene.num_classes)]
        number = list(SCENES).index(name)
        files = [
            ("images", (f"photo-{i}-{'of-a-long-name' * 5 * (i == 0)}.jpg", sound(1000 * number + i, "JPEG", (64, 40))))
            for i in range(scene.num_images)
        ]
        form = {"classes": json.dumps(classes), "templates": '["{}"]', "name": name}
        submitted = httpx.post(f"{self.address}/jobs", data=form, files=files, timeout=60)
        assert submitted.status_code == httpx.codes.ACCEPTED, submitted.text
        job = submitted.json()
        publish(self._ledger, job["id"], told(scene, len(classes)), outcome=scene.outcome, events=scene.events)
        if scene.deleted:
            httpx.delete(f"{self.address}/datasets/{job['dataset_id']}").raise_for_status()
        return f"{self.address}/jobs/{job['id']}/report"


def told(scene: Scene, num_classes: int) -> Mapping[str, Any]:
    """What a trainer tells."""
    generator = torch.Generator().manual_seed(0)
    before_NK = torch.randn(scene.num_images, num_classes, generator=generator)
    after_NK = before_NK.clone()
    if scene.changed:
        after_NK[::3] = 2 * torch.randn(len(after_NK[::3]), num_classes, generator=generator)
    held_out_N = torch.zeros(scene.num_images, dtype=torch.bool)
    return asdict(reported(make_report(before_NK, after_NK, torch.arange(scene.num_images), held_out_N, seed=0)))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    chromium()  # before anything is started
    folder = tmp_path_factory.mktemp("app")
    settings = Settings(data_dir=folder / "data", models={"tiny": make_base(folder / "base")}, default_model="tiny")
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(settings), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < until
        time.sleep(0.05)
    engine = make_engine(settings.resolved_database_url)
    yield Stage(f"http://127.0.0.1:{port}", Ledger(make_sessionmaker(engine)))
    engine.dispose()
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def assert_sound(tab: Tab) -> None:
    """Nothing is wrong with the page that is open."""
    assert tab.complaints == []
    assert all(loaded and told for loaded, told in tab.evaluate(PICTURES))
    assert tab.evaluate(WIDTH) <= tab.width
    assert tab.evaluate(FAINT) == []
    assert tab.evaluate(UNTOLD) == []
    headings = tab.evaluate(HEADINGS)
    assert headings[0] == "H1"
    assert headings.count("H1") == 1
    assert "H3" not in headings


@pytest.mark.parametrize("name", SCENES)
def test_a_report_is_quiet_whole_and_readable(stage: Stage, tab: Tab, name: str, tmp_path: Path) -> None:
    scene = SCENES[name]
    address = stage.make(name, scene)
    for width, dark in ((PHONE, False), (DESK, True)):
        tab.open(address, width=width, dark=dark)
        tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        tab.screenshot(tmp_path / f"{width}.png")
        assert_sound(tab)
        assert tab.evaluate("document.querySelector('h1').textContent") == scene.heading
        text = tab.evaluate("document.body.innerText")
        for each in scene.texts:
            assert each in text
        assert (tab.evaluate("document.images.length") > 0) is not scene.deleted


@pytest.mark.parametrize("name", ["adapted", "odd names", "many classes"])
def test_labels_are_written_and_answered_on_the_page(stage: Stage, tab: Tab, name: str, tmp_path: Path) -> None:
    """Half a form comes back as it was, then the whole one is answered."""
    scene = SCENES[name]
    address = stage.make(name, scene)
    report = httpx.get(address).json()
    label = report["classes"][0]["label"]
    tab.open(address, width=PHONE)
    fields = "[...document.querySelectorAll('select, input')]"
    tab.evaluate(f"{fields}.slice(0, 3).forEach(e => {{ e.value = {json.dumps(label)} }})")
    tab.submit("form button")
    assert tab.complaints.pop().startswith("error: Failed to load resource: the server responded with a status of 422")
    assert_sound(tab)
    assert "You have written 3 of 50." in tab.evaluate("document.querySelector('[role=alert]').textContent")
    assert tab.evaluate(f"{fields}.map(e => e.value)").count(label) == 3

    tab.evaluate(f"{fields}.forEach((e, i) => {{ if (i < 49) e.value = {json.dumps(label)} }})")
    tab.submit("form button")
    tab.screenshot(tmp_path / "answered.png")
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert_sound(tab)
    assert tab.evaluate("document.querySelector('h1').textContent").startswith("By 49 labels, ")
    body = tab.evaluate("document.querySelector('pre').textContent").partition("\n")[2]
    by_api = httpx.post(address.replace("/report", "/audit"), json=json.loads(body))
    assert by_api.json()["sentence"] in tab.evaluate("document.body.innerText")


@pytest.mark.parametrize(
    ("fault", "noticed"),
    [
        ("let s = document.createElement('script'); s.text = 'window.ran = 1'; document.body.append(s)", "quiet"),
        ("document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">x</p>')", "quiet"),
        ("document.body.insertAdjacentHTML('beforeend', '<img src=/nothing alt=x>')", "pictures"),
        ("document.images[0].alt = ''", "pictures"),
        ("document.querySelector('nav').append('x'.repeat(100))", "width"),
        ("document.styleSheets[0].insertRule('.quiet { color: #888 !important }')", "contrast"),
        ("document.querySelector('th').removeAttribute('scope')", "untold"),
        ("document.querySelector('label').remove()", "untold"),
        ("document.body.insertAdjacentHTML('beforeend', '<h1>again</h1>')", "headings"),
    ],
)  # fmt: skip
def test_negative_control_faults_are_noticed(stage: Stage, tab: Tab, fault: str, noticed: str) -> None:
    tab.open(stage.make("adapted", SCENES["adapted"]), width=PHONE)
    assert_sound(tab)
    tab.evaluate(f"(() => {{ {fault} }})()")
    tab.settle()
    with pytest.raises(AssertionError):
        assert_sound(tab)
    found = {
        "quiet": tab.complaints != [],
        "pictures": not all(all(each) for each in tab.evaluate(PICTURES)),
        "width": tab.evaluate(WIDTH) > PHONE,
        "contrast": tab.evaluate(FAINT) != [],
        "untold": tab.evaluate(UNTOLD) != [],
        "headings": tab.evaluate(HEADINGS).count("H1") == 2,
    }
    assert found[noticed]
    assert tab.evaluate("window.ran") is None

"""The main job on real input, over HTTP: ``make demo``.

Starts the service, uploads half of the scanned handwritten digits without labels, adapts the tiny base model to them
and measures zero-shot and adapted classifier on the other half, whose labels nothing but this measurement has seen.
Exits 0 only when the adapted one is better.
"""

import argparse
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.digits.contact_sheet import Tile, save_contact_sheet
from examples.digits.splits import read_labels, split

HERE = Path(__file__).parent
ARCHIVE = HERE / "digits.zip"
BASE_MODEL = "tiny-clip"
CLASSIFY_AT_ONCE = 100
START_TIMEOUT_S = 90
JOB_TIMEOUT_S = 900


@dataclass(frozen=True)
class Outcome:
    """What both classifiers said of one held-out image."""

    filename: str
    true: str
    zero_shot: str
    adapted: str


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_service(data_dir: Path, log_file: Path) -> Iterator[httpx.Client]:
    """Run ``must serve`` on a free port and a folder of its own; yields a client once it is ready."""
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MUST_")}
    environment |= {"MUST_DATA_DIR": str(data_dir), "MUST_DEFAULT_MODEL": BASE_MODEL}
    with log_file.open("wb") as log:
        service = subprocess.Popen(
            [sys.executable, "-m", "app.cli.main", "serve", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                _wait_until_ready(client, service)
                yield client
        finally:
            service.send_signal(signal.SIGTERM)
            try:
                service.wait(timeout=30)
            except subprocess.TimeoutExpired:
                service.kill()


def _wait_until_ready(client: httpx.Client, service: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if service.poll() is not None:
            raise SystemExit(f"the service ended with status {service.returncode}")
        try:
            if client.get("/health/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit("the service did not become ready")


def answer_of(response: httpx.Response) -> Any:
    """The JSON of a successful reply; anything else ends the demo with the service's own words."""
    if response.is_error:
        raise SystemExit(
            f"{response.request.method} {response.request.url.path}: {response.status_code} {response.text}"
        )
    return response.json()


def archive_of(filenames: list[str]) -> bytes:
    """A zip with some of the images, as a user would upload it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(ARCHIVE) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target:
        for name in filenames:
            target.writestr(name, source.read(name))
    return buffer.getvalue()


def follow(client: httpx.Client, job_id: str, console: Console) -> dict[str, Any]:
    """Poll a job until it has ended, with a progress bar; returns the job."""
    deadline = time.monotonic() + JOB_TIMEOUT_S
    with Progress(
        TextColumn("{task.description:<11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    ) as bar:
        task = bar.add_task("queued", total=None, note="")
        while time.monotonic() < deadline:
            job: dict[str, Any] = answer_of(client.get(f"/jobs/{job_id}"))
            progress = job["progress"] or {}
            metrics = job["metrics"] or {}
            note = ""
            if rate := progress.get("images_per_second"):
                note = f"{rate:.0f} images/s" + (f", loss {metrics['loss']:.2f}" if "loss" in metrics else "")
            bar.update(
                task,
                description=progress.get("phase") or job["status"],
                completed=progress.get("step") or 0,
                total=progress.get("total_steps"),
                note=note,
            )
            if job["status"] in {"succeeded", "failed", "cancelled"}:
                return job
            time.sleep(0.5)
    raise SystemExit(f"the job did not end within {JOB_TIMEOUT_S} s")


def measure(client: httpx.Client, classifier_id: str, filenames: list[str]) -> list[Outcome]:
    """Classify the held-out images with both classifiers through ``POST /classify``."""
    labels = read_labels()
    outcomes = []
    with zipfile.ZipFile(ARCHIVE) as archive:
        for start in range(0, len(filenames), CLASSIFY_AT_ONCE):
            names = filenames[start : start + CLASSIFY_AT_ONCE]
            reply = answer_of(
                client.post(
                    "/classify",
                    data={"classifier": classifier_id, "compare": "zero_shot", "top_k": "1"},
                    files=[("images", (name, archive.read(name), "image/png")) for name in names],
                )
            )
            for name, result in zip(names, reply["results"], strict=True):
                outcomes.append(
                    Outcome(
                        filename=name,
                        true=labels[name],
                        zero_shot=result["zero_shot"]["predictions"][0]["label"],
                        adapted=result["predictions"][0]["label"],
                    )
                )
    return outcomes


def accuracy(outcomes: list[Outcome], which: str) -> float:
    """Share of right answers of ``zero_shot`` or ``adapted``."""
    return sum(getattr(o, which) == o.true for o in outcomes) / len(outcomes)


def contact_sheet(outcomes: list[Outcome], path: Path) -> None:
    """Draw images whose answer changed."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        save_contact_sheet(
            [
                Tile(archive.read(o.filename), before=o.zero_shot, after=o.adapted, true=o.true)
                for o in outcomes
                if o.zero_shot != o.adapted
            ],
            path,
        )


def show_one(client: httpx.Client, console: Console, filename: str, classifier_id: str, body: dict[str, Any]) -> None:
    """One image through ``/classify``, with the class list of the moment and with the adapted classifier."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        content = archive.read(filename)
    file = {"images": (filename, content, "image/png")}
    console.print(f"\n{filename} is a {read_labels()[filename]}; POST /classify says")
    for title, data in (
        ("zero-shot", {"classes": json.dumps(body["classes"]), "templates": json.dumps(body["templates"])}),
        ("adapted", {"classifier": classifier_id}),
    ):
        reply = answer_of(client.post("/classify", data={**data, "top_k": "3"}, files=file))
        best = ", ".join(f"{p['label']} {p['score']:.2f}" for p in reply["results"][0]["predictions"])
        console.print(f"  {title:<10}{best}")


def main() -> int:
    """Run the demo; the exit status says whether the adapted classifier is better."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="for the contact sheet and logs")
    parser.add_argument("--split", type=int, default=0, help="which half is adapted to")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console()
    output: Path = arguments.output
    shutil.rmtree(output / "data", ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    training, held_out = split(arguments.split)
    body = {
        "classes": json.loads((HERE / "classes.json").read_text(encoding="utf-8")),
        "templates": json.loads((HERE / "templates.json").read_text(encoding="utf-8")),
        "base_model": BASE_MODEL,
        "seed": arguments.seed,
        "name": "Handwritten digits",
    }

    with running_service(output / "data", output / "service.log") as client:
        console.print(f"service at {client.base_url}")
        uploaded = {"archive": ("digits.zip", archive_of(training), "application/zip")}
        dataset = answer_of(client.post("/datasets", data={"name": "digits"}, files=uploaded))
        console.print(f"POST /datasets: {dataset['num_images']} images, no labels")
        submitted = time.monotonic()
        job = answer_of(client.post("/jobs", json={"dataset_id": dataset["id"], **body}))
        console.print(f"POST /jobs: {job['id']}")
        job = follow(client, job["id"], console)
        seconds = time.monotonic() - submitted
        if job["status"] != "succeeded":
            console.print(f"the job {job['status']}: {job['error']}")
            return 1
        verdict = job["verdict"]
        console.print(f"verdict, without labels: {verdict['outcome']}. {verdict['reasons'][0]}", highlight=False)

        outcomes = measure(client, job["classifier_id"], held_out)
        zero_shot, adapted = accuracy(outcomes, "zero_shot"), accuracy(outcomes, "adapted")
        table = Table(title=f"{len(held_out)} held-out handwritten digits")
        for column in ("", "accuracy", "seconds", "images/s"):
            table.add_column(column, justify="right" if column else "left")
        table.add_row("zero-shot", f"{zero_shot:.1%}", "", "")
        steps = job["progress"]["total_steps"]
        seen = steps * int(job["choices"]["batch_size"]["value"])
        table.add_row("adapted", f"{adapted:.1%}", f"{seconds:.0f}", f"{seen / seconds:.0f}")
        console.print(table)

        sheet = output / "changed.png"
        contact_sheet(outcomes, sheet)
        console.print(f"images whose answer changed: {sheet}")
        example = next((o for o in outcomes if o.zero_shot != o.true == o.adapted), outcomes[0])
        show_one(client, console, example.filename, job["classifier_id"], body)
    return 0 if adapted > zero_shot else 1


if __name__ == "__main__":
    sys.exit(main())

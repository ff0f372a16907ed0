"""GET /jobs/{id}/log on the assembled application; the worker's part is played by the test."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.config import Settings
from app.database import make_engine, make_sessionmaker
from app.ids import new_id
from app.jobs.ledger import Ledger
from app.jobs.messages import Claim, JobError, LogLine, LogStream, Report
from tests.support.jobs import add_job

JSON = {"Accept": "application/json"}
LEASE = timedelta(seconds=60)
NUM_LINES = 251


def queued(settings: Settings) -> str:
    engine = make_engine(settings.resolved_database_url)
    job_id = add_job(make_sessionmaker(engine), classes=[{"name": "cat"}, {"name": "dog"}])
    engine.dispose()
    return job_id


def take(ledger: Ledger, job_id: str) -> Claim:
    claim = ledger.claim("w", LEASE, job_id)
    assert claim is not None
    return claim


def line(number: int, text: str) -> LogLine:
    stream = LogStream.STDERR if number % 2 else LogStream.STDOUT
    return LogLine(number=number, age=timedelta(0), stream=stream, text=text)


@pytest.fixture(scope="module")
def job_id(settings: Settings, ledger: Ledger) -> str:
    """A job with a log of two attempts, the second in two pieces."""
    job_id = queued(settings)
    claim = take(ledger, job_id)
    ledger.report(claim, Report(log=tuple(line(n, f"first {n}") for n in range(1, 201))))
    ledger.retry_later(claim, JobError(code="c", message="m"), timedelta(0))
    claim = take(ledger, job_id)
    ledger.report(claim, Report(log=tuple(line(n, f"second {n}") for n in range(1, 51))))
    ledger.release(claim)
    ledger.report(take(ledger, job_id), Report(log=(line(1, "<script>\x1b[2J</script>\n= another ==="),)))
    return job_id


def test_as_text_with_a_heading_for_each_process(client: TestClient, job_id: str) -> None:
    answer = client.get(f"/jobs/{job_id}/log")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Vary"] == "Accept"
    lines = answer.text.splitlines()
    headings = [each for each in lines if each.startswith("===")]
    assert headings == ["=== attempt 1 ===", "=== attempt 2 ===", "=== attempt 2, continued ==="]
    assert len(lines) == NUM_LINES + 3
    assert lines[1].endswith("Z stderr first 1")
    assert lines[-1].endswith(r" <script>\x1b[2J</script>\n= another ===")


def test_a_resume_is_no_continuation(client: TestClient, settings: Settings, ledger: Ledger) -> None:
    """Its attempts count anew; what follows a stop within it goes on, as before."""
    job_id = queued(settings)
    for end in ("fail", "release", "retry", "fail"):
        claim = take(ledger, job_id)
        ledger.report(claim, Report(log=(line(1, end),)))
        if end == "release":
            ledger.release(claim)
        elif end == "retry":
            ledger.retry_later(claim, JobError(code="c", message="m"), timedelta(0))
        else:
            ledger.fail(claim, JobError(code="c", message="m"))
            assert client.post(f"/jobs/{job_id}/resume").status_code == 202
    ledger.report(take(ledger, job_id), Report(log=(line(1, "last"),)))
    lines = client.get(f"/jobs/{job_id}/log").text.splitlines()
    assert [each for each in lines if each.startswith("===")] == [
        "=== attempt 1 ===",
        "=== attempt 1, resumed ===",
        "=== attempt 1, continued ===",
        "=== attempt 2 ===",
        "=== attempt 1, resumed ===",
    ]


def test_as_json_with_attempt_time_and_stream(client: TestClient, job_id: str) -> None:
    answer = client.get(f"/jobs/{job_id}/log", headers=JSON)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    page = answer.json()
    assert (page["object"], page["has_more"], page["first_id"], page["last_id"]) == ("list", True, "1", "100")
    first = page["data"][0]
    assert first.pop("at").endswith("Z")
    assert first == {"line": 1, "object": "log_line", "attempt": 1, "stream": "stderr", "text": "first 1"}


def test_pages_follow_each_other(client: TestClient, job_id: str) -> None:
    seen: list[dict[str, Any]] = []
    after = "0"
    for _ in range(10):
        page = client.get(f"/jobs/{job_id}/log", params={"after": after, "limit": 60}, headers=JSON).json()
        seen += page["data"]
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert [each["line"] for each in seen] == list(range(1, NUM_LINES + 1))
    text = client.get(f"/jobs/{job_id}/log", params={"after": 199, "limit": 2}).text.splitlines()
    assert [each.rpartition(" ")[2] for each in text] == ["===", "200", "===", "1"]


def test_the_tail(client: TestClient, job_id: str) -> None:
    page = client.get(f"/jobs/{job_id}/log", params={"tail": 300}, headers=JSON).json()
    assert (len(page["data"]), page["has_more"]) == (NUM_LINES, False)
    text = client.get(f"/jobs/{job_id}/log", params={"tail": 2}).text.splitlines()
    assert text[0] == "=== attempt 2 ==="
    assert text[1].endswith("second 50")
    assert text[2] == "=== attempt 2, continued ==="


def test_a_job_that_has_said_nothing(client: TestClient, settings: Settings) -> None:
    job_id = queued(settings)
    answer = client.get(f"/jobs/{job_id}/log")
    assert (answer.status_code, answer.text) == (200, "")
    assert client.get(f"/jobs/{job_id}/log", headers=JSON).json()["data"] == []


@pytest.mark.parametrize("bad", ["abc", "%00", "..%2f", "x" * 10_000])
def test_an_unknown_job_is_not_found(client: TestClient, bad: str) -> None:
    unknown = client.get(f"/jobs/{new_id('job')}/log")
    assert unknown.status_code == 404
    assert client.get(f"/jobs/{bad}/log").status_code == 404


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "out_of_range"),
        ("limit=1001", "out_of_range"),
        ("limit=1e3", "invalid_type"),
        ("limit=-1", "out_of_range"),
        ("limit=１", "invalid_type"),
        ("after=-1", "out_of_range"),
        ("after=99999999999999999999", "out_of_range"),
        ("tail=0", "out_of_range"),
        ("tail=1&tail=2", "repeated_parameter"),
        ("limit=1&limit=1", "repeated_parameter"),
        ("tail=1&after=1", "invalid_combination"),
        ("tail=1&limit=1", "invalid_combination"),
    ],
)
def test_bad_parameters_are_refused(client: TestClient, job_id: str, query: str, code: str) -> None:
    answer = client.get(f"/jobs/{job_id}/log?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_the_document_tells_of_both_forms(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/jobs/{job_id}/log"]["get"]
    assert set(operation["responses"]["200"]["content"]) == {"text/plain", "application/json"}
    assert {each["name"] for each in operation["parameters"]} == {"job_id", "limit", "after", "tail"}
    assert all(each.get("description") for each in operation["parameters"] if each["name"] != "job_id")


def test_a_service_with_too_small_a_bound_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_job_log_bytes"):
        Settings(data_dir=tmp_path, max_job_log_bytes=1000)

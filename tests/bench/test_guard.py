"""The results file of the guard's bench: made in parts, never of two versions of the code."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench import guard
from tests.bench.test_guard_report import GOOD


def test_results_of_the_same_version_are_kept_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, old, again = (
        replace(GOOD, task=task, version=version)
        for task, version in (("a", guard.VERSION), ("b", guard.VERSION - 1), ("c", guard.VERSION))
    )
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(asdict(r)) + "\n" for r in (kept, old, again)), encoding="utf-8")
    anew = replace(again, estimate=0.5)
    guard.Key("c", 0, "auto").file(tmp_path).touch()
    monkeypatch.setattr(guard, "judged", lambda _keys, _folder: [anew])
    guard.write_results(tmp_path, results)
    assert guard.read_results(results) == [kept, anew]
    assert len(results.read_text(encoding="utf-8").splitlines()) == 2

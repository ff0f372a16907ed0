"""What tests are given of the services, and that a promised one may not be missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.support.services import redis_database

NEEDS_REDIS = """
from tests.support.services import require

def test_that_needs_it():
    require("redis://127.0.0.1:1", "Redis")
"""


@pytest.mark.parametrize(("promised", "outcome"), [("true", "1 failed"), ("", "1 skipped")])
def test_a_promised_service_that_is_missing_fails_its_tests_when_they_run_side_by_side(
    tmp_path: Path, promised: str, outcome: str
) -> None:
    (tmp_path / "test_it.py").write_text(NEEDS_REDIS)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--numprocesses=1",
            "-p",
            "no:cacheprovider",
            f"--rootdir={tmp_path}",
            tmp_path,
        ],
        env={**inherited, "CI": promised, "PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in done.stdout.splitlines()[-1], done.stdout
    assert "Redis does not answer at 127.0.0.1:1" in done.stdout if promised else done.returncode == 0


@pytest.mark.services
def test_a_redis_database_is_one_tests_alone_and_left_empty() -> None:
    with redis_database() as ours, redis_database() as theirs:
        assert ours != theirs
        clients = [redis.Redis.from_url(url) for url in (ours, theirs)]
        clients[0].set("key", "value")
        assert [client.exists("key") for client in clients] == [1, 0]
    assert [client.dbsize() for client in clients] == [0, 0]

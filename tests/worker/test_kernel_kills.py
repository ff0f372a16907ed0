"""A trainer that the kernel kills for want of memory, in a control group with little of it."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from tests.support.jobs import add_job, read_job
from tests.support.workers import wait_for
from worker import kernel_kills
from worker.supervisor import Supervisor

LIMIT_BYTES = 64 * 1024**2
HIERARCHIES = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}
"""Of the first version, and of the second."""


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with little memory."""
    root, limit = next((r, limit) for r, limit in HIERARCHIES.items() if r.is_dir())
    group = root / f"must-test-{secrets.token_hex(6)}"
    try:
        group.mkdir()
        (group / limit).write_text(str(LIMIT_BYTES))
    except OSError as e:
        pytest.skip(f"no control group can be made here: {e}")
    yield group
    wait_for(lambda: not (group / "cgroup.procs").read_text(), what="the group to be empty")
    group.rmdir()


def test_a_trainer_without_memory_is_told_from_one_that_was_killed(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], small_group: Path
) -> None:
    before = kernel_kills.kernel_kills()
    job_id = add_job(sessions, max_attempts=1, hyperparameters={"crash_at": {"2": f"exhaust {small_group}"}})
    assert supervise().run_one()
    job = read_job(sessions, job_id)
    assert job.error is not None
    assert job.error.code == "worker_out_of_memory"
    assert before is not None
    assert (kernel_kills.kernel_kills() or 0) > before


def test_where_the_kernel_does_not_say_a_kill_may_have_been_its(
    supervise: Callable[..., Supervisor],
    sessions: sessionmaker[Session],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for said in (None, "nr_free_pages 7\n"):
        if said is not None:
            (tmp_path / "vmstat").write_text(said)
        monkeypatch.setattr(kernel_kills, "VMSTAT", tmp_path / "vmstat")
        job_id = add_job(sessions, max_attempts=1, hyperparameters={"crash_at": {"2": "signal 9"}})
        assert supervise().run_one()
        job = read_job(sessions, job_id)
        assert job.error is not None
        assert job.error.code == "worker_out_of_memory"

"""Which GPUs a job gets, and that it gives them back."""

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.jobs.messages import Scheduling
from app.jobs.status import JobStatus
from tests.support.jobs import add_job, read_job
from tests.support.supervision import training
from tests.support.workers import wait_for
from worker.devices import ORDER, VISIBLE, Devices, Owned, find_gpus
from worker.supervisor import Supervisor


@dataclass
class Claimed:
    num_gpus: int


def take(devices: Devices, num_gpus: int) -> tuple[str | None, Callable[[], None]] | None:
    """What a job of so many GPUs sees, and how it gives them back; None when they are not free."""
    found = devices.claim(lambda free: Claimed(num_gpus) if num_gpus <= free else None)
    return found and (found[1].environment.get(VISIBLE), found[1].give_back)


def test_each_job_sees_its_own_gpus() -> None:
    devices = Devices(Owned(("3", "GPU-8a", "5")))
    assert (devices.most_for_a_job, devices.num_jobs_at_most(8), devices.num_jobs_at_most(2)) == (3, 3, 2)
    two, one = take(devices, 2), take(devices, 1)
    assert two is not None
    assert one is not None
    assert (two[0], one[0]) == ("3,GPU-8a", "5")
    assert take(devices, 1) is None
    for _ in range(2):  # the second time does nothing
        two[1]()
    assert take(devices, 3) is None
    one[1]()
    three = take(devices, 3)
    assert three is not None
    assert three[0] == "3,GPU-8a,5", "the order in which they were named"


def test_nobody_is_asked_while_nothing_is_free() -> None:
    devices = Devices(Owned(("0",)))
    assert take(devices, 1) is not None
    assert devices.claim(lambda _: pytest.fail("asked")) is None


def test_a_claim_that_fails_takes_nothing() -> None:
    devices = Devices(Owned(("0",)))
    with pytest.raises(OSError, match="down"):
        devices.claim(lambda _: (n for n in ()).throw(OSError("down")))
    assert take(devices, 1) is not None


def test_giving_back_does_not_wait_for_a_claim() -> None:
    """A claim asks the database, which may take long. With one lock for both, this would wait for itself."""
    devices = Devices(Owned(("0", "1")))
    found = take(devices, 1)
    assert found is not None

    def ask(num_free: int) -> Claimed:
        giving = threading.Thread(target=found[1], daemon=True)
        giving.start()
        giving.join(timeout=20)
        assert not giving.is_alive()
        return Claimed(num_free)

    claimed = devices.claim(ask)
    assert claimed is not None
    assert claimed[1].environment[VISIBLE] == "0", "the one that was promised is free still"
    assert take(devices, 1) is not None


def test_numbers_are_those_that_the_setting_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nvidia-smi, in which CUDA does not count by itself; inherited ones are in the inherited order."""

    def order(owned: Owned) -> str | None:
        claimed = Devices(owned).claim(lambda _: Claimed(1))
        assert claimed is not None
        return claimed[1].environment.get(ORDER)

    assert order(Owned.parse("0,1")) == "PCI_BUS_ID"
    monkeypatch.setenv(VISIBLE, "1,0")
    assert order(Owned.parse("auto")) is None
    assert order(Owned.parse("none")) is order(Owned.parse("cpu:2")) is None


def test_without_gpus_every_job_runs_on_the_cpu() -> None:
    devices = Devices(Owned())
    assert (devices.most_for_a_job, devices.num_jobs_at_most(8)) == (1, 8)
    assert [take(devices, 1) is not None for _ in range(5)] == [True] * 5
    assert take(devices, 2) is None


@pytest.mark.parametrize(
    ("setting", "owned", "visible"),
    [
        ("none", Owned(hidden=True), ""),
        ("cpu:2", Owned(num_cpu=2, hidden=True), ""),
        ("0,1", Owned(("0", "1")), "0"),
        ("GPU-1a-2b, MIG-3", Owned(("GPU-1a-2b", "MIG-3")), "GPU-1a-2b"),
    ],
)
def test_what_a_worker_owns(setting: str, owned: Owned, visible: str) -> None:
    assert Owned.parse(setting) == owned
    found = take(Devices(owned), 1)
    assert found is not None
    assert found[0] == visible


@pytest.mark.parametrize("setting", ["", "0,", "0,0", "0;1", "../0", "cpu:0", " "])
def test_other_settings_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="auto, none"):
        Owned.parse(setting)


@pytest.mark.parametrize(
    ("variable", "found"),
    [("2,0", ("2", "0")), ("", ()), ("-1", ()), ("0,-1,1", ("0",)), ("1,0,1", ("1", "0")), ("NoDevFiles", ())],
)
def test_gpus_that_this_process_is_shown(monkeypatch: pytest.MonkeyPatch, variable: str, found: tuple[str]) -> None:
    monkeypatch.setenv(VISIBLE, variable)
    assert find_gpus() == found
    assert Owned.parse("auto") == Owned(found, in_bus_order=False)


@pytest.mark.parametrize(("answer", "found"), [("echo 0; echo 1", ("0", "1")), ("echo no device; exit 9", ())])
def test_gpus_that_the_driver_tells_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, found: tuple[str]
) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{answer}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert find_gpus() == found


SHOW = (
    "import json, os, sys; "
    "spec = json.load(open(sys.argv[1])); "
    "where = spec['output_dir'] + '/../../../' + spec['job_id'] + '.json'; "
    f"open(where, 'w').write(json.dumps(os.environ.get('{VISIBLE}'))); "
    "os.kill(os.getpid(), 9) if spec['hyperparameters'].get('die') else sys.exit(70)"
)


@pytest.mark.parametrize("die", [True, False])
def test_a_trainer_sees_its_gpus_and_they_are_free_when_it_is_gone(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], tmp_path: Path, *, die: bool
) -> None:
    supervisor = supervise(devices=Devices(Owned(("4", "7"))), trainer=(sys.executable, "-c", SHOW))
    for _ in range(2):
        wishes = Scheduling(num_gpus=1)
        job_id = add_job(sessions, max_attempts=1, scheduling=wishes, hyperparameters={"die": die})
        assert supervisor.run_one()
        assert json.loads((tmp_path / "runs" / f"{job_id}.json").read_text()) == "4"
        assert read_job(sessions, job_id).status is JobStatus.FAILED
    assert take(supervisor.devices, 2) is not None


def test_two_jobs_at_a_time_have_a_gpu_each_and_the_third_waits(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session]
) -> None:
    """With one slot too many: it is the GPUs that are short."""
    supervisor = supervise(devices=Devices(Owned(("0", "1"))))
    ids = [add_job(sessions, hyperparameters={"steps": 2000, "step_ms": 20}) for _ in range(3)]
    threads = [threading.Thread(target=supervisor.run_one, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for job_id in ids[:2]:
        wait_for(training(sessions, job_id), timeout_s=60)
    assert not supervisor.run_one()
    assert read_job(sessions, ids[2]).status is JobStatus.QUEUED
    supervisor.stop()
    for thread in threads:
        thread.join(timeout=60)
    assert take(supervisor.devices, 2) is not None


def test_a_claim_that_waited_for_another_threads_has_its_whole_lease(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session]
) -> None:
    """Counted from before the wait, the lease would be over when the job is taken, and the job given back at once."""
    supervisor = supervise(lease=timedelta(seconds=4))
    job_id = add_job(sessions, hyperparameters={"steps": 1})
    waiting = threading.Event()

    def slow(_: int) -> None:
        waiting.set()
        time.sleep(5)

    other = threading.Thread(target=lambda: supervisor.devices.claim(slow), daemon=True)
    other.start()
    assert waiting.wait(timeout=10)
    assert supervisor.run_one()
    assert read_job(sessions, job_id).attempt == 1
    assert read_job(sessions, job_id).status is JobStatus.SUCCEEDED
    other.join(timeout=10)

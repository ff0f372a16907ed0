"""One job from claim to its end: claim, prepare, run a trainer, publish. Knows no broker and loads no torch.

    claim ──▶ prepare ──▶ trainer runs ──▶ judge its end ──▶ publish | release | retry | fail | cancel
              └───────── the ledger link beats and reports all along ─────────┘

No transaction and no session is open while anything slow happens. Whatever is decided here, the ledger accepts only
from the attempt that holds the job.
"""

import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Event, Lock
from typing import TypeVar

import structlog

from app.exceptions import ServiceError, Unavailable
from app.jobs.errors import LeaseLost, LedgerUnavailable
from app.jobs.ledger import Ledger
from app.jobs.messages import Claim, JobError
from app.storage import BlobStore
from worker import runs
from worker.bundles import BundleRefused, store_bundle
from worker.devices import Devices, Share
from worker.job_log import JobLog
from worker.link import LedgerLink
from worker.outcome import INTERNAL, NO_RESULT, Ending, Interruption, Outcome, judge
from worker.process import Trainer
from worker.protocol import ResultReport, TrainerSpec, format_spec
from worker.readable import Redactor
from worker.relay import Relay

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

MAX_WAIT_S = 1.0
ASLEEP_S = 5.0
MAX_RETRY_DELAY = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class SupervisorOptions:
    """What an operator chose, as far as it concerns one job. See app/config.py for each."""

    models: Mapping[str, str]
    runs_dir: Path
    checkpoint_interval: timedelta = timedelta(seconds=30)
    lease: timedelta
    stall_timeout: timedelta
    silence_timeout: timedelta
    stop_grace: timedelta
    num_slots: int | None = None
    """Jobs at a time; None for as many as threads ask."""
    devices: Devices = field(default_factory=Devices)
    trainer: Sequence[str] = (sys.executable, "-m", "worker.trainer")
    """The program to run; the path of the spec is appended."""
    retry_delay: timedelta = timedelta(seconds=5)
    """Wait before the second attempt; doubles with each further one."""


class Supervisor:
    """Takes jobs and sees them through, one per calling thread. Shared by all threads of a worker process."""

    def __init__(self, *, ledger: Ledger, storage: BlobStore, options: SupervisorOptions) -> None:
        self._ledger = ledger
        self._storage = storage
        self._options = options
        self._stopping = Event()
        self._lock = Lock()
        self._attempts: set[_Attempt] = set()
        self._num_busy = 0
        self._redactor = Redactor.of_environment(os.environ)
        self.owner = f"{socket.gethostname()[:60]}:{os.getpid()}:{secrets.token_hex(4)}"
        """How the ledger knows this worker process."""

    @property
    def devices(self) -> Devices:
        """What its jobs share."""
        return self._options.devices

    @property
    def stopping(self) -> bool:
        """`stop` was called."""
        return self._stopping.is_set()

    def wait_until_stopping(self, timeout_s: float) -> bool:
        """Wait for `stop`, for at most as long. Whether it was called."""
        return self._stopping.wait(timeout_s)

    def stop(self) -> None:
        """Take no more jobs; have trainers write a checkpoint and give their jobs back. Returns at once, and is safe
        to call from a signal handler: it takes no lock that anybody holds for long."""
        self._stopping.set()
        for attempt in tuple(self._attempts):
            attempt.wake()

    def run_one(self, job_id: str | None = None) -> bool:
        """Claim a job (``job_id``, or whose turn it is) and see it through. False when there was none, or no free slot.

        Raises `LedgerUnavailable` when the ledger cannot be asked.
        """
        if self.stopping or not self._occupy_slot():
            return False
        try:
            asked_at = 0.0

            def ask(num_gpus: int) -> Claim | None:
                nonlocal asked_at
                asked_at = time.monotonic()  # only now: other threads' claims may have come first, and taken long
                return self._ledger.claim(self.owner, self._options.lease, job_id, num_gpus=num_gpus)

            found = self._options.devices.claim(ask)
            if found is None:
                return False
            claim, share = found
            try:
                self._see_through(claim, share, asked_at)
            finally:
                share.give_back()
        finally:
            with self._lock:
                self._num_busy -= 1
        return True

    def _occupy_slot(self) -> bool:
        with self._lock:
            if self._options.num_slots is not None and self._num_busy >= self._options.num_slots:
                return False
            self._num_busy += 1
            return True

    def _see_through(self, claim: Claim, share: Share, claimed_at: float) -> None:
        with structlog.contextvars.bound_contextvars(job_id=claim.job_id, attempt=claim.attempt):
            _log.info("job_claimed", ordinal=claim.ordinal, max_attempts=claim.max_attempts)
            attempt = _Attempt(
                ledger=self._ledger,
                storage=self._storage,
                options=self._options,
                claim=claim,
                share=share,
                claimed_at=claimed_at,
                stopping=self._stopping,
                redactor=self._redactor,
            )
            with self._lock:
                self._attempts.add(attempt)
            try:
                attempt.run()
            except LeaseLost:
                _log.warning("lease_lost")
            finally:
                with self._lock:
                    self._attempts.discard(attempt)


class _Interrupted(Exception):
    def __init__(self, reason: Interruption) -> None:
        super().__init__(reason.name)
        self.reason = reason


class _Attempt:
    """One claimed job."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        storage: BlobStore,
        options: SupervisorOptions,
        claim: Claim,
        share: Share,
        claimed_at: float,
        stopping: Event,
        redactor: Redactor,
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._options = options
        self._claim = claim
        self._share = share
        self._stopping = stopping
        self._wake = Event()
        self._relay = Relay()
        self._job_log = JobLog(redactor)
        self._link = LedgerLink(
            ledger, claim, self._relay, self._job_log, lease=options.lease, claimed_at=claimed_at, on_change=self.wake
        )

    def wake(self) -> None:
        """Look around at once instead of at the next tick."""
        self._wake.set()

    def run(self) -> None:
        """See the job through. Raises `LeaseLost`, and `LedgerUnavailable` when this worker had to stop before the
        ledger answered; everything else ends in the ledger."""
        run = runs.RunFolder(self._options.runs_dir / self._claim.job_id / f"attempt-{self._claim.attempt}")
        try:
            with self._link:
                outcome, result = self._guarded(self._adapt)
                if outcome.ending is Ending.PUBLISH and result is not None:
                    outcome = self._publish(result, run)
            # The link is closed: a beat after the job's end would only find the lease gone.
            if outcome.ending is not Ending.PUBLISH:
                self._settle(outcome)
        finally:
            runs.discard_workspace(run)

    def _guarded(self, step: Callable[[], tuple[Outcome, ResultReport | None]]) -> tuple[Outcome, ResultReport | None]:
        """Run a step of ours; what goes wrong in it becomes an outcome."""
        try:
            return step()
        except _Interrupted as e:
            return judge(-1, interruption=e.reason, result=None, error=None), None
        except Unavailable as e:
            _log.warning("attempt_failed", code=e.code)
            return _retry(JobError(code=e.code, message=e.detail, param=e.param)), None
        except ServiceError as e:
            _log.warning("attempt_failed", code=e.code)
            return _fail(JobError(code=e.code, message=e.detail, param=e.param)), None
        except (LeaseLost, LedgerUnavailable):
            raise
        except Exception:  # noqa: BLE001 - a defect of ours must end in the ledger too
            _log.exception("attempt_failed")
            return _retry(INTERNAL), None

    def _adapt(self) -> tuple[Outcome, ResultReport | None]:
        run, spec = self._prepare()
        self._relay.excuse()
        trainer = Trainer(
            [*self._command(), str(run.spec)],
            devices=self._share.environment,
            log_path=run.log,
            on_line=self._relay.take_in,
            on_exit=self.wake,
            on_output=self._job_log.take_in,
        )
        _log.info("trainer_started", trainer_pid=trainer.pid, num_images=len(spec.images))
        try:
            interruption = self._watch(trainer)
        finally:
            code = trainer.finish()
            self._job_log.end()  # what a descendant that left the group says from now on holds nobody up
            self._share.give_back()
        result = self._relay.result
        outcome = judge(
            code,
            interruption=interruption,
            result=result,
            error=self._relay.error,
            out_of_memory=trainer.may_have_run_out_of_memory,
        )
        _log.info(
            "trainer_ended",
            exit_code=code,
            interruption=interruption.name.lower() if interruption else None,
            ending=outcome.ending.name.lower(),
            error=outcome.error.code if outcome.error else None,
        )
        if outcome.ending in {Ending.RETRY, Ending.FAIL} and self._job_log.last_traceback:
            _log.error("trainer_traceback", traceback=self._job_log.last_traceback)
        return outcome, result

    def _command(self) -> Sequence[str]:
        if self._claim.num_gpus == 1:
            return self._options.trainer
        grace_s = max(1, round(self._options.stop_grace.total_seconds()))
        ranks = (sys.executable, "-m", "worker.ranks", str(self._claim.num_gpus), str(grace_s))
        return (*ranks, *self._options.trainer)

    def _prepare(self) -> tuple[runs.RunFolder, TrainerSpec]:
        claim = self._claim
        base_model = self._options.models.get(claim.base_model)
        if base_model is None:
            raise ServiceError("unknown_model", "This worker does not offer the base model.", param="base_model")
        run = runs.open_run(self._options.runs_dir, claim.job_id, claim.attempt)
        digests = self._persist(lambda: self._ledger.image_digests(claim.dataset_id))
        images = []
        for sha256 in digests:
            self._check()
            images.append(run.images / sha256)
            self._storage.link(sha256, images[-1])
        spec = TrainerSpec(
            job_id=claim.job_id,
            attempt=claim.attempt,
            base_model=base_model,
            classes=claim.classes,
            templates=claim.templates,
            hyperparameters=dict(claim.hyperparameters),
            seed=claim.seed,
            images=images,
            checkpoints_dir=run.checkpoints,
            resume_from=runs.earlier_checkpoints(self._options.runs_dir, claim.job_id, claim.attempt),
            output_dir=run.output,
            checkpoint_interval_s=self._options.checkpoint_interval.total_seconds(),
        )
        run.spec.write_bytes(format_spec(spec))
        self._check()
        return run, spec

    def _watch(self, trainer: Trainer) -> Interruption | None:
        """Wait for the trainer's end; bring it about when there is a reason. Returns the reason."""
        reason: Interruption | None = None
        kill_at = float("inf")
        while not trainer.exited:
            if reason is None and (reason := self._reason(trainer)) is not None:
                _log.info("trainer_stopping", reason=reason.name.lower())
                if reason in {Interruption.LOST, Interruption.STALLED, Interruption.SILENT}:  # it could not obey
                    trainer.kill()
                else:
                    trainer.ask_to_stop()
                    kill_at = time.monotonic() + self._options.stop_grace.total_seconds()
            elif reason is not None and self._link.lost and reason is not Interruption.LOST:
                reason = Interruption.LOST
                trainer.kill()
            if time.monotonic() >= kill_at:
                _log.warning("trainer_killed", reason=reason.name.lower() if reason else None)
                trainer.kill()
                kill_at = float("inf")
            before = time.monotonic()
            self._wake.wait(MAX_WAIT_S)
            self._wake.clear()
            if time.monotonic() - before > MAX_WAIT_S + ASLEEP_S:
                self._relay.excuse()  # this process was stopped or starved: it could not have heard anything
        return reason

    def _reason(self, trainer: Trainer | None = None) -> Interruption | None:
        watched, options = self._relay, self._options
        reasons = {
            Interruption.LOST: self._link.lost,
            Interruption.CANCEL: self._link.cancel_requested,
            Interruption.OUT_OF_TIME: self._link.runtime_exceeded,
            Interruption.SHUTDOWN: self._stopping.is_set(),
            Interruption.OVERDUE: self._link.overdue,
            Interruption.SILENT: trainer is not None and watched.silent_s > options.silence_timeout.total_seconds(),
            Interruption.STALLED: trainer is not None and watched.stalled_s > options.stall_timeout.total_seconds(),
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _check(self) -> None:
        if (reason := self._reason()) is not None:
            raise _Interrupted(reason)

    def _publish(self, result: ResultReport, run: runs.RunFolder) -> Outcome:
        def store() -> tuple[Outcome, ResultReport | None]:
            try:
                publication = store_bundle(self._storage, result, run.output)
            except BundleRefused as e:
                _log.warning("bundle_refused", error=str(e))
                return _fail(NO_RESULT), None
            self._link.close()
            classifier_id = self._persist(lambda: self._ledger.publish(self._claim, publication), checked=False)
            if classifier_id is None:
                _log.info("job_cancelled")
            else:
                _log.info(
                    "classifier_published",
                    classifier_id=classifier_id,
                    adapted_classifier_id=publication.classifier_id,
                    outcome=result.verdict.outcome if result.verdict else None,
                    num_files=len(publication.files),
                )
                runs.discard_job(self._options.runs_dir, self._claim.job_id)
            return Outcome(ending=Ending.PUBLISH), None

        return self._guarded(store)[0]

    def _settle(self, outcome: Outcome) -> None:
        claim, error = self._claim, outcome.error or INTERNAL
        if outcome.ending is Ending.ABANDON:
            raise LeaseLost(claim.job_id, claim.attempt)
        delay = min(self._options.retry_delay * 2 ** min(claim.ordinal - 1, 20), MAX_RETRY_DELAY)
        write = {
            Ending.RELEASE: lambda: self._ledger.release(claim),
            Ending.CANCEL: lambda: self._ledger.cancelled(claim),
            Ending.RETRY: lambda: self._ledger.retry_later(claim, error, delay),
            Ending.FAIL: lambda: self._ledger.fail(claim, error),
        }[outcome.ending]
        status = self._persist(write, checked=False)
        _log.info("attempt_settled", status=status.value, error=outcome.error.code if outcome.error else None)

    def _persist(self, call: Callable[[], _T], *, checked: bool = True) -> _T:
        """Repeat a ledger call until it is answered. ``checked``: give up when the job is interrupted.

        An unchecked call ends the attempt. It may be late, the fence decides whether it still counts; only a worker
        that is to stop gives up on it, after the grace period, and leaves the job to its lease.
        """
        pause_s, give_up_at = 0.1, float("inf")
        while True:
            try:
                return call()
            except LedgerUnavailable as e:
                _log.warning("ledger_unavailable", error=str(e)[:300])
                if checked:
                    self._check()
                elif self._stopping.is_set():
                    give_up_at = min(give_up_at, time.monotonic() + self._options.stop_grace.total_seconds())
                if time.monotonic() > give_up_at:
                    raise
                self._wake.wait(pause_s)
                self._wake.clear()
                pause_s = min(pause_s * 2, 5.0)


def _retry(error: JobError) -> Outcome:
    return Outcome(ending=Ending.RETRY, error=error)


def _fail(error: JobError) -> Outcome:
    return Outcome(ending=Ending.FAIL, error=error)

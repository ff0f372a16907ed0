"""The trainer: a child process that runs one attempt of a job with must_core and tells its supervisor how it goes.

Started as ``python -m worker.trainer SPEC``; see worker/protocol.py.
"""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

# Read when torch loads its OpenMP: threads that wait give the processor to the API and to the loader instead of
# spinning on it. Spinning made small steps up to thirty times slower on a busy machine of two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import structlog
import torch
from pydantic import TypeAdapter

from app.log import configure_logging
from must_core import adapt as loop
from must_core.data.image_list import ImageList
from must_core.errors import FailedElsewhere, InvalidClasses, InvalidConfig, MustError, UnknownModel, UnreadableImage
from must_core.guard.verdict import Verdict
from must_core.parallel import joined, local_device
from must_core.report import RunReport
from must_core.text.prompts import ClassSpec
from must_core.unknown import Calibration
from must_core.workflow import (
    AdaptRequest,
    Chosen,
    Completed,
    Event,
    PhaseStarted,
    Resumed,
    RolledBack,
    RunFolders,
    Settled,
    Worked,
    run_adaptation,
)
from worker import protocol
from worker.child import TrainerLink
from worker.protocol import ErrorReport, ExitCode, TrainerSpec

_log = structlog.get_logger(__name__)

_REPORT = TypeAdapter(protocol.RunReport)
WORK_SPACING_S = 1.0
_USAGE = (InvalidClasses, InvalidConfig, UnknownModel)


def main() -> int:
    """Run the attempt; the exit status is an `ExitCode`."""
    link = TrainerLink()
    configure_logging()
    spec = protocol.parse_spec(Path(sys.argv[1]).read_bytes())
    try:
        return _train(spec, link)
    except FailedElsewhere:
        return ExitCode.TRANSIENT  # another rank has said why
    except UnreadableImage as e:
        _log.exception("image_unreadable")
        return _give_up(link, "fatal", e.code, "An image of the dataset cannot be read any more.")
    except MustError as e:
        return _give_up(link, "usage" if isinstance(e, _USAGE) else "fatal", e.code, e.message, e.param)
    except torch.OutOfMemoryError:
        return _give_up(
            link, "fatal", "gpu_out_of_memory", "The GPU's memory is too small for this batch.", "batch_size"
        )
    except (MemoryError, OSError) as e:
        _log.exception("trainer_failed")
        return _give_up(link, "transient", "worker_failed", f"The machine failed the trainer ({type(e).__name__}).")


def _train(spec: TrainerSpec, link: TrainerLink) -> int:
    device = local_device()
    with joined(device) as ranks:
        events = run_adaptation(
            _request(spec),
            RunFolders(
                bundle=spec.output_dir / "bundle",
                checkpoints=spec.checkpoints_dir,
                resume_from=spec.resume_from,
                cache=spec.output_dir / "decoded",
            ),
            checkpoint_interval_s=spec.checkpoint_interval_s,
            stop=lambda: link.stop_requested,
            device=device,
            ranks=ranks,
        )
        return _tell(events, link) if ranks.first else _follow(events)


def _follow(events: Iterator[Event]) -> int:
    """A rank beside the first computes its share and leaves the telling to that one."""
    last = deque(events, maxlen=1)
    return ExitCode.STOPPED if last and isinstance(last[0], loop.Stopped) else ExitCode.DONE


def _tell(events: Iterator[Event], link: TrainerLink) -> int:
    phase, next_work = "preparing", 0.0
    for event in events:
        match event:
            case PhaseStarted(name):
                phase = name
                link.send(protocol.PhaseReport(phase=name))
            case Worked(num_done):
                if time.monotonic() >= next_work:  # packing tells of thousands of images a second
                    next_work = time.monotonic() + WORK_SPACING_S
                    link.send(protocol.WorkReport(num_done=num_done))
            case Chosen(choices):
                reasoned = {k: protocol.Choice(value=c.value, reason=c.reason) for k, c in choices.items()}
                link.send(protocol.ChoicesReport(choices=reasoned))
            case Resumed(step):
                _log.info("resumed", step=step)
            case loop.Progress(step, total_steps, epoch, rate, metrics):
                link.send(
                    protocol.ProgressReport(
                        phase=phase, epoch=epoch, step=step, total_steps=total_steps, images_per_second=rate
                    )
                )
                link.send(protocol.MetricsReport(metrics=metrics))
            case loop.CheckpointSaved(step):
                link.send(protocol.CheckpointReport(step=step))
            case RolledBack(vetoes, to_step):
                _log.warning("rolled_back", vetoes=[veto.name for veto in vetoes], to_step=to_step)
                reasons = [veto.reason for veto in vetoes]
                link.send(protocol.RolledBackReport(reasons=reasons, to_step=to_step))
            case Settled(step):
                link.send(protocol.SettledReport(step=step))
            case loop.Stopped():
                return ExitCode.STOPPED
            case Completed(bundle, metrics, verdict, report, unknown):
                link.send(
                    protocol.ResultReport(
                        bundle_dir=bundle,
                        metrics=metrics,
                        verdict=None if verdict is None else told(verdict),
                        report=None if report is None else reported(report),
                        unknown_below=protocol.UnknownBelow() if unknown is None else limits(unknown),
                    )
                )
    return ExitCode.DONE


def told(verdict: Verdict) -> protocol.Verdict:
    """A verdict as the protocol has it."""
    return protocol.Verdict(
        outcome=verdict.outcome,
        candidate=verdict.candidate,
        reasons=list(verdict.reasons),
        gain=protocol.Gain(**asdict(verdict.gain)),
        vetoes=[protocol.Veto(**asdict(veto)) for veto in verdict.vetoes],
    )


def reported(report: RunReport) -> protocol.RunReport:
    """A report as the protocol has it."""
    return _REPORT.validate_json(json.dumps(asdict(report)))


def limits(unknown: Calibration) -> protocol.UnknownBelow:
    """Of what is unknown, as the protocol has them."""
    return protocol.UnknownBelow(zero_shot=unknown.zero_shot_below, adapted=unknown.adapted_below)


def _request(spec: TrainerSpec) -> AdaptRequest:
    return AdaptRequest(
        base_model=spec.base_model,
        classes=tuple(map(ClassSpec.from_json, spec.classes)),
        templates=tuple(spec.templates),
        images=ImageList.of(spec.images),
        hyperparameters=spec.hyperparameters,
        seed=spec.seed,
    )


def _give_up(link: TrainerLink, kind: str, code: str, message: str, param: str | None = None) -> int:
    link.send(ErrorReport(kind=kind, code=code, message=message, param=param))  # type: ignore[arg-type]
    return {"usage": ExitCode.USAGE, "fatal": ExitCode.FATAL, "transient": ExitCode.TRANSIENT}[kind]


if __name__ == "__main__":
    sys.exit(main())

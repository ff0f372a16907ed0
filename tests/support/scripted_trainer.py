"""A trainer that trains nothing: some steps of some milliseconds, and every way to misbehave.

Its script is the job's ``hyperparameters``:

- ``steps``, ``step_ms``: length; it writes a checkpoint after every step and resumes like a real one.
- ``crash_at``: {step: what}, with what one of ``exit N``, ``signal N``, ``usage``, ``fatal``, ``transient``, ``hang``
  (beats and nothing else any more), ``babble`` (reports without end that tell of no progress), ``work N`` (for N
  seconds no steps, but parts of something), ``close`` (closes the report line and runs on), ``exhaust FOLDER`` (joins
  a control group and takes more memory than it has), ``flood`` (reports as fast as it can for a while), ``garbage``
  (lines that are no reports), ``say N`` (N MB on stdout).
- ``only_attempt``: crash in this attempt only.
- ``deaf``: ignore SIGTERM.
- ``grandchild``: start a process that would outlive it, and say its pid in the metrics.
- ``bundle``: what to hand in: ``good``, ``none``, ``outside``, ``symlink``, ``empty``.
- ``verdict``: the outcome to hand in with it; none when missing.
- ``report``: hand in a report of what changed too.
- ``roll_back``: say that training collapsed.

Each attempt leaves the steps it did in ``RUN/steps.txt``.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.child import TrainerLink
from worker.protocol import (
    Answer,
    AuditImage,
    AuditPlan,
    CheckpointReport,
    Choice,
    ChoicesReport,
    ClassShare,
    ErrorReport,
    ExitCode,
    Gain,
    MetricsReport,
    PhaseReport,
    ProgressReport,
    ReportedImage,
    ResultReport,
    RolledBackReport,
    RunReport,
    SettledReport,
    TrainerSpec,
    Verdict,
    WorkReport,
    parse_spec,
)


def main(script_of: Callable[[TrainerSpec], dict[str, Any]] = lambda spec: dict(spec.hyperparameters)) -> int:
    link = TrainerLink()
    spec = parse_spec(Path(sys.argv[1]).read_bytes())
    script = script_of(spec)
    assert all(path.is_file() for path in spec.images), "images are files at hand"
    link.send(ChoicesReport(choices={"steps": Choice(value=script.get("steps", 3), reason="scripted")}))
    link.send(PhaseReport(phase="training"))
    if script.get("grandchild"):
        child = subprocess.Popen(["/bin/sleep", "300"])  # inherits stdout, so the log pipe stays open with it
        link.send(MetricsReport(metrics={"grandchild": child.pid}))
    total = script.get("steps", 3)
    steps_done = _resume(spec)
    for step in range(steps_done + 1, total + 1):
        _misbehave(link, spec, script, step)
        time.sleep(script.get("step_ms", 5) / 1000)
        with (spec.checkpoints_dir.parent / "steps.txt").open("a") as log:
            log.write(f"{step}\n")
        _save(spec, step)
        link.send(CheckpointReport(step=step))
        link.send(ProgressReport(phase="training", epoch=0, step=step, total_steps=total, images_per_second=10.0))
        link.send(MetricsReport(metrics={"loss": 1 / step, "attempt": spec.attempt}))
        if link.stop_requested and not script.get("deaf"):
            return ExitCode.STOPPED
    if script.get("roll_back"):
        link.send(RolledBackReport(reasons=["As told."], to_step=1))
    link.send(PhaseReport(phase="evaluating"))
    _hand_in(link, spec, script)
    return ExitCode.DONE


def _resume(spec: TrainerSpec) -> int:
    for folder in spec.resume_from:
        if (folder / "step.json").is_file():
            return int(json.loads((folder / "step.json").read_text())["step"])
    return 0


def _save(spec: TrainerSpec, step: int) -> None:
    aside = spec.checkpoints_dir / "step.json.tmp"
    aside.write_text(json.dumps({"step": step}))
    aside.rename(spec.checkpoints_dir / "step.json")


def _misbehave(link: TrainerLink, spec: TrainerSpec, script: dict[str, Any], step: int) -> None:
    what = script.get("crash_at", {}).get(str(step))
    if what is None or script.get("only_attempt", spec.attempt) != spec.attempt:
        return
    word, _, number = what.partition(" ")
    if word in {"exit", "signal", "usage", "fatal", "transient"}:
        _end(link, word, number)
    if word in {"hang", "babble", "work", "close"}:
        _linger(link, word, number, step)
    if word == "exhaust":
        (Path(number) / "cgroup.procs").write_text(str(os.getpid()))
        taken = bytearray(256 * 1024**2)
        for page in range(0, len(taken), 4096):
            taken[page] = 1
    if word == "flood":
        for n in range(5000):
            link.send(MetricsReport(metrics={"n": n}))
            link.send(SettledReport(step=n))
    if word == "garbage":
        fd = int(os.environ["MUST_REPORT_FD"])
        for line in (b"{\n", b"\xff\xfe\n", b'{"type":"phase","v":2,"phase":"x"}\n', b"x" * 10**6 + b"\n"):
            os.write(fd, line) if len(line) < 4096 else _write_all(fd, line)
    if word == "say":
        for _ in range(int(number)):
            sys.stdout.write("lorem ipsum\n" * 87_381)
        sys.stdout.flush()


def _end(link: TrainerLink, word: str, number: str) -> None:
    if word == "exit":
        os._exit(int(number))
    if word == "signal":
        print("about to die", flush=True)  # noqa: T201 - the log is under test
        os.kill(os.getpid(), int(number))
        time.sleep(60)
    link.send(ErrorReport(kind=word, code=f"scripted_{word}", message="As told.", param="crash_at"))  # type: ignore[arg-type]
    os._exit({"usage": 64, "fatal": 70, "transient": 75}[word])


def _linger(link: TrainerLink, word: str, number: str, step: int) -> None:
    if word == "work":
        for n in range(int(number) * 5):
            link.send(WorkReport(num_done=n))
            time.sleep(0.2)
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if word == "close":
        os.close(int(os.environ["MUST_REPORT_FD"]))
    for n in range(3000):
        if word == "babble":
            link.send(PhaseReport(phase="preparing" if n % 2 else "training"))
            link.send(ProgressReport(phase="training", step=step - 1, total_steps=9))
            link.send(MetricsReport(metrics={"n": n}))
        time.sleep(0.1)


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _hand_in(link: TrainerLink, spec: TrainerSpec, script: dict[str, Any]) -> None:
    kind = script.get("bundle", "good")
    bundle = spec.output_dir / "bundle"
    if kind == "outside":
        bundle = spec.output_dir.parent.parent
    elif kind != "none":
        (bundle / "weights").mkdir(parents=True)
    if kind == "good":
        (bundle / "bundle.json").write_text(json.dumps({"job": spec.job_id}))
        (bundle / "weights" / "model.bin").write_bytes(b"weights of " + spec.job_id.encode())
    if kind == "symlink":
        (bundle / "passwd").symlink_to("/etc/passwd")
    if kind != "none":
        verdict, report = _verdict(script), _report() if script.get("report") else None
        link.send(ResultReport(bundle_dir=bundle, metrics={"agreement": 0.5}, verdict=verdict, report=report))


def _verdict(script: dict[str, Any]) -> Verdict | None:
    if "verdict" not in script:
        return None
    gain = Gain(
        estimate=0.1,
        low=0.05,
        high=0.15,
        held_out_estimate=0.1,
        num_images=300,
        num_held_out=60,
        num_disagreements=9,
        num_for_adapted=7,
        num_for_zero_shot=1,
    )
    return Verdict(outcome=script["verdict"], candidate="teacher", reasons=["As told."], gain=gain, vetoes=[])


def _report() -> RunReport:
    shares = [
        ClassShare(
            index=k, answers_zero_shot=k, answers_adapted=1 - k, mean_score_zero_shot=0.5, mean_score_adapted=0.5
        )
        for k in range(2)
    ]
    image = ReportedImage(
        position=0,
        held_out=False,
        zero_shot=Answer(index=0, score=0.5),
        adapted=Answer(index=1, score=0.75),
        margin=0.5,
    )
    audit = AuditPlan(num_disagreed=1, num_agreed=0, images=[AuditImage(position=0, zero_shot=0, adapted=1)])
    return RunReport(
        num_images=1,
        num_held_out=0,
        num_changed=1,
        num_classes=2,
        classes=shares,
        changed=[image],
        uncertain=[image],
        audit=audit,
    )


if __name__ == "__main__":
    sys.exit(main())

"""Adapted classifiers that nobody trained, published as a worker publishes them."""

import json
from datetime import timedelta
from pathlib import Path

import torch
from pydantic import TypeAdapter

from app.jobs.ledger import Ledger
from app.storage import BlobStore
from must_core.backbone import load_base
from must_core.bundle import save_bundle
from must_core.student import Student
from must_core.text.prompts import ClassSpec
from tests.support.jobs import verdict
from worker.bundles import store_bundle
from worker.protocol import ResultReport, UnknownBelow, Verdict

NO_LIMITS = UnknownBelow()


def hand_in(
    ledger: Ledger,
    storage: BlobStore,
    job_id: str,
    folder: Path,
    *,
    base_model: str,
    outcome: str = "adapted",
    limits: UnknownBelow = NO_LIMITS,
) -> str:
    """End a queued job with a bundle whose class head is drawn; returns the id of what the job answers with."""
    claim = ledger.claim("w", timedelta(seconds=60), job_id)
    assert claim is not None
    base = load_base(base_model)
    classes = [ClassSpec(c if isinstance(c, str) else c["name"]) for c in claim.classes]
    generator = torch.Generator().manual_seed(5)
    save_bundle(
        folder / "bundle",
        Student.from_base(
            base, torch.nn.functional.normalize(torch.randn(16, len(classes), generator=generator), dim=0)
        ),
        visual_config=base.visual_config,
        preprocess=base.preprocess,
        classes=classes,
        templates=["{}"],
        provenance={"base_model": base_model},
        unknown_below=limits.adapted,
    )
    result = ResultReport(
        bundle_dir=folder / "bundle",
        metrics={},
        verdict=TypeAdapter(Verdict).validate_json(json.dumps(verdict(outcome))),
        unknown_below=limits,
    )
    published = ledger.publish(claim, store_bundle(storage, result, folder))
    assert published is not None
    return published

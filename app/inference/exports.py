"""Writes classifiers as folders that need nothing of this service."""

from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog

from app.exceptions import Conflict, Unavailable
from app.inference.export_process import ExportProcess
from app.inference.predictor import BundleFetcher, BundleSource, Predictor, Source
from app.storage import disk
from must_core.bundle import load_bundle, save_bundle
from must_core.errors import CorruptArtifact, InvalidClasses
from must_core.student import Student
from must_core.text.prompts import build_class_weights

logger = structlog.get_logger(__name__)


class ExportFormat(StrEnum):
    """What a downloaded classifier is written for (docs/export.md)."""

    BUNDLE = "bundle"
    """`must_core` and `must classify`."""
    OPEN_CLIP = "open_clip"
    ONNX = "onnx"


class Exporter:
    """Any classifier in any format. For one thread: each export takes a model's memory."""

    def __init__(self, *, predictor: Predictor, bundles: BundleFetcher) -> None:
        self._predictor = predictor
        self._bundles = bundles
        self._process = ExportProcess()

    def export(
        self, source: Source, *, base_model: str, unknown_below: float | None, to: ExportFormat, folder: Path
    ) -> None:
        """Write a new folder. Takes seconds to minutes. ``unknown_below``: of a zero-shot one; bundles have theirs.

        Raises `Unavailable` when files or weights are missing or damaged or the disk is full, and `Conflict`
        ``not_exportable``.
        """
        with disk(), TemporaryDirectory(dir=folder.parent) as temporary:
            bundle = Path(temporary) / "bundle"
            self._write_bundle(source, unknown_below, bundle)
            if to is ExportFormat.BUNDLE:
                _check(bundle)
                bundle.rename(folder)
                return
            arguments = ["--classifier", str(bundle), "--to", to.value, "--output", str(folder)]
            self._process.run([*arguments, "--model", self._predictor.address_of(base_model)])

    def close(self) -> None:
        """End an export that is at work."""
        self._process.close()

    def _write_bundle(self, source: Source, unknown_below: float | None, folder: Path) -> None:
        if isinstance(source, BundleSource):
            self._bundles.lay_out(source, folder)
            return
        base = self._predictor.base(source.base_model)
        try:
            class_weights_DK = build_class_weights(base, source.classes, source.templates)
        except InvalidClasses as e:  # made under rules that were others
            raise Conflict("not_exportable", e.message) from e
        save_bundle(
            folder,
            Student.from_base(base, class_weights_DK),
            visual_config=base.visual_config,
            preprocess=base.preprocess,
            classes=source.classes,
            templates=source.templates,
            provenance={"base_model": source.base_model, "base_text_fingerprint": base.text_fingerprint},
            unknown_below=unknown_below,
        )


def _check(folder: Path) -> None:
    try:
        load_bundle(folder)
    except CorruptArtifact as e:
        logger.exception("bundle_corrupt")
        raise Unavailable("artifact_corrupt", "The classifier's files are damaged.") from e

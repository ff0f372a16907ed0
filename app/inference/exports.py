"""Writes classifiers as folders that need nothing of this service."""

from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

import structlog

from app.exceptions import Conflict, Unavailable
from app.inference.predictor import BundleFetcher, BundleSource, Predictor, Source
from must_core.bundle import Bundle, load_bundle, save_bundle
from must_core.errors import CorruptArtifact, InvalidConfig
from must_core.export import export_onnx, export_open_clip
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
    """Any classifier in any format; one at a time, for each takes a model's memory."""

    def __init__(self, *, predictor: Predictor, bundles: BundleFetcher) -> None:
        self._predictor = predictor
        self._bundles = bundles
        self._lock = Lock()

    def export(
        self, source: Source, *, base_model: str, unknown_below: float | None, to: ExportFormat, folder: Path
    ) -> None:
        """Write a new folder. Takes seconds to minutes. ``unknown_below``: of a zero-shot one; bundles have theirs.

        Raises `Unavailable` when files or weights are missing or damaged, and `Conflict` ``not_exportable``.
        """
        with self._lock, TemporaryDirectory(dir=folder.parent) as temporary:
            try:
                stored = self._bundle_folder(source, unknown_below, Path(temporary) / "bundle")
                if to is ExportFormat.BUNDLE:
                    stored.rename(folder)
                elif to is ExportFormat.ONNX:
                    export_onnx(_loaded(stored), folder)
                else:
                    export_open_clip(_loaded(stored), self._predictor.base(base_model), folder)
            except InvalidConfig as e:
                raise Conflict("not_exportable", e.message) from e

    def _bundle_folder(self, source: Source, unknown_below: float | None, folder: Path) -> Path:
        if isinstance(source, BundleSource):
            self._bundles.lay_out(source, folder)
            return folder
        base = self._predictor.base(source.base_model)
        save_bundle(
            folder,
            Student.from_base(base, build_class_weights(base, source.classes, source.templates)),
            visual_config=base.visual_config,
            preprocess=base.preprocess,
            classes=source.classes,
            templates=source.templates,
            provenance={"base_model": source.base_model, "base_text_fingerprint": base.text_fingerprint},
            unknown_below=unknown_below,
        )
        return folder


def _loaded(folder: Path) -> Bundle:
    try:
        return load_bundle(folder)
    except CorruptArtifact as e:
        logger.exception("bundle_corrupt")
        raise Unavailable("artifact_corrupt", "The classifier's files are damaged.") from e

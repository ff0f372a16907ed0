"""Answers for images: loads base models and bundles, keeps them warm, runs the forward pass.

Shapes: B images, K classes.
"""

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog
import torch
from PIL import Image
from torch import Tensor

from app.exceptions import InvalidInput, Unavailable
from app.inference.cache import LoadingCache
from app.inference.catalog import ModelCatalog
from must_core.auto import check_fit
from must_core.backbone import BaseModel, Preprocess, load_base
from must_core.bundle import load_bundle, serving_classifier
from must_core.config import check_hyperparameters
from must_core.errors import CorruptArtifact, InvalidClasses, InvalidConfig, UnknownModel, WeightsUnavailable
from must_core.guard.panel import hold_out
from must_core.student import Student
from must_core.text.prompts import ClassSpec, build_class_weights, check_classes, check_lengths
from must_core.unknown import raw_scores

logger = structlog.get_logger(__name__)

_FORWARD_BATCH = 64


@dataclass(frozen=True)
class ZeroShotSource:
    """A classifier made of text alone."""

    base_model: str
    classes: tuple[ClassSpec, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class BundleSource:
    """A published bundle: file names and the sha256 of their blobs. ``version`` identifies the contents."""

    version: str
    files: tuple[tuple[str, str], ...]


Source = ZeroShotSource | BundleSource


@dataclass(frozen=True)
class Answer:
    """What a classifier says of one image, best first; scores are softmax probabilities, cosines raw."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    raw_score: float
    """Cosine between the image and the best class, −1 to 1."""
    margin: float
    """Best score minus the second."""


class BundleFetcher(Protocol):
    """Brings a bundle's files into a folder of this machine."""

    def laid_out(self, source: BundleSource) -> AbstractContextManager[Path]:
        """A folder with the bundle's files under their names, each verified; it goes with the block."""
        ...

    def lay_out(self, source: BundleSource, folder: Path) -> None:
        """Fill a new folder of the caller's likewise."""
        ...


@dataclass(frozen=True)
class _Loaded:
    classifier: Student
    preprocess: Preprocess
    class_names: tuple[str, ...]


class Predictor:
    """Holds what is warm and classifies; every method may be called from any thread and may take seconds when cold."""

    def __init__(self, *, catalog: ModelCatalog, bundles: BundleFetcher, max_models: int, max_heads: int = 256) -> None:
        self._catalog = catalog
        self._bundles = bundles
        self._bases: LoadingCache[str, BaseModel] = LoadingCache(max_models)
        self._bundle_models: LoadingCache[str, _Loaded] = LoadingCache(max_models)
        self._heads: LoadingCache[ZeroShotSource, _Loaded] = LoadingCache(max_heads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._forward = threading.Lock()

    def check(self, source: ZeroShotSource) -> None:
        """Check a class list against the rules and the base model's tokenizer.

        Raises `InvalidInput`, and `Unavailable` when the base model's weights are not at hand.
        """
        try:
            check_classes(source.classes, source.templates)
            check_lengths(self.base(source.base_model), source.classes, source.templates)
        except InvalidClasses as e:
            raise InvalidInput(e.code, e.message, param=e.param) from e

    def check_hyperparameters(self, base_model: str, requested: Mapping[str, Any]) -> None:
        """Check each value by itself and against the base model; raises `InvalidInput` and `Unavailable`."""
        try:
            check_hyperparameters(requested)
            check_fit(requested, self.base(base_model))
        except InvalidConfig as e:
            raise InvalidInput(e.code, e.message, param=e.param) from e

    @staticmethod
    def num_trained_on(num_images: int) -> int:
        """How many of a dataset's images a job trains on; the guard has the others."""
        return len(hold_out(num_images, seed=0).training)

    def load(self, source: Source) -> None:
        """Make a classifier ready; raises `Unavailable` when its weights are missing or damaged."""
        self._load(source)

    def reload(self, source: Source) -> None:
        """Make a classifier ready from its stored files as they are now, however warm it is; raises `Unavailable`.

        Callers at the same time share one load.
        """
        if isinstance(source, BundleSource):
            self._bundle_models.refresh(source.version, lambda: self._load_bundle(source))
        else:
            self._load(source)

    def classify(self, source: Source, images: Sequence[Image.Image], *, top_k: int) -> list[Answer]:
        """Answer for RGB images, in their order."""
        loaded = self._load(source)
        transform = loaded.preprocess.transform()
        images_BCHW = torch.stack([transform(image) for image in images])
        return self._answers(loaded, self._logits(loaded, images_BCHW), top_k)

    def _logits(self, loaded: _Loaded, images_BCHW: Tensor) -> Tensor:
        with self._forward, torch.inference_mode():
            parts = [loaded.classifier(part.to(self._device)) for part in images_BCHW.split(_FORWARD_BATCH)]
            return torch.cat(parts).float().cpu()

    @staticmethod
    def _answers(loaded: _Loaded, logits_BK: Tensor, top_k: int) -> list[Answer]:
        num_classes = logits_BK.shape[1]
        scores_BK, order_BK = logits_BK.softmax(dim=-1).topk(min(max(top_k, 2), num_classes), dim=-1)
        raw_B = raw_scores(logits_BK, loaded.classifier.logit_scale)
        return [
            Answer(
                labels=tuple(loaded.class_names[k] for k in order[:top_k]),
                scores=tuple(scores[:top_k]),
                raw_score=raw,
                margin=scores[0] - scores[1],
            )
            for scores, order, raw in zip(scores_BK.tolist(), order_BK.tolist(), raw_B.tolist(), strict=True)
        ]

    def _load(self, source: Source) -> _Loaded:
        if isinstance(source, BundleSource):
            return self._bundle_models.get(source.version, lambda: self._load_bundle(source))
        return self._heads.get(source, lambda: self._build_head(source))

    def _load_bundle(self, source: BundleSource) -> _Loaded:
        try:
            with self._bundles.laid_out(source) as folder:
                bundle = load_bundle(folder)
        except CorruptArtifact as e:
            logger.exception("bundle_corrupt", version=source.version)
            raise Unavailable("artifact_corrupt", "The classifier's files are damaged.") from e
        return _Loaded(bundle.classifier.to(self._device), bundle.preprocess, bundle.class_names)

    def _build_head(self, source: ZeroShotSource) -> _Loaded:
        base = self.base(source.base_model)
        try:
            class_weights_DK = build_class_weights(base, source.classes, source.templates)
        except InvalidClasses as e:
            raise InvalidInput(e.code, e.message, param=e.param) from e
        classifier = serving_classifier(base.visual, class_weights_DK, logit_scale=base.logit_scale)
        return _Loaded(classifier.to(self._device), base.preprocess, tuple(c.name for c in source.classes))

    def address_of(self, base_model: str) -> str:
        """Where open_clip loads a base model from; raises `InvalidInput` ``unknown_model``."""
        return self._catalog.get(base_model).address

    def base(self, name: str) -> BaseModel:
        """The base model of a name, kept warm; raises `Unavailable`."""
        entry = self._catalog.get(name)
        try:
            return self._bases.get(entry.name, lambda: load_base(entry.address))
        except (UnknownModel, WeightsUnavailable) as e:  # an operator's entry may point nowhere
            logger.exception("weights_unavailable", base_model=name)
            raise Unavailable("weights_unavailable", "The base model's weights are not at hand here.") from e

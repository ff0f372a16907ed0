"""Classifying images: decode, predict, and let one bad image fail alone."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import anyio.to_thread
from PIL import Image

from app.exceptions import InvalidInput
from app.inference.classes import ClassList
from app.inference.predictor import Answer, Predictor, Source
from app.ingest.decoding import DecoderPool
from app.services.classifiers import ClassifierService
from must_core.data.images import ImageRejected

_AT_ONCE = 32
"""Images decoded and classified together."""


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """How to answer."""

    top_k: int = 5
    threshold: float | None = None
    """Best scores below this make an image unknown, instead of the classifier's own limit."""
    compare_zero_shot: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """One image of a request."""

    filename: str | None
    content: bytes


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """One image's answer, or the error it failed with."""

    filename: str | None
    answer: Answer | None = None
    unknown: bool | None = None
    """Whether it seems to show none of the classes; None when nobody can say."""
    zero_shot: Answer | None = None
    error: ImageRejected | None = None


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where the time went, in milliseconds."""

    decode_ms: float
    infer_ms: float
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Everything a reply says."""

    classifier_id: str | None
    version: str | None
    results: list[ImageResult]
    timings: Timings


class ClassifyService:
    """Answers for images with a stored classifier or with a class list of the moment."""

    def __init__(self, *, classifiers: ClassifierService, predictor: Predictor, decoder: DecoderPool) -> None:
        self._classifiers = classifiers
        self._predictor = predictor
        self._decoder = decoder

    async def with_classifier(
        self, reference: str, images: Sequence[ImageInput], options: ClassifyOptions, *, tenant: str
    ) -> Classification:
        """Answer with a stored classifier, by its id or a tenant's alias; raises `NotFound` and `Unavailable`.

        An alias is looked at once, so that one classifier answers for all images.
        """
        classifier = await anyio.to_thread.run_sync(lambda: self._classifiers.resolve(reference, tenant=tenant))
        other = self._classifiers.zero_shot_of(classifier) if options.compare_zero_shot else None
        results, timings = await self._classify(self._classifiers.source_of(classifier), other, images, options)
        results = [_told_unknown(result, options, classifier.unknown_below) for result in results]
        return Classification(classifier_id=classifier.id, version=classifier.version, results=results, timings=timings)

    async def with_classes(
        self, classes: ClassList, base_model: str | None, images: Sequence[ImageInput], options: ClassifyOptions
    ) -> Classification:
        """Answer zero-shot with a class list of the moment; raises `InvalidInput` and `Unavailable`."""
        source = await anyio.to_thread.run_sync(
            lambda: self._classifiers.zero_shot_source(classes, base_model=base_model)
        )
        results, timings = await self._classify(source, None, images, options)
        results = [_told_unknown(result, options, None) for result in results]
        return Classification(classifier_id=None, version=None, results=results, timings=timings)

    async def _classify(
        self, source: Source, other: Source | None, images: Sequence[ImageInput], options: ClassifyOptions
    ) -> tuple[list[ImageResult], Timings]:
        if not images:
            raise InvalidInput("missing_file", "At least one image is needed.", param="images")
        results: list[ImageResult] = []
        decode_s = infer_s = 0.0
        for start in range(0, len(images), _AT_ONCE):  # so that few decoded images are in memory
            part = images[start : start + _AT_ONCE]
            started = time.perf_counter()
            decoded = await asyncio.gather(*(self._decode(image) for image in part))
            decoded_at = time.perf_counter()
            results += await self._answer_part(source, other, part, decoded, top_k=options.top_k)
            decode_s += decoded_at - started
            infer_s += time.perf_counter() - decoded_at
        num_sound = sum(result.answer is not None for result in results)
        return results, Timings(decode_ms=decode_s * 1000, infer_ms=infer_s * 1000, batch_size=min(num_sound, _AT_ONCE))

    async def _answer_part(
        self,
        source: Source,
        other: Source | None,
        part: Sequence[ImageInput],
        decoded: Sequence[Image.Image | ImageRejected],
        *,
        top_k: int,
    ) -> list[ImageResult]:
        sound = [image for image in decoded if isinstance(image, Image.Image)]
        answers = iter(await self._answers(source, sound, top_k))
        others = iter([] if other is None else await self._answers(other, sound, top_k))
        return [
            ImageResult(filename=image.filename, error=item)
            if isinstance(item, ImageRejected)
            else ImageResult(filename=image.filename, answer=next(answers), zero_shot=next(others, None))
            for image, item in zip(part, decoded, strict=True)
        ]

    async def _decode(self, image: ImageInput) -> Image.Image | ImageRejected:
        try:
            return Image.fromarray(await self._decoder.decode(image.content))
        except ImageRejected as e:
            return e

    async def _answers(self, source: Source, images: list[Image.Image], top_k: int) -> list[Answer]:
        if not images:
            return []
        return await anyio.to_thread.run_sync(lambda: self._predictor.classify(source, images, top_k=top_k))


def _told_unknown(result: ImageResult, options: ClassifyOptions, unknown_below: float | None) -> ImageResult:
    answer = result.answer
    if answer is None:
        return result
    if options.threshold is not None:
        return replace(result, unknown=answer.scores[0] < options.threshold)
    return replace(result, unknown=None if unknown_below is None else answer.raw_score < unknown_below)

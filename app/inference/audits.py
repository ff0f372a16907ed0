"""What a few labels say of a job's two classifiers: must_core's estimate, asked with class names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.exceptions import InvalidInput
from must_core.audit import MIN_LABELS, MIN_OF_STRATUM, Audit, Estimate, Labelled, TooFewLabels, estimate
from must_core.text.written_labels import UnknownLabel, WrittenLabels

__all__ = ["MIN_LABELS", "Audit", "Estimate", "ReadLabels", "audit", "read_labels", "words_for_none"]


@dataclass(frozen=True)
class ReadLabels:
    """Labels that a person wrote, by the images' positions: class names, None for none of the classes."""

    found: Mapping[int, str | None]
    wrong: Mapping[int, str]
    """What is wrong with the others, in a sentence; the first one's also says what was perhaps meant."""


def words_for_none(class_names: Sequence[str]) -> str:
    """What a person writes for an image of none of the classes; no class is called so."""
    return WrittenLabels(class_names).none


def read_labels(class_names: Sequence[str], texts: Mapping[int, str]) -> ReadLabels:
    """Find the classes that were meant, whatever their case; a blank text is no label."""
    labels = WrittenLabels(class_names)
    found: dict[int, str | None] = {}
    wrong: dict[int, str] = {}
    for position, text in texts.items():
        if not text.strip():
            continue
        try:
            index = labels.index_of(text)
        except UnknownLabel:
            nearest = None if wrong else labels.nearest(text)  # once: it takes long
            wrong[position] = "No class of the job." + (f" Perhaps “{nearest}”?" if nearest else "")
        else:
            found[position] = None if index is None else class_names[index]
    return ReadLabels(found, wrong)


def audit(plan: Mapping[str, Any], class_names: Sequence[str], labels: Sequence[tuple[int, str | None]]) -> Audit:
    """Count labels, each an image's position and a class name or None, by the plan that proposed the images.

    Raises `InvalidInput`: ``not_in_audit``, ``duplicate_label``, ``unknown_class``, ``too_few_labels``.
    """
    proposed = {image["position"]: image for image in plan["images"]}
    index_of = {name: index for index, name in enumerate(class_names)}
    labelled: dict[int, Labelled] = {}
    for position, name in labels:
        if position not in proposed:
            raise InvalidInput("not_in_audit", "An image is not one of those to label.", param="labels")
        if position in labelled:
            raise InvalidInput("duplicate_label", "An image has two labels.", param="labels")
        if name is not None and name not in index_of:
            raise InvalidInput("unknown_class", "A label is none of the job's classes.", param="labels")
        image = proposed[position]
        label = None if name is None else index_of[name]
        labelled[position] = Labelled(zero_shot=image["zero_shot"], adapted=image["adapted"], label=label)
    try:
        return estimate(list(labelled.values()), num_disagreed=plan["num_disagreed"], num_agreed=plan["num_agreed"])
    except TooFewLabels as e:
        raise InvalidInput(
            "too_few_labels",
            f"At least {MIN_LABELS} labels are needed, and {MIN_OF_STRATUM} each of images on which the classifiers "
            "agree and disagree.",
            param="labels",
        ) from e

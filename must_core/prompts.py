"""Class names x templates -> class weights, and the rules for both.

Shapes: D embedding width, K classes, T texts of a batch.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from must_core.backbone import BaseModel
from must_core.errors import InvalidClasses

DEFAULT_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "{}",
)
"""Used when the user gives none: plain phrasings that fit most images. Templates of the domain do better."""

MIN_CLASSES = 2
MAX_CLASSES = 10_000
MAX_TEMPLATES = 200
MAX_PROMPTS = 2_000_000

_PLACEHOLDER = "{}"
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
_TEXT_BATCH = 256


@dataclass(frozen=True)
class ClassSpec:
    """A class: the name people see, and optionally its own prompts, used word for word instead of the templates."""

    name: str
    prompts: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: object) -> "ClassSpec":
        """Read a name, or an object with a name and perhaps prompts; raises `InvalidClasses` ``invalid_type``."""
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            return cls(value["name"], tuple(map(str, value.get("prompts", ()))))
        raise InvalidClasses("A class is a name or an object with a name.", code="invalid_type", param="classes")

    def texts(self, templates: Sequence[str]) -> list[str]:
        """Every text that stands for this class. Names are put in by replacement, so ``{`` in a name is a brace."""
        return list(self.prompts) or [template.replace(_PLACEHOLDER, self.name) for template in templates]


def check_classes(classes: Sequence[ClassSpec], templates: Sequence[str]) -> None:
    """Check names and templates by themselves; raises `InvalidClasses` with the code of the rule that is broken."""
    if len(classes) < MIN_CLASSES:
        raise InvalidClasses("At least two classes are needed.", code="too_few_classes", param="classes")
    if len(classes) > MAX_CLASSES:
        raise InvalidClasses(f"At most {MAX_CLASSES} classes.", code="too_many_classes", param="classes")
    seen: set[str] = set()
    for spec in classes:
        for text in (spec.name, *spec.prompts):
            if not _is_printable(text):
                raise InvalidClasses(
                    "A class name or prompt is empty or holds invisible or control characters.",
                    code="invalid_class_name",
                    param="classes",
                )
        folded = unicodedata.normalize("NFKC", spec.name).casefold().strip()
        if folded in seen:
            raise InvalidClasses("Two classes have the same name.", code="duplicate_class", param="classes")
        seen.add(folded)
    _check_templates(templates)
    if sum(len(spec.prompts) or len(templates) for spec in classes) > MAX_PROMPTS:
        raise InvalidClasses(
            f"Classes times templates make more than {MAX_PROMPTS} prompts.",
            code="too_many_prompts",
            param="templates",
        )


def _check_templates(templates: Sequence[str]) -> None:
    if not templates:
        raise InvalidClasses("At least one template is needed.", code="template_missing_placeholder", param="templates")
    if len(templates) > MAX_TEMPLATES:
        raise InvalidClasses(f"At most {MAX_TEMPLATES} templates.", code="too_many_prompts", param="templates")
    for template in templates:
        if not _is_printable(template):
            raise InvalidClasses(
                "A template is empty or holds control characters.", code="invalid_template", param="templates"
            )
        if not re.search(r"[{}]", template):
            raise InvalidClasses(
                "A template lacks its {} placeholder.", code="template_missing_placeholder", param="templates"
            )
        if template.count(_PLACEHOLDER) != 1 or re.search(r"[{}]", template.replace(_PLACEHOLDER, "", 1)):
            raise InvalidClasses(
                "A template holds exactly one {} and no other braces.",
                code="template_invalid_placeholder",
                param="templates",
            )


def _is_printable(text: str) -> bool:
    """Whether a text shows something and hides nothing: no control, surrogate, line or direction characters."""
    hidden = {"Cc", "Cs", "Zl", "Zp"}
    if any(unicodedata.category(c) in hidden or c in _BIDI_CONTROLS for c in text):
        return False
    return any(unicodedata.category(c) not in {"Cf", "Zs"} for c in text)


def check_lengths(base: BaseModel, classes: Sequence[ClassSpec], templates: Sequence[str]) -> None:
    """Check that no text is longer than the model reads, since open_clip would cut it without a word."""
    for spec in classes:
        if base.num_tokens(spec.name) > base.context_length:
            raise InvalidClasses("A class name is too long.", code="class_name_too_long", param="classes")
        for text in spec.texts(templates):
            if base.num_tokens(text) > base.context_length:
                raise InvalidClasses(
                    "A prompt is longer than the model reads.", code="prompt_too_long", param="templates"
                )


class PromptEnsemble:
    """Class weights in the making: iterate to encode, a batch of texts at a time, then read the result.

    A class is the normalised mean of its texts' unit vectors (prompt ensembling; Radford et al., 2021, section
    3.1.4). Memory does not grow with the number of texts.
    """

    def __init__(self, base: BaseModel, classes: Sequence[ClassSpec], templates: Sequence[str]) -> None:
        """Raises `InvalidClasses` as `check_classes` and `check_lengths` do."""
        check_classes(classes, templates)
        check_lengths(base, classes, templates)
        self._base = base
        self._classes = classes
        self._templates = templates
        self._sums_KD: Tensor | None = None

    def __iter__(self) -> Iterator[int]:
        """Yield the number of texts encoded so far, after each batch."""
        texts = ((k, text) for k, spec in enumerate(self._classes) for text in spec.texts(self._templates))
        num_done, sums_KD = 0, None
        while batch := list(islice(texts, _TEXT_BATCH)):
            features_TD = self._base.encode_text([text for _, text in batch])
            if sums_KD is None:
                sums_KD = torch.zeros(len(self._classes), features_TD.shape[1])
            sums_KD.index_add_(0, torch.tensor([k for k, _ in batch]), features_TD)
            num_done += len(batch)
            yield num_done
        self._sums_KD = sums_KD

    @property
    def weights_DK(self) -> Tensor:  # noqa: N802 - named by its shape
        """Float32, one unit column per class; there once every text has been encoded."""
        if self._sums_KD is None:
            raise RuntimeError("iterate to the end first")
        return F.normalize(self._sums_KD, dim=-1).T.contiguous()


def build_class_weights(base: BaseModel, classes: Sequence[ClassSpec], templates: Sequence[str]) -> Tensor:
    """Encode the classes into ``class_weights_DK`` in one go; see `PromptEnsemble`."""
    ensemble = PromptEnsemble(base, classes, templates)
    for _ in ensemble:
        pass
    return ensemble.weights_DK

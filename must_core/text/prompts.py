"""Class names x templates -> class weights, and the rules for both.

Shapes: D embedding width, K classes, T texts of a batch.
"""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from must_core.backbone import BaseModel
from must_core.errors import InvalidClasses
from must_core.text.characters import folded, is_readable

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
_CONTROL_WORDS = re.compile("<(start|end)_of_text>", re.IGNORECASE)
"""What CLIP's tokenizer takes for its own marks: a text ends there, whatever follows."""
_TEXT_BATCH = 256
_CHECK_BATCH = 4096


@dataclass(frozen=True)
class ClassSpec:
    """A class: the name people see, and optionally its own prompts, used word for word instead of the templates."""

    name: str
    prompts: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: object) -> "ClassSpec":
        """Read a name, or an object with a name and perhaps prompts; no value is taken for another type's.

        Raises `InvalidClasses` ``invalid_type``, and ``unknown_field`` for an object that says more.
        """
        if isinstance(value, str):
            return cls(value)
        if not (isinstance(value, dict) and isinstance(value.get("name"), str)):
            raise InvalidClasses("A class is a name or an object with a name.", code="invalid_type", param="classes")
        if value.keys() - {"name", "prompts"}:
            raise InvalidClasses("A class has a name and prompts.", code="unknown_field", param="classes")
        prompts = value.get("prompts", [])
        if not (isinstance(prompts, list | tuple) and all(isinstance(prompt, str) for prompt in prompts)):
            raise InvalidClasses("A class's prompts are a list of texts.", code="invalid_type", param="classes")
        return cls(value["name"], tuple(prompts))

    def texts(self, templates: Sequence[str]) -> list[str]:
        """Every text that stands for this class. Names are put in by replacement, so ``{`` in a name is a brace."""
        return list(self.prompts) or [template.replace(_PLACEHOLDER, self.name) for template in templates]


def check_classes(classes: Sequence[ClassSpec], templates: Sequence[str]) -> None:
    """Check names and templates by themselves; raises `InvalidClasses` with the code of the rule that is broken.

    Messages count classes and templates from 1.
    """
    if len(classes) < MIN_CLASSES:
        raise InvalidClasses("At least two classes are needed.", code="too_few_classes", param="classes")
    if len(classes) > MAX_CLASSES:
        raise InvalidClasses(f"At most {MAX_CLASSES} classes.", code="too_many_classes", param="classes")
    _check_templates(templates)
    if num_prompts(classes, templates) > MAX_PROMPTS:
        raise InvalidClasses(
            f"Classes times templates make more than {MAX_PROMPTS} prompts.",
            code="too_many_prompts",
            param="templates",
        )
    first_of: dict[str, int] = {}
    for number, spec in enumerate(classes, start=1):
        if not all(map(_is_sayable, (spec.name, *spec.prompts))):
            raise InvalidClasses(
                f"Class {number}: its name or a prompt is empty or holds invisible or control characters.",
                code="invalid_class_name",
                param="classes",
            )
        first = first_of.setdefault(folded(spec.name), number)
        if first != number:
            raise InvalidClasses(
                f"Classes {first} and {number} have the same name.", code="duplicate_class", param="classes"
            )


def num_prompts(classes: Sequence[ClassSpec], templates: Sequence[str]) -> int:
    """Texts that stand for all classes together."""
    return sum(len(spec.prompts) or len(templates) for spec in classes)


def _check_templates(templates: Sequence[str]) -> None:
    if not templates:
        raise InvalidClasses("At least one template is needed.", code="template_missing_placeholder", param="templates")
    if len(templates) > MAX_TEMPLATES:
        raise InvalidClasses(f"At most {MAX_TEMPLATES} templates.", code="too_many_prompts", param="templates")
    for number, template in enumerate(templates, start=1):
        if not _is_sayable(template):
            raise InvalidClasses(
                f"Template {number} is empty or holds control characters.", code="invalid_template", param="templates"
            )
        if not re.search(r"[{}]", template):
            raise InvalidClasses(
                f"Template {number} lacks its {{}} placeholder.", code="template_missing_placeholder", param="templates"
            )
        if template.count(_PLACEHOLDER) != 1 or re.search(r"[{}]", template.replace(_PLACEHOLDER, "", 1)):
            raise InvalidClasses(
                f"Template {number}: a template holds exactly one {{}} and no other braces.",
                code="template_invalid_placeholder",
                param="templates",
            )


def _is_sayable(text: str) -> bool:
    """Whether a text is readable, and the tokenizer, which resolves HTML entities twice, finds none of its marks."""
    if not is_readable(text):
        return False
    may_hold_marks = "<" in text or "&" in text
    return not (may_hold_marks and _CONTROL_WORDS.search(html.unescape(html.unescape(text))))


def check_lengths(base: BaseModel, classes: Sequence[ClassSpec], templates: Sequence[str]) -> None:
    """Check that no text is longer than the model reads, since open_clip would cut it without a word.

    Raises `InvalidClasses` ``class_name_too_long`` or ``prompt_too_long``. Millions of texts take minutes at worst;
    `length_checks` does the same with signs of progress.
    """
    for _ in length_checks(base, classes, templates):
        pass


def length_checks(base: BaseModel, classes: Sequence[ClassSpec], templates: Sequence[str]) -> Iterator[int]:
    """Do what `check_lengths` does while iterated; yields the number of texts checked, now and then."""
    num_checked = num_told = 0
    for number, spec in enumerate(classes, start=1):
        if not _fits(base, spec.name):
            raise InvalidClasses(
                f"The name of class {number} is longer than the model reads.",
                code="class_name_too_long",
                param="classes",
            )
        for text in spec.texts(templates):
            if not _fits(base, text):
                raise InvalidClasses(
                    f"A prompt of class {number} is longer than the model reads.",
                    code="prompt_too_long",
                    param="classes" if spec.prompts else "templates",
                )
            num_checked += 1
        if num_checked - num_told >= _CHECK_BATCH:
            num_told = num_checked
            yield num_checked


def _fits(base: BaseModel, text: str) -> bool:
    # A token covers at least a character of an ASCII text without entities, and no tokenizer adds more than four of
    # its own; counting characters first is a hundred times faster than tokenizing, and nearly every text is short.
    if text.isascii() and "&" not in text and len(text) + 4 <= base.context_length:
        return True
    return base.num_tokens(text) <= base.context_length


class PromptEnsemble:
    """Class weights in the making: iterate to check and encode, some texts at a time, then read the result.

    A class is the normalised mean of its texts' unit vectors (prompt ensembling; Radford et al., 2021, section
    3.1.4). Memory does not grow with the number of texts.
    """

    def __init__(self, base: BaseModel, classes: Sequence[ClassSpec], templates: Sequence[str]) -> None:
        """Raises `InvalidClasses` as `check_classes` does."""
        check_classes(classes, templates)
        self._base = base
        self._classes = classes
        self._templates = templates
        self._sums_KD: Tensor | None = None

    def __iter__(self) -> Iterator[int]:
        """Yield the number of texts encoded so far: 0 while lengths are checked, then after each batch.

        Every length is checked before anything is encoded; raises `InvalidClasses` as `check_lengths` does.
        """
        for _ in length_checks(self._base, self._classes, self._templates):
            yield 0
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

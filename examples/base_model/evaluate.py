"""Measure a model's zero-shot accuracy: `python -m examples.base_model.evaluate --fonts DIR…`.

On the scanned digits of `examples/digits`, by split, and, where fonts are given, on printed characters of
families that were held out of training. Images go through the preprocessing the model's own config names.
"""

import argparse
import io
import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from examples.base_model.captions import NUM_CHARACTERS, NUM_DIGITS, SUBJECTS
from examples.base_model.glyphs import hold_out, load_families
from examples.base_model.rendering import Look, Renderer
from examples.digits.splits import read_labels, split

HERE = Path(__file__).parent
DIGITS = HERE.parent / "digits"
LETTER_TEMPLATES = ("a photo of the letter {}.", "the letter {}", "the character {}")
DIGIT_TEMPLATES = tuple(json.loads((DIGITS / "templates.json").read_text()))
CLASS_NAMES = tuple(json.loads((DIGITS / "classes.json").read_text()))


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """A loaded model and what turns its inputs into tensors."""

    model: open_clip.CLIP
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]

    @torch.no_grad()
    def class_weights(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return a unit vector per class (K, D): the mean of its prompts' unit vectors, normalised again."""
        rows = []
        for name in names:
            tokens = self.tokenize([template.format(name) for template in templates])
            rows.append(normalize(self.model.encode_text(tokens, normalize=True).mean(dim=0), dim=0))
        return torch.stack(rows)

    @torch.no_grad()
    def predict(self, images: Sequence[Image.Image], weights_KD: Tensor) -> Tensor:
        """Return the index of the best class of each image (N)."""
        images_N3HW = torch.stack([self.preprocess(image) for image in images])
        parts = [self.model.encode_image(part, normalize=True) for part in images_N3HW.split(256)]
        return (torch.cat(parts) @ weights_KD.T).argmax(dim=1)


def load_model(folder: Path) -> ZeroShot:
    """Load an open_clip folder for evaluation; a folder without weights is an error."""
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name, require_pretrained=True)
    model.eval()
    return ZeroShot(model=model, preprocess=preprocess, tokenize=open_clip.get_tokenizer(name))


def read_digits() -> dict[str, Image.Image]:
    """Return the scanned digits by file name."""
    with zipfile.ZipFile(DIGITS / "digits.zip") as archive:
        return {name: Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in archive.namelist()}


def digit_correctness(zero_shot: ZeroShot) -> dict[str, bool]:
    """Return for each scanned digit, by file name, whether the model names it rightly."""
    images, labels = read_digits(), read_labels()
    weights_KD = zero_shot.class_weights(CLASS_NAMES, DIGIT_TEMPLATES)
    predicted = zero_shot.predict(list(images.values()), weights_KD).tolist()
    return {name: CLASS_NAMES[index] == labels[name] for name, index in zip(images, predicted, strict=True)}


def printed_accuracy(
    zero_shot: ZeroShot, fonts: list[Path], *, minimum: int, count: int, seed: int
) -> dict[str, float]:
    """Return accuracy on rendered images of the held-out families: digits among ten, letters among 26."""
    _, families = hold_out(load_families(fonts, minimum=minimum))
    letters = [subject.names[0] for subject in SUBJECTS[NUM_DIGITS:NUM_CHARACTERS]]
    tasks = (
        ("digits", Look(digit_share=1.0, letter_share=0.0), CLASS_NAMES, DIGIT_TEMPLATES, 0),
        ("letters", Look(digit_share=0.0, letter_share=1.0), letters, LETTER_TEMPLATES, NUM_DIGITS),
    )
    results: dict[str, float] = {}
    for name, look, classes, templates, first in tasks:
        batch = Renderer(families=families, look=look, seed=seed).batch(count)
        pixels = (batch.images_B3HW.transpose(0, 2, 3, 1) * 255).round().astype("uint8")
        predicted_N = zero_shot.predict(
            [Image.fromarray(image) for image in pixels], zero_shot.class_weights(classes, templates)
        )
        true_N = torch.from_numpy(batch.subjects_B) - first
        results[name] = float((predicted_N == true_N).float().mean())
    return results


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the tiny model's zero-shot accuracy.")
    parser.add_argument("--model", type=Path, default=HERE / "tiny-clip", metavar="DIR")
    parser.add_argument("--fonts", type=Path, nargs="*", default=[], metavar="DIR", help="also measure on print")
    parser.add_argument("--min-families", type=int, default=60)
    parser.add_argument("--splits", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    zero_shot = load_model(args.model)
    correct = digit_correctness(zero_shot)
    print(f"scanned digits, all {len(correct)} images: {100 * sum(correct.values()) / len(correct):.1f} %")
    for seed in args.splits:
        _, held_out = split(seed)
        share = sum(correct[name] for name in held_out) / len(held_out)
        print(f"scanned digits, held-out half of split {seed}: {100 * share:.1f} %")
    if args.fonts:
        printed = printed_accuracy(zero_shot, args.fonts, minimum=args.min_families, count=2000, seed=1)
        for name, accuracy in printed.items():
            print(f"printed {name} of held-out font families: {100 * accuracy:.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())

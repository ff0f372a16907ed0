"""``must classify``: says what is in images."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import typer

from must_core.bundle import load_bundle
from must_core.cli.told import DONE, SOME_FAILED
from must_core.data.loader import ImageFiles, find_images
from must_core.errors import UnreadableImage
from must_core.parallel import local_device
from must_core.unknown import raw_scores


def run(classifier: Path, images: Sequence[Path], *, top_k: int, device: str | None, as_json: bool) -> int:
    """Print a line an image; one that cannot be read has its error there."""
    bundle = load_bundle(classifier)
    model = bundle.classifier.to(local_device(device))
    transform = bundle.preprocess.transform()
    status = DONE
    for path in _files(images):
        answer: dict[str, object] = {"file": os.fsencode(path).decode("utf-8", "backslashreplace")}
        try:
            image_CHW = transform(ImageFiles([path]).image(0))
        except (UnreadableImage, OSError) as e:
            answer["error"] = e.message if isinstance(e, UnreadableImage) else e.strerror or type(e).__name__
            status = SOME_FAILED
        else:
            with torch.inference_mode():
                logits_BK = model(image_CHW[None].to(model.classifier.device)).float()
            best = logits_BK[0].softmax(dim=-1).topk(min(top_k, logits_BK.shape[1]))
            raw_score = float(raw_scores(logits_BK, model.logit_scale))
            answer["predictions"] = [
                {"label": bundle.class_names[k], "score": round(score, 6)}
                for score, k in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
            answer["raw_score"] = round(raw_score, 6)
            answer["unknown"] = None if bundle.unknown_below is None else raw_score < bundle.unknown_below
        typer.echo(json.dumps(answer) if as_json else _printable(_line(answer)))
    return status


def _files(images: Sequence[Path]) -> Iterator[Path]:
    for path in images:
        if path.is_dir():
            yield from find_images(path)
        else:
            yield path


def _printable(line: str) -> str:
    """Nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _line(answer: dict[str, object]) -> str:
    predictions = answer.get("predictions")
    if not isinstance(predictions, list):
        return f"{answer['file']}: error: {answer['error']}"
    said = ", ".join(f"{p['label']} {p['score']:.2f}" for p in predictions)
    return f"{answer['file']}: {said}" + (" (unknown)" if answer["unknown"] else "")

"""Train the tiny CLIP model: `python -m examples.base_model.recipe --fonts DIR… --output DIR`.

The model learns printed digits, letters and coloured shapes from their captions, by contrast of images and
texts. It never sees handwriting. The result is a folder that open_clip loads as `local-dir:PATH`.

Legend: B batch, L text length in tokens, D embedding width.
"""

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from examples.base_model.glyphs import TooFewFontsError, hold_out, load_families
from examples.base_model.rendering import EASY, IMAGE_SIZE, Batch, Look, Renderer, blend

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 128,
    "quick_gelu": True,  # as OpenAI's own CLIP models
    "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}
PREPROCESS_CFG: dict[str, Any] = {
    "size": IMAGE_SIZE,
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
LARGEST_LOGIT_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train. The defaults made the committed model."""

    steps: int = 4800
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    easy_share: float = 0.1
    """Share of the steps on easy images; they then grow harder, in even steps, up to `hard_share`."""
    hard_share: float = 0.5
    weight_decay: float = 0.1
    gradient_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What one training step reports."""

    step: int
    loss: float
    logit_scale: float
    seconds: float


def encode_text(model: CLIP, tokens_BL: Tensor) -> Tensor:
    """Return normalised text embeddings (B, D), as `model.encode_text` does but cut to the longest text.

    Attention looks back only, so what stands behind every end of text changes nothing but the time it takes.
    """
    ends_B = tokens_BL.argmax(dim=-1)  # CLIP's end-of-text token has the largest id
    length = int(ends_B.max()) + 1
    x_BLW = model.token_embedding(tokens_BL[:, :length]) + model.positional_embedding[:length]
    x_BLW = model.transformer(x_BLW, attn_mask=model.attn_mask[:length, :length])
    x_BW = model.ln_final(x_BLW)[torch.arange(len(tokens_BL)), ends_B]
    return normalize(x_BW @ model.text_projection, dim=-1)


def matches(batch: Batch) -> Tensor:
    """Return which captions (columns) are true of which images (rows), as a boolean (B, B).

    With 44 subjects in a batch of hundreds, most images have several true captions beside their own; to push
    those away as wrong would teach that "3" and "three" differ.
    """
    subject_B = torch.tensor([caption.subject for caption in batch.captions])
    colour_B = torch.tensor([caption.colour for caption in batch.captions])
    tone_B = torch.tensor([caption.tone for caption in batch.captions])
    same_subject = torch.from_numpy(batch.subjects_B)[:, None] == subject_B[None]
    same_colour = (colour_B[None] < 0) | (torch.from_numpy(batch.colours_B)[:, None] == colour_B[None])
    same_tone = (tone_B[None] < 0) | (torch.from_numpy(batch.tones_B)[:, None] == tone_B[None])
    return same_subject & same_colour & same_tone


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor, true_BB: Tensor) -> Tensor:
    """Return CLIP's symmetric cross-entropy, with the target shared evenly among all true pairs of a row.

    Where each image has only its own caption this is open_clip's `ClipLoss`.
    """
    logits_BB = scale * image_BD @ text_BD.T
    target_BB = true_BB.float()
    by_image = cross_entropy(logits_BB, target_BB / target_BB.sum(dim=1, keepdim=True))
    by_text = cross_entropy(logits_BB.T, target_BB.T / target_BB.T.sum(dim=1, keepdim=True))
    return (by_image + by_text) / 2


def learning_rate_at(step: int, training: Training) -> float:
    """Return the rate of a step: linear warm-up, then a cosine to zero."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    done = (step - training.warmup_steps) / max(training.steps - training.warmup_steps, 1)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def look_at(step: int, training: Training) -> Look:
    """Return how images vary at a step. On hard images from the start, the tower takes several times as long."""
    done = step / training.steps
    amount = (done - training.easy_share) / (training.hard_share - training.easy_share)
    return blend(EASY, Look(), min(max(amount, 0.0), 1.0))


def make_optimizer(model: CLIP, training: Training) -> torch.optim.Optimizer:
    """Return AdamW with CLIP's settings: no decay on gains, biases and the logit scale."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": training.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=(0.9, 0.98),
        eps=1e-6,
    )


def train(model: CLIP, renderer: Renderer, training: Training) -> Iterator[Progress]:
    """Train the model in place and yield a report after each step.

    Rows of the token table that no caption used are zero at the end: a word the model never met says nothing.
    """
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    optimizer = make_optimizer(model, training)
    mean, std = PREPROCESS_CFG["mean"][0], PREPROCESS_CFG["std"][0]
    seen = torch.zeros(model.vocab_size, dtype=torch.bool)
    started = time.monotonic()
    model.train()
    for step in range(training.steps):
        # Schedule
        rate = learning_rate_at(step, training)
        for group in optimizer.param_groups:
            group["lr"] = rate
        renderer.look = look_at(step, training)

        # Data
        batch = renderer.batch(training.batch_size)
        images_B3HW = (torch.from_numpy(batch.images_B3HW) - mean) / std
        tokens_BL = tokenizer([caption.text for caption in batch.captions])
        seen[tokens_BL.unique()] = True

        # Loss
        image_BD = model.encode_image(images_B3HW, normalize=True)
        text_BD = encode_text(model, tokens_BL)
        loss = contrastive_loss(image_BD, text_BD, model.logit_scale.exp(), matches(batch))

        # Step
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_norm)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(LARGEST_LOGIT_SCALE))

        yield Progress(
            step=step + 1,
            loss=float(loss.detach()),
            logit_scale=float(model.logit_scale.detach().exp()),
            seconds=time.monotonic() - started,
        )
    with torch.no_grad():
        model.token_embedding.weight[~seen] = 0
    model.eval()


def build_model(seed: int) -> CLIP:
    """Return an untrained model."""
    torch.manual_seed(seed)
    return CLIP(**copy.deepcopy(MODEL_CFG))


def save_model(model: CLIP, output: Path) -> None:
    """Write the folder that open_clip loads as `local-dir:PATH`.

    The token table, by far the largest tensor, is stored in half precision; loading casts it back.
    """
    output.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}
    (output / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    tensors["token_embedding.weight"] = tensors["token_embedding.weight"].half()
    weights = output / "open_clip_model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it private


def run(fonts: list[Path], output: Path, *, minimum: int, training: Training, report: Callable[[str], None]) -> None:
    """Load fonts, train and save; `report` receives a line of text now and then."""
    families, _ = hold_out(load_families(fonts, minimum=minimum))
    num_faces = sum(len(family.faces) for family in families)
    report(f"{len(families)} font families with {num_faces} faces to train on")
    model = build_model(training.seed)
    renderer = Renderer(families=families, look=EASY, seed=training.seed)
    recent: list[float] = []
    for progress in train(model, renderer, training):
        recent = [*recent[-49:], progress.loss]
        if progress.step % 50 == 0 or progress.step == training.steps:
            report(
                f"step {progress.step}/{training.steps}  loss {np.mean(recent):.4f}  "
                f"logit scale {progress.logit_scale:.1f}  {progress.seconds:.0f} s"
            )
    save_model(model, output)
    report(f"wrote {output}")


def main() -> int:
    """Command line."""
    defaults = Training()
    parser = argparse.ArgumentParser(description="Train the tiny CLIP model on printed characters and shapes.")
    parser.add_argument("--fonts", type=Path, nargs="+", required=True, metavar="DIR", help="folders of font files")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=1, help="cores to train on")
    parser.add_argument("--min-families", type=int, default=60, help="refuse to train on fewer font families")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    training = Training(steps=args.steps, batch_size=args.batch_size, learning_rate=args.learning_rate, seed=args.seed)
    try:
        run(
            args.fonts,
            args.output,
            minimum=args.min_families,
            training=training,
            report=lambda line: print(line, flush=True),
        )
    except TooFewFontsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

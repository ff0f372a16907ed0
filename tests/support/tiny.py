"""A CLIP small enough to train in a test, as an open_clip folder, and images to train it on."""

import hashlib
import json
import random
from functools import cache
from pathlib import Path

import open_clip
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn

CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        "quick_gelu": True,
    },
    "preprocess_cfg": {
        "size": 16,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}

CLASSES = ["red", "green", "blue"]


@cache
def _weights() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**json.loads(json.dumps(CONFIG["model_cfg"])))
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def make_base(folder: Path) -> str:
    """Write the untrained model; returns its address."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    save_file(_weights(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def make_images(folder: Path, num_images: int, *, seed: int = 0) -> list[Path]:
    """Write coloured shapes as PNG files, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    paths = []
    for i in range(num_images):
        image = Image.new("RGB", (20, 20), tuple(generator.randrange(60) for _ in range(3)))
        left, top = generator.randrange(8), generator.randrange(8)
        colour = [30, 30, 30]
        colour[i % 3] = generator.randrange(180, 256)
        ImageDraw.Draw(image).ellipse((left, top, left + 10, top + 10), fill=tuple(colour))
        paths.append(folder / f"{i:04}.png")
        image.save(paths[-1])
    return paths


def weights_digest(module: nn.Module) -> str:
    """sha256 over every entry of the state dict, names included."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()

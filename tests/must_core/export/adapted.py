"""Small adapted classifiers of several makes, published and loaded again, and what tests of exports do with them."""

import json
import math
import random
import re
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from must_core.backbone import BaseModel, load_base
from must_core.bundle import Bundle, load_bundle, save_bundle
from must_core.student import Student
from must_core.text.prompts import ClassSpec, build_class_weights
from tests.support.tiny import CLASSES, CONFIG

_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
_PREPROCESS = {**CONFIG["preprocess_cfg"], "mean": [0.2, 0.5, 0.7]}

KINDS: dict[str, dict[str, Any]] = {
    "quick_gelu": CONFIG,
    "gelu": {**CONFIG, "model_cfg": {**CONFIG["model_cfg"], "quick_gelu": False}},
    # SigLIP's make: a timm trunk with attention pooling and no projection, a text tower of its own, another tokenizer.
    "timm": {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {
                "image_size": 160,
                "timm_model_name": "test_vit",
                "timm_model_pretrained": False,
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": {
                **_TEXT,
                "vocab_size": 8,
                "hf_tokenizer_name": "words",
                "no_causal_mask": True,
                "pool_type": "last",
            },
            "init_logit_bias": -10,
            "custom_text": True,
        },
        "preprocess_cfg": {**_PREPROCESS, "size": 160, "interpolation": "bilinear", "resize_mode": "squash"},
    },
    "resnet": {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "patch_size": None},
            "text_cfg": _TEXT,
            "quick_gelu": True,
        },
        "preprocess_cfg": {**_PREPROCESS, "size": 64, "resize_mode": "longest", "fill_color": 77},
    },
}


@dataclass(frozen=True)
class Adapted:
    """A base model and a classifier that began as it."""

    base: BaseModel
    bundle: Bundle

    def images(self, num_images: int) -> Tensor:
        """Normalised images of noise, ``images_BCHW``."""
        side = self.bundle.preprocess.image_size
        return torch.randn(num_images, 3, side, side, generator=torch.Generator().manual_seed(num_images))

    def logits(self, image: Image.Image) -> Tensor:
        """What the bundle says of a picture, ``logits_BK``."""
        with torch.inference_mode():
            logits_BK: Tensor = self.bundle.classifier(self.bundle.preprocess.transform()(image)[None])
        return logits_BK


def make_adapted(folder: Path, config: dict[str, Any]) -> Adapted:
    """Write a base model, change every weight of a student a little, and take it through a bundle."""
    base_folder = folder / "base"
    base_folder.mkdir(parents=True)
    # Trained models multiply cosines with 100, fresh ones with 14: tolerances shall mean what they mean there.
    config = {**config, "model_cfg": {**config["model_cfg"], "init_logit_scale": math.log(100)}}
    (base_folder / "open_clip_config.json").write_text(json.dumps(config))
    if "hf_tokenizer_name" in config["model_cfg"]["text_cfg"]:
        _write_tokenizer(base_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{base_folder}")
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
            base_folder / "open_clip_model.safetensors",
        )
        base = load_base(f"local-dir:{base_folder}")
        classes = [ClassSpec(name) for name in CLASSES]
        student = disturb(Student.from_base(base, build_class_weights(base, classes, ["{}"])))
    save_bundle(
        folder / "bundle",
        student,
        visual_config=base.visual_config,
        preprocess=base.preprocess,
        classes=classes,
        templates=["{}"],
        provenance={"base_text_fingerprint": base.text_fingerprint},
        unknown_below=0.125,
    )
    return Adapted(base, load_bundle(folder / "bundle"))


@torch.no_grad()
def disturb(student: Student) -> Student:
    """Add a little noise to every weight, in place."""
    for parameter in student.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape))
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.mul_(1.1)
    return student


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415 - slow, and of one kind alone
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "red": 2, "green": 3, "blue": 4}
    words = Tokenizer(models.WordLevel(vocabulary, special["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def picture(size: tuple[int, int]) -> Image.Image:
    """Coloured noise, width and height as given."""
    return Image.frombytes("RGB", size, random.Random(repr(size)).randbytes(3 * size[0] * size[1]))


def run_readme(folder: Path) -> dict[str, Any]:
    """Run the one Python snippet of a folder's README.md; the current folder is the reader's. Returns its variables."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    path = folder.parent / f"{folder.name}-snippet.py"
    path.write_text(code, encoding="utf-8")
    return runpy.run_path(str(path))

"""CLIP base models: how they are found, loaded and asked for text.

Shapes: T texts, L tokens of the longest text, D embedding width.
"""

import json
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import _build_vision_tower
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from must_core.errors import UnknownModel, WeightsUnavailable
from must_core.towers import MaskingSupport, tower_of

LOCAL_DIR = "local-dir:"
CONFIG_FILE = "open_clip_config.json"


@dataclass(frozen=True)
class Preprocess:
    """How the base model wants its images; the numbers are open_clip's ``preprocess_cfg``."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    fill_color: int

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """open_clip's evaluation transform: PIL RGB -> float32 ``image_CHW``, normalised."""
        config = PreprocessCfg(
            size=self.image_size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            resize_mode=self.resize_mode,
            fill_color=self.fill_color,
        )
        transform: Callable[[Image.Image], Tensor] = image_transform_v2(config, is_train=False)
        return transform

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Preprocess":
        """Read an open_clip ``preprocess_cfg``; its ``size`` is one number or two equal ones, else `UnknownModel`."""
        size = config["size"]
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) != 1:
            raise UnknownModel("The model takes images that are not square.", param="base_model")
        return cls(
            image_size=int(sides.pop()),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=str(config.get("interpolation", "bicubic")),
            resize_mode=str(config.get("resize_mode", "shortest")),
            fill_color=int(config.get("fill_color", 0)),
        )


class BaseModel:
    """A pretrained CLIP: its image tower, how it encodes text, and what rebuilds the tower later."""

    def __init__(
        self, address: str, model: nn.Module, model_config: dict[str, Any], *, tokenizer: Any | None = None
    ) -> None:
        self.address = address
        self._tokenizer: Any = tokenizer or _load_tokenizer(address)
        self._model = model.eval().requires_grad_(requires_grad=False)
        self.model_config: dict[str, Any] = {
            **model_config,
            "quick_gelu": bool(model_config.get("quick_gelu", False)),
        }
        self.visual_config: dict[str, Any] = {
            key: self.model_config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu")
        }
        self.preprocess = Preprocess.from_config(open_clip.get_model_preprocess_cfg(model))

    @property
    def model(self) -> nn.Module:
        """The whole open_clip model, text tower and all, as ``model_config`` builds it; to be read, not changed."""
        return self._model

    @property
    def visual(self) -> nn.Module:
        """The image tower: ``images_BCHW`` -> ``features_BD``, not normalised."""
        visual: nn.Module = self._model.visual  # type: ignore[assignment]
        return visual

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with to make logits."""
        scale: Tensor = self._model.logit_scale  # type: ignore[assignment]
        return float(scale.exp())

    @property
    def masking(self) -> MaskingSupport:
        """Whether MUST's masked losses apply to this tower."""
        return tower_of(self.visual).support

    @property
    def context_length(self) -> int:
        """Most tokens of a text, start and end included."""
        return int(self._tokenizer.context_length)

    def num_tokens(self, text: str) -> int:
        """Tokens of a text, start and end included, before open_clip would cut it silently."""
        tokenizer = self._tokenizer
        if isinstance(tokenizer, open_clip.SimpleTokenizer):
            return len(tokenizer.encode(text)) + 2
        # As open_clip does before it cuts: SigLIP's cleaning drops punctuation, which would count here.
        text = tokenizer.clean_fn(text)
        if tokenizer.tokenizer_mode == "clips":  # it adds start, end and class token by itself
            return len(tokenizer.tokenizer(text, add_special_tokens=False).input_ids) + 3
        return len(tokenizer.tokenizer(text).input_ids)

    def to(self, device: torch.device | str) -> None:
        """Move the whole model; `encode_text` works there, and a student begins there."""
        self._model.to(device)

    @property
    def text_fingerprint(self) -> list[float]:
        """What the text tower makes of a fixed text, a unit vector: tells models of one architecture apart."""
        fingerprint: list[float] = self.encode_text(["a photo of a thing."])[0].tolist()
        return fingerprint

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files where open_clip looks for them; the one that it brings along has none."""
        if self.model_config["text_cfg"].get("hf_tokenizer_name"):
            self._tokenizer.save_pretrained(folder)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Encode texts into unit vectors ``features_TD``, float32 on the CPU."""
        model, tokens_TL = self._model, self._tokenizer(list(texts)).to(next(self._model.parameters()).device)
        if isinstance(model, open_clip.CLIP) and model.text_pool_type == "argmax" and model.attn_mask is not None:
            return _encode_causal_text(model, tokens_TL)
        features_TD: Tensor = model.encode_text(tokens_TL, normalize=True)  # type: ignore[operator]
        return features_TD.float().cpu()


def _encode_causal_text(model: Any, tokens_TL: Tensor) -> Tensor:
    """Encode with every token column after the last end-of-text cut off.

    Attention is causal and the feature is read at the end-of-text token (the largest id), so nothing behind it can
    change the answer; class names are short and the context is 77.
    """
    length = int(tokens_TL.argmax(dim=-1).max()) + 1
    tokens_TL = tokens_TL[:, :length]
    hidden_TLW = model.token_embedding(tokens_TL) + model.positional_embedding[:length]
    hidden_TLW = model.transformer(hidden_TLW, attn_mask=model.attn_mask[:length, :length])
    hidden_TLW = model.ln_final(hidden_TLW)
    end_TW = hidden_TLW[torch.arange(len(tokens_TL)), tokens_TL.argmax(dim=-1)]
    features_TD, projection = end_TW, model.text_projection
    if projection is not None:
        features_TD = projection(end_TW) if isinstance(projection, nn.Linear) else end_TW @ projection
    return F.normalize(features_TD.float(), dim=-1).cpu()


def load_base(address: str) -> BaseModel:
    """Load a pretrained CLIP.

    ``address`` is ``ARCH/TAG`` (open_clip's names, ``ViT-B-16/openai``), ``ARCH/FILE`` or ``local-dir:FOLDER`` with
    an ``open_clip_config.json``. Raises `UnknownModel` for an address that names nothing, `WeightsUnavailable` when
    weights or tokenizer are neither cached nor to be downloaded, or the tokenizer's packages are not installed; a
    model with random weights is never returned.
    """
    model_config = config_of(address)
    # Before the weights, which may be gigabytes and of no use without it.
    tokenizer = _load_tokenizer(address)
    is_folder = address.startswith(LOCAL_DIR)
    architecture, _, tag = (address, "", "") if is_folder else address.partition("/")
    try:
        model = open_clip.create_model(
            architecture,
            pretrained=tag or None,
            require_pretrained=True,
            force_quick_gelu=bool(model_config.get("quick_gelu", False)),
            force_patch_dropout=0.0,
        )
    except Exception as e:
        message = "The folder holds no weights that fit its configuration."
        if not is_folder:
            message = (
                f"The weights of {address} are not on this machine and could not be downloaded. Connect it to the "
                "Hugging Face hub once, copy its cache here, or name a local file or folder instead."
            )
        raise WeightsUnavailable(message, param="base_model") from e
    return BaseModel(address, model, model_config, tokenizer=tokenizer)


def config_of(address: str) -> dict[str, Any]:
    """The open_clip ``model_cfg`` that an address's model is built from; weights are not looked for.

    Raises `UnknownModel` as `load_base` does.
    """
    if address.startswith(LOCAL_DIR):
        return _folder_config(Path(address.removeprefix(LOCAL_DIR)))
    architecture, _, tag = address.partition("/")
    if architecture not in open_clip.list_models() or not tag:
        raise UnknownModel("open_clip has no such architecture, or no pretrained tag was named.", param="base_model")
    pretrained = open_clip.pretrained.get_pretrained_cfg(architecture, tag)
    if not pretrained and not is_file(tag):
        raise UnknownModel("open_clip has no such pretrained tag for this architecture.", param="base_model")
    model_config: dict[str, Any] = open_clip.get_model_config(architecture)
    model_config["quick_gelu"] = is_quick_gelu(architecture, tag)
    return model_config


def is_file(tag: str) -> bool:
    """Whether what stands in the place of a tag is a file; anything else is no error."""
    return os.path.isfile(tag)  # noqa: PTH113 - pathlib raises for names that are too long


def is_quick_gelu(architecture: str, tag: str) -> bool:
    """Whether weights were trained with QuickGELU; of a file this is what the architecture has."""
    # open_clip builds ('ViT-B-16', 'openai') with plain GELU and only warns; the weights were trained with QuickGELU.
    # It never turns QuickGELU off where the architecture itself has it: tags of such do not all mention it.
    by_itself = open_clip.get_model_config(architecture).get("quick_gelu", False)
    return bool(by_itself or open_clip.pretrained.get_pretrained_cfg(architecture, tag).get("quick_gelu", False))


def _folder_config(folder: Path) -> dict[str, Any]:
    try:
        model_config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]
    except FileNotFoundError as e:
        raise UnknownModel("The folder holds no open_clip_config.json.", param="base_model") from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UnknownModel("The folder's open_clip_config.json cannot be read.", param="base_model") from e
    if not isinstance(model_config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= model_config.keys():
        raise UnknownModel("The folder's open_clip_config.json does not describe a CLIP.", param="base_model")
    return model_config


def _load_tokenizer(address: str) -> Any:
    try:
        return open_clip.get_tokenizer(address if address.startswith(LOCAL_DIR) else address.partition("/")[0])
    except ImportError as e:
        raise WeightsUnavailable(
            "This model's text is cut into tokens by a Hugging Face tokenizer, whose packages are not installed: "
            "pip install 'must-service[siglip]'.",
            param="base_model",
        ) from e
    except Exception as e:
        raise WeightsUnavailable(
            f"The tokenizer of {address} is not on this machine and could not be downloaded. Connect it to the Hugging "
            "Face hub once, or copy its cache here.",
            param="base_model",
        ) from e


def build_visual(visual_config: dict[str, Any]) -> nn.Module:
    """Build an image tower alone, without weights, from a `BaseModel.visual_config`."""
    # MUST hides patches by itself, and whoever asks for a tower brings its weights.
    vision_config = {**visual_config["vision_cfg"], "patch_dropout": 0.0, "timm_model_pretrained": False}
    # open_clip has no public way to build one tower; building both would cost the text tower's memory.
    visual: nn.Module = _build_vision_tower(
        visual_config["embed_dim"],
        deepcopy(vision_config),
        quick_gelu=visual_config["quick_gelu"],
    )
    return visual

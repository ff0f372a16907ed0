"""CLIP base models: how they are found, loaded and asked for text.

Shapes: T texts, L tokens of the longest text, D embedding width.
"""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
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
        """Read an open_clip ``preprocess_cfg``; its ``size`` is one number or two equal ones."""
        size = config["size"]
        return cls(
            image_size=int(size if isinstance(size, int) else size[0]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=str(config.get("interpolation", "bicubic")),
            resize_mode=str(config.get("resize_mode", "shortest")),
            fill_color=int(config.get("fill_color", 0)),
        )


class BaseModel:
    """A pretrained CLIP: its image tower, how it encodes text, and what rebuilds the tower later."""

    def __init__(self, address: str, model: nn.Module, model_config: dict[str, Any]) -> None:
        self.address = address
        self._model = model.eval().requires_grad_(requires_grad=False)
        self.visual_config: dict[str, Any] = {
            "embed_dim": model_config["embed_dim"],
            "vision_cfg": model_config["vision_cfg"],
            "quick_gelu": bool(model_config.get("quick_gelu", False)),
        }
        self.preprocess = Preprocess.from_config(open_clip.get_model_preprocess_cfg(model))

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

    @cached_property
    def _tokenizer(self) -> Any:
        architecture = self.address if self.address.startswith(LOCAL_DIR) else self.address.split("/")[0]
        return open_clip.get_tokenizer(architecture)

    @property
    def context_length(self) -> int:
        """Most tokens of a text, start and end included."""
        return int(self._tokenizer.context_length)

    def num_tokens(self, text: str) -> int:
        """Tokens of a text, start and end included, before open_clip would cut it silently."""
        tokenizer = self._tokenizer
        if isinstance(tokenizer, open_clip.SimpleTokenizer):
            return len(tokenizer.encode(text)) + 2
        return len(tokenizer.tokenizer(text).input_ids)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Encode texts into unit vectors ``features_TD``, float32."""
        model, tokens_TL = self._model, self._tokenizer(list(texts))
        if isinstance(model, open_clip.CLIP) and model.text_pool_type == "argmax":
            return _encode_causal_text(model, tokens_TL)
        features_TD: Tensor = model.encode_text(tokens_TL, normalize=True)  # type: ignore[operator]
        return features_TD.float()


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
    projection = model.text_projection
    features_TD = projection(end_TW) if isinstance(projection, nn.Linear) else end_TW @ projection
    return F.normalize(features_TD.float(), dim=-1)


def load_base(address: str) -> BaseModel:
    """Load a pretrained CLIP.

    ``address`` is ``ARCH/TAG`` (open_clip's names, ``ViT-B-16/openai``), ``ARCH/FILE`` or ``local-dir:FOLDER`` with
    an ``open_clip_config.json``. Raises `UnknownModel` for an address that names nothing, `WeightsUnavailable` when
    the weights are neither cached nor to be downloaded; a model with random weights is never returned.
    """
    if address.startswith(LOCAL_DIR):
        return _load_folder(address)
    architecture, _, tag = address.partition("/")
    model_config = open_clip.get_model_config(architecture)
    if model_config is None or not tag:
        raise UnknownModel("open_clip has no such architecture, or no pretrained tag was named.", param="base_model")
    pretrained = open_clip.pretrained.get_pretrained_cfg(architecture, tag)
    if not pretrained and not Path(tag).is_file():
        raise UnknownModel("open_clip has no such pretrained tag for this architecture.", param="base_model")
    # open_clip builds ('ViT-B-16', 'openai') with plain GELU and only warns; the weights were trained with QuickGELU.
    if pretrained:
        model_config["quick_gelu"] = bool(pretrained.get("quick_gelu", False))
    try:
        model = open_clip.create_model(
            architecture,
            pretrained=tag,
            require_pretrained=True,
            force_quick_gelu=bool(model_config.get("quick_gelu", False)),
        )
    except Exception as e:
        raise WeightsUnavailable(
            f"The weights of {address} are not on this machine and could not be downloaded. Connect it to the "
            "Hugging Face hub once, copy its cache here, or name a local file or folder instead.",
            param="base_model",
        ) from e
    return BaseModel(address, model, model_config)


def _load_folder(address: str) -> BaseModel:
    folder = Path(address.removeprefix(LOCAL_DIR))
    config_file = folder / "open_clip_config.json"
    if not config_file.is_file():
        raise UnknownModel("The folder holds no open_clip_config.json.", param="base_model")
    model_config = json.loads(config_file.read_text())["model_cfg"]
    try:
        model = open_clip.create_model(address, require_pretrained=True)
    except RuntimeError as e:
        raise WeightsUnavailable("The folder holds no weights that fit its configuration.", param="base_model") from e
    return BaseModel(address, model, model_config)


def build_visual(visual_config: dict[str, Any]) -> nn.Module:
    """Build an image tower alone, without weights, from a `BaseModel.visual_config`."""
    # open_clip has no public way to build one tower; building both would cost the text tower's memory.
    visual: nn.Module = _build_vision_tower(
        visual_config["embed_dim"],
        deepcopy(visual_config["vision_cfg"]),
        quick_gelu=visual_config["quick_gelu"],
    )
    return visual

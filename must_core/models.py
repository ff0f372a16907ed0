"""What base models there are, what each supports and whether its weights are on this machine; nothing is downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
import open_clip
import torch
from open_clip.constants import HF_WEIGHTS_NAME
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.pretrained import _get_safe_alternatives
from torch.overrides import TorchFunctionMode

from must_core.backbone import CONFIG_FILE, LOCAL_DIR, build_visual, config_of, is_file, is_quick_gelu
from must_core.errors import UnknownModel
from must_core.towers import tower_of


@dataclass(frozen=True)
class PretrainedTag:
    """Weights that open_clip knows for an architecture."""

    name: str
    quick_gelu: bool
    """Whether they were trained with QuickGELU; `load_base` sets it."""


@dataclass(frozen=True)
class ModelSupport:
    """What MUST can do with a base model. Sizes are in pixels."""

    architecture: str
    """open_clip's name, or that of the folder."""
    masked: bool
    """Whether the masked losses apply; otherwise there is self-training alone."""
    reason: str
    """Why, in a sentence."""
    image_size: int
    patch_size: int | None
    """None where no patches are masked."""
    width: int | None
    """Of the tokens; None for towers without."""
    num_layers: int | None
    """Blocks with a learning rate of their own; None where the whole tower trains at one."""
    num_parameters: int
    """Of the image tower."""
    pretrained: tuple[PretrainedTag, ...]


def architectures() -> list[str]:
    """Every architecture open_clip has, in its order; surveying all takes some ten seconds."""
    return list(open_clip.list_models())


@cache
def survey(architecture: str) -> ModelSupport:
    """Look at one of open_clip's architectures, without memory for its weights; raises `UnknownModel`."""
    if architecture not in open_clip.list_models():
        raise UnknownModel("open_clip has no such architecture.", param="base_model")
    model_config = open_clip.get_model_config(architecture)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    return _support(architecture, model_config, tuple(PretrainedTag(t, is_quick_gelu(architecture, t)) for t in tags))


def support_of(address: str) -> ModelSupport:
    """What MUST can do with an address as `load_base` takes it; raises `UnknownModel` where that would."""
    model_config = config_of(address)
    if address.startswith(LOCAL_DIR):
        return _support(Path(address.removeprefix(LOCAL_DIR)).name, model_config, ())
    return survey(address.partition("/")[0])


def weights_at_hand(address: str) -> bool:
    """Whether `load_base` would find an address's weights without the network. They are not opened."""
    if address.startswith(LOCAL_DIR):
        folder = Path(address.removeprefix(LOCAL_DIR))
        return is_file(str(folder / CONFIG_FILE)) and _find_checkpoint_in_dir(folder) is not None
    architecture, _, tag = address.partition("/")
    pretrained = open_clip.pretrained.get_pretrained_cfg(architecture, tag)
    if not pretrained:
        return architecture in open_clip.list_models() and is_file(tag)
    if hub := pretrained.get("hf_hub"):
        repository, _, file = hub.rpartition("/")
        file = file or HF_WEIGHTS_NAME
        # open_clip's order: where the hub is named, the other address is not tried.
        return any(_is_cached(repository, name) for name in (*_get_safe_alternatives(file), file))
    # Where `open_clip.pretrained.download_pretrained_from_url` puts them.
    cached = Path("~/.cache/clip").expanduser() / PurePosixPath(pretrained["url"]).name
    return cached.is_file()


def _is_cached(repository: str, file: str) -> bool:
    # None, or a mark that the hub said there is no such file, where it is not a path.
    return isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str)


def _support(architecture: str, model_config: Mapping[str, Any], pretrained: tuple[PretrainedTag, ...]) -> ModelSupport:
    config = {
        "embed_dim": model_config["embed_dim"],
        "vision_cfg": model_config["vision_cfg"],
        "quick_gelu": bool(model_config.get("quick_gelu", False)),
    }
    try:
        with torch.device("meta"), _NoInitialisation():
            visual: Any = build_visual(config)
        tower = tower_of(visual)
        size = visual.image_size
    except Exception as e:
        raise UnknownModel("open_clip cannot build the image tower that is described.", param="base_model") from e
    return ModelSupport(
        architecture=architecture,
        masked=tower.support.supported,
        reason=tower.support.reason,
        image_size=int(size if isinstance(size, int) else size[0]),
        patch_size=tower.patch_size or None,
        width=tower.width or None,
        num_layers=tower.num_layers or None,
        num_parameters=sum(parameter.numel() for parameter in visual.parameters()),
        pretrained=pretrained,
    )


class _NoInitialisation(TorchFunctionMode):
    """Leaves out the filling of tensors that hold nothing; it takes most of the time that building them takes."""

    _FILLS = frozenset({"add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) in self._FILLS:
            filled = args[0] if args else kwargs["tensor"]  # as torch.nn.init passes it
            if filled.is_meta:
                return filled
        return func(*args, **kwargs)

"""A classifier as a folder that open_clip loads by itself: the adapted image tower beside the base's own text tower.

Shapes: D embedding width, K classes.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from must_core.backbone import BaseModel
from must_core.bundle import Bundle
from must_core.errors import InvalidConfig
from must_core.export.folder import README, new_folder, preprocess_config, write_classes
from must_core.files import save_tensors, write_json

CONFIG = "open_clip_config.json"
MODEL = "open_clip_model.safetensors"
CLASS_WEIGHTS = "class_weights.safetensors"
UNKNOWN = "unknown.json"

_TEXT_TOLERANCE = 1e-3
"""Between unit vectors. Processors differ by some 1e-6, two trainings by far more."""


def export_open_clip(bundle: Bundle, base: BaseModel, folder: Path) -> None:
    """Write a folder for ``open_clip.create_model_and_transforms("local-dir:FOLDER")``; it appears whole.

    The model is ``base`` with the adapted image tower and the classifier's logit scale; its text tower is untouched, so
    text prompts go on working. The trained class head lies beside it as the tensor ``class_weights`` (D x K, columns
    in the order of ``classes.json``, not normalised again), and the README.md shows how to classify with it.

    Raises `InvalidConfig` when the folder exists, or when ``base`` is not what the classifier began as.
    """
    if base.visual_config != bundle.manifest["visual"]:
        raise InvalidConfig("The base model has another image tower than the classifier.", param="base_model")
    recorded = bundle.manifest["provenance"].get("base_text_fingerprint")
    if recorded is not None and not _alike(recorded, base.text_fingerprint):
        raise InvalidConfig("The classifier began as another model of this architecture.", param="base_model")
    with new_folder(folder) as staged:
        write_json(
            staged / CONFIG,
            {"model_cfg": base.model_config, "preprocess_cfg": preprocess_config(bundle.preprocess)},
        )
        save_tensors(_model_tensors(bundle, base), staged / MODEL)
        save_tensors({"class_weights": _alone(bundle.classifier.classifier)}, staged / CLASS_WEIGHTS)
        write_classes(staged, bundle)
        write_json(staged / UNKNOWN, {"unknown_below": bundle.unknown_below})
        base.save_tokenizer(staged)
        (staged / README).write_text(_README, encoding="utf-8")


def _alike(a_D: list[float], b_D: list[float]) -> bool:
    return len(a_D) == len(b_D) and math.dist(a_D, b_D) < _TEXT_TOLERANCE


def _model_tensors(bundle: Bundle, base: BaseModel) -> dict[str, Tensor]:
    tensors = base.model.state_dict()
    tensors |= {f"visual.{name}": t for name, t in bundle.classifier.visual.state_dict().items()}
    # Through exp and log and back a scale may lose its last bit; the base's own is kept where it is the same.
    if bundle.classifier.logit_scale != base.logit_scale:
        tensors["logit_scale"] = torch.full_like(tensors["logit_scale"], math.log(bundle.classifier.logit_scale))
    return {name: _alone(t) for name, t in tensors.items()}


def _alone(tensor: Tensor) -> Tensor:
    """A tensor that shares memory with no other, as safetensors wants them: text towers may tie their weights."""
    return tensor.detach().cpu().contiguous().clone()


_README = """\
# An adapted CLIP classifier, for open_clip

`open_clip_model.safetensors` is a whole CLIP whose image tower was adapted to unlabeled images; its text tower is that
of the base model. `class_weights.safetensors` is the trained class head, one column per name in `classes.json`. In this
folder, this gives the classifier's own logits for an image:

```python
import json
from pathlib import Path

import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file

folder = Path(".")
class_names = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
class_weights = load_file(folder / "class_weights.safetensors")["class_weights"]
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
model.eval()

image = preprocess(Image.open("image.png").convert("RGB"))
with torch.inference_mode():
    features = model.encode_image(image.unsqueeze(0), normalize=True)
    logits = model.logit_scale.exp() * features @ class_weights
    raw_score = (logits.max() / model.logit_scale.exp()).item()
limit = json.loads((folder / "unknown.json").read_text(encoding="utf-8"))["unknown_below"]
unknown = limit is not None and raw_score < limit
print(class_names[logits.argmax()], logits.softmax(dim=-1).max().item(), "unknown" if unknown else "known")
```

An image may show none of the classes when its raw score is below `unknown_below` (null: nobody can say).

Leave `quick_gelu` in `open_clip_config.json` as it is: with another value the same weights load without a word and
answer differently.
"""

"""A classifier as ONNX: normalised images in, logits out, for runtimes without torch.

Shapes: N images, S image size, D embedding width, K classes.
"""

import json
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from must_core.bundle import Bundle
from must_core.errors import InvalidConfig
from must_core.export.folder import README, new_folder, preprocess_config, write_classes
from must_core.files import write_json
from must_core.student import Student

MODEL = "model.onnx"
PREPROCESS = "preprocess.json"
INPUT = "images"
OUTPUT = "logits"

_OPSET = 20
"""The first that has GELU as one operation."""
_INLINE_AT_MOST = 1_500_000_000
"""Bytes of weights inside model.onnx. A protobuf ends at 2 GiB; larger weights go into model.onnx.data beside it."""


def export_onnx(bundle: Bundle, folder: Path) -> None:
    """Write a folder with ``model.onnx``, ``classes.json``, ``preprocess.json`` and a README.md; it appears whole.

    The input ``images`` is float32 N x 3 x S x S, normalised as ``preprocess.json`` says (open_clip's
    ``preprocess_cfg``), N being free; the output ``logits`` is float32 N x K. The model's metadata hold
    ``class_names`` and ``preprocess`` as JSON, ``weights_sha256``, the digest of the bundle's weights, and, as JSON
    too, ``unknown_below`` (null where there is none), to compare the largest logit divided by ``logit_scale`` with.

    Raises `InvalidConfig` when the folder exists, or when the exporter cannot translate the tower.
    """
    preprocess = preprocess_config(bundle.preprocess)
    with new_folder(folder) as staged:
        program = _translate(_Classifier(bundle.classifier).cpu().float().eval(), bundle.preprocess.image_size)
        _forget_where_it_was_made(program.model)
        program.model.metadata_props.update(
            class_names=json.dumps(bundle.class_names, ensure_ascii=False),
            preprocess=json.dumps(preprocess),
            weights_sha256=bundle.manifest["weights_sha256"],
            logit_scale=json.dumps(bundle.classifier.logit_scale),
            unknown_below=json.dumps(bundle.unknown_below),
        )
        num_bytes = sum(t.numel() * t.element_size() for t in bundle.classifier.visual.state_dict().values())
        program.save(staged / MODEL, external_data=num_bytes > _INLINE_AT_MOST)
        write_classes(staged, bundle)
        write_json(staged / PREPROCESS, preprocess)
        (staged / README).write_text(_readme(bundle.preprocess.resize_mode), encoding="utf-8")


class _Classifier(nn.Module):
    """A copy of a classifier by open_clip's own forward: `must_core.towers` has operations that ONNX does not know."""

    def __init__(self, classifier: Student) -> None:
        super().__init__()
        self.visual = deepcopy(classifier.visual)
        self.class_weights_DK = nn.Parameter(classifier.classifier.detach().clone(), requires_grad=False)
        self.logit_scale = classifier.logit_scale

    def forward(self, images: Tensor) -> Tensor:
        features = self.visual(images)
        # CoCa's towers return their tokens beside the feature.
        features_ND: Tensor = features[0] if isinstance(features, tuple) else features
        return self.logit_scale * F.normalize(features_ND, dim=-1) @ self.class_weights_DK


def _translate(classifier: nn.Module, image_size: int) -> Any:
    # Two images, for an axis of length one would be taken for a constant.
    images_NCHW = torch.zeros(2, 3, image_size, image_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 warns of its own use of pytrees
            return torch.onnx.export(
                classifier,
                (images_NCHW,),
                dynamo=True,
                verbose=False,
                opset_version=_OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}},
            )
    except torch.onnx.OnnxExporterError as e:
        raise InvalidConfig(
            "The ONNX exporter cannot translate this image tower.", code="not_exportable", param="classifier"
        ) from e


def _forget_where_it_was_made(model: Any) -> None:
    """Drop the exporter's notes: stack traces of every node, with the paths of this machine."""
    for described in (model, model.graph, *model.graph, *(v for n in model.graph for v in n.outputs)):
        described.metadata_props.clear()


def _readme(resize_mode: str) -> str:
    return _README.replace("RESIZE\n", _RESIZE[resize_mode])


_RESIZE = {
    "shortest": """\
short = min(width, height)
image = image.resize((side * width // short, side * height // short), resample)
left, top = round((image.width - side) / 2), round((image.height - side) / 2)
image = image.crop((left, top, left + side, top + side))
""",
    "squash": """\
image = image.resize((side, side), resample)
""",
    "longest": """\
ratio = max(width, height) / side
image = image.resize((round(width / ratio), round(height / ratio)), resample)
canvas = Image.new("RGB", (side, side), (how["fill_color"],) * 3)
canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
image = canvas
""",
}
"""Each of open_clip's ways to a square image, with Pillow alone; ``side``, ``width`` and ``height`` are known."""

_README = """\
# An adapted CLIP classifier, as ONNX

`model.onnx` takes `images`, float32, N x 3 x size x size, normalised, and returns `logits`, N x classes, in the order
of `classes.json`. `preprocess.json` says how images are prepared. Class names, preparation and the digest of the
weights are in the model's metadata as well, and so are `logit_scale` and `unknown_below`: an image may show none of the
classes when its largest logit divided by the first is below the second (null: nobody can say). In this folder, this
classifies an image without torch:

```python
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

folder = Path(".")
class_names = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
how = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

image = Image.open("image.png").convert("RGB")
side, (width, height) = how["size"], image.size
resample = Image.Resampling.BILINEAR if how["interpolation"] == "bilinear" else Image.Resampling.BICUBIC
RESIZE
pixels = np.asarray(image, dtype=np.float32) / 255
pixels = (pixels - np.array(how["mean"], dtype=np.float32)) / np.array(how["std"], dtype=np.float32)
(logits,) = session.run(["logits"], {"images": pixels.transpose(2, 0, 1)[np.newaxis]})
print(class_names[logits.argmax()])
```
"""

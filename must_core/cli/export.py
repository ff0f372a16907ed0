"""``must export``: writes a classifier for use elsewhere."""

from pathlib import Path

from must_core.backbone import load_base
from must_core.bundle import load_bundle
from must_core.cli.told import DONE, plain_console
from must_core.export import export_onnx, export_open_clip


def run(classifier: Path, to: str, output: Path, model: str | None) -> int:
    """Write the folder."""
    bundle = load_bundle(classifier)
    if to == "onnx":
        export_onnx(bundle, output)
    else:
        base = load_base(model or bundle.manifest["provenance"]["base_model"])
        export_open_clip(bundle, base, output)
    plain_console().print(f"{output / 'README.md'} says how to use what is there")
    return DONE

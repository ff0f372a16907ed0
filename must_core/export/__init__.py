"""Published classifiers for use elsewhere: as an open_clip folder, and as ONNX."""

from must_core.export.onnx_folder import export_onnx
from must_core.export.open_clip_folder import export_open_clip

__all__ = ["export_onnx", "export_open_clip"]

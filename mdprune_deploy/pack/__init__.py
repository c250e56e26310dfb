"""Turns what a researcher has into a checkpoint: a network, its weights, and masks per domain."""

from .from_onnx import OnnxOptions, pack_onnx
from .from_pytorch import pack
from .options import Layout, PackOptions, PackReport
from .state_dict import read_state_dict

__all__ = [
    "Layout",
    "OnnxOptions",
    "PackOptions",
    "PackReport",
    "pack",
    "pack_onnx",
    "read_state_dict",
]

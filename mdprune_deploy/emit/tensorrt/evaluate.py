"""Evaluates emitted models without TensorRT: stock operators, plug-in nodes, float16.

In float16 a node computes in float32 and rounds what it gives, as the device does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...errors import BundleError
from ...evaluate import Array, evaluate, evaluate_node
from ...precision import widen
from ..external import read_model
from .node import DOMAIN, OP_TYPE, GatherConv, parse


def load_model(path: Path) -> ir.Model:
    """Reads a model and the tensors that it names.

    Raises:
        BundleError: It cannot be read, or a plug-in node contradicts itself.
    """
    model = read_model(path)
    for node in model.graph:
        if node.domain == DOMAIN:
            if node.op_type != OP_TYPE:
                raise BundleError(f"{path}: there is no operator {DOMAIN}::{node.op_type}")
            node.meta["gather_conv"] = parse(node)
    return model


def runner(
    path: Path, plugin_weights: Path, precision: str
) -> Callable[[Mapping[str, Array]], list[Array]]:
    """Returns what computes a model's outputs from inputs in float64.

    Args:
        path: The model.
        plugin_weights: The folder of the weight files that plug-in nodes name.
        precision: `fp32`: computed in float64, so that all that is found is what storing constants
            in float32 costs. `fp16`: every value rounded to float16.

    Raises:
        BundleError: The model cannot be read.
    """
    model = load_model(path)
    half = precision == "fp16"
    if not half:
        widen(model.graph)

    def run_node(node: ir.Node, arguments: Sequence[Array | None], opset: int) -> Sequence[Array]:
        if node.domain == DOMAIN:
            return [_gather_conv(node, arguments, plugin_weights)]
        if half and node.op_type != "Cast":
            return _in_half(node, arguments, opset)
        return evaluate_node(node, arguments, opset)

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        if half:
            feeds = {
                name: array.astype(np.float32) if array.dtype == np.float64 else array
                for name, array in feeds.items()
            }
        with np.errstate(over="ignore"):
            return evaluate(model.graph, feeds, run=run_node)

    return run


def _gather_conv(node: ir.Node, arguments: Sequence[Array | None], folder: Path) -> Array:
    convolution = node.meta["gather_conv"]
    assert isinstance(convolution, GatherConv)
    x, residual = [*arguments, None][:2]
    if x is None:
        raise BundleError(f"{OP_TYPE} {node.name!r} has no input")
    return convolution.run(folder, x, residual)


def _in_half(node: ir.Node, arguments: Sequence[Array | None], opset: int) -> Sequence[Array]:
    if not any(a is not None and a.dtype == np.float16 for a in arguments):
        return evaluate_node(node, arguments, opset)
    wide = [
        a.astype(np.float32) if a is not None and a.dtype == np.float16 else a for a in arguments
    ]
    return [
        y.astype(np.float16) if y.dtype.kind == "f" else y for y in evaluate_node(node, wide, opset)
    ]

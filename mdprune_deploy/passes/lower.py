"""From the narrowed float64 graph to the one that is emitted: norms folded, float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules.common import (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)

from ..evaluate import Array, attribute, constant_array
from ..precision import narrow
from .operators.product import BLOCK
from .trace import add_initializer

_RULES = (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)


def fold_batch_norms(model: ir.Model) -> None:
    """Folds each batch norm into the product before it, where nothing else reads that, in place.

    The weights of this graph belong to one domain, so its batch norms may change them.
    """
    RewritePass(_RULES)(model)
    common.RemoveUnusedNodesPass()(model)


def norms_to_convolutions(model: ir.Model, ranks: Mapping[str, int]) -> None:
    """Turns each batch norm that is left into a depthwise 1x1 convolution, in place.

    `y = a x + b` per channel either way, but runtimes fuse an activation into a convolution and
    not into a norm, and ONNX Runtime's blocked layout covers it. Only whole blocks gain.

    Args:
        model: The narrowed graph.
        ranks: Number of axes of emitted values, by name.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type != "BatchNormalization":
            continue
        data, output = node.inputs[0], node.outputs[0]
        factor, shift = _affine(node)
        if len(factor) % BLOCK or ranks.get(str(output.name)) != 4:
            continue
        name = output.name
        weight = add_initializer(graph, factor.reshape(-1, 1, 1, 1), f"{name}.weight")
        offset = add_initializer(graph, shift, f"{name}.bias")
        convolution = ir.node(
            "Conv", [data, weight, offset], {"group": len(factor)}, name=node.name
        )
        made = convolution.outputs[0]
        made.name, made.type, made.shape = name, output.type, output.shape
        graph.insert_before(node, convolution)
        output.replace_all_uses_with(made, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    common.RemoveUnusedNodesPass()(model)


def _affine(node: ir.Node) -> tuple[Array, Array]:
    scale, bias, mean, variance = (
        constant_array(value) for value in node.inputs[1:] if value is not None
    )
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return factor, bias - mean * factor


def to_float32(model: ir.Model) -> ir.Model:
    """Returns a copy in float32, ready to be written."""
    lowered = model.clone()
    graph = lowered.graph
    for value in [*graph.inputs, *graph.outputs]:
        if value.dtype == ir.DataType.DOUBLE:
            value.type = ir.TensorType(ir.DataType.FLOAT)  # the old type is the original's too
    narrow(graph)
    for value in graph.initializers.values():
        array = constant_array(value)
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    return lowered

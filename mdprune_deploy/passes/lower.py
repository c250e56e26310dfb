"""From the narrowed float64 graph to the one that is emitted: norms folded, float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    for node in list(model.graph):
        if node.op_type == "BatchNormalization":
            _move_before_join(model.graph, node)
    RewritePass(_RULES)(model)
    common.RemoveUnusedNodesPass()(model)


def _move_before_join(graph: ir.Graph, norm: ir.Node) -> None:
    """Gives each part of a grouped convolution its part of the batch norm behind them.

    The parts are concatenated and put in order: `norm(join(a, b)) = join(norm_a(a), norm_b(b))`.
    """
    ordered, output = norm.inputs[0], norm.outputs[0]
    assert ordered is not None
    joined, order = _before_gather(ordered)
    parts = _parts(joined)
    if joined is ordered and parts == [joined]:
        return  # one product, nothing between
    alone = all(
        len(value.uses()) == 1 and not value.is_graph_output()
        for value in (joined, ordered, *parts)
    )
    sizes = [_filters(value.producer()) for value in parts]
    if not alone or 0 in sizes:
        return
    parameters = [constant_array(value) for value in norm.inputs[1:] if value is not None]
    if order is not None:  # entry i belongs to joined channel order[i]; others are dropped again
        parameters = [_placed(array, order, sum(sizes)) for array in parameters]
    ends = np.cumsum(sizes)
    for part, start, end in zip(parts, ends - sizes, ends, strict=True):
        _insert_norm(graph, part, norm, [array[start:end] for array in parameters])
    ordered.name, output.name = output.name, ordered.name
    ordered.type, ordered.shape = output.type, output.shape
    output.replace_all_uses_with(ordered, replace_graph_outputs=True)
    graph.remove(norm, safe=True)


def _parts(joined: ir.Value) -> list[ir.Value]:
    """Returns what a value is concatenated from along its channels; itself where it is not."""
    join = joined.producer()
    if join is None or join.op_type != "Concat" or attribute(join, "axis", 0) != 1:
        return [joined]
    return [value for value in join.inputs if value is not None]


def _insert_norm(
    graph: ir.Graph, value: ir.Value, norm: ir.Node, parameters: Sequence[Array]
) -> None:
    """Adds a batch norm between a value and its one reader."""
    producer = value.producer()
    assert producer is not None
    reader, index = next(iter(value.uses()))
    operands = [add_initializer(graph, array, f"{norm.name}_part") for array in parameters]
    name = f"{producer.name}_norm"
    own = ir.node("BatchNormalization", [value, *operands], dict(norm.attributes), name=name)
    own.outputs[0].name = name
    graph.insert_after(producer, own)
    reader.replace_input_with(index, own.outputs[0])


def _before_gather(value: ir.Value) -> tuple[ir.Value, Array | None]:
    """Returns what a selection of channels selects from, and which; the value itself else."""
    node = value.producer()
    if node is None or node.op_type != "Gather" or attribute(node, "axis", 0) != 1:
        return value, None
    source, indices = node.inputs
    assert source is not None and indices is not None
    if not indices.is_initializer():
        return value, None
    order = constant_array(indices)
    distinct = order.ndim == 1 and len(np.unique(order)) == len(order)
    return (source, order) if distinct else (value, None)


def _placed(array: Array, places: Array, size: int) -> Array:
    whole = np.ones(size)
    whole[places] = array
    return whole


def _filters(node: ir.Node | None) -> int:
    """Returns the filters of a convolution, 0 for any other node."""
    if node is None or node.op_type not in ("Conv", "ConvTranspose"):
        return 0
    weight = node.inputs[1]
    assert weight is not None
    shape = constant_array(weight).shape
    return int(shape[0] if node.op_type == "Conv" else shape[1] * attribute(node, "group", 1))


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

"""Binds one domain to the shared graph: its own parameters, its masks, in float64.

The result is the masked dense model that defines what is correct. A mask multiplies the weight for
`site="weight"` and the layer's output for `site="output"`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from ..checkpoint import Checkpoint
from ..domain import Axis, Domain, Mask
from ..errors import CheckpointError, UnsupportedGraphError
from ..evaluate import Array, attribute, constant_array
from ..precision import widen
from ..weights import Reader, module_of, readers, readers_of, with_ancestors
from .trace import add_initializer, fold_constants


@dataclass(frozen=True)
class WeightUse:
    """Which stored weight a convolution or matrix product reads, and how.

    Attributes:
        name: The weight's name in the checkpoint.
        version: Digest of the domain's own parameters that the weight depends on; empty where
            the weight is the backbone's. Weights of one name and version are one stored tensor.
    """

    name: str
    version: str


def bind(checkpoint: Checkpoint, domain_name: str) -> ir.Model:
    """Returns the masked dense model of one domain in float64, its constants folded.

    Every convolution and matrix product with a constant weight carries its `WeightUse` in
    `node.meta["weight"]`.

    Raises:
        CheckpointError: A mask does not fit the weight that it names.
        UnsupportedGraphError: The graph holds something that has no float64 form.
    """
    domain = checkpoint.domains[domain_name]
    model = checkpoint.model.clone()
    graph = model.graph
    overridden = _override(graph, checkpoint, domain)
    name_nodes(graph)
    _to_float64(graph)
    found = readers(graph)
    for reader in found:
        _describe(reader, overridden)
    masked = [
        (key, mask, readers_of(checkpoint.sites[key], found))
        for key, masks in domain.masks.items()
        for mask in ([masks] if isinstance(masks, Mask) else masks)
    ]
    fold_constants(graph)
    for key, mask, targets in masked:
        if not targets:
            raise CheckpointError(f"mask on {key!r}: no layer of the graph reads it as its weight")
        on = mask.on.cpu().numpy().astype(np.float64)
        for reader in targets:
            if mask.site == "output":
                _mask_output(graph, reader, on)
            else:
                _mask_weight(graph, reader, mask.axis, on)
    common.RemoveUnusedNodesPass()(model)
    return model


def _override(graph: ir.Graph, checkpoint: Checkpoint, domain: Domain) -> dict[str, str]:
    """Puts the domain's own parameters in; returns the digest of each that differs."""
    digests: dict[str, str] = {}
    for name, tensor in domain.state.items():
        target = checkpoint.aliases.get(name, name)
        if target not in graph.initializers:
            continue  # a buffer that inference does not read
        array = tensor.detach().cpu().numpy()
        value = graph.initializers[target]
        if not np.array_equal(array, constant_array(value)):
            digests[target] = hashlib.sha256(array.tobytes()).hexdigest()
            value.const_value = ir.tensor(array, name=target)
            value.shape = ir.Shape(array.shape)
    return digests


def name_nodes(graph: ir.Graph) -> None:
    """Gives every node and every value a name of its own."""
    seen: set[str] = set()
    for index, node in enumerate(graph):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)
        for position, value in enumerate(node.outputs):
            if not value.name:
                value.name = f"{node.name}_output_{position}"


def _to_float64(graph: ir.Graph) -> None:
    for value in [*graph.inputs, *graph.initializers.values()]:
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.DOUBLE)  # clones share their type objects
    for node in graph:
        for attr in node.attributes.values():
            if attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                raise UnsupportedGraphError(
                    f"{node.op_type} (node {node.name!r}) holds a subgraph; control flow that "
                    "depends on data cannot be compiled"
                )
    widen(graph)


def _describe(reader: Reader, overridden: dict[str, str]) -> None:
    digests = sorted(
        f"{value.name}:{overridden[value.name]}"
        for value in with_ancestors(reader.operand)
        if value.name is not None and value.name in overridden
    )
    assert reader.weight.name is not None
    reader.node.meta["weight"] = WeightUse(reader.weight.name, "|".join(digests))


def _mask_weight(graph: ir.Graph, reader: Reader, axis: Axis, on: Array) -> None:
    operand = reader.node.inputs[reader.index]
    assert operand is not None
    weight = constant_array(operand)
    factor = weight_mask(reader.node, reader.index, weight.shape, axis, on)
    masked = add_initializer(graph, weight * factor, operand.name)
    reader.node.replace_input_with(reader.index, masked)


def weight_mask(node: ir.Node, index: int, shape: Sequence[int], axis: str, on: Array) -> Array:
    """Returns the factor that a mask puts on a product's weight.

    Args:
        node: Conv, ConvTranspose, Gemm or MatMul.
        index: Which input of the node is the weight.
        shape: The weight operand's shape.
        axis: `"in"` or `"out"`.
        on: One 0 or 1 per channel of the layer, shape `(channels,)`.

    Returns:
        An array that broadcasts against the weight.
    """
    out_axis, in_axis = weight_axes(node, index, len(shape))
    target = in_axis if axis == "in" else out_axis
    if len(on) == shape[target]:
        return on.reshape([-1 if a == target else 1 for a in range(len(shape))])
    # Grouped: the layer's channels, split by group, against the other axis of the weight.
    groups = attribute(node, "group", 1)
    other = out_axis if axis == "in" else in_axis
    split = on.reshape(groups, shape[target])
    rows = np.repeat(split, shape[other] // groups, axis=0)
    full = rows if other < target else rows.T
    return full.reshape(*full.shape, *([1] * (len(shape) - 2)))


def weight_axes(node: ir.Node, index: int, rank: int) -> tuple[int, int]:
    """Returns the output and the input axis of a product's weight operand."""
    if node.op_type == "Conv":
        return 0, 1
    if node.op_type == "ConvTranspose":
        return 1, 0
    transposed = attribute(node, "transB" if index == 1 else "transA", 0)
    first_is_out = bool(transposed) == (index == 1)
    return (rank - 2, rank - 1) if first_is_out else (rank - 1, rank - 2)


def _mask_output(graph: ir.Graph, reader: Reader, on: Array) -> None:
    """Multiplies a layer's output, its bias included, by the mask."""
    node = reader.node
    output = _with_bias(node)
    operand = node.inputs[reader.index]
    assert operand is not None
    rank = constant_array(operand).ndim
    behind = rank - 2  # axes behind the channels'
    if node.op_type in ("MatMul", "Gemm"):
        behind = 1 if reader.index == 0 else 0  # W @ x has its channels before the columns
    name = _fresh(graph, f"{node.name}_masked")
    factor = add_initializer(graph, on.reshape(-1, *[1] * behind), _fresh(graph, f"{name}_on"))
    producer = output.producer()
    assert producer is not None
    product = ir.node("Mul", [output, factor], name=name)
    product.outputs[0].name = name
    if output.is_graph_output():  # the output keeps its name
        product.outputs[0].name, output.name = output.name, name
        product.outputs[0].shape, product.outputs[0].type = output.shape, output.type
    graph.insert_after(producer, product)
    output.replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
    product.replace_input_with(0, output)


def _with_bias(node: ir.Node) -> ir.Value:
    """Returns a layer's output; that of a matrix product includes the bias of the same module."""
    output = node.outputs[0]
    users = list(output.uses())
    if node.op_type != "MatMul" or len(users) != 1 or output.is_graph_output():
        return output
    addition, position = users[0]
    if addition.op_type != "Add" or module_of(addition) != module_of(node):
        return output
    bias = addition.inputs[1 - position]
    is_bias = bias is not None and bias.is_initializer() and constant_array(bias).ndim == 1
    return addition.outputs[0] if is_bias else output


def _fresh(graph: ir.Graph, name: str) -> str:
    taken = {node.name for node in graph} | set(graph.initializers)
    taken.update(value.name for node in graph for value in node.outputs)
    count, candidate = 0, name
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate

"""Binds one domain to the shared graph: its own parameters, its masks, in float64.

The result is the masked dense model that defines what is correct. A mask multiplies the weight for
`site="weight"` and the layer's output for `site="output"`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from ..checkpoint import Checkpoint
from ..domain import Domain, Mask
from ..errors import CheckpointError, UnsupportedGraphError
from ..evaluate import Array, constant_array
from ..precision import widen
from ..weight_parts import evaluated_shape, weight_part
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
    `node.meta["weight"]`, and its weight before any mask, as float32, in `node.meta["unmasked"]`.

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
    factors = [
        (reader, mask.site, _factor(reader, checkpoint.sites[key], mask))
        for key, mask in _masks(domain)
        for reader in _masked(key, checkpoint.sites[key], found)
    ]
    fold_constants(graph)
    _keep_unmasked(found)
    for reader, site, factor in factors:
        if site == "output":
            _mask_output(graph, reader, factor)
        else:
            _mask_weight(graph, reader, factor)
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


def _keep_unmasked(found: Sequence[Reader]) -> None:
    for reader in found:
        operand = reader.node.inputs[reader.index]
        if operand is not None and operand.is_initializer():
            reader.node.meta["unmasked"] = constant_array(operand).astype(np.float32)


def _masks(domain: Domain) -> Iterator[tuple[str, Mask]]:
    for key, masks in domain.masks.items():
        for mask in [masks] if isinstance(masks, Mask) else masks:
            yield key, mask


def _masked(key: str, site: str, found: list[Reader]) -> list[Reader]:
    targets = readers_of(site, found)
    if not targets:
        raise CheckpointError(f"mask on {key!r}: no layer of the graph reads it as its weight")
    return targets


def _factor(reader: Reader, site: str, mask: Mask) -> Array:
    """Returns what a mask multiplies a layer's weight, or its output channels, by."""
    part = weight_part(reader, site, evaluated_shape)
    on = mask.on.cpu().numpy().astype(np.float64)
    return part.filter_factor(on) if mask.site == "output" else part.factor(mask.axis, on)


def _mask_weight(graph: ir.Graph, reader: Reader, factor: Array) -> None:
    operand = reader.node.inputs[reader.index]
    assert operand is not None
    masked = add_initializer(graph, constant_array(operand) * factor, operand.name)
    reader.node.replace_input_with(reader.index, masked)


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

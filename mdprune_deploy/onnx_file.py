"""Reads ONNX files of any exporter: one operator set, constants as initialisers, or a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes import common

from .errors import CheckpointError, UnsupportedGraphError
from .evaluate import attribute
from .export import OPSET

OLDEST_OPSET = 7
"""Before it, operators broadcast by attributes and dropout depended on them."""
_TYPES = {
    *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BOOL, ir.DataType.STRING),
    *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
    *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
}
_INTEGER_ARITHMETIC = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
                       "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")  # fmt: skip
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
           "Multinomial")  # fmt: skip


def read(path: Path, where: str) -> onnx.ModelProto:
    """Reads a model with the tensors that it keeps in other files.

    Raises:
        CheckpointError: It is unreadable or no valid ONNX; `where` names it.
    """
    try:
        proto = onnx.load(path)
        onnx.checker.check_model(path)
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise CheckpointError(f"{where}: is no valid ONNX: {first_line(error)}") from error
    return proto


def converted(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Brings a model to `OPSET`; the converter drops the nodes' metadata, which is put back."""
    versions = [item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")]
    if len(versions) != 1:
        raise CheckpointError(f"{where}: is no valid ONNX: it uses the operator sets {versions}")
    (version,) = versions
    if version == OPSET:
        return proto
    if version < OLDEST_OPSET:
        raise UnsupportedGraphError(
            f"{where}: uses operator set {version}; {OLDEST_OPSET} is the oldest that is read: "
            "export it anew"
        )
    try:
        converted = onnx.version_converter.convert_version(proto, OPSET)
    except Exception as error:
        raise UnsupportedGraphError(
            f"{where}: operator set {version} cannot be converted to {OPSET}: {first_line(error)}"
        ) from error
    metadata = {node.name: node.metadata_props for node in proto.graph.node if node.name}
    for node in converted.graph.node:
        if node.name in metadata and not node.metadata_props:
            node.metadata_props.extend(metadata[node.name])
    return converted


def lifted(proto: onnx.ModelProto) -> ir.Model:
    """Returns the model with all constants as initialisers that hold data of their own."""
    model: ir.Model = ir.from_proto(proto)
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    graph = model.graph
    for value in graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Identity" else None
        if source is None or not source.is_initializer() or node.outputs[0].is_graph_output():
            continue
        copy = ir.val(str(node.outputs[0].name), const_value=source.const_value)
        node.outputs[0].name = None
        copy.shape, copy.type = source.shape, source.type
        graph.register_initializer(copy)
        node.outputs[0].replace_all_uses_with(copy)
        graph.remove(node, safe=True)
    return model


def check_supported(graph: ir.Graph, where: str) -> None:
    """Refuses by name what no later stage could make exact."""
    for value in [*graph.inputs, *graph.initializers.values()]:
        if value.dtype not in _TYPES:
            kind = "input" if value.is_graph_input() else "tensor"
            raise UnsupportedGraphError(
                f"{where}: {kind} {value.name!r} is {value.dtype}; only float32 networks can be "
                "packed"
            )
    for node in graph:
        reason = _reason(node)
        if reason is not None:
            operator = node.op_type if node.domain == "" else f"{node.domain}::{node.op_type}"
            raise UnsupportedGraphError(f"{where}: {operator} (node {node.name!r}) {reason}")


def _reason(node: ir.Node) -> str | None:
    if node.domain != "":
        return "is not a standard ONNX operator"
    if any(
        attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attr in node.attributes.values()
    ):
        return "holds a subgraph; control flow that depends on data cannot be compiled"
    if node.op_type in _INTEGER_ARITHMETIC:
        return "computes in integers; only float32 networks can be packed"
    if node.op_type in _RANDOM or _drops(node):
        return "draws random numbers"
    if node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0):
        return "is in training mode: its output depends on the batch; export in eval mode"
    if node.op_type == "Cast" and ir.DataType(attribute(node, "to", 1)) not in _TYPES:
        return f"casts to {ir.DataType(node.attributes['to'].as_int())}; only float32 can be packed"
    return None


def _drops(node: ir.Node) -> bool:
    training = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    return training is not None and not (
        training.const_value is not None and not training.const_value.numpy().any()
    )


def first_line(error: Exception) -> str:
    """Returns the first line of an error that says something, cut to a readable length."""
    lines: Iterator[str] = (line.strip() for line in str(error).splitlines())
    text = next((line for line in lines if line), type(error).__name__)
    return text if len(text) <= 300 else text[:297] + "..."

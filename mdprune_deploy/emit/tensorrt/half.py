"""From a float32 model to its strongly typed float16 one.

Activations and weights are float16, inputs and outputs of the network stay float32: a cast stands
behind every input and before every output. Plug-in nodes name their weights, which have one type in
the file; the plug-in rounds them. What ONNX defines in float32 alone, such as the scales of a
`Resize`, stays so.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...errors import UnsupportedGraphError
from ...evaluate import constant_array
from ...precision import narrow_to_half

_FLOAT_ONLY = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that are float32 whatever the type of the data."""


def to_float16(model: ir.Model) -> ir.Model:
    """Returns a copy in float16.

    Args:
        model: In float32, as it is emitted.

    Raises:
        UnsupportedGraphError: A constant is beyond what float16 can hold.
    """
    lowered = model.clone()
    graph = lowered.graph
    kept = {
        value: value.const_value
        for node in graph
        for position in _FLOAT_ONLY.get(node.op_type, ())
        if position < len(node.inputs)
        and (value := node.inputs[position]) is not None
        and value.is_initializer()
    }
    for value in graph.initializers.values():
        if value not in kept:
            _check_range(value)
    narrow_to_half(graph)
    for value, tensor in kept.items():
        value.const_value = tensor
    for value in graph.initializers.values():
        value.type = ir.TensorType(ir.DataType.from_numpy(constant_array(value).dtype))
    for node in graph:
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(ir.DataType.FLOAT16)
    _cast_inputs(graph)
    _cast_outputs(graph)
    return lowered


def _check_range(value: ir.Value) -> None:
    array = constant_array(value)
    if array.dtype != np.float32:
        return
    largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
    if largest > float(np.finfo(np.float16).max):
        raise UnsupportedGraphError(
            f"constant {value.name!r} holds {largest:.3g}, beyond the range of float16"
        )


def _cast_inputs(graph: ir.Graph) -> None:
    first = next(iter(graph))
    for value in graph.inputs:
        if value.dtype != ir.DataType.FLOAT:
            continue
        cast = _cast(value, ir.DataType.FLOAT16, f"{value.name}_half")
        value.replace_all_uses_with(cast.outputs[0])
        cast.replace_input_with(0, value)
        graph.insert_before(first, cast)


def _cast_outputs(graph: ir.Graph) -> None:
    for position, value in enumerate(graph.outputs):
        if value.dtype != ir.DataType.FLOAT16 or value.is_initializer():
            continue
        name, shape = value.name, value.shape
        value.name = f"{name}_half"
        cast = _cast(value, ir.DataType.FLOAT, str(name))
        graph.append(cast)
        output = cast.outputs[0]
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), shape
        graph.outputs[position] = output


def _cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": int(to)}, name=name)
    cast.outputs[0].name = name
    return cast

"""Changes the floating-point precision that a graph's constants carry and its casts name."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .evaluate import constant_array


def widen(graph: ir.Graph) -> None:
    """Turns float32 initialisers, constants, tensor attributes and casts into float64, in place."""
    for node in graph:
        _make_default_explicit(node)
    _change(graph, np.dtype(np.float32), np.dtype(np.float64))


def widened(graph: ir.Graph) -> ir.Graph:
    """Returns a copy in float64."""
    clone = graph.clone()
    widen(clone)
    return clone


def narrow(graph: ir.Graph) -> None:
    """Turns float64 initialisers, tensor attributes and casts into float32 ones, in place."""
    _change(graph, np.dtype(np.float64), np.dtype(np.float32))


def narrow_to_half(graph: ir.Graph) -> None:
    """Turns float32 initialisers, constants, tensor attributes and casts into float16, in place."""
    for node in graph:
        _make_default_explicit(node)
    _change(graph, np.dtype(np.float32), np.dtype(np.float16))


def _change(graph: ir.Graph, old: np.dtype[np.generic], new: np.dtype[np.generic]) -> None:
    before, after = (int(ir.DataType.from_numpy(dtype)) for dtype in (old, new))
    for value in graph.initializers.values():
        array = constant_array(value)
        if array.dtype == old:
            value.const_value = ir.tensor(array.astype(new), name=value.name)
    for node in graph:
        for name, attr in list(node.attributes.items()):
            if attr.type == ir.AttributeType.TENSOR:
                array = attr.as_tensor().numpy()
                if array.dtype == old:
                    node.attributes[name] = ir.AttrTensor(name, ir.tensor(array.astype(new)))
            elif name == "to" and attr.value == before:
                node.attributes[name] = ir.AttrInt64(name, after)


def _make_default_explicit(node: ir.Node) -> None:
    """Writes out, as a tensor attribute, what an operator makes in float32 without naming it."""
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        zero = ir.tensor(np.zeros(1, dtype=np.float32))
        node.attributes["value"] = ir.AttrTensor("value", zero)
    if node.op_type == "Constant":
        for name in ("value_float", "value_floats"):
            attr = node.attributes.pop(name, None)
            if attr is not None:
                tensor = ir.tensor(np.asarray(attr.value, dtype=np.float32))
                node.attributes["value"] = ir.AttrTensor("value", tensor)

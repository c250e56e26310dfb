"""Puts `GatherConv` nodes in the place of convolutions, with what the kernel computes besides.

Before it: a selection of channels. Behind it, where nothing else reads the values between: batch
norm, one addition of another tensor, one activation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...evaluate import Array, attribute, constant_array, window
from ...passes.elements import Indices
from ..native.operators import IDENTITY, Activation, Function
from ..native.shared import Placed
from .node import DOMAIN, OP_TYPE, GatherConv, Slab, WeightName

Shapes = Mapping[str, Sequence[int]]
"""By value's name, at batch 1."""
PITCH = 8
"""Channels to whose multiples TensorRT pads a float16 image. What pads a residual may be anything
and must not get into the sum, so the plug-in adds only what is not padded."""
_RANK = 4


def is_candidate(node: ir.Node) -> bool:
    """Tells whether a node could be a plug-in node: a plain convolution of images."""
    weight = node.inputs[1] if node.op_type == "Conv" and len(node.inputs) > 1 else None
    if weight is None or "part" not in node.meta or not weight.is_initializer():
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    constant_bias = bias is None or bias.is_initializer()
    return constant_bias and constant_array(weight).ndim == _RANK


def replace(
    graph: ir.Graph, node: ir.Node, placed: Placed, files: Sequence[WeightName], shapes: Shapes
) -> None:
    """Puts a `GatherConv` in the place of a convolution, in place.

    Args:
        graph: The narrowed graph in float64.
        node: One of its convolutions.
        placed: Where its weight lies: in slabs.
        files: The weight files that the domain reads.
        shapes: Of all values.
    """
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None and weight is not None and data.name is not None
    geometry = window(node, shapes[data.name], constant_array(weight).shape[2:])
    source, selected = _selection(data)
    epilogue = _epilogue(node, shapes)
    names = [file.name for file in files]
    convolution = GatherConv(
        files=tuple(files),
        slabs=tuple(
            Slab(
                names.index(piece.place.file),
                piece.place.offset,
                piece.shape[1],
                piece.shape[2],
                piece.bits,
                piece.rows,
            )
            for piece in placed.weights
        ),
        channels=shapes[str(source.name)][1],
        index=placed.order if selected is None else selected[placed.order],
        scale=epilogue.scale,
        shift=epilogue.shift,
        activation=epilogue.activation,
        kernel=geometry.kernel,
        strides=geometry.strides,
        dilations=geometry.dilations,
        pads=(*geometry.begin, *geometry.end),
    )
    inputs = [source] if epilogue.residual is None else [source, epilogue.residual]
    made = ir.node(OP_TYPE, inputs, convolution.attributes(), domain=DOMAIN, name=node.name)
    last = epilogue.absorbed[-1] if epilogue.absorbed else node
    output = last.outputs[0]
    new = made.outputs[0]
    new.name, new.type, new.shape = output.name, output.type, output.shape
    graph.insert_before(last, made)
    output.replace_all_uses_with(new, replace_graph_outputs=True)
    for old in (*reversed(epilogue.absorbed), node):
        graph.remove(old, safe=True)
    if source is not data and not data.uses():
        selection = data.producer()
        assert selection is not None
        graph.remove(selection, safe=True)
    graph.opset_imports[DOMAIN] = 1


def _selection(value: ir.Value) -> tuple[ir.Value, Indices | None]:
    """Returns what a value selects channels of, and which; the value itself else."""
    node = value.producer()
    constants = [] if node is None else [v for v in node.inputs[1:] if v is not None]
    if node is None or not all(v.is_initializer() for v in constants):
        return value, None
    source = node.inputs[0]
    assert source is not None
    if node.op_type == "Gather" and attribute(node, "axis", 0) == 1:
        indices = constant_array(constants[0])
        return (source, indices) if indices.ndim == 1 and (indices >= 0).all() else (value, None)
    if node.op_type == "Slice" and len(constants) == 3:
        start, end, axis = (constant_array(v).reshape(-1).tolist() for v in constants)
        if axis == [1] and 0 <= start[0] < end[0]:
            return source, np.arange(start[0], end[0])
    return value, None


@dataclass
class _Epilogue:
    """What the node computes with its sums.

    Attributes:
        scale: Per filter.
        shift: Per filter.
        residual: What is added.
        activation: At the end.
        absorbed: The nodes that this stands for, in order.
    """

    scale: Array
    shift: Array
    residual: ir.Value | None = None
    activation: Activation = IDENTITY
    absorbed: list[ir.Node] = field(default_factory=list)


def _epilogue(node: ir.Node, shapes: Shapes) -> _Epilogue:
    stored, weight = node.meta["stored"], node.inputs[1]
    assert weight is not None
    filters = len(constant_array(weight))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    shift = np.zeros(filters) if bias is None else constant_array(bias)
    found = _Epilogue(scale=stored.live.astype(np.float64), shift=shift)
    value = node.outputs[0]
    while found.activation is IDENTITY:
        reader = _only_reader(value)
        if reader is None or not _absorb(found, reader, value, shapes):
            break
        found.absorbed.append(reader)
        value = reader.outputs[0]
    return found


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return None if value.is_graph_output() or len(uses) != 1 else uses[0].node


def _absorb(found: _Epilogue, reader: ir.Node, value: ir.Value, shapes: Shapes) -> bool:
    match reader.op_type:
        case "BatchNormalization" if found.residual is None:
            return _absorb_norm(found, reader)
        case "Add" if found.residual is None:
            return _absorb_residual(found, reader, value, shapes)
        case "Relu":
            found.activation = Activation(Function.RELU)
        case "LeakyRelu":
            found.activation = Activation(Function.LEAKY_RELU, attribute(reader, "alpha", 0.01))
        case "Clip":
            return _absorb_clip(found, reader)
        case _:
            return False
    return True


def _absorb_norm(found: _Epilogue, norm: ir.Node) -> bool:
    if not all(v is not None and v.is_initializer() for v in norm.inputs[1:]):
        return False
    scale, bias, mean, variance = (constant_array(v) for v in norm.inputs[1:] if v is not None)
    factor = scale / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    found.scale = found.scale * factor
    found.shift = found.shift * factor + bias - mean * factor
    return True


def _absorb_residual(found: _Epilogue, add: ir.Node, value: ir.Value, shapes: Shapes) -> bool:
    others = [v for v in add.inputs if v is not None and v is not value]
    if len(others) != 1 or others[0].is_initializer() or len(found.scale) % PITCH:
        return False
    if shapes.get(str(others[0].name)) != shapes[str(value.name)]:
        return False
    found.residual = others[0]
    return True


def _absorb_clip(found: _Epilogue, clip: ir.Node) -> bool:
    bounds = [*clip.inputs[1:], None, None][:2]
    if any(v is not None and not v.is_initializer() for v in bounds):
        return False
    low, high = (
        default if v is None else float(constant_array(v).item())
        for v, default in zip(bounds, (-np.inf, np.inf), strict=True)
    )
    if not np.isfinite(low) or not np.isfinite(high):
        return False
    found.activation = Activation(Function.CLIP, low, high)
    return True

"""Rewrites operators that have a simpler equivalent, so that the operator table stays small."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ..evaluate import attribute, constant_array
from .trace import Trace, add_initializer


def normalize(model: ir.Model, trace: Trace) -> None:
    """Removes what does nothing at inference and splits what does two things, in place."""
    graph = model.graph
    for node in list(graph):
        if node.op_type == "CastLike":
            _drop_like(graph, node, trace)
        elif node.op_type == "Gather":
            _split_scalar_gather(graph, node, trace)
    for node in list(graph):
        if node.op_type in ("Identity", "Dropout") or _is_idle_cast(node, trace):
            _bypass(graph, node)
    common.RemoveUnusedNodesPass()(model)


def _drop_like(graph: ir.Graph, node: ir.Node, trace: Trace) -> None:
    output = node.outputs[0]
    assert output.name is not None
    to = int(ir.DataType.from_numpy(trace.dtypes[output.name]))
    cast = ir.node("Cast", [node.inputs[0]], {"to": to}, name=node.name)
    _replace(graph, node, [cast])


def _split_scalar_gather(graph: ir.Graph, node: ir.Node, trace: Trace) -> None:
    """Turns the selection of one index, which drops the axis, into a selection and a Squeeze."""
    data, index = node.inputs
    assert data is not None and index is not None
    if not index.is_initializer() or constant_array(index).ndim != 0 or data.is_initializer():
        return
    assert data.name is not None
    shape = trace.shapes[data.name]
    axis = int(attribute(node, "axis", 0)) % len(shape)
    one = add_initializer(graph, constant_array(index).reshape(1), index.name)
    gather = ir.node("Gather", [data, one], {"axis": axis}, name=f"{node.name}_selection")
    gather.outputs[0].name = f"{node.name}_selection"
    axes = add_initializer(graph, np.asarray([axis]), f"{node.name}_axis")
    squeeze = ir.node("Squeeze", [gather.outputs[0], axes], name=node.name)
    trace.shapes[gather.outputs[0].name] = tuple(
        1 if a == axis else size for a, size in enumerate(shape)
    )
    trace.dtypes[gather.outputs[0].name] = trace.dtypes[data.name]
    trace.varying[gather.outputs[0].name] = trace.varying[data.name] - {axis}
    _replace(graph, node, [gather, squeeze])


def _replace(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    last = nodes[-1].outputs[0]
    last.name = node.outputs[0].name
    for new in nodes:
        graph.insert_before(node, new)
    node.outputs[0].replace_all_uses_with(last, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _is_idle_cast(node: ir.Node, trace: Trace) -> bool:
    source, output = node.inputs[0] if node.inputs else None, node.outputs[0]
    if node.op_type != "Cast" or source is None or source.name is None or output.name is None:
        return False
    return not source.is_initializer() and trace.dtypes[source.name] == trace.dtypes[output.name]


def _bypass(graph: ir.Graph, node: ir.Node) -> None:
    """Removes a node that passes its input on; an output of the graph keeps its own node."""
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    others = any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
    if output.is_graph_output() or others:
        return
    output.replace_all_uses_with(source)
    graph.remove(node, safe=True)

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
        elif node.op_type == "ConstantOfShape":
            _expand_constant(graph, node)
        elif node.op_type == "GatherND":
            _gather_rows(graph, node)
    for node in list(graph):
        if node.op_type == "Gather":
            _flatten_indices(graph, node, trace)
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


def _expand_constant(graph: ir.Graph, node: ir.Node) -> None:
    """Turns a tensor of one number into the expansion of a constant."""
    fill = np.asarray(attribute(node, "value", ir.tensor(np.zeros(1))).numpy())
    one = add_initializer(graph, fill.reshape(1), f"{node.name}_value")
    _replace(graph, node, [ir.node("Expand", [one, node.inputs[0]], name=node.name)])


def _gather_rows(graph: ir.Graph, node: ir.Node) -> None:
    """Turns `GatherND` along the first axis into `Gather`."""
    indices = node.inputs[1]
    assert indices is not None
    if not indices.is_initializer() or attribute(node, "batch_dims", 0):
        return
    array = constant_array(indices)
    if array.shape[-1] == 1:
        rows = add_initializer(graph, array[..., 0], indices.name)
        _replace(graph, node, [ir.node("Gather", [node.inputs[0], rows], name=node.name)])


def _flatten_indices(graph: ir.Graph, node: ir.Node, trace: Trace) -> None:
    """Splits a selection by indices of another rank than 1 into one of rank 1 and a `Reshape`."""
    data, indices = node.inputs
    assert data is not None and indices is not None and data.name is not None
    if not indices.is_initializer() or data.is_initializer() or constant_array(indices).ndim == 1:
        return
    array = constant_array(indices)
    shape, output = trace.shapes[data.name], node.outputs[0]
    axis = int(attribute(node, "axis", 0)) % len(shape)
    if trace.varying[data.name] - set(range(axis)):
        return  # only leading axes may follow the batch: the Reshape copies them
    flat = add_initializer(graph, array.reshape(-1), indices.name)
    gather = ir.node("Gather", [data, flat], {"axis": axis}, name=f"{node.name}_selection")
    name = gather.outputs[0].name = f"{node.name}_selection"
    target = [
        0 if a in trace.varying[str(output.name)] else size
        for a, size in enumerate(trace.shapes[str(output.name)])
    ]
    shaped = add_initializer(graph, np.asarray(target, dtype=np.int64), f"{node.name}_shape")
    trace.shapes[name] = (*shape[:axis], array.size, *shape[axis + 1 :])
    trace.dtypes[name] = trace.dtypes[data.name]
    trace.varying[name] = trace.varying[data.name]
    reshape = ir.node("Reshape", [gather.outputs[0], shaped], name=node.name)
    _replace(graph, node, [gather, reshape])


def _replace(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    last = nodes[-1].outputs[0]
    output = node.outputs[0]
    last.name, last.shape, last.type = output.name, output.shape, output.type
    for new in nodes:
        graph.insert_before(node, new)
    output.replace_all_uses_with(last, replace_graph_outputs=True)
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

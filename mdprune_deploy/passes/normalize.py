"""Rewrites operators that have a simpler equivalent, so that the operator table stays small."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ..evaluate import Array, attribute, constant_array
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
        elif node.op_type == "Gemm" and "weight" in node.meta and not _is_plain(node):
            _split_gemm(graph, node, trace)
    for node in list(graph):
        if node.op_type == "MatMul" and "weight" in node.meta:
            _flatten_weight(graph, node, trace)
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


def _is_plain(node: ir.Node) -> bool:
    """Tells whether a `Gemm` is `x @ W + b`, with one bias for all rows."""
    weight, addend = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    rows = addend is not None and (
        not addend.is_initializer() or any(size > 1 for size in constant_array(addend).shape[:-1])
    )
    plain = weight is not None and weight.is_initializer() and not attribute(node, "transA", 0)
    return plain and not rows


def _split_gemm(graph: ir.Graph, node: ir.Node, trace: Trace) -> None:
    """Turns `Gemm` into `Transpose`, `MatMul` and `Add`."""
    operands, nodes, turned = [], [], ""
    for index, flag in enumerate(("transA", "transB")):
        value = node.inputs[index]
        assert value is not None
        if value.is_initializer():
            value = add_initializer(
                graph, _factor_of_gemm(node, flag, constant_array(value)), value.name
            )
            turned = flag
        elif attribute(node, flag, 0):
            turn = ir.node("Transpose", [value], {"perm": [1, 0]}, name=f"{node.name}_{flag}")
            _record(turn, value, trace.shapes[str(value.name)][::-1], trace, turned=True)
            nodes.append(turn)
            value = turn.outputs[0]
        operands.append(value)
    product = ir.node("MatMul", operands, name=node.name)
    product.meta["weight"] = node.meta["weight"]
    if "unmasked" in node.meta:
        product.meta["unmasked"] = _factor_of_gemm(node, turned, node.meta["unmasked"])
    nodes.append(product)
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    beta = attribute(node, "beta", 1.0)
    if addend is not None:
        _record(product, node.outputs[0], trace.shapes[str(node.outputs[0].name)], trace)
        if addend.is_initializer():
            addend = add_initializer(graph, constant_array(addend) * beta, addend.name)
        elif beta != 1.0:
            factor = add_initializer(graph, np.asarray(beta), f"{node.name}_beta")
            scale = ir.node("Mul", [addend, factor], name=f"{node.name}_scale")
            _record(scale, addend, trace.shapes[str(addend.name)], trace)
            nodes.append(scale)
            addend = scale.outputs[0]
        nodes.append(ir.node("Add", [product.outputs[0], addend], name=f"{node.name}_add"))
    _replace(graph, node, nodes)


def _factor_of_gemm(node: ir.Node, flag: str, operand: Array) -> Array:
    """Returns a constant operand of `Gemm` as the `MatMul` reads it."""
    array = operand * attribute(node, "alpha", 1.0)
    return np.asarray(array.T if attribute(node, flag, 0) else array)


def _record(
    node: ir.Node, like: ir.Value, shape: tuple[int, ...], trace: Trace, *, turned: bool = False
) -> None:
    """Names a new node's output and records what is known of it."""
    name = node.outputs[0].name = f"{node.name}_out"
    varying = trace.varying[str(like.name)]
    trace.shapes[name] = shape
    trace.dtypes[name] = trace.dtypes[str(like.name)]
    trace.varying[name] = frozenset(len(shape) - 1 - a for a in varying) if turned else varying


def _flatten_weight(graph: ir.Graph, node: ir.Node, trace: Trace) -> None:
    """Drops axes of length 1 in front of a product's weight where the data has as many axes."""
    for index, value in enumerate(node.inputs):
        other = node.inputs[1 - index]
        assert value is not None and other is not None
        if not value.is_initializer() or other.is_initializer():
            continue
        array = constant_array(value)
        if (
            array.ndim > 2
            and array.shape[:-2] == (1,) * (array.ndim - 2)
            and array.ndim <= len(trace.shapes[str(other.name)])
        ):
            flat = add_initializer(graph, array.reshape(array.shape[-2:]), value.name)
            node.replace_input_with(index, flat)
            if "unmasked" in node.meta:
                node.meta["unmasked"] = node.meta["unmasked"].reshape(array.shape[-2:])


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

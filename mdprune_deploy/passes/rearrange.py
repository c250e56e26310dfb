"""Recognises chains of reshapes and transpositions by what they do to the channels.

A channel shuffle is exported as Reshape, Transpose, Reshape; a stack that is flattened again as
Unsqueeze, Concat, Reshape. Between these operators channels are spread over two axes, and a set of
them is no slice any more. So labels are moved through the chain instead: where the result is, at
every position, a list of the channels of the chain's inputs, the chain becomes one `Gather`; where
it moves channels into space or back, one `DepthToSpace` or `SpaceToDepth` before that.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ..evaluate import Array, constant_array, evaluate_node
from .trace import Trace, add_initializer

_SHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_CHAIN = (*_SHAPING, "Transpose", "Concat")
_AXIS = 1
_SMALLEST_RANK = 3
_LARGEST_RANK = 6


def rearrange(model: ir.Model, trace: Trace) -> None:
    """Replaces every longest recognised chain, in place."""
    graph = model.graph
    replaced: set[ir.Node] = set()
    for node in reversed(list(graph)):
        if node.op_type == "Concat" or not _is_link(node) or node in replaced:
            continue
        chain, roots = _chain(node)
        if len(chain) < 2:
            continue
        if _same_but_channels(node.outputs[0], roots, trace) and (
            _as_gather(graph, node, roots, trace) or _as_blocks(graph, node, roots, trace)
        ):
            replaced.update(chain)
        else:
            replaced.update(_as_transposition(graph, node, trace))
    common.RemoveUnusedNodesPass()(model)


def _chain(node: ir.Node) -> tuple[list[ir.Node], list[ir.Value]]:
    """Returns the rearranging nodes that end in a node, and the values they start from."""
    chain, roots = [node], []
    for value in _sources(node):
        producer = value.producer()
        if producer is not None and _is_link(producer):
            nodes, starts = _chain(producer)
            chain += nodes
            roots += starts
        else:
            roots.append(value)
    return chain, roots


def _is_link(node: ir.Node) -> bool:
    """Tells whether a node only rearranges, in a way that is known now."""
    operands = node.inputs[len(_sources(node)) :]
    return node.op_type in _CHAIN and all(v is None or v.is_initializer() for v in operands)


def _sources(node: ir.Node) -> list[ir.Value]:
    """Returns the inputs that a rearranging node takes its elements from."""
    end = len(node.inputs) if node.op_type == "Concat" else 1
    return [value for value in node.inputs[:end] if value is not None]


def _same_but_channels(value: ir.Value, roots: list[ir.Value], trace: Trace) -> bool:
    """Tells whether the roots can stand beside each other along the channel axis."""
    if any(root.is_initializer() for root in roots):
        return False
    shapes = [trace.shapes[str(root.name)] for root in roots]
    batches = [trace.varying[str(root.name)] for root in roots]
    first = shapes[0]
    if len(first) < _SMALLEST_RANK or not batches[0] <= {0}:
        return False
    return all(
        batch == batches[0]
        and len(shape) == len(first)
        and shape[:_AXIS] == first[:_AXIS]
        and shape[_AXIS + 1 :] == first[_AXIS + 1 :]
        for shape, batch in zip(shapes, batches, strict=True)
    ) and len(trace.shapes[str(value.name)]) == len(first)


def _labels(roots: list[ir.Value], trace: Trace) -> dict[ir.Value, Array]:
    """Numbers the elements of the roots as they stand beside each other.

    A batch that may have any length has at least two items in the trace, so that a chain that
    moves them is not taken for one that leaves them.
    """
    shapes = [trace.shapes[str(root.name)] for root in roots]
    channels = sum(shape[_AXIS] for shape in shapes)
    whole = (*shapes[0][:_AXIS], channels, *shapes[0][_AXIS + 1 :])
    labels = np.arange(int(np.prod(whole)), dtype=np.int64).reshape(whole)
    ends = np.cumsum([shape[_AXIS] for shape in shapes])[:-1].tolist()
    # A root that is read twice has the labels of its first place.
    parts: dict[ir.Value, Array] = {}
    for root, part in zip(roots, np.split(labels, ends, axis=_AXIS), strict=True):
        parts.setdefault(root, part)
    return parts


def _move(value: ir.Value, labels: dict[ir.Value, Array], opset: int) -> Array:
    """Runs the chain on labels."""
    if value in labels:
        return labels[value]
    node = value.producer()
    assert node is not None
    data = _sources(node)
    arguments = [_move(v, labels, opset) for v in data]
    arguments += [constant_array(v) for v in node.inputs[len(data) :] if v is not None]
    return np.asarray(evaluate_node(node, arguments, opset)[0])


def _as_gather(graph: ir.Graph, node: ir.Node, roots: list[ir.Value], trace: Trace) -> bool:
    """Replaces the chain by one selection of the roots' channels, if it is one."""
    output = node.outputs[0]
    labels = _labels(roots, trace)
    moved = _move(output, labels, graph.opset_imports[""])
    distinct = list(labels)
    whole = np.concatenate([labels[root] for root in distinct], axis=_AXIS)
    channels = _selection(whole, moved)
    if channels is None:
        return False
    source = distinct[0]
    if len(distinct) > 1:
        source = _insert(graph, node, "Concat", distinct, {"axis": _AXIS}, whole.shape, trace)
    _select(graph, node, source, channels, trace)
    return True


def _selection(whole: Array, moved: Array) -> Array | None:
    """Returns the channels of one array of labels that make the other, or None."""
    ours, theirs = (labels[0].reshape(labels.shape[_AXIS], -1)[:, 0] for labels in (whole, moved))
    place = {int(label): channel for channel, label in enumerate(ours)}
    channels = np.asarray([place.get(int(label), -1) for label in theirs], dtype=np.int64)
    if (channels < 0).any() or not np.array_equal(np.take(whole, channels, axis=_AXIS), moved):
        return None
    return channels


def _select(
    graph: ir.Graph,
    node: ir.Node,
    source: ir.Value,
    channels: Array,
    trace: Trace,
) -> None:
    """Replaces a node's output by a selection of channels; none where all stay in place."""
    output = node.outputs[0]
    shape = trace.shapes[str(output.name)]
    if not np.array_equal(channels, np.arange(trace.shapes[str(source.name)][_AXIS])):
        indices = add_initializer(graph, channels, f"{node.name}_channels")
        source = _insert(graph, node, "Gather", [source, indices], {"axis": _AXIS}, shape, trace)
    elif output.is_graph_output():
        source = _insert(graph, node, "Identity", [source], {}, shape, trace)
    _put_in_place(output, source)


def _put_in_place(output: ir.Value, source: ir.Value) -> None:
    """Replaces a node's output; an output of the graph keeps its name."""
    if output.is_graph_output():
        source.name, output.name = output.name, source.name
        source.type, source.shape = output.type, output.shape
    output.replace_all_uses_with(source, replace_graph_outputs=True)


def _as_blocks(graph: ir.Graph, node: ir.Node, roots: list[ir.Value], trace: Trace) -> bool:
    """Replaces the chain by `DepthToSpace` or `SpaceToDepth`, if it is one."""
    before = trace.shapes[str(roots[0].name)]
    after = trace.shapes[str(node.outputs[0].name)]
    if len(roots) > 1 or len(before) != 4 or before[0] != after[0]:
        return False
    to_space = after[2] > before[2]
    small, large = (before, after) if to_space else (after, before)
    size = large[2] // small[2] if small[2] else 0
    expected = (small[0], small[1] // max(1, size * size), small[2] * size, small[3] * size)
    if size < 2 or large != expected or small[1] % (size * size):
        return False
    labels = _labels(roots, trace)
    opset = graph.opset_imports[""]
    moved = _move(node.outputs[0], labels, opset)
    for kind, attributes in _candidates(to_space, size):
        probe = ir.node(kind, [roots[0]], attributes)
        tried = np.asarray(evaluate_node(probe, [labels[roots[0]].astype(np.float64)], opset)[0])
        probe.replace_input_with(0, None)
        channels = _selection(tried.astype(np.int64), moved)
        if channels is not None:
            blocks = _insert(graph, node, kind, [roots[0]], attributes, after, trace)
            _select(graph, node, blocks, channels, trace)
            return True
    return False


def _candidates(to_space: bool, size: int) -> list[tuple[str, dict[str, int | str]]]:
    if not to_space:
        return [("SpaceToDepth", {"blocksize": size})]
    return [("DepthToSpace", {"blocksize": size, "mode": mode}) for mode in ("CRD", "DCR")]


def _as_transposition(graph: ir.Graph, node: ir.Node, trace: Trace) -> list[ir.Node]:
    """Replaces the longest end of a chain that permutes the axes of one value, and returns it."""
    output = node.outputs[0]
    chain = _straight(node)
    opset = graph.opset_imports[""]
    for length in range(len(chain), 1, -1):
        source = _sources(chain[length - 1])[0]
        if source.is_initializer():
            continue
        shape = trace.shapes[str(source.name)]
        labels = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        perm = _permutation(labels, _move(output, {source: labels}, opset))
        if perm is None:
            continue
        after, varying = trace.shapes[str(output.name)], trace.varying[str(output.name)]
        if perm != tuple(range(len(shape))):
            source = _insert(graph, node, "Transpose", [source], {"perm": perm}, after, trace)
            trace.varying[str(source.name)] = varying
        elif output.is_graph_output():
            source = _insert(graph, node, "Identity", [source], {}, after, trace)
        _put_in_place(output, source)
        return chain[:length]
    return []


def _straight(node: ir.Node) -> list[ir.Node]:
    """Returns the rearranging nodes of one operand that end in a node, the last one first."""
    chain = [node]
    while True:
        producer = _sources(chain[-1])[0].producer()
        if producer is None or producer.op_type == "Concat" or not _is_link(producer):
            return chain
        chain.append(producer)


def _permutation(labels: Array, moved: Array) -> tuple[int, ...] | None:
    """Returns the order of axes that makes one array of labels the other, or None."""
    if labels.ndim != moved.ndim or labels.ndim > _LARGEST_RANK:
        return None
    for perm in itertools.permutations(range(labels.ndim)):
        if np.array_equal(np.transpose(labels, perm), moved):
            return perm
    return None


def _insert(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: list[ir.Value],
    attributes: Mapping[str, int | str | Sequence[int]],
    shape: tuple[int, ...],
    trace: Trace,
) -> ir.Value:
    """Adds a node in front of another and records what is known of its output."""
    name = f"{before.name}_{op_type.lower()}"
    node = ir.node(op_type, inputs, attributes, name=name)
    output = node.outputs[0]
    output.name = name
    graph.insert_before(before, node)
    trace.shapes[name] = tuple(shape)
    trace.dtypes[name] = trace.dtypes[str(inputs[0].name)]
    trace.varying[name] = trace.varying[str(inputs[0].name)]
    return output

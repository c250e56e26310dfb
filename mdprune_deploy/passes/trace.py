"""Shapes at the example input, and the graph with all shape arithmetic resolved.

A graph with a symbolic batch computes the shapes that it reshapes to. Two evaluations, at batches
that differ by one, tell which numbers follow the batch; everything else becomes a constant, and a
batch axis becomes ONNX's 0 (copy) or -1 (infer).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ..checkpoint import Checkpoint
from ..evaluate import Array, constant_array, evaluate, evaluate_node

_SHAPE_OPERANDS = {"Reshape": 1, "Expand": 1}


@dataclass(frozen=True)
class Trace:
    """What one evaluation at the example input, with one more item of a dynamic batch, tells.

    Attributes:
        shapes: Shape of every value, by name.
        dtypes: Element type of every value, by name.
        varying: Axes whose size follows the batch, by value name.
        batch: Length of the batch axis in these shapes.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype[np.generic]]
    varying: dict[str, frozenset[int]]
    batch: int


@dataclass
class _Observation:
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype[np.generic]]
    integers: dict[str, Array]

    def __call__(self, value: ir.Value, array: Array) -> None:
        assert value.name is not None
        self.shapes[value.name] = tuple(array.shape)
        self.dtypes[value.name] = array.dtype
        if array.dtype == np.int64:
            self.integers[value.name] = array


def example_feeds(checkpoint: Checkpoint, extra: int = 0) -> dict[str, Array]:
    """Returns the example inputs in float64, with `extra` repetitions along the batch axis."""
    return {
        name: np.concatenate([array] + [array[:1]] * extra).astype(
            np.float64 if array.dtype == np.float32 else array.dtype
        )
        for name, array in checkpoint.examples.items()
    }


def resolve_shapes(model: ir.Model, checkpoint: Checkpoint) -> Trace:
    """Replaces shape arithmetic by constants and removes what no output needs, in place."""
    graph = model.graph
    fold_constants(graph)
    # A batch of 1 would hide where a reshape interleaves the items of a batch.
    more = int(checkpoint.dynamic_batch)
    first = _observe(graph, example_feeds(checkpoint, extra=more))
    second = _observe(graph, example_feeds(checkpoint, extra=2)) if more else first
    computed = _computed_from_shapes(graph)
    batch = _Batch(graph, first, second)
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            if value not in computed or node.outputs[0] in computed:
                continue
            resolved = _resolve(node, index, first, second)
            if resolved is not None:
                node.replace_input_with(index, add_initializer(graph, resolved, value.name))
                if node.op_type == "Reshape":
                    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
            elif (follows := batch.function(value)) is not None:
                node.replace_input_with(index, follows)
    common.RemoveUnusedNodesPass()(model)
    varying = {
        name: frozenset(
            axis for axis, (a, b) in enumerate(zip(shape, second.shapes[name], strict=True))
            if a != b
        )
        for name, shape in first.shapes.items()
    }  # fmt: skip
    return Trace(first.shapes, first.dtypes, varying, batch.size)


def _computed_from_shapes(graph: ir.Graph) -> set[ir.Value]:
    """Returns every integer that depends on the shapes, and not on the data, of other values."""
    found: set[ir.Value] = set()
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type in ("Shape", "Size") or (
            any(value in found for value in inputs)
            and all(value in found or value.is_initializer() for value in inputs)
        ):
            found.update(node.outputs)
    return found


class _Batch:
    """Integers as functions of the batch size, so that no operator keeps a tensor for its shape."""

    def __init__(self, graph: ir.Graph, first: _Observation, second: _Observation) -> None:
        self._graph, self._first, self._second = graph, first, second
        self._made: dict[ir.Value, ir.Value] = {}
        self.input = graph.inputs[0]
        self.size = first.shapes[str(self.input.name)][0] if first.shapes[str(self.input.name)] \
            else 1  # fmt: skip

    def function(self, value: ir.Value) -> ir.Value | None:
        """Returns a value equal to `slope * batch + rest`, or None where there is none."""
        name = str(value.name)
        if name not in self._first.integers or self._second is self._first:
            return None
        a, b = self._first.integers[name], self._second.integers[name]
        if a.shape != b.shape or a.ndim > 1:
            return None
        if value not in self._made:
            slope = b - a
            self._made[value] = self._add(name, slope, a - slope * self.size, a.shape)
        return self._made[value]

    def _add(self, name: str, slope: Array, rest: Array, shape: tuple[int, ...]) -> ir.Value:
        factor = add_initializer(self._graph, slope.reshape(-1), f"{name}_slope")
        shift = add_initializer(self._graph, rest.reshape(-1), f"{name}_rest")
        size = self._node("Shape", [self.input], f"{name}_batch", (1,), start=0, end=1)
        product = self._node("Mul", [size, factor], f"{name}_product", (slope.size,))
        total = self._node("Add", [product, shift], f"{name}_sum", (slope.size,))
        if shape:
            return total
        axis = add_initializer(self._graph, np.zeros(1, dtype=np.int64), f"{name}_axis")
        return self._node("Squeeze", [total, axis], f"{name}_scalar", ())

    def _node(
        self,
        op_type: str,
        inputs: list[ir.Value],
        name: str,
        shape: tuple[int, ...],
        **attributes: int,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=name)
        node.outputs[0].name = name
        producer = inputs[0].producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        for seen in (self._first, self._second):
            seen.shapes[name], seen.dtypes[name] = shape, np.dtype(np.int64)
        return node.outputs[0]


def fold_constants(graph: ir.Graph) -> None:
    """Evaluates every node that depends on no graph input, in place."""
    opset = graph.opset_imports[""]
    for node in list(graph):
        inputs = [value for value in node.inputs if value is not None]
        if not all(value.is_initializer() for value in inputs):
            continue
        if any(value.is_graph_output() for value in node.outputs):
            continue
        arguments = [None if v is None else constant_array(v) for v in node.inputs]
        for value, array in zip(node.outputs, evaluate_node(node, arguments, opset), strict=False):
            constant = add_initializer(graph, array, value.name)
            value.replace_all_uses_with(constant)
        graph.remove(node, safe=True)


def add_initializer(graph: ir.Graph, array: Array, name: str | None) -> ir.Value:
    """Registers a constant under a name of its own, close to the one asked for."""
    base = name or "constant"
    candidate, count = base, 0
    while candidate in graph.initializers:
        count += 1
        candidate = f"{base}_{count}"
    tensor = ir.tensor(np.ascontiguousarray(array), name=candidate)
    value = ir.Value(name=candidate, const_value=tensor, shape=ir.Shape(array.shape))
    value.dtype = tensor.dtype
    graph.register_initializer(value)
    return value


def _observe(graph: ir.Graph, feeds: dict[str, Array]) -> _Observation:
    shapes = {name: tuple(array.shape) for name, array in feeds.items()}
    dtypes = {name: array.dtype for name, array in feeds.items()}
    for value in graph.initializers.values():
        assert value.name is not None
        shapes[value.name] = constant_array(value).shape
    seen = _Observation(shapes, dtypes, {})
    evaluate(graph, feeds, observe=seen)
    return seen


def _resolve(node: ir.Node, index: int, first: _Observation, second: _Observation) -> Array | None:
    """Returns the constant that serves a shape operand at every batch, or None."""
    value, data = node.inputs[index], node.inputs[0]
    assert value is not None and value.name is not None
    if value.name not in first.integers:
        return None
    a, b = first.integers[value.name], second.integers[value.name]
    if node.op_type == "Reshape" and index == 1:
        return _reshape_target(node, first, second)
    if np.array_equal(a, b):
        return a
    if node.op_type == "Resize" and index == 3 and "axes" not in node.attributes:
        return _resize_sizes(node, a, b)
    if _SHAPE_OPERANDS.get(node.op_type) != index or data is None or data.name is None:
        return None
    sizes = zip(first.shapes[data.name][::-1], second.shapes[data.name][::-1], strict=True)
    aligned = [(1, 1)] * (len(a) - len(first.shapes[data.name])) + list(sizes)[::-1]
    resolved = []
    for want_a, want_b, have in zip(a, b, aligned, strict=True):
        if want_a == want_b:
            resolved.append(int(want_a))
        elif have == (want_a, want_b):
            resolved.append(1)  # already that long: nothing to expand
        else:
            return None
    return np.asarray(resolved, dtype=np.int64)


def _resize_sizes(node: ir.Node, a: Array, b: Array) -> Array:
    """Names the axes that do not follow the batch, which no `Resize` changes."""
    axes = np.flatnonzero(a == b)
    node.attributes["axes"] = ir.AttrInt64s("axes", axes.tolist())
    return a[axes]


def _reshape_target(node: ir.Node, first: _Observation, second: _Observation) -> Array | None:
    data, output = node.inputs[0], node.outputs[0]
    assert data is not None and data.name is not None and output.name is not None
    source = list(zip(first.shapes[data.name], second.shapes[data.name], strict=True))
    target = list(zip(first.shapes[output.name], second.shapes[output.name], strict=True))
    resolved = []
    for axis, (a, b) in enumerate(target):
        if a == b:
            resolved.append(a)
        else:
            resolved.append(0 if axis < len(source) and source[axis] == (a, b) else -1)
    if resolved.count(-1) > 1 or (0 in [a for a, _ in target]):
        return None
    return np.asarray(resolved, dtype=np.int64)

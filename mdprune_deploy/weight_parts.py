"""What a mask on a whole weight does to the part of it that a layer reads.

A network may hand a layer a slice of a parameter (octave convolutions, slimmable networks), or one
that is put together from several. A mask refers to the channels of the whole weight. It is a
factor of zeros and ones on the weight, and moves as the weight does: the operators between the
weight and the layer are run on the factor.

    on -> factor on the weight -> Slice, Concat, Transpose, ... -> factor on the layer's operand

Where a reshape made the channels out of several axes of the weight, no axis of it holds them, and
the mask refers to the operand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .domain import Axis
from .errors import UnsupportedGraphError
from .evaluate import Array, attribute, constant_array, evaluate_node
from .weights import Reader, weight_axes, with_ancestors

_MOVES = ("Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze",
          "Transpose", "Unsqueeze")  # fmt: skip
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class WeightPart:
    """How one layer reads a weight that a mask refers to.

    Attributes:
        reader: The layer.
        whole: The weight: the operand itself, or what its elements are moved from.
        shape: The whole weight's shape.
        axes: Its output and its input axis.
        groups: The groups that the whole weight would make with the layer's filters per group.
    """

    reader: Reader
    whole: ir.Value
    shape: Shape
    axes: tuple[int, int]
    groups: int
    _shape_of: Callable[[ir.Value], Shape]

    def channels(self, axis: Axis) -> int:
        """Returns how many entries a mask has; of grouped layers those of all groups."""
        target = self.axes[1] if axis == "in" else self.axes[0]
        grouped = axis == _grouped_axis(self.reader)
        return self.shape[target] * (self.groups if grouped else 1)

    def factor(self, axis: Axis, on: Array) -> Array:
        """Returns what a mask multiplies the layer's operand by, in the operand's shape.

        Args:
            axis: `"in"` or `"out"`.
            on: One 0 or 1 per channel of the whole weight, shape `(channels(axis),)`.
        """
        target, other = self.axes[::-1] if axis == "in" else self.axes
        if axis == _grouped_axis(self.reader):
            # The channels of all groups, split by group, against the other axis of the weight.
            split = on.reshape(self.groups, self.shape[target])
            rows = np.repeat(split, self.shape[other] // self.groups, axis=0)
            spread = rows if other < target else rows.T
        else:
            spread = on[None, :] if other < target else on[:, None]
        places = sorted(self.axes)
        shape = [1] * len(self.shape)
        for place, size in zip(places, spread.shape, strict=True):
            shape[place] = size
        whole = np.broadcast_to(spread.reshape(shape), self.shape)
        return _move(self.reader.operand, self.whole, whole, 1.0, self._shape_of)

    def filter_factor(self, on: Array) -> Array:
        """Returns what an output mask multiplies the layer's output channels by."""
        factor = self.factor("out", on)
        out_axis = weight_axes(self.reader.node, self.reader.index, factor.ndim)[0]
        if _grouped_axis(self.reader) == "out":
            split = factor.reshape(attribute(self.reader.node, "group", 1), -1, *factor.shape[1:])
            return np.asarray(split.min(axis=(1, *range(3, split.ndim)))).reshape(-1)
        others = tuple(a for a in range(factor.ndim) if a != out_axis)
        return np.asarray(factor.min(axis=others))


def weight_part(reader: Reader, site: str, shape_of: Callable[[ir.Value], Shape]) -> WeightPart:
    """Finds what a mask refers to.

    Args:
        reader: A layer whose operand is the named value or is computed from it.
        site: The name of the value that the mask is on.
        shape_of: Shapes of the values that no graph input reaches.

    Raises:
        UnsupportedGraphError: A grouped layer reads a part of a group.
    """
    operand = reader.operand
    own = weight_axes(reader.node, reader.index, len(shape_of(operand)))
    groups = int(attribute(reader.node, "group", 1))
    sources = _sources(operand, site)
    if len(sources) == 1:
        whole = sources.pop()
        ends = [_axes_of(whole, operand, axis, shape_of) for axis in own]
        if all(len(axes) == 1 and None not in axes for axes in ends):
            axes = tuple(int(end.pop() or 0) for end in ends)
            groups = _groups_of(whole, reader, axes, groups, shape_of)
            return WeightPart(reader, whole, shape_of(whole), (axes[0], axes[1]), groups, shape_of)
    return WeightPart(reader, operand, shape_of(operand), own, groups, shape_of)


def evaluated_shape(value: ir.Value) -> Shape:
    """Returns the shape of a value that no graph input reaches, by computing it."""
    return tuple(_constant(value).shape)


def _grouped_axis(reader: Reader) -> Axis | None:
    """Returns the side whose channels the weight's axis holds of one group only."""
    if int(attribute(reader.node, "group", 1)) == 1:
        return None
    return "in" if reader.node.op_type == "Conv" else "out"


def _sources(operand: ir.Value, site: str) -> set[ir.Value]:
    """Returns the site, or what is computed from it, that the operand's elements are moved from."""
    node = operand.producer()
    if operand.name == site or node is None or node.op_type not in _MOVES:
        return {operand} if any(v.name == site for v in with_ancestors(operand)) else set()
    return set().union(*(_sources(source, site) for source in _data(node)))


def _data(node: ir.Node) -> list[ir.Value]:
    """Returns the inputs that a moving operator takes its elements from."""
    end = len(node.inputs) if node.op_type == "Concat" else 1
    return [value for value in node.inputs[:end] if value is not None]


def _axes_of(
    whole: ir.Value, value: ir.Value, axis: int, shape_of: Callable[[ir.Value], Shape]
) -> set[int | None]:
    """Returns the axes of the whole weight that become an axis of a value, None for several."""
    if value is whole:
        return {axis}
    node = value.producer()
    if node is None or node.op_type not in _MOVES:
        return set()
    before = _axis_before(node, axis, shape_of)
    if before is None:
        return {None}
    return set().union(*(_axes_of(whole, source, before, shape_of) for source in _data(node)))


def _axis_before(node: ir.Node, axis: int, shape_of: Callable[[ir.Value], Shape]) -> int | None:
    """Returns the axis of a moving operator's input that becomes an axis of its output."""
    if node.op_type == "Transpose":
        rank = len(shape_of(node.outputs[0]))
        return int(attribute(node, "perm", range(rank)[::-1])[axis])
    if node.op_type == "Gather":
        source, indices = _data(node)[0], node.inputs[1]
        assert indices is not None
        gathered = int(attribute(node, "axis", 0)) % len(shape_of(source))
        added = _constant(indices).ndim - 1
        if axis < gathered:
            return axis
        return None if axis <= gathered + added and added > 0 else axis - added
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        before, after = shape_of(_data(node)[0]), shape_of(node.outputs[0])
        ahead = int(np.prod(after[:axis]))
        fitting = [
            a for a, size in enumerate(before)
            if size == after[axis] and int(np.prod(before[:a])) == ahead
        ]  # fmt: skip
        return min(fitting, key=lambda a: abs(a - axis), default=None)
    return axis


def _groups_of(
    whole: ir.Value,
    reader: Reader,
    axes: tuple[int, ...],
    groups: int,
    shape_of: Callable[[ir.Value], Shape],
) -> int:
    """Returns the groups of a whole weight, of which a layer must read whole ones."""
    if groups == 1 or whole is reader.operand:
        return groups
    own = weight_axes(reader.node, reader.index, len(shape_of(reader.operand)))
    split, place = (axes[0], own[0]) if reader.node.op_type == "Conv" else (axes[1], own[1])
    width = shape_of(reader.operand)[place] // groups
    shape = shape_of(whole)
    numbers = np.arange(shape[split]).reshape([-1 if a == split else 1 for a in range(len(shape))])
    moved = _move(reader.operand, whole, np.broadcast_to(numbers, shape), 0, shape_of)
    others = tuple(a for a in range(moved.ndim) if a != place)
    group = np.asarray(moved.max(axis=others)).reshape(groups, width) // width
    if shape[split] % width or (group != group[:, :1]).any():
        raise UnsupportedGraphError(
            f"{reader.node.op_type} (node {reader.node.name!r}) reads parts of groups of "
            f"{whole.name!r}: which channels a mask on that means is not defined"
        )
    return shape[split] // width


def _move(
    value: ir.Value,
    whole: ir.Value,
    data: Array,
    other: float,
    shape_of: Callable[[ir.Value], Shape],
) -> Array:
    """Runs the moving operators behind a value on other data; all other weights are one number."""
    if value is whole:
        return data
    node = value.producer()
    if node is None or node.op_type not in _MOVES:
        return np.full(shape_of(value), other, dtype=data.dtype)
    sources = _data(node)
    arguments: list[Array | None] = [_move(v, whole, data, other, shape_of) for v in sources]
    arguments += [None if v is None else _constant(v) for v in node.inputs[len(sources) :]]
    graph = node.graph
    assert graph is not None
    results = evaluate_node(node, arguments, graph.opset_imports[""])
    return np.asarray(results[list(node.outputs).index(value)])


def _constant(value: ir.Value) -> Array:
    """Computes a value that no graph input reaches."""
    node = value.producer()
    if node is None:
        return constant_array(value)
    graph = node.graph
    assert graph is not None
    arguments = [None if v is None else _constant(v) for v in node.inputs]
    results = evaluate_node(node, arguments, graph.opset_imports[""])
    return np.asarray(results[list(node.outputs).index(value)])

"""Values of an ONNX graph as tensors of a draft, in one of two layouts or both.

A value is row-major as ONNX has it, or its channels (axis 1) lie last. Every operator states the
layout in which it takes its operands; a layout that is not there yet is made by a `Move`. Where
both orders of the elements are the same, the two layouts are one memory.

A selection along one axis is not carried out until somebody asks for the value itself, because a
convolution selects while it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto

import numpy as np
import onnx_ir as ir

from ...errors import UnsupportedGraphError
from ...evaluate import Array, constant_array, evaluate_node
from ...passes.elements import Indices
from ...passes.stored import StoredWeight
from .draft import Draft
from .operators import Gather, Move
from .plan import MAX_RANK


class Layout(Enum):
    """The order of a tensor's elements."""

    ROWS = auto()
    LAST = auto()

    def order(self, rank: int) -> tuple[int, ...]:
        """Returns the value's axes in the order in which they lie."""
        if self is Layout.ROWS or rank < 3:
            return tuple(range(rank))
        return (0, *range(2, rank), 1)

    def position(self, axis: int, rank: int) -> int:
        """Returns which axis of the tensor an axis of the value is."""
        return self.order(rank).index(axis % rank)

    def physical(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the tensor's shape."""
        return tuple(shape[axis] for axis in self.order(len(shape)))

    def strides(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns, per axis of the value, the step in elements."""
        order = self.order(len(shape))
        found = [0] * len(shape)
        step = 1
        for axis in reversed(order):
            found[axis] = step
            step *= shape[axis]
        return tuple(found)

    @property
    def other(self) -> Layout:
        """The other one."""
        return Layout.LAST if self is Layout.ROWS else Layout.ROWS


def same_order(shape: Sequence[int]) -> bool:
    """Tells whether both layouts of a shape hold the elements in the same order."""
    return len(shape) < 3 or shape[1] == 1 or int(np.prod(shape[2:], dtype=np.int64)) == 1


Share = Callable[[StoredWeight, Array], int]


class Lowering:
    """The state of lowering one graph.

    Args:
        shapes: Shape of every value at the sizes that the plan is for.
        dtypes: NumPy kind of every value's elements.
        opset: The version of the graph's operators.
        share: Takes what a weight is a part of and the weight in canonical form, and returns the
            part's number; None where no weight is shared.

    Attributes:
        draft: What was made so far.
    """

    def __init__(
        self,
        shapes: Mapping[ir.Value, tuple[int, ...]],
        dtypes: Mapping[ir.Value, np.dtype[np.generic]],
        opset: int,
        share: Share | None = None,
    ) -> None:
        self.draft = Draft()
        self.share = share
        self._shapes = shapes
        self._dtypes = dtypes
        self._opset = opset
        self._forms: dict[ir.Value, dict[Layout, int]] = {}
        self._constants: dict[ir.Value, Array] = {}
        self._selections: dict[ir.Value, tuple[ir.Value, int, Indices]] = {}

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Returns a value's shape."""
        if value.is_initializer():
            return tuple(constant_array(value).shape)
        return self._shapes[value]

    def is_boolean(self, value: ir.Value) -> bool:
        """Tells whether a value holds truth values."""
        constant = self.constant(value)
        return (self._dtypes[value] if constant is None else constant.dtype).kind == "b"

    def constant(self, value: ir.Value | None) -> Array | None:
        """Returns the data of a value that does not depend on the inputs, None for others."""
        if value is None:
            return None
        if value.is_initializer():
            return constant_array(value)
        return self._constants.get(value)

    def fold(self, node: ir.Node) -> bool:
        """Computes a node's outputs now if they do not depend on the inputs' data."""
        if node.op_type == "Shape":
            source = node.inputs[0]
            assert source is not None
            begin, end = (node.attributes.get(name) for name in ("start", "end"))
            part = slice(
                0 if begin is None else begin.as_int(), None if end is None else end.as_int()
            )
            self._constants[node.outputs[0]] = np.asarray(self.shape(source)[part], dtype=np.int64)
            return True
        arguments = [self.constant(value) for value in node.inputs]
        if any(a is None for a, v in zip(arguments, node.inputs, strict=True) if v is not None):
            return False
        found = evaluate_node(node, arguments, self._opset)
        self._constants.update(zip(node.outputs, found, strict=False))
        return True

    def refuse(self, node: ir.Node, reason: str) -> UnsupportedGraphError:
        """Returns the error for a node that the native target lacks."""
        return UnsupportedGraphError(
            f"{node.op_type} (node {node.name!r}): the native target lacks it: {reason}"
        )

    # Reading

    def tensor(self, value: ir.Value, layout: Layout) -> int:
        """Returns a value's tensor in a layout, made if it is not there."""
        constant = self.constant(value)
        if constant is not None:
            return self.draft.constant(constant.transpose(layout.order(constant.ndim)))
        if value not in self._forms:
            self._select_now(value, layout)
        forms = self._forms[value]
        if layout not in forms:
            shape = self.shape(value)
            made = self.draft.activation(layout.physical(shape))
            source = layout.other
            self.move(
                str(value.name), forms[source], made, shape, source.strides(shape),
                layout.strides(shape),
            )  # fmt: skip
            forms[layout] = made
        return forms[layout]

    def layouts(self, value: ir.Value) -> tuple[Layout, ...]:
        """Returns the layouts in which a value is there, or would be made without a change."""
        if self.constant(value) is not None:
            return tuple(Layout)
        if value in self._forms:
            return tuple(self._forms[value])
        return self.layouts(self._selections[value][0])

    def layout(self, values: Sequence[ir.Value]) -> Layout:
        """Returns the layout that moves fewest elements of some values."""
        missing = {
            layout: sum(
                int(np.prod(self.shape(value), dtype=np.int64))
                for value in values
                if layout not in self.layouts(value)
            )
            for layout in (Layout.LAST, Layout.ROWS)
        }
        return min(missing, key=lambda layout: missing[layout])

    def operand(self, value: ir.Value, rank: int, layout: Layout) -> int:
        """Returns a value as an operand that is broadcast to a rank."""
        constant = self.constant(value)
        missing = rank - len(self.shape(value))
        if constant is not None:
            padded = constant.reshape((1,) * missing + constant.shape)
            return self.draft.constant(padded.transpose(layout.order(rank)))
        if missing == 0:
            return self.tensor(value, layout)
        rows = self.tensor(value, Layout.ROWS)
        shape = (1,) * missing + self.shape(value)
        if layout is Layout.ROWS or same_order(shape):
            return self.draft.view(rows, layout.physical(shape))
        made = self.draft.activation(layout.physical(shape))
        strides = Layout.ROWS.strides(shape), layout.strides(shape)
        self.move(str(value.name), rows, made, shape, *strides)
        return made

    def selection(self, value: ir.Value, axis: int) -> tuple[ir.Value, Indices | None]:
        """Returns what a value selects along an axis from another, or the value itself."""
        if value not in self._forms and value in self._selections:
            source, along, indices = self._selections[value]
            if along == axis % len(self.shape(value)):
                return source, indices
        return value, None

    # Writing

    def define(self, value: ir.Value, tensor: int, layout: Layout) -> None:
        """States which tensor holds a value; its shape may be spelt in another way."""
        shape = self.shape(value)
        forms = self._forms.setdefault(value, {})
        for each in Layout:
            if each is layout or same_order(shape):
                forms.setdefault(each, self.draft.view(tensor, each.physical(shape)))

    def alias(self, value: ir.Value, source: ir.Value) -> None:
        """States that a value has the elements of another, of the same shape."""
        constant = self.constant(source)
        if constant is not None:
            self._constants[value] = constant
            return
        if source not in self._forms:
            self._selections[value] = self._selections[source]
            return
        self._forms[value] = self._forms[source]

    def forms(self, value: ir.Value) -> dict[Layout, int]:
        """Returns the tensors that hold a value; at least one."""
        if value not in self._forms:
            self._select_now(value, self.layouts(value)[0])
        return dict(self._forms[value])

    def make(self, value: ir.Value, layout: Layout) -> int:
        """Adds the tensor that will hold a value."""
        tensor = self.draft.activation(layout.physical(self.shape(value)))
        self.define(value, tensor, layout)
        return tensor

    def select(self, value: ir.Value, source: ir.Value, axis: int, indices: Indices) -> None:
        """States that a value selects along one axis of another."""
        origin, before = self.selection(source, axis)
        if before is not None:
            source, indices = origin, before[indices]
        self._selections[value] = (source, axis % len(self.shape(value)), indices)

    def _select_now(self, value: ir.Value, layout: Layout) -> None:
        source, axis, indices = self._selections[value]
        have = self.layouts(source)
        layout = layout if layout in have else have[0]
        x, y = self.tensor(source, layout), self.make(value, layout)
        self.take(str(value.name), x, y, layout.position(axis, len(self.shape(value))), indices)

    def take(self, name: str, x: int, y: int, axis: int, indices: Indices) -> None:
        """Selects along an axis of a tensor; `fuse` moves what is evenly spaced."""
        shape = self.draft.shape(x)
        outer, inner = (int(np.prod(part)) for part in (shape[:axis], shape[axis + 1 :]))
        self.draft.operators.append(
            Gather(
                name=name, x=x, y=y, index=self.draft.index(indices),
                outer=outer, n=shape[axis], inner=inner,
            )
        )  # fmt: skip

    def move(
        self,
        name: str,
        x: int,
        y: int,
        size: Sequence[int],
        x_stride: Sequence[int],
        y_stride: Sequence[int],
        x_offset: int = 0,
        y_offset: int = 0,
    ) -> None:
        """Copies elements; axes that lie together in both tensors become one."""
        axes = merged(size, x_stride, y_stride)
        if len(axes) > MAX_RANK:
            raise UnsupportedGraphError(
                f"{name!r}: the native target moves at most {MAX_RANK} axes, this has {len(axes)}"
            )
        self.draft.operators.append(
            Move(
                name=name, x=x, y=y, x_offset=x_offset, y_offset=y_offset,
                size=tuple(a[0] for a in axes), x_stride=tuple(a[1] for a in axes),
                y_stride=tuple(a[2] for a in axes),
            )
        )  # fmt: skip


def merged(
    size: Sequence[int], x_stride: Sequence[int], y_stride: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Returns the axes of a copy as (size, step in x, step in y), as few as there can be."""
    axes = [axis for axis in zip(size, x_stride, y_stride, strict=True) if axis[0] != 1]
    axes.sort(key=lambda axis: -abs(axis[2]))
    found: list[tuple[int, int, int]] = []
    for length, x_step, y_step in axes:
        if found:
            before, x_before, y_before = found[-1]
            if x_before == x_step * length and y_before == y_step * length:
                found[-1] = (before * length, x_step, y_step)
                continue
        found.append((length, x_step, y_step))
    return found or [(1, 1, 1)]


Rule = Callable[[Lowering, ir.Node], None]
RULES: dict[str, Rule] = {}
"""How each ONNX operator is lowered."""


def lowers(*op_types: str) -> Callable[[Rule], Rule]:
    """Enters a rule under the operators' ONNX names."""

    def enter(rule: Rule) -> Rule:
        for op_type in op_types:
            RULES[op_type] = rule
        return rule

    return enter


def operands(node: ir.Node) -> list[ir.Value]:
    """Returns the inputs that are there."""
    return [value for value in node.inputs if value is not None]

"""Operators that only move elements: each output element is one input element, or a constant.

Which one is found by moving index labels instead of data, so that no operator needs a rule about
channels of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...errors import UnsupportedGraphError
from ...evaluate import Array, attribute, constant_array, evaluate_node
from ..elements import (
    Indices,
    Known,
    Needed,
    Sets,
    closure,
    compress,
    elements,
    indices_of,
    live,
    sizes,
)
from ..facts import Facts, Requirement
from .base import Operator, constant_operands, ones, register

if TYPE_CHECKING:
    from ..emit_graph import Builder


class Movement(Operator):
    """The shared algebra: subclasses say how elements move forwards and backwards."""

    mixes = False

    def forward(self, node: ir.Node, arrays: Sequence[Array], facts: Facts) -> Array:
        """Moves arrays that broadcast to the data inputs to one that broadcasts to the output."""
        raise NotImplementedError

    def backward(self, node: ir.Node, array: Needed, facts: Facts) -> list[Needed]:
        """Moves an array that broadcasts to the output back to each data input."""
        raise NotImplementedError

    def sources(self, node: ir.Node) -> list[ir.Value]:
        """Returns the inputs that carry data."""
        assert node.inputs[0] is not None
        return [node.inputs[0]]

    def known(self, node: ir.Node, facts: Facts) -> list[Known]:
        sources = self.sources(node)
        if all(facts.is_live(value) for value in sources):
            return [np.full((1,) * len(facts.shape(node.outputs[0])), np.nan)]
        return [compress(self.forward(node, [facts.known_of(v) for v in sources], facts))]

    def free(self, node: ir.Node, facts: Facts) -> list[frozenset[int]]:
        output = node.outputs[0]
        return [frozenset(range(len(facts.shape(output)))) - facts.varying(output)]

    def dependence(
        self, node: ir.Node, needed: Sequence[Needed | None], facts: Facts
    ) -> list[Needed | None]:
        need = needed[0]
        assert need is not None
        parts = self.backward(node, need, facts)
        found: list[Needed | None] = [None] * len(node.inputs)
        for index, value in enumerate(node.inputs[: len(parts)]):
            if value is not None and not value.is_initializer():
                found[index] = parts[index]
        return found

    def place(
        self, node: ir.Node, demanded: Sequence[Needed | None], facts: Facts
    ) -> list[Sets | None]:
        """Grows the demanded set until it is what narrowed inputs move to."""
        output = node.outputs[0]
        shape = facts.shape(output)
        need = demanded[0]
        assert need is not None
        while True:
            sets = closure(need, shape, facts.free[output])
            grown = self._image(node, elements(sets, shape), facts)
            grown = grown | elements(sets, shape)
            if np.array_equal(
                np.broadcast_to(grown, shape), np.broadcast_to(elements(sets, shape), shape)
            ):
                return [sets]
            need = grown

    def _image(self, node: ir.Node, need: Needed, facts: Facts) -> Needed:
        parts = self.backward(node, need, facts)
        closed = [
            elements(closure(part, facts.shape(value), self._source_free(value, facts)),
                     facts.shape(value))
            for value, part in zip(self.sources(node), parts, strict=True)
        ]  # fmt: skip
        return self.forward(node, closed, facts)

    @staticmethod
    def _source_free(value: ir.Value, facts: Facts) -> frozenset[int]:
        if value.is_initializer():
            return frozenset(range(len(facts.shape(value))))
        return facts.free[value]

    def reason(self, node: ir.Node, facts: Facts) -> str:
        return "the channels it rearranges do not form whole slices after it"


@register("Reshape", "Flatten", "Squeeze", "Unsqueeze")
class Reshape(Movement):
    """Any change of shape that keeps the order of the elements."""

    def forward(self, node: ir.Node, arrays: Sequence[Array], facts: Facts) -> Array:
        source, target = self._shapes(node, facts)
        return _reshape(arrays[0], source, target)

    def backward(self, node: ir.Node, array: Needed, facts: Facts) -> list[Needed]:
        source, target = self._shapes(node, facts)
        return [_reshape(array, target, source)]

    @staticmethod
    def _shapes(node: ir.Node, facts: Facts) -> tuple[tuple[int, ...], tuple[int, ...]]:
        assert node.inputs[0] is not None
        return facts.shape(node.inputs[0]), facts.shape(node.outputs[0])

    def _is_opaque(self, node: ir.Node, facts: Facts) -> bool:
        """Tells whether elements move in a way that the example does not show.

        The shape is computed at run time, or the batch moves past another axis: images mix, which
        one image alone does not show.
        """
        if node.op_type == "Reshape" and facts.constant(node.inputs[1]) is None:
            return True
        data, output = node.inputs[0], node.outputs[0]
        assert data is not None
        (before, size), (after, length) = (_batch_axis(value, facts) for value in (data, output))
        if after > before:
            before, size, after, length = after, length, before, size
        return before % after != 0 or length % (before // after) != 0

    def known(self, node: ir.Node, facts: Facts) -> list[Known]:
        if self._is_opaque(node, facts):
            return [live(len(facts.shape(node.outputs[0])))]
        return super().known(node, facts)

    def free(self, node: ir.Node, facts: Facts) -> list[frozenset[int]]:
        return [frozenset()] if self._is_opaque(node, facts) else super().free(node, facts)

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        facts = build.facts
        data, output = node.inputs[0], node.outputs[0]
        assert data is not None
        if node.op_type == "Reshape" and facts.constant(node.inputs[1]) is None:
            return build.copy(node, [build.read(node, 0), build.read(node, 1)])
        target = list(sizes(facts.kept[output], facts.shape(output)))
        source = facts.shape(data)
        for axis in facts.varying(output):
            follows = axis in facts.varying(data) and source[axis] == target[axis]
            target[axis] = 0 if follows else -1
        if target.count(-1) > 1:
            raise UnsupportedGraphError(
                f"{node.op_type} (node {node.name!r}) makes {target.count(-1)} axes that follow "
                "the batch size; one can be inferred"
            )
        shape = build.constant(np.asarray(target, dtype=np.int64), f"{node.name}_shape")
        return build.op("Reshape", [build.read(node, 0), shape], name=node.name or "reshape")

    def dependence(
        self, node: ir.Node, needed: Sequence[Needed | None], facts: Facts
    ) -> list[Needed | None]:
        found = super().dependence(node, needed, facts)
        if self._is_opaque(node, facts):
            found[0] = ones(len(self._shapes(node, facts)[0]))
        if node.op_type == "Reshape" and facts.constant(node.inputs[1]) is None:
            found[1] = ones(1)
        return found


def _batch_axis(value: ir.Value, facts: Facts) -> tuple[int, int]:
    """Returns the elements before the axis that follows the batch, and its length per image."""
    shape = facts.shape(value)
    axis = min(facts.varying(value), default=0)
    length = shape[axis] // facts.trace.batch if facts.varying(value) else 1
    return int(np.prod(shape[:axis], dtype=np.int64)), length


@register("Transpose")
class Transpose(Movement):
    """A permutation of the axes."""

    @staticmethod
    def _perm(node: ir.Node, facts: Facts) -> tuple[int, ...]:
        rank = len(facts.shape(node.outputs[0]))
        return tuple(attribute(node, "perm", tuple(range(rank))[::-1]))

    def forward(self, node: ir.Node, arrays: Sequence[Array], facts: Facts) -> Array:
        return np.transpose(arrays[0], self._perm(node, facts))

    def backward(self, node: ir.Node, array: Needed, facts: Facts) -> list[Needed]:
        return [np.transpose(array, np.argsort(self._perm(node, facts)))]

    def free(self, node: ir.Node, facts: Facts) -> list[frozenset[int]]:
        data = node.inputs[0]
        assert data is not None
        perm = self._perm(node, facts)
        return [frozenset(axis for axis, old in enumerate(perm) if old in facts.free[data])]


@register("Concat")
class Concat(Movement):
    """Tensors one after another along an axis."""

    def sources(self, node: ir.Node) -> list[ir.Value]:
        return [value for value in node.inputs if value is not None]

    def _axis(self, node: ir.Node, facts: Facts) -> int:
        return int(node.attributes["axis"].value) % len(facts.shape(node.outputs[0]))

    def forward(self, node: ir.Node, arrays: Sequence[Array], facts: Facts) -> Array:
        axis = self._axis(node, facts)
        common = np.broadcast_shapes(*(_without(a.shape, axis) for a in arrays))
        whole = [
            np.broadcast_to(array, _with(common, axis, facts.size(value, axis)))
            for array, value in zip(arrays, self.sources(node), strict=True)
        ]
        return np.concatenate(whole, axis=axis)

    def _ends(self, node: ir.Node, facts: Facts) -> list[int]:
        axis = self._axis(node, facts)
        lengths = [facts.size(v, axis) for v in self.sources(node)]
        return [int(end) for end in np.cumsum(lengths)]

    def backward(self, node: ir.Node, array: Needed, facts: Facts) -> list[Needed]:
        axis = self._axis(node, facts)
        if array.shape[axis] == 1:
            return [array] * len(self.sources(node))
        return np.split(array, self._ends(node, facts)[:-1], axis=axis)

    def free(self, node: ir.Node, facts: Facts) -> list[frozenset[int]]:
        axes = super().free(node, facts)[0]
        axis = self._axis(node, facts)
        for value in self.sources(node):
            axes &= self._source_free(value, facts) | {axis}
        return [axes]

    def _segments(self, node: ir.Node, facts: Facts) -> list[Sets]:
        """Returns the part of the kept set that lies in each input, in its own indices."""
        axis = self._axis(node, facts)
        output = node.outputs[0]
        kept = facts.kept[output]
        indices = indices_of(kept, axis, facts.size(output, axis))
        ends = self._ends(node, facts)
        starts = [0, *ends[:-1]]
        segments = []
        for start, end in zip(starts, ends, strict=True):
            own = indices[(indices >= start) & (indices < end)] - start
            whole = None if len(own) == end - start else own
            segments.append(tuple(whole if a == axis else s for a, s in enumerate(kept)))
        return segments

    def require(self, node: ir.Node, facts: Facts) -> list[Requirement | None]:
        axis = self._axis(node, facts)
        return [
            None
            if value.is_initializer() or len(indices_of(sets, axis, facts.size(value, axis))) == 0
            else Requirement(sets)
            for value, sets in zip(self.sources(node), self._segments(node, facts), strict=True)
        ]

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        facts = build.facts
        axis = self._axis(node, facts)
        parts: list[ir.Value | None] = []
        for index, (value, sets) in enumerate(
            zip(self.sources(node), self._segments(node, facts), strict=True)
        ):
            constant = facts.constant(value)
            if len(indices_of(sets, axis, facts.size(value, axis))) == 0:
                continue
            if constant is None:
                parts.append(build.read(node, index))
            else:
                narrowed = constant
                for a, indices in enumerate(sets):
                    if indices is not None:
                        narrowed = np.take(narrowed, indices, axis=a)
                parts.append(build.constant(narrowed, f"{value.name}_part"))
        return [parts[0]] if len(parts) == 1 and parts[0] is not None else build.copy(node, parts)


class Take(Movement):
    """Operators whose outputs are slices of their input: each becomes one selection."""

    def chosen(self, node: ir.Node, position: int, facts: Facts) -> dict[int, Indices]:
        """Returns, per axis that is sliced, the input index of each output index."""
        raise NotImplementedError

    def _take(self, array: Array, chosen: dict[int, Indices]) -> Array:
        for axis, indices in chosen.items():
            if array.shape[axis] > 1:
                array = np.take(array, indices, axis=axis)
        return array

    def known(self, node: ir.Node, facts: Facts) -> list[Known]:
        source = facts.known_of(self.sources(node)[0])
        return [
            compress(self._take(source, self.chosen(node, position, facts)))
            for position in range(len(node.outputs))
        ]

    def free(self, node: ir.Node, facts: Facts) -> list[frozenset[int]]:
        source = facts.free[self.sources(node)[0]]
        return [
            (source | frozenset(self.chosen(node, position, facts))) - facts.varying(value)
            for position, value in enumerate(node.outputs)
        ]

    def dependence(
        self, node: ir.Node, needed: Sequence[Needed | None], facts: Facts
    ) -> list[Needed | None]:
        source = self.sources(node)[0]
        shape = facts.shape(source)
        total: Needed | None = None
        for position, need in enumerate(needed):
            if need is None:
                continue
            for axis, indices in self.chosen(node, position, facts).items():
                moved = np.moveaxis(need, axis, 0)
                spread = np.zeros((shape[axis], *moved.shape[1:]), dtype=np.bool_)
                np.logical_or.at(
                    spread, indices, np.broadcast_to(moved, (len(indices), *moved.shape[1:]))
                )
                need = np.moveaxis(spread, 0, axis)
            total = need if total is None else total | need
        return [total] + [None] * (len(node.inputs) - 1)

    def place(
        self, node: ir.Node, demanded: Sequence[Needed | None], facts: Facts
    ) -> list[Sets | None]:
        return Operator.place(self, node, demanded, facts)

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        facts = build.facts
        outputs: list[ir.Value] = []
        for position, value in enumerate(node.outputs):
            if value not in facts.kept:
                outputs.append(value)  # nobody reads it
                continue
            chosen = self.chosen(node, position, facts)
            wanted: list[Indices | None] = []
            for axis, indices in enumerate(facts.kept[value]):
                if axis in chosen:
                    wanted.append(chosen[axis] if indices is None else chosen[axis][indices])
                else:
                    wanted.append(indices)
            outputs.append(build.select(self.sources(node)[0], tuple(wanted)))
        return outputs


@register("Slice")
class Slice(Take):
    """Slices with constant bounds."""

    def applies(self, node: ir.Node) -> bool:
        return constant_operands(node)

    def chosen(self, node: ir.Node, position: int, facts: Facts) -> dict[int, Indices]:
        source = self.sources(node)[0]
        operands = [facts.constant(v) for v in node.inputs[1:]] + [None] * 4
        starts, ends, axes, steps = operands[:4]
        assert starts is not None and ends is not None
        rank = len(facts.shape(source))
        chosen = {}
        for n, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            axis = n if axes is None else int(axes[n]) % rank
            step = 1 if steps is None else int(steps[n])
            size = facts.size(source, axis)
            low = -size - 1 if step < 0 else -size
            bounds = slice(max(start, low), None if end < low else end, step)
            chosen[axis] = np.arange(size)[bounds]
        return {
            axis: indices for axis, indices in chosen.items()
            if not np.array_equal(indices, np.arange(facts.size(source, axis)))
        }  # fmt: skip


@register("Split")
class Split(Take):
    """Consecutive pieces along an axis."""

    def chosen(self, node: ir.Node, position: int, facts: Facts) -> dict[int, Indices]:
        axis = int(attribute(node, "axis", 0)) % len(facts.shape(node.outputs[0]))
        lengths = [facts.size(value, axis) for value in node.outputs]
        start = sum(lengths[:position])
        return {axis: np.arange(start, start + lengths[position])}


@register("Gather")
class Gather(Take):
    """Selection of a constant list of indices along an axis."""

    def applies(self, node: ir.Node) -> bool:
        indices = node.inputs[1]
        return constant_operands(node) and indices is not None and constant_array(indices).ndim == 1

    def chosen(self, node: ir.Node, position: int, facts: Facts) -> dict[int, Indices]:
        source = self.sources(node)[0]
        axis = int(attribute(node, "axis", 0)) % len(facts.shape(source))
        indices = facts.constant(node.inputs[1])
        assert indices is not None
        return {axis: indices.astype(np.int64) % facts.size(source, axis)}


@register("Tile")
class Tile(Take):
    """Repetition along axes that do not follow the batch, a constant number of times."""

    def applies(self, node: ir.Node) -> bool:
        return constant_operands(node)

    def chosen(self, node: ir.Node, position: int, facts: Facts) -> dict[int, Indices]:
        repeats = facts.constant(node.inputs[1])
        assert repeats is not None
        shape = facts.shape(self.sources(node)[0])
        return {
            axis: np.arange(size * int(times)) % size
            for axis, (size, times) in enumerate(zip(shape, repeats, strict=True))
            if times != 1
        }


@register("Pad")
class Pad(Movement):
    """A border of constants."""

    def applies(self, node: ir.Node) -> bool:
        pads = node.inputs[1]
        return (
            constant_operands(node)
            and attribute(node, "mode", "constant") == "constant"
            and pads is not None
            and bool((constant_array(pads) >= 0).all())
        )

    @staticmethod
    def _pads(node: ir.Node, facts: Facts) -> tuple[list[tuple[int, int]], float]:
        """Returns the border before and after each axis and its value."""
        rank = len(facts.shape(node.outputs[0]))
        pads, fill, axes = (
            facts.constant(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2, 3)
        )
        assert pads is not None
        where = range(rank) if axes is None else [int(a) % rank for a in axes]
        border = [(0, 0)] * rank
        for n, axis in enumerate(where):
            border[axis] = (int(pads[n]), int(pads[n + len(pads) // 2]))
        return border, 0.0 if fill is None else float(fill)

    def forward(self, node: ir.Node, arrays: Sequence[Array], facts: Facts) -> Array:
        (border, fill), array = self._pads(node, facts), arrays[0]
        for axis, (before, after) in enumerate(border):
            if before or after:
                size = facts.size(self.sources(node)[0], axis)
                array = np.broadcast_to(array, _with(_without(array.shape, axis), axis, size))
        value = False if array.dtype == np.bool_ else fill
        return np.pad(array, border, constant_values=value)

    def backward(self, node: ir.Node, array: Needed, facts: Facts) -> list[Needed]:
        border, _ = self._pads(node, facts)
        for axis, (before, after) in enumerate(border):
            if (before or after) and array.shape[axis] > 1:
                array = np.take(array, np.arange(before, array.shape[axis] - after), axis=axis)
        return [array]

    def free(self, node: ir.Node, facts: Facts) -> list[frozenset[int]]:
        return [facts.free[self.sources(node)[0]] - facts.varying(node.outputs[0])]

    def place(
        self, node: ir.Node, demanded: Sequence[Needed | None], facts: Facts
    ) -> list[Sets | None]:
        """Keeps at least one element that is not border along every narrowed axis."""
        border, _ = self._pads(node, facts)
        sets = list(super().place(node, demanded, facts)[0] or ())
        for axis, indices in enumerate(sets):
            before = border[axis][0]
            if indices is not None and not self._inside(node, axis, indices, facts).any():
                sets[axis] = np.union1d(indices, [before])
        return [tuple(sets)]

    def _inside(self, node: ir.Node, axis: int, indices: Indices, facts: Facts) -> Needed:
        before = self._pads(node, facts)[0][axis][0]
        size = facts.size(self.sources(node)[0], axis)
        return (indices >= before) & (indices < before + size)

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        facts = build.facts
        border, fill = self._pads(node, facts)
        for axis, indices in enumerate(facts.kept[node.outputs[0]]):
            if indices is not None:
                inside = np.flatnonzero(self._inside(node, axis, indices, facts))
                border[axis] = (int(inside[0]), int(len(indices) - 1 - inside[-1]))
        pads = [before for before, _ in border] + [after for _, after in border]
        operands = [build.read(node, 0), build.constant(np.asarray(pads), f"{node.name}_pads")]
        if fill:
            operands.append(build.constant(np.asarray(fill), f"{node.name}_fill"))
        return build.copy(node, operands)


@register("DepthToSpace", "SpaceToDepth")
class BlockRearrangement(Movement):
    """Exchange of channels and space; the index of each element is found by moving labels."""

    def _labels(self, node: ir.Node, facts: Facts) -> Array:
        shape = (1, *facts.shape(self.sources(node)[0])[1:])
        labels = np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape)
        opset = node.graph.opset_imports[""] if node.graph is not None else 0
        return np.asarray(evaluate_node(node, [labels], opset)[0]).astype(np.int64)

    def forward(self, node: ir.Node, arrays: Sequence[Array], facts: Facts) -> Array:
        shape = (1, *facts.shape(self.sources(node)[0])[1:])
        flat = np.broadcast_to(arrays[0][:1], shape).reshape(-1)
        return compress(flat[self._labels(node, facts)])

    def backward(self, node: ir.Node, array: Needed, facts: Facts) -> list[Needed]:
        shape = (1, *facts.shape(self.sources(node)[0])[1:])
        labels = self._labels(node, facts)
        found = np.zeros(int(np.prod(shape)), dtype=np.bool_)
        found[labels.reshape(-1)] = np.broadcast_to(array[:1], labels.shape).reshape(-1)
        return [compress(found.reshape(shape))]

    def free(self, node: ir.Node, facts: Facts) -> list[frozenset[int]]:
        return [frozenset({1})]


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


def _with(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _reshape(array: Array, source: tuple[int, ...], target: tuple[int, ...]) -> Array:
    """Reshapes an array that broadcasts to `source`; common outer and inner axes stay as they are.

    Only the axes between those are spelt out, so that uniform space costs nothing.
    """
    inner = 0
    while inner < min(len(source), len(target)) and source[-1 - inner] == target[-1 - inner]:
        inner += 1
    outer = 0
    limit = min(len(source), len(target)) - inner
    while outer < limit and source[outer] == target[outer]:
        outer += 1
    middle_source = source[outer : len(source) - inner]
    middle_target = target[outer : len(target) - inner]
    head, tail = array.shape[:outer], array.shape[array.ndim - inner :]
    spelt = np.broadcast_to(array, (*head, *middle_source, *tail))
    return compress(spelt.reshape((*head, *middle_target, *tail)))

"""Operators that read whole axes: reductions, normalisations, pooling, products of activations.

An output element depends on every input element along the *mixed* axes and on the same index of
all others. Channels on a mixed axis cannot be removed, even where a mask has made them constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...evaluate import Array, attribute, evaluate_node
from ..elements import Known, Needed, any_along, any_over, compress, sizes, take
from ..facts import Facts, Requirement
from .base import Operator, constant_operands, register

if TYPE_CHECKING:
    from ..emit_graph import Builder


ROUNDING = 1e-13
"""Largest relative difference between sums of equal numbers in float64."""


class Mixing(Operator):
    """The shared algebra; subclasses name the mixed axes."""

    parameters: dict[int, int] = {}  # noqa: RUF012
    """Constant inputs with one entry per index of an axis that is not mixed."""

    def applies(self, node: ir.Node) -> bool:
        return constant_operands(node)

    def axes(self, node: ir.Node, facts: Facts) -> frozenset[int]:
        """Returns the mixed axes of the first input."""
        raise NotImplementedError

    def drops_axes(self, node: ir.Node) -> bool:
        """Tells whether the mixed axes are gone from the output."""
        return False

    def _data(self, node: ir.Node) -> ir.Value:
        assert node.inputs[0] is not None
        return node.inputs[0]

    def _to_input(self, node: ir.Node, need: Needed, facts: Facts) -> Needed:
        axes = sorted(self.axes(node, facts))
        return np.expand_dims(need, axes) if self.drops_axes(node) else any_along(need, axes)

    def known(self, node: ir.Node, facts: Facts) -> list[Known]:
        data = self._data(node)
        known = facts.known_of(data)
        axes = self.axes(node, facts)
        gone = np.isnan(known).any(axis=tuple(axes), keepdims=True)
        ranks = [len(facts.shape(value)) for value in node.outputs]
        if gone.all():
            return [np.full((1,) * rank, np.nan) for rank in ranks]
        shape = facts.shape(data)
        whole = np.broadcast_to(np.nan_to_num(known), shape).astype(facts.dtype(data))
        arguments = [whole, *(None if v is None else facts.constant(v) for v in node.inputs[1:])]
        opset = node.graph.opset_imports[""] if node.graph is not None else 0
        results = [self._even(result, axes) for result in evaluate_node(node, arguments, opset)]
        if self.drops_axes(node):
            gone = np.squeeze(gone, axis=tuple(axes))
        return [compress(np.where(gone, np.nan, result)) for result in results[: len(node.outputs)]]

    def _even(self, result: Array, axes: frozenset[int]) -> Array:
        """Makes equal what differs along the mixed axes by rounding alone."""
        array = np.asarray(result, dtype=np.float64)
        if self.mixes or any(axis >= array.ndim for axis in axes):
            return array
        low, high = (f(axis=tuple(axes), keepdims=True) for f in (array.min, array.max))
        return np.where(high - low <= ROUNDING * np.abs(high), low, array)

    def free(self, node: ir.Node, facts: Facts) -> list[frozenset[int]]:
        data = self._data(node)
        axes = facts.free[data] - self.axes(node, facts)
        if self.drops_axes(node):
            remaining = [a for a in range(len(facts.shape(data))) if a not in
                         self.axes(node, facts)]  # fmt: skip
            axes = frozenset(remaining.index(axis) for axis in axes)
        return [axes] * len(node.outputs)

    def dependence(
        self, node: ir.Node, needed: Sequence[Needed | None], facts: Facts
    ) -> list[Needed | None]:
        parts = [self._to_input(node, need, facts) for need in needed if need is not None]
        total = parts[0]
        for part in parts[1:]:
            total = total | part
        return [total] + [None] * (len(node.inputs) - 1)

    def require(self, node: ir.Node, facts: Facts) -> list[Requirement | None]:
        requirements = super().require(node, facts)
        return [requirements[0]] + [None] * (len(node.inputs) - 1)

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        sets = build.facts.required[node, 0].sets
        operands: list[ir.Value | None] = [build.read(node, 0)]
        for index, value in enumerate(node.inputs[1:], start=1):
            constant = build.facts.constant(value)
            if value is None or constant is None:
                operands.append(None)
                continue
            if index in self.parameters:
                constant = take(constant, (sets[self.parameters[index]],))
            operands.append(build.constant(constant, value.name or "constant"))
        return build.copy(node, operands)

    def reason(self, node: ir.Node, facts: Facts) -> str:
        axes = ", ".join(str(axis) for axis in sorted(self.axes(node, facts)))
        return f"every output depends on all channels along axis {axes}"


@register("BatchNormalization")
class BatchNormalization(Mixing):
    """`y = (x - mean) / sqrt(var + eps) * scale + bias` per channel; a zero scale is constant."""

    mixes = False
    parameters = {1: 1, 2: 1, 3: 1, 4: 1}  # noqa: RUF012

    def axes(self, node: ir.Node, facts: Facts) -> frozenset[int]:
        return frozenset()

    def known(self, node: ir.Node, facts: Facts) -> list[Known]:
        rank = len(facts.shape(self._data(node)))
        scale, bias, mean, var = (
            np.asarray(facts.constant(v)).reshape(-1, *[1] * (rank - 2)) for v in node.inputs[1:]
        )
        known = facts.known_of(self._data(node))
        factor = scale / np.sqrt(var + attribute(node, "epsilon", 1e-5))
        shifted = np.where(scale == 0.0, bias, (known - mean) * factor + bias)
        return [compress(shifted.reshape(shifted.shape if shifted.ndim == rank else
                                         (1, *shifted.shape)))]  # fmt: skip


@register("InstanceNormalization")
class InstanceNormalization(Mixing):
    """Normalisation over space, per channel."""

    mixes = False
    parameters = {1: 1, 2: 1}  # noqa: RUF012

    def axes(self, node: ir.Node, facts: Facts) -> frozenset[int]:
        return frozenset(range(2, len(facts.shape(self._data(node)))))


@register("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool")
class Pool(Mixing):
    """Windows over space, per channel."""

    mixes = False

    def axes(self, node: ir.Node, facts: Facts) -> frozenset[int]:
        return frozenset(range(2, len(facts.shape(self._data(node)))))


@register("LRN")
class LocalResponseNormalization(Mixing):
    """Windows over channels."""

    def axes(self, node: ir.Node, facts: Facts) -> frozenset[int]:
        return frozenset({1})

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        """Adds the operator, on two axes of space: ONNX Runtime 1.32 has it for no other number."""
        facts, output = build.facts, node.outputs[0]
        kept = sizes(facts.kept[output], facts.shape(output))
        if len(kept) == 4 or facts.varying(output) - {0}:
            return super().emit(node, build)
        flat = build.constant(np.asarray([0, 0, -1, 1]), f"{node.name}_flat")
        whole = build.constant(np.asarray([0, 0, *kept[2:]]), f"{node.name}_shape")
        image = build.op("Reshape", [build.read(node, 0), flat], name=f"{node.name}_image")
        return build.op("Reshape", [*build.copy(node, image), whole], name=f"{node.name}_places")


@register("Softmax", "LogSoftmax", "Hardmax", "LpNormalization")
class Normalized(Mixing):
    """Normalisation along one axis."""

    def axes(self, node: ir.Node, facts: Facts) -> frozenset[int]:
        rank = len(facts.shape(self._data(node)))
        return frozenset({int(attribute(node, "axis", -1)) % rank})


@register("LayerNormalization", "RMSNormalization")
class LayerNormalization(Mixing):
    """Normalisation over an axis and all after it."""

    def axes(self, node: ir.Node, facts: Facts) -> frozenset[int]:
        rank = len(facts.shape(self._data(node)))
        return frozenset(range(int(attribute(node, "axis", -1)) % rank, rank))


@register("GroupNormalization")
class GroupNormalization(Mixing):
    """Normalisation over groups of channels and space."""

    def axes(self, node: ir.Node, facts: Facts) -> frozenset[int]:
        return frozenset(range(1, len(facts.shape(self._data(node)))))


@register("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1",
          "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")  # fmt: skip
class Reduce(Mixing):
    """Reduction over constant axes."""

    def axes(self, node: ir.Node, facts: Facts) -> frozenset[int]:
        rank = len(facts.shape(self._data(node)))
        axes = facts.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None or axes.size == 0:
            whole = attribute(node, "noop_with_empty_axes", 0) == 0
            return frozenset(range(rank)) if whole else frozenset()
        return frozenset(int(axis) % rank for axis in axes.reshape(-1))

    def drops_axes(self, node: ir.Node) -> bool:
        return not attribute(node, "keepdims", 1)


@register("ArgMax", "ArgMin")
class Arg(Mixing):
    """Position of the extreme along an axis."""

    def axes(self, node: ir.Node, facts: Facts) -> frozenset[int]:
        rank = len(facts.shape(self._data(node)))
        return frozenset({int(attribute(node, "axis", 0)) % rank})

    def drops_axes(self, node: ir.Node) -> bool:
        return not attribute(node, "keepdims", 1)


@register("Resize")
class Resize(Mixing):
    """Interpolation over space; axes of unchanged size are not mixed."""

    mixes = False

    def axes(self, node: ir.Node, facts: Facts) -> frozenset[int]:
        before, after = facts.shape(self._data(node)), facts.shape(node.outputs[0])
        changed = [a for a, (x, y) in enumerate(zip(before, after, strict=True)) if x != y]
        return frozenset(changed) | frozenset(range(2, len(before)))

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        """Gives all axes a scale or a size, also where the original names some.

        ONNX Runtime 1.32 moves transpositions through `Resize` as if `axes` were all of them.
        """
        facts = build.facts
        data, output = self._data(node), node.outputs[0]
        rank = len(facts.shape(data))
        given = [axis % rank for axis in attribute(node, "axes", tuple(range(rank)))]
        operands: list[ir.Value | None] = [build.read(node, 0), None, None, None]
        scales = facts.constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if scales is not None and scales.size:
            by_axis = dict(zip(given, scales.tolist(), strict=True))
            own = [by_axis.get(axis, 1.0) for axis in range(rank)]
            operands[2] = build.constant(np.asarray(own, dtype=np.float32), f"{node.name}_scales")
        else:
            first = min(self.axes(node, facts))
            sizes = np.asarray([facts.size(output, axis) for axis in range(first, rank)])
            kept = build.op("Shape", operands[:1], {"end": first}, name=f"{node.name}_kept")
            resized = build.constant(sizes, f"{node.name}_sizes")
            whole = build.op("Concat", [*kept, resized], {"axis": 0}, name=f"{node.name}_shape")
            operands[3] = whole[0]
        if "axes" in node.attributes:
            return build.copy(node, operands, axes=tuple(range(rank)))
        return build.copy(node, operands)


@register("Pad")
class BorderedPad(Mixing):
    """`Pad` that mirrors or repeats the border: per channel, along the padded axes."""

    mixes = False

    def applies(self, node: ir.Node) -> bool:
        return super().applies(node) and attribute(node, "mode", "constant") != "constant"

    mixes = False

    def axes(self, node: ir.Node, facts: Facts) -> frozenset[int]:
        before, after = facts.shape(self._data(node)), facts.shape(node.outputs[0])
        return frozenset(a for a, (x, y) in enumerate(zip(before, after, strict=True)) if x != y)


@register("CumSum")
class CumulativeSum(Mixing):
    """Running sum along a constant axis."""

    def axes(self, node: ir.Node, facts: Facts) -> frozenset[int]:
        axis = facts.constant(node.inputs[1])
        assert axis is not None
        return frozenset({int(axis) % len(facts.shape(self._data(node)))})


@register("MatMul")
class ActivationProduct(Operator):
    """`MatMul` of two activations: the contracted axis is read whole."""

    def applies(self, node: ir.Node) -> bool:
        return "weight" not in node.meta

    def known(self, node: ir.Node, facts: Facts) -> list[Known]:
        """A sum is constant where each of its products is: of two constants, or with a zero."""
        (a, _), (b, _) = operands = self._operands(node, facts)
        rank = len(facts.shape(node.outputs[0]))
        idle = all(np.isnan(facts.known_of(value)).all() for value in (a, b))
        if idle or min(len(facts.shape(a)), len(facts.shape(b))) < 2:
            return [np.full((1,) * rank, np.nan)]
        left, right = (
            np.repeat(known, size, axis) if known.shape[axis] < size else known
            for known, axis, size in (
                (facts.known_of(value), axis, facts.size(value, axis)) for value, axis in operands
            )
        )
        gone = np.isnan(left).astype(float) @ (right != 0.0) + (left != 0.0) @ np.isnan(right)
        values = np.nan_to_num(left) @ np.nan_to_num(right)
        found = np.where(gone > 0.0, np.nan, values)
        return [compress(found.reshape((1,) * (rank - found.ndim) + found.shape))]

    def free(self, node: ir.Node, facts: Facts) -> list[frozenset[int]]:
        output = node.outputs[0]
        rank = len(facts.shape(output))
        axes = set(range(rank)) - facts.varying(output)
        for value, contracted in self._operands(node, facts):
            shape = facts.shape(value)
            for axis, size in enumerate(shape):
                if axis != contracted and size > 1 and axis not in facts.free.get(value, axes):
                    axes.discard(axis + rank - len(shape))
        return [frozenset(axes)]

    @staticmethod
    def _operands(node: ir.Node, facts: Facts) -> list[tuple[ir.Value, int]]:
        a, b = node.inputs
        assert a is not None and b is not None
        return [(a, len(facts.shape(a)) - 1), (b, len(facts.shape(b)) - 2)]

    def dependence(
        self, node: ir.Node, needed: Sequence[Needed | None], facts: Facts
    ) -> list[Needed | None]:
        need = needed[0]
        assert need is not None
        (a, _), (b, _) = self._operands(node, facts)
        rows = any_along(need, [need.ndim - 1])
        columns = any_along(need, [need.ndim - 2])
        return [
            None if a.is_initializer() else any_over(rows, _loose(facts.shape(a), -1)),
            None if b.is_initializer() else any_over(columns, _loose(facts.shape(b), -2)),
        ]

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        sets = build.facts.kept[node.outputs[0]]
        operands: list[ir.Value | None] = []
        for index, (value, contracted) in enumerate(self._operands(node, build.facts)):
            constant = build.facts.constant(value)
            if constant is None:
                operands.append(build.read(node, index))
                continue
            own = tuple(
                None if axis == contracted or size == 1 else indices
                for axis, size, indices in zip(
                    range(constant.ndim),
                    constant.shape,
                    sets[len(sets) - constant.ndim :],
                    strict=True,
                )
            )
            operands.append(build.constant(take(constant, own), f"{value.name}_part"))
        return build.copy(node, operands)

    def reason(self, node: ir.Node, facts: Facts) -> str:
        return "it contracts two activations over this axis"


def _loose(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    """Returns a shape whose contracted axis counts as 1, as it does in the needed elements."""
    sizes = list(shape)
    sizes[axis] = 1
    return tuple(sizes)

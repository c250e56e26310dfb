"""Operators that make each output element from the elements at the same place (broadcast)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...evaluate import evaluate_node
from ..elements import Known, Needed, Sets, any_over, compress, sizes, take
from ..facts import Facts, Requirement
from .base import Operator, operator, register

if TYPE_CHECKING:
    from ..emit_graph import Builder

_MOVE_COST = 32
"""Multiply-accumulates that take as long as moving one element through Pad and Gather."""


@register(
    *("Abs", "Acos", "Add", "And", "Asin", "Atan", "BitShift", "Cast", "CastLike", "Ceil", "Celu",
      "Clip", "Cos", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater",
      "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu",
      "Less", "LessOrEqual", "Log", "Max", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu",
      "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Softplus",
      "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor"),
)  # fmt: skip
class Elementwise(Operator):
    """`y[e] = f(a[e], b[e], ...)` with NumPy broadcasting."""

    mixes = False

    def known(self, node: ir.Node, facts: Facts) -> list[Known]:
        inputs = [None if v is None else facts.known_of(v) for v in node.inputs]
        present = [array for array in inputs if array is not None]
        shape = np.broadcast_shapes(*(array.shape for array in present))
        rank = len(facts.shape(node.outputs[0]))
        unknown = np.zeros(shape, dtype=np.bool_)
        for array in present:
            unknown = unknown | np.isnan(array)
        if unknown.all() and not _absorbs(node):
            return [np.full((1,) * rank, np.nan)]
        opset = node.graph.opset_imports[""] if node.graph is not None else 0
        arguments = [
            None if value is None or array is None
            else np.nan_to_num(array, nan=0.0).astype(facts.dtype(value))
            for value, array in zip(node.inputs, inputs, strict=True)
        ]  # fmt: skip
        result = np.asarray(evaluate_node(node, arguments, opset)[0], dtype=np.float64)
        result = np.where(unknown, np.nan, result)
        if _absorbs(node):
            for array in present:
                result = np.where(array == 0.0, 0.0, result)
        return [compress(result.reshape((1,) * (rank - result.ndim) + result.shape))]

    def free(self, node: ir.Node, facts: Facts) -> list[frozenset[int]]:
        output = node.outputs[0]
        rank = len(facts.shape(output))
        axes = set(range(rank)) - facts.varying(output)
        for value in node.inputs:
            if value is None or value.is_initializer():
                continue
            shape = facts.shape(value)
            offset = rank - len(shape)
            for axis, size in enumerate(shape):
                if size > 1 and axis not in facts.free[value]:
                    axes.discard(axis + offset)
        return [frozenset(axes)] + [frozenset()] * (len(node.outputs) - 1)

    def dependence(
        self, node: ir.Node, needed: Sequence[Needed | None], facts: Facts
    ) -> list[Needed | None]:
        need = needed[0]
        assert need is not None
        return [
            None if value is None or value.is_initializer() else any_over(need, facts.shape(value))
            for value in node.inputs
        ]

    def require(self, node: ir.Node, facts: Facts) -> list[Requirement | None]:
        sets = facts.kept[node.outputs[0]]
        requirements: list[Requirement | None] = [None] * len(node.inputs)
        constant: dict[int, Requirement] = {}
        for index, value in enumerate(node.inputs):
            if value is None or value.is_initializer():
                continue
            own = operand_sets(sets, facts.shape(value))
            if self._constant(value, own, facts):
                constant[index] = Requirement(own)
            else:
                adds = _adds(node)
                requirements[index] = _cheapest(value, own, facts) if adds else Requirement(own)
        batch = facts.varying(node.outputs[0])
        for index, requirement in constant.items():  # some operand has to tell the batch
            read = [v for v, r in zip(node.inputs, requirements, strict=True) if r is not None]
            if not read or (batch - self._spanned(node, read, facts)):
                requirements[index] = requirement
        return requirements

    @staticmethod
    def _spanned(
        node: ir.Node, operands: Sequence[ir.Value | None], facts: Facts
    ) -> frozenset[int]:
        """Returns the axes of the output along which some operand is as long as the output."""
        output = node.outputs[0]
        shape, batch = facts.shape(output), facts.varying(output)
        found: set[int] = set()
        for value in operands:
            own = () if value is None else facts.shape(value)
            offset = len(shape) - len(own)
            for axis, size in enumerate(own, start=offset):
                follows = value is not None and axis - offset in facts.varying(value)
                if size == shape[axis] and (follows or axis not in batch):
                    found.add(axis)
        return frozenset(found)

    @staticmethod
    def _constant(value: ir.Value, sets: Sets, facts: Facts) -> bool:
        known = facts.known_of(value)
        return not np.isnan(take(known, sets)).any()

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        facts = build.facts
        sets = facts.kept[node.outputs[0]]
        operands: list[ir.Value | None] = []
        for index, value in enumerate(node.inputs):
            if value is None:
                operands.append(None)
            elif (node, index) in facts.required:
                operands.append(build.read(node, index))
            elif (constant := facts.constant(value)) is not None:
                operands.append(build.constant(take(constant, sets), f"{value.name}_constant"))
            else:
                operands.append(self._filled(node, value, build))
        if node.op_type in ("Identity", "Dropout") and operands[0] is not None:
            return [operands[0]]
        return build.copy(node, operands, outputs=1)

    def reason(self, node: ir.Node, facts: Facts) -> str:
        return "a constant channel meets a live one, and moving the others would cost more"

    def _filled(self, node: ir.Node, value: ir.Value, build: Builder) -> ir.Value:
        """Returns an operand's constants, as long as the output where no other operand is."""
        facts = build.facts
        output = node.outputs[0]
        sets, shape = facts.kept[output], facts.shape(output)
        array = take(facts.known_of(value).astype(facts.dtype(value)), sets)
        constant = build.constant(array, f"{value.name}_constant")
        present = [
            v for i, v in enumerate(node.inputs)
            if v is not None and (v.is_initializer() or (node, i) in facts.required)
        ]  # fmt: skip
        missing = self._spanned(node, [value], facts) - self._spanned(node, present, facts)
        target = [size if axis in missing else 1 for axis, size in enumerate(sizes(sets, shape))][
            len(shape) - array.ndim :
        ]
        if all(have >= want for have, want in zip(array.shape, target, strict=True)):
            return constant
        length = build.constant(np.asarray(target, dtype=np.int64), f"{value.name}_shape")
        return build.op("Expand", [constant, length], name=f"{value.name}_expanded")[0]


@register("Expand")
class Expand(Elementwise):
    """Broadcasts to a shape; the shape operand follows the kept sets."""

    def known(self, node: ir.Node, facts: Facts) -> list[Known]:
        data = node.inputs[0]
        assert data is not None
        known = facts.known_of(data)
        rank = len(facts.shape(node.outputs[0]))
        return [known.reshape((1,) * (rank - known.ndim) + known.shape)]

    def dependence(
        self, node: ir.Node, needed: Sequence[Needed | None], facts: Facts
    ) -> list[Needed | None]:
        need, (data, shape) = needed[0], node.inputs
        assert need is not None and data is not None and shape is not None
        return [
            None if data.is_initializer() else any_over(need, facts.shape(data)),
            None if shape.is_initializer() else np.ones((1,), dtype=np.bool_),
        ]

    def require(self, node: ir.Node, facts: Facts) -> list[Requirement | None]:
        data, shape = node.inputs
        assert data is not None and shape is not None
        own = operand_sets(facts.kept[node.outputs[0]], facts.shape(data))
        return [
            None if data.is_initializer() else Requirement(own),
            None if shape.is_initializer() else Requirement((None,)),
        ]

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        data, lengths = node.inputs
        output = node.outputs[0]
        assert data is not None and lengths is not None
        sets = build.facts.kept[output]
        array = build.facts.constant(data)
        source = (
            build.read(node, 0)
            if array is None
            else build.constant(take(array, sets), f"{data.name}_constant")
        )
        target = build.facts.constant(node.inputs[1])
        shape = build.facts.shape(output)
        if target is None:
            limits = [np.iinfo(np.int64).max if s is None else len(s) for s in sets]
            length = build.facts.size(lengths, 0)
            limit = build.constant(np.asarray(limits[-length:]), f"{node.name}_limits")
            target_value = build.op("Min", [build.read(node, 1), limit], name=f"{node.name}_shape")
            return build.copy(node, [source, *target_value])
        narrowed = [
            1 if want == 1 else size
            for want, size in zip(
                [1] * (len(shape) - len(target)) + list(target), sizes(sets, shape), strict=True
            )
        ]
        return build.copy(node, [source, build.constant(np.asarray(narrowed), "shape")])


def operand_sets(sets: Sets, shape: Sequence[int]) -> Sets:
    """Returns the sets of a broadcast operand: an axis of length 1 is read whole."""
    aligned = sets[len(sets) - len(shape) :]
    return tuple(
        None if size == 1 else indices for indices, size in zip(aligned, shape, strict=True)
    )


def _absorbs(node: ir.Node) -> bool:
    return node.op_type == "Mul"


def _adds(node: ir.Node) -> bool:
    return node.op_type in ("Add", "Sub", "Sum")


def _cheapest(value: ir.Value, sets: Sets, facts: Facts) -> Requirement:
    """Chooses between computing an operand's constant channels and filling them in.

    Computed, each costs a filter's weights per element; filled in, the whole operand moves once.
    """
    whole = Requirement(sets)
    known = facts.known_of(value)
    axes = [axis for axis, size in enumerate(known.shape) if size > 1]
    if len(axes) != 1:
        return whole
    axis = axes[0]
    if axis not in facts.free[value]:
        return whole
    size = facts.size(value, axis)
    indices = np.arange(size) if sets[axis] is None else sets[axis]
    assert indices is not None
    constants = known.reshape(-1)[indices]
    fixed = int((~np.isnan(constants)).sum())
    if fixed * filter_cost(value, facts) <= _MOVE_COST * len(indices):
        return whole
    narrowed = tuple(
        indices[np.isnan(constants)] if a == axis else old for a, old in enumerate(sets)
    )
    return Requirement(narrowed, expand=(axis, constants))


def filter_cost(value: ir.Value, facts: Facts) -> int:
    """Returns the multiply-accumulates per element of the filters that make a value."""
    node = value.producer()
    while node is not None:
        entry = operator(node)
        cost = getattr(entry, "filter_cost", None)
        if cost is not None:
            return int(cost(node, facts))
        live_inputs = [v for v in node.inputs if v is not None and not v.is_initializer()]
        if entry.mixes or len(live_inputs) != 1:
            return 0
        node = live_inputs[0].producer()
    return 0

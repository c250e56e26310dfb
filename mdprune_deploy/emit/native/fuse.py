"""Joins operators of a draft, so that values are read and written once.

A convolution ends with `y = A(acc * scale + shift + residual)` and `y2 = A2(y * scale2 + shift2)`;
what follows it and fits there becomes part of it. A rule looks at one operator and either changes
the draft or says no; rules are tried until none applies. An intermediate value disappears only
where one operator alone reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ...evaluate import Array
from .draft import Draft, DraftTensor
from .lowering import merged
from .operators import (
    IDENTITY,
    Activation,
    Affine,
    Binary,
    BinaryKind,
    Convolution,
    Depthwise,
    Function,
    Gather,
    Move,
    Operator,
    Unary,
)
from .plan import Place


def fuse(draft: Draft) -> None:
    """Applies all rules, in place."""
    joined = _Fusion(draft)
    joined.run(
        (gated, clipped, clipped_gate, affine_after, function_after, residual, selected_function)
    )
    joined.run((selected_residual, widened_norm, second_output))
    _remove_unread(draft)
    _move_even_selections(draft)
    _write_outputs_directly(draft)


class _Fusion:
    """A draft, and who reads and writes each memory of it."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self._index()

    def run(self, rules: tuple[Rule, ...]) -> None:
        """Tries rules on every operator until none applies."""
        changed = True
        while changed:
            changed = False
            for rule in rules:
                for operator in list(self.draft.operators):
                    if operator in self._alive and rule(self, operator):
                        changed = True

    def _index(self) -> None:
        self._alive = set(self.draft.operators)
        self._readers = self.draft.readers()
        self._writers: dict[tuple[Place, int], list[Operator]] = {}
        for operator in self.draft.operators:
            for tensor in operator.writes():
                self._writers.setdefault(self.draft.memory(tensor), []).append(operator)

    def replace(self, old: list[Operator], new: Operator) -> None:
        """Puts an operator in the place of the last of some."""
        operators = self.draft.operators
        at = max(operators.index(operator) for operator in old)
        operators[at] = new
        self.draft.operators = [o for o in operators if o is new or o not in old]
        self._index()

    def producer(self, tensor: int) -> Operator | None:
        """Returns what alone writes an activation."""
        writers = self._writers.get(self.draft.memory(tensor), [])
        return writers[0] if len(writers) == 1 else None

    def readers(self, tensor: int) -> list[Operator]:
        """Returns what reads a tensor's memory."""
        return self._readers.get(self.draft.memory(tensor), [])

    def sole_producer(self, tensor: int) -> Operator | None:
        """Returns what alone writes an activation that one operator alone reads."""
        inner = self.draft.tensors[tensor].place is Place.ARENA
        return self.producer(tensor) if inner and len(self.readers(tensor)) == 1 else None

    def vector(self, tensor: int | None, default: float, width: int) -> Array:
        """Returns a scale or shift spelt out."""
        array = self.draft.array(tensor)
        return np.full(width, default) if array is None else array.reshape(-1)

    def constants(self, scale: Array, shift: Array) -> dict[str, Any]:
        """Returns a scale and a shift as tensors, None where they do nothing."""
        return {
            "scale": self.draft.constant(scale) if (scale != 1.0).any() else None,
            "shift": self.draft.constant(shift) if shift.any() else None,
        }

    def uniform(self, tensor: int | None, default: float) -> float | None:
        """Returns the number that a scale or shift is for all channels, None for none."""
        array = self.draft.array(tensor)
        if array is None:
            return default
        return float(array.flat[0]) if (array == array.flat[0]).all() else None


Rule = Callable[[_Fusion, Operator], bool]


def _is_open(operator: Operator | None) -> bool:
    """Tells whether an operator's output can be changed element by element within it."""
    return (
        isinstance(operator, Convolution | Depthwise | Affine | Binary)
        and operator.activation == IDENTITY
        and getattr(operator, "y2", None) is None
    )


def affine_after(fusion: _Fusion, operator: Operator) -> bool:
    """`(x * s + t) * s2 + t2`, whatever made `x * s + t`."""
    if not isinstance(operator, Affine):
        return False
    draft = fusion.draft
    before = fusion.sole_producer(operator.x)
    if not isinstance(before, Convolution | Depthwise | Affine) or not _is_open(before):
        return False
    if getattr(before, "residual", None) is not None:
        return False
    width = draft.shape(before.y)[-1]
    if draft.shape(operator.x)[-1] != width:
        return False
    chosen = draft.array(operator.index)
    if chosen is not None and not isinstance(before, Affine):
        return False
    first = [fusion.vector(before.scale, 1.0, width), fusion.vector(before.shift, 0.0, width)]
    if chosen is not None:
        first = [vector[chosen] for vector in first]
    own = len(first[0])
    scale, shift = fusion.vector(operator.scale, 1.0, own), fusion.vector(operator.shift, 0.0, own)
    shape = (*draft.shape(before.y)[:-1], own)
    changes: dict[str, Any] = {
        "y": draft.view(operator.y, shape),
        "activation": operator.activation,
        **fusion.constants(first[0] * scale, first[1] * scale + shift),
    }
    if chosen is not None:
        inner = draft.array(before.index) if isinstance(before, Affine) else None
        changes["index"] = draft.index(chosen if inner is None else inner[chosen])
    fusion.replace([before, operator], dataclasses.replace(before, **changes))
    return True


def function_after(fusion: _Fusion, operator: Operator) -> bool:
    """A function of the output of an operator that has none yet."""
    if not isinstance(operator, Unary):
        return False
    before = fusion.sole_producer(operator.x)
    if not isinstance(before, Convolution | Depthwise | Affine | Binary) or not _is_open(before):
        return False
    y = fusion.draft.view(operator.y, fusion.draft.shape(before.y))
    joined = dataclasses.replace(before, y=y, activation=operator.activation)
    fusion.replace([before, operator], joined)
    return True


def residual(fusion: _Fusion, operator: Operator) -> bool:
    """A sum whose one operand a convolution makes, the later one if both are such."""
    draft = fusion.draft
    if not isinstance(operator, Binary) or operator.kind is not BinaryKind.ADD:
        return False
    if draft.shape(operator.a) != draft.shape(operator.b):
        return False
    if draft.memory(operator.a) == draft.memory(operator.b):
        return False
    found: list[tuple[int, Convolution | Depthwise, int]] = []
    for own, other in ((operator.a, operator.b), (operator.b, operator.a)):
        before = fusion.sole_producer(own)
        if (
            isinstance(before, Convolution | Depthwise)
            and _is_open(before)
            and before.residual is None
        ):
            found.append((draft.operators.index(before), before, other))
    if not found:
        return False
    _, before, other = max(found, key=lambda item: item[0])
    shape = draft.shape(before.y)
    joined = dataclasses.replace(
        before,
        residual=draft.view(other, shape),
        y=draft.view(operator.y, shape),
        activation=operator.activation,
    )
    fusion.replace([before, operator], joined)
    return True


def selected_residual(fusion: _Fusion, operator: Operator) -> bool:
    """A residual of some channels is read where all of them are."""
    if not isinstance(operator, Convolution) or operator.residual is None:
        return False
    draft = fusion.draft
    before = fusion.sole_producer(operator.residual)
    if not isinstance(before, Gather) or before.inner != 1 or draft.shape(before.x)[-1] != before.n:
        return False
    joined = dataclasses.replace(operator, residual=before.x, residual_index=before.index)
    fusion.replace([before, operator], joined)
    return True


def gated(fusion: _Fusion, operator: Operator) -> bool:
    """`x * sigmoid(x)`, `x * hard_sigmoid(x)` and `x * tanh(softplus(x))` are one function."""
    if not isinstance(operator, Binary) or operator.kind is not BinaryKind.MULTIPLY:
        return False
    draft = fusion.draft
    if operator.activation != IDENTITY:
        return False
    for x, gate in ((operator.a, operator.b), (operator.b, operator.a)):
        made = fusion.sole_producer(gate)
        gates: list[Operator] = [] if made is None else [made]
        function: Function | None = None
        if isinstance(made, Unary) and draft.memory(made.x) == draft.memory(x):
            function = _gated_by(made.activation)
        elif isinstance(made, Unary) and made.activation == Activation(Function.TANH):
            inner = fusion.sole_producer(made.x)
            softplus = Activation(Function.SOFTPLUS)
            if isinstance(inner, Unary) and inner.activation == softplus:
                gates.append(inner)
                function = Function.MISH if draft.memory(inner.x) == draft.memory(x) else None
        if function is not None and draft.shape(x) == draft.shape(gate):
            joined = Unary(name=operator.name, x=x, y=operator.y, activation=Activation(function))
            fusion.replace([*gates, operator], joined)
            return True
    return False


_SIXTH = 1.0 / 6.0
_ROUNDING = 1e-7
"""Of numbers that a network holds in float32."""


def _gated_by(gate: Activation) -> Function | None:
    """Returns the function that `x * gate(x)` is, None where it is none of the format's."""
    if gate.function is Function.SIGMOID:
        return Function.SILU
    if gate.function is Function.HARD_SIGMOID:
        near = abs(gate.a - _SIXTH) < _ROUNDING and abs(gate.b - 0.5) < _ROUNDING
        return Function.HARD_SWISH if near else None
    return None


def clipped(fusion: _Fusion, operator: Operator) -> bool:
    """`clip(x * k + c, 0, h) / h` is a hard sigmoid."""
    factor = _factor(fusion, operator)
    if not isinstance(operator, Affine) or factor is None:
        return False
    before = fusion.sole_producer(operator.x)
    gate = _hard_sigmoid(fusion, before, factor)
    if gate is None or not isinstance(before, Affine):
        return False
    joined = Unary(name=operator.name, x=before.x, y=operator.y, activation=gate)
    fusion.replace([before, operator], joined)
    return True


def clipped_gate(fusion: _Fusion, operator: Operator) -> bool:
    """`(x * clip(x * k + c, 0, h)) / h` is `x` by a hard sigmoid."""
    factor = _factor(fusion, operator)
    if not isinstance(operator, Affine) or factor is None:
        return False
    product = fusion.sole_producer(operator.x)
    if not isinstance(product, Binary) or product.kind is not BinaryKind.MULTIPLY:
        return False
    if product.activation != IDENTITY:
        return False
    for operand in (product.a, product.b):
        before = fusion.sole_producer(operand)
        gate = _hard_sigmoid(fusion, before, factor)
        if gate is not None and isinstance(before, Affine):
            y = fusion.draft.view(operator.y, fusion.draft.shape(product.y))
            fusion.replace([product, operator], dataclasses.replace(product, y=y))
            new = Unary(name=before.name, x=before.x, y=before.y, activation=gate)
            fusion.replace([before], new)
            return True
    return False


def _factor(fusion: _Fusion, operator: Operator) -> float | None:
    """Returns the number by which an operator multiplies all that it reads, if that is all."""
    if not isinstance(operator, Affine) or operator.index is not None:
        return None
    if fusion.uniform(operator.shift, 0.0) != 0.0 or operator.activation != IDENTITY:
        return None
    return fusion.uniform(operator.scale, 1.0)


def _hard_sigmoid(fusion: _Fusion, operator: Operator | None, factor: float) -> Activation | None:
    """Returns the hard sigmoid that `clip(x * k + c, 0, h) * factor` is, if `factor` is 1 / h."""
    if not isinstance(operator, Affine) or operator.index is not None:
        return None
    function, low, high = operator.activation
    k, c = fusion.uniform(operator.scale, 1.0), fusion.uniform(operator.shift, 0.0)
    if function is not Function.CLIP or low != 0.0 or k is None or c is None:
        return None
    if abs(high * factor - 1.0) > _ROUNDING:
        return None
    return Activation(Function.HARD_SIGMOID, k * factor, c * factor)


def selected_function(fusion: _Fusion, operator: Operator) -> bool:
    """A function of a selection along the last axis."""
    if not isinstance(operator, Unary):
        return False
    draft = fusion.draft
    before = fusion.sole_producer(operator.x)
    if not isinstance(before, Gather) or before.inner != 1 or draft.shape(before.x)[-1] != before.n:
        return False
    joined = Affine(
        name=operator.name, x=before.x, y=draft.view(operator.y, draft.shape(before.y)),
        index=before.index, activation=operator.activation,
    )  # fmt: skip
    fusion.replace([before, operator], joined)
    return True


def _has_room(operator: Operator | None) -> bool:
    return isinstance(operator, Convolution) and operator.y2 is None


def widened_norm(fusion: _Fusion, operator: Operator) -> bool:
    """A norm of some channels that convolutions alone read takes them all; they select."""
    if not isinstance(operator, Affine) or operator.index is None:
        return False
    draft = fusion.draft
    before, readers = fusion.producer(operator.x), fusion.readers(operator.y)
    memory = draft.memory(operator.y)
    if not isinstance(before, Convolution) or not _has_room(before):
        return False
    if draft.tensors[operator.y].place is not Place.ARENA:
        return False
    for reader in readers:
        if not isinstance(reader, Convolution) or reader.groups != 1:
            return False
        if reader.residual is not None and draft.memory(reader.residual) == memory:
            return False
    chosen = draft.array(operator.index)
    assert chosen is not None
    shape = draft.shape(before.y)
    if len(np.unique(chosen)) != len(chosen) or draft.shape(operator.x) != shape:
        return False
    width = shape[-1]
    scale, shift = np.ones(width), np.zeros(width)
    scale[chosen] = fusion.vector(operator.scale, 1.0, len(chosen))
    shift[chosen] = fusion.vector(operator.shift, 0.0, len(chosen))
    whole = draft.activation(shape)
    norm = dataclasses.replace(operator, y=whole, index=None, **fusion.constants(scale, shift))
    for reader in readers:
        assert isinstance(reader, Convolution)
        inner = draft.array(reader.index)
        index = draft.index(chosen if inner is None else chosen[inner])
        x = draft.view(whole, (*draft.shape(reader.x)[:-1], width))
        at = draft.operators.index(reader)
        draft.operators[at] = dataclasses.replace(reader, x=x, index=index)
    fusion.replace([operator], norm)
    return True


def second_output(fusion: _Fusion, operator: Operator) -> bool:
    """A norm or function of what others read as well."""
    draft = fusion.draft
    if not isinstance(operator, Affine | Unary):
        return False
    if isinstance(operator, Affine) and operator.index is not None:
        return False
    before = fusion.producer(operator.x)
    if not isinstance(before, Convolution) or not _has_room(before):
        return False
    shape = draft.shape(before.y)
    if draft.shape(operator.x)[-1] != shape[-1]:
        return False
    affine = isinstance(operator, Affine)
    joined = dataclasses.replace(
        before,
        y2=draft.view(operator.y, shape),
        scale2=operator.scale if isinstance(operator, Affine) and affine else None,
        shift2=operator.shift if isinstance(operator, Affine) and affine else None,
        activation2=operator.activation,
    )
    at = draft.operators.index(before)
    draft.operators[at] = joined
    draft.operators = [o for o in draft.operators if o is not operator]
    fusion._index()
    return True


def _remove_unread(draft: Draft) -> None:
    """Removes operators whose outputs nobody reads."""
    while True:
        read = {draft.memory(tensor) for o in draft.operators for tensor in o.reads()}
        read |= {draft.memory(tensor) for _, tensor in draft.outputs}
        kept = [
            o for o in draft.operators if any(draft.memory(t) in read for t in o.writes())
        ]  # fmt: skip
        if len(kept) == len(draft.operators):
            return
        draft.operators = kept


def _move_even_selections(draft: Draft) -> None:
    """Evenly spaced entries need no list."""
    for at, operator in enumerate(draft.operators):
        if not isinstance(operator, Gather):
            continue
        indices = draft.array(operator.index)
        assert indices is not None
        steps = np.unique(np.diff(indices.reshape(-1)))
        if len(steps) > 1:
            continue
        step = int(steps[0]) if len(steps) else 1
        outer, n, inner = operator.outer, operator.n, operator.inner
        count = indices.size
        axes = merged(
            (outer, count, inner), (n * inner, step * inner, 1), (count * inner, inner, 1)
        )
        draft.operators[at] = Move(
            name=operator.name, x=operator.x, y=operator.y,
            x_offset=int(indices.flat[0]) * inner,
            size=tuple(a[0] for a in axes), x_stride=tuple(a[1] for a in axes),
            y_stride=tuple(a[2] for a in axes),
        )  # fmt: skip


def _write_outputs_directly(draft: Draft) -> None:
    """Drops the copy of an output that nothing else reads: it is made where the user gets it."""
    readers = draft.readers()
    for operator in list(draft.operators):
        if not isinstance(operator, Move) or draft.tensors[operator.y].place is not Place.OUTPUT:
            continue
        source, target = draft.tensors[operator.x], draft.tensors[operator.y]
        memory = draft.memory(operator.x)
        plain = operator.size == (source.elements,) and operator.x_stride == operator.y_stride == (
            1,
        )
        if source.place is Place.ARENA and plain and len(readers[memory]) == 1:
            draft.operators.remove(operator)
            for number, tensor in enumerate(draft.tensors):
                if draft.memory(number) == memory:
                    moved: DraftTensor = dataclasses.replace(
                        tensor, place=Place.OUTPUT, storage=target.storage
                    )
                    draft.tensors[number] = moved

"""Widens activations to whole cache lines, so that every pixel begins at one.

Stores of a convolution whose pixels begin anywhere touch two lines each, its last vector is not
full, and two threads write into one line. So channels are added that nobody reads: the last filters
of a convolution have no weights. Only tensors that convolutions and pools write and that are read
through a selection of channels can have such channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .draft import Draft
from .operators import Affine, Convolution, Operator, Pool
from .plan import Place

LINE = 16
"""Floats of a cache line."""
_MOST = 1.25
"""Channels after over channels before, at most."""

Memory = tuple[Place, int]


def pad_channels(draft: Draft) -> None:
    """Widens what can be widened, in place."""
    ties = _Ties(draft)
    for operator in draft.operators:
        _look(draft, ties, operator)
    padded = ties.free()
    draft.operators = [_widened(draft, padded, operator) for operator in draft.operators]
    for number, tensor in enumerate(draft.tensors):
        if draft.memory(number) in padded:
            *outer, channels = tensor.shape
            shape = (*outer, _whole(channels))
            draft.tensors[number] = dataclasses.replace(tensor, shape=shape)


def _whole(channels: int) -> int:
    return -(-channels // LINE) * LINE


class _Ties:
    """Memories that have the same channels, and those whose channels are fixed."""

    def __init__(self, draft: Draft) -> None:
        self._parent: dict[Memory, Memory] = {}
        self._fixed: set[Memory] = set()
        shapes: dict[Memory, tuple[int, ...]] = {}
        for number, tensor in enumerate(draft.tensors):
            memory = draft.memory(number)
            channels = tensor.shape[-1] if tensor.shape else 1
            if (
                tensor.place is not Place.ARENA
                or shapes.setdefault(memory, tensor.shape) != tensor.shape
                or not channels < _whole(channels) <= _MOST * channels
            ):
                self.fix(memory)

    def fix(self, memory: Memory) -> None:
        """States that a memory stays as it is."""
        self._fixed.add(memory)

    def tie(self, a: Memory, b: Memory) -> None:
        """States that two memories have the same channels."""
        self._parent[self._root(a)] = self._root(b)

    def free(self) -> set[Memory]:
        """Returns the memories that are tied to none whose channels are fixed."""
        fixed = {self._root(memory) for memory in self._fixed}
        return {memory for memory in self._parent if self._root(memory) not in fixed}

    def _root(self, memory: Memory) -> Memory:
        parent = self._parent.setdefault(memory, memory)
        return memory if parent == memory else self._root(parent)


def _look(draft: Draft, ties: _Ties, operator: Operator) -> None:
    tied: list[int | None]
    selected: list[int | None] = []
    match operator:
        case Convolution(groups=1):
            tied = [operator.y, operator.y2]
            selected = [operator.x]
            (tied if operator.residual_index is None else selected).append(operator.residual)
        case Pool():
            tied = [operator.x, operator.y]
        case Affine() if operator.index is not None:
            tied, selected = [], [operator.x]
        case _:
            tied = []
    memories = [draft.memory(tensor) for tensor in tied if tensor is not None]
    for memory in memories:
        ties.tie(memories[0], memory)
    allowed = {*memories, *(draft.memory(tensor) for tensor in selected if tensor is not None)}
    for tensor in (*operator.reads(), *operator.writes()):
        if draft.memory(tensor) not in allowed:
            ties.fix(draft.memory(tensor))


def _widened(draft: Draft, padded: set[Memory], operator: Operator) -> Operator:
    """Returns an operator as it is over tensors that will be wider."""
    if not isinstance(operator, Convolution):
        return operator
    changes: dict[str, Any] = {}
    if operator.index is None and draft.memory(operator.x) in padded:
        changes["index"] = draft.index(np.arange(draft.shape(operator.x)[-1]))
    if draft.memory(operator.y) in padded:
        filters = draft.shape(operator.y)[-1]
        behind = (0, _whole(filters) - filters)
        for field in ("scale", "shift", "scale2", "shift2"):
            array = draft.array(getattr(operator, field))
            if array is not None:
                changes[field] = draft.constant(np.pad(array.reshape(-1), behind))
        chosen = draft.array(operator.residual_index)
        if chosen is not None:
            changes["residual_index"] = draft.index(np.pad(chosen, behind, mode="edge"))
    return dataclasses.replace(operator, **changes)

"""Places the activations of a draft in one arena.

A memory lives from the operator that first writes it to the one that last reads it. The largest
ones are placed first, each at the offset where the gap between those that live at the same time
fits it best. An operator that may work in place gives its output the memory of an operand that
ends with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .draft import Draft
from .plan import ALIGNMENT, Place

_FLOAT = 4


@dataclass
class _Memory:
    """A stretch of the arena over some time.

    Attributes:
        size: Bytes.
        begin: The first operator that writes it.
        end: The last operator that reads it.
        offset: Where it lies.
    """

    size: int
    begin: int
    end: int
    offset: int = 0


@dataclass(frozen=True)
class Arena:
    """Where activations lie.

    Attributes:
        size: Bytes of the whole arena.
        offsets: Byte offset by storage number.
        live: The most bytes that live at one time, a bound from below.
    """

    size: int
    offsets: dict[int, int]
    live: int


def place_activations(draft: Draft) -> Arena:
    """Chooses an offset for every activation."""
    memories, owner = _lives(draft)
    placed: list[_Memory] = []
    for memory in sorted(memories, key=lambda m: (-m.size, m.begin)):
        memory.offset = _best_gap(memory, [p for p in placed if _meet(p, memory)])
        placed.append(memory)
    steps = range(len(draft.operators))
    return Arena(
        size=max((m.offset + m.size for m in placed), default=0),
        offsets={storage: memory.offset for storage, memory in owner.items()},
        live=max(
            (sum(m.size for m in placed if m.begin <= step <= m.end) for step in steps), default=0
        ),
    )


def _lives(draft: Draft) -> tuple[list[_Memory], dict[int, _Memory]]:
    last: dict[int, int] = {}
    for step, operator in enumerate(draft.operators):
        for tensor in (*operator.reads(), *operator.writes()):
            if draft.tensors[tensor].place is Place.ARENA:
                last[draft.tensors[tensor].storage] = step
    memories: list[_Memory] = []
    owner: dict[int, _Memory] = {}
    for step, operator in enumerate(draft.operators):
        for tensor in operator.writes():
            own = draft.tensors[tensor]
            if own.place is not Place.ARENA or own.storage in owner:
                continue
            size = -(-own.elements * _FLOAT // ALIGNMENT) * ALIGNMENT
            shared = (
                _replaced(draft, step, tensor, owner) if tensor == operator.writes()[0] else None
            )
            if shared is None:
                shared = _Memory(size, step, step)
                memories.append(shared)
            shared.end = max(shared.end, last[own.storage])
            owner[own.storage] = shared
    return memories, owner


def _replaced(draft: Draft, step: int, output: int, owner: dict[int, _Memory]) -> _Memory | None:
    """Returns the memory of an operand that ends here and that the output may replace."""
    operator = draft.operators[step]
    for operand in operator.may_replace():
        tensor = draft.tensors[operand]
        if tensor.place is not Place.ARENA or tensor.shape != draft.shape(output):
            continue
        others = [t for t in operator.reads() if t != operand]
        memory = owner[tensor.storage]
        if memory.end == step and all(
            draft.tensors[t].place is not Place.ARENA
            or owner[draft.tensors[t].storage] is not memory
            for t in others
        ):
            return memory
    return None


def _meet(a: _Memory, b: _Memory) -> bool:
    return a.begin <= b.end and b.begin <= a.end


def _best_gap(memory: _Memory, others: list[_Memory]) -> int:
    """Returns the offset of the smallest gap that fits, or the end."""
    best: tuple[int, int] | None = None
    at = 0
    for other in sorted(others, key=lambda m: m.offset):
        gap = other.offset - at
        if gap >= memory.size and (best is None or gap < best[0]):
            best = gap, at
        at = max(at, other.offset + other.size)
    return at if best is None else best[1]

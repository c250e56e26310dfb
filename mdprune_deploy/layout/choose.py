"""Which weights are read from the union of all domains, and which as copies of their own.

A private copy is stored as a kernel reads it, a slab is packed in every call: its used filters are
gathered, cache line by cache line, and its bit set is prepared for every panel of filters. So a
copy saves

    LINE_NS * lines touched + GROUP_NS * slabs * panels

nanoseconds per call, however much the layer computes besides, and costs its bytes less those of the
union that nobody else reads. Without a limit every weight takes what is smaller. Under a limit the
allowance that is left goes where a byte saves most time: a greedy knapsack over moves, which make
all readers of a weight private, or one.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from ..errors import BudgetError
from .union import FLOAT, Indices, Selection, Union, union

Reader = tuple[str, int]
"""The domain, and a number that tells its readers apart."""
Key = TypeVar("Key", bound=Hashable)

BLOCK = 16
"""Filters to which private copies are padded."""
ALIGNMENT = 64
"""Bytes to whose multiples slabs and copies are padded."""
PANEL = 64
"""Filters that are packed at once."""
LINE_NS = 1.1
"""Time to pack one cache line beyond reading it packed, measured by `python -m benchmarks.packing`
on an AMD EPYC with AVX-512, the weights in no cache: 1.1 and 1.2 in two runs."""
GROUP_NS = 140.0
"""Time to prepare a slab's bit sets for one panel, measured so too: 140 and 160 in two runs."""


@dataclass(frozen=True, eq=False)
class SharedWeight:
    """A stored weight and who reads it.

    Attributes:
        taps: Weights per pair.
        order: All of its filters in stored order.
        selections: What every reader uses.
        own: How many columns of their own readers have beside it; their copies are equal to no
            other.
    """

    taps: int
    order: Indices
    selections: Mapping[Reader, Selection]
    own: Mapping[Reader, int] = field(default_factory=dict)

    def copy_bytes(self, reader: Reader) -> int:
        """Returns the bytes of a reader's private copy."""
        selection = self.selections[reader]
        width = -(-len(selection.filters) // BLOCK) * BLOCK
        channels = len(selection.channels) + self.own.get(reader, 0)
        return FLOAT * self.taps * width * channels

    def copies_bytes(self, readers: Sequence[Reader]) -> int:
        """Returns the bytes of private copies; equal ones are stored once."""
        return sum({self._copy(reader): self.copy_bytes(reader) for reader in readers}.values())

    def _copy(self, reader: Reader) -> object:
        selection = self.selections[reader]
        content = selection.filters.tobytes(), selection.channels.tobytes()
        return (reader, content) if self.own.get(reader) else content

    def layout(self, readers: Sequence[Reader], *, grouped: bool) -> Union[Reader]:
        """Lays out the union of what some readers use."""
        selections = {reader: self.selections[reader] for reader in readers}
        return union(selections, self.order, taps=self.taps, grouped=grouped)

    def union_bytes(self, layout: Union[Reader]) -> int:
        """Returns the bytes of slabs, and of what their readers have beside them."""
        sizes = [slab.pairs for slab in layout.slabs]
        sizes += [self._own_pairs(reader) for reader in layout.readers]
        return sum(-(-FLOAT * self.taps * size // ALIGNMENT) * ALIGNMENT for size in sizes)

    @property
    def least_bytes(self) -> int:
        """Bytes of the pairs that some reader uses, each once."""
        layout = self.layout(list(self.selections), grouped=False)
        own = sum(self._own_pairs(reader) for reader in self.selections)
        return FLOAT * self.taps * (layout.pairs + own)

    def _own_pairs(self, reader: Reader) -> int:
        return self.own.get(reader, 0) * len(self.selections[reader].filters)

    def saved_ns(self, reader: Reader, layout: Union[Reader]) -> float:
        """Returns the time per call that a private copy saves a reader."""
        panels = -(-len(self.selections[reader].filters) // PANEL)
        lines = layout.lines(reader)[0] * self.taps
        return LINE_NS * lines + GROUP_NS * len(layout.readers[reader].readings) * panels


@dataclass(frozen=True, eq=False)
class Choice:
    """How one weight is stored.

    Attributes:
        private: The readers that have a copy of their own.
        layout: The slabs of the others; None where there are none.
        stored: Bytes of slabs and copies.
        union: Bytes of the union of the used pairs: the least that can be stored.
        copies: Bytes of private copies for all readers: the least without slabs.
        reason: Why.
    """

    private: frozenset[Reader]
    layout: Union[Reader] | None
    stored: int
    union: int
    copies: int
    reason: str


def choose(weights: Mapping[Key, SharedWeight], limit: int | None = None) -> dict[Key, Choice]:
    """Chooses for every weight and reader between the union and a private copy.

    Args:
        weights: All weights that may be shared.
        limit: Most bytes that they may take; None for as few as the layout gives.

    Raises:
        BudgetError: The limit is below what the union takes.
    """
    states = {key: _State(weight) for key, weight in weights.items()}
    if limit is not None:
        _fit(states, limit)
        _spend(states, limit)
    return {key: state.choice() for key, state in states.items()}


@dataclass(eq=False)
class _State:
    """What is chosen so far for one weight."""

    weight: SharedWeight
    private: set[Reader] = field(default_factory=set)
    grouped: bool = True
    reason: str = "the union is smaller than copies"

    def __post_init__(self) -> None:
        readers = list(self.weight.selections)
        self.least = self.weight.least_bytes
        self.copies = self.weight.copies_bytes(readers)
        self._lay_out()
        if len({domain for domain, _ in readers}) < 2:
            self.take(readers, "one domain reads it")
        elif self.copies <= self.stored:
            self.take(readers, "copies take no more than slabs")

    def _lay_out(self) -> None:
        rest = [reader for reader in self.weight.selections if reader not in self.private]
        self.layout = self.weight.layout(rest, grouped=self.grouped) if rest else None
        slabs = 0 if self.layout is None else self.weight.union_bytes(self.layout)
        self.stored = slabs + self.weight.copies_bytes(sorted(self.private))

    def take(self, readers: Sequence[Reader], reason: str) -> None:
        """Gives readers copies of their own."""
        self.private.update(readers)
        self.reason = reason
        self._lay_out()

    def undo(self, readers: Sequence[Reader], reason: str) -> None:
        """Takes copies away."""
        self.private.difference_update(readers)
        self.reason = reason
        self._lay_out()

    def ungrouped(self) -> int:
        """Returns the bytes of slabs without groups."""
        return self.weight.union_bytes(
            self.weight.layout(list(self.weight.selections), grouped=False)
        )

    def ungroup(self) -> None:
        """Stores exactly the union."""
        self.grouped = False
        self.reason = "the union, ungrouped to meet the limit"
        self._lay_out()

    def moves(self) -> Iterator[tuple[float, int, list[Reader]]]:
        """Yields what could become private: nanoseconds saved, bytes added (about), readers."""
        if self.layout is None:
            return
        rest = list(self.layout.readers)
        saved = {reader: self.weight.saved_ns(reader, self.layout) for reader in rest}
        everything = self.weight.copies_bytes(sorted({*rest, *self.private}))
        yield sum(saved.values()), everything - self.stored, rest
        counts = self._counts(rest)
        for reader in rest:
            selection = self.weight.selections[reader]
            alone = int((counts[np.ix_(selection.channels, selection.filters)] == 1).sum())
            more = self.weight.copy_bytes(reader) - FLOAT * self.weight.taps * alone
            yield saved[reader], more, [reader]

    def _counts(self, readers: Sequence[Reader]) -> Indices:
        """Returns how many readers use each pair, `(channels, filters)`."""
        chosen = [self.weight.selections[reader] for reader in readers]
        channels = 1 + max(int(selection.channels.max(initial=-1)) for selection in chosen)
        counts = np.zeros((channels, len(self.weight.order)), dtype=np.int64)
        for selection in chosen:
            counts[np.ix_(selection.channels, selection.filters)] += 1
        return counts

    def choice(self) -> Choice:
        """Returns the result."""
        return Choice(
            frozenset(self.private), self.layout, self.stored, self.least, self.copies, self.reason
        )


def _total(states: Mapping[Key, _State]) -> int:
    return sum(state.stored for state in states.values())


def _fit(states: Mapping[Key, _State], limit: int) -> None:
    """Stores unions exactly, those first that this shrinks most, until the limit is met."""
    if _total(states) <= limit:
        return
    grouped = [state for state in states.values() if state.layout is not None]
    for state in sorted(grouped, key=lambda state: state.ungrouped() - state.stored):
        if _total(states) <= limit or state.ungrouped() >= state.stored:
            break
        state.ungroup()
    if _total(states) > limit:
        raise BudgetError(
            f"the memory limit leaves {limit:,} bytes for weights; the union of what the domains "
            f"use takes {_total(states):,}"
        )


@dataclass(order=True)
class _Move(Generic[Key]):
    """A move in the order of its worth: nanoseconds per byte, the most first."""

    rank: float
    number: int
    key: Key = field(compare=False)
    bytes: int = field(compare=False)
    readers: list[Reader] = field(compare=False)


def _spend(states: Mapping[Key, _State], limit: int) -> None:
    """Makes copies where a byte saves most time, as long as they fit."""
    heap: list[_Move[Key]] = []
    total, number = _total(states), 0

    def offer(key: Key) -> None:
        nonlocal number
        for saved, more, readers in states[key].moves():
            rank = -saved / max(more, 1)
            heapq.heappush(heap, _Move(rank, number, key, more, readers))
            number += 1

    for key in states:
        offer(key)
    while heap:
        move = heapq.heappop(heap)
        state = states[move.key]
        if total + move.bytes > limit or not state.private.isdisjoint(move.readers):
            continue
        before, reason = state.stored, state.reason
        partly = set(move.readers) != set(state.weight.selections) - state.private
        state.take(
            move.readers,
            f"the limit leaves room: {-move.rank * 1024:.1f} ns per KiB of copies",
        )
        if total - before + state.stored > limit:
            state.undo(move.readers, reason)
            continue
        total += state.stored - before
        if partly:
            heap = [other for other in heap if other.key != move.key]
            heapq.heapify(heap)
            offer(move.key)

"""How the union of what all readers use of one weight is stored once.

Reader d reads the rectangle O_d x I_d of the weight's filters and channels. The class of a channel
is M_i = {d : i in I_d}. Channels of one class m form a slab: an array (taps, rows, filters) whose
rows are those channels and whose filters are U_m, the union of O_d over d in m, in one order that
is the same for all slabs of the weight. So exactly the pairs that some reader uses are stored:

    pairs = sum over classes m of |{i : M_i = m}| |U_m| = |union over d of O_d x I_d|.

A reader takes every slab whose class holds it, and of the slab's filters those of O_d.

With many readers there are many classes of few channels, and their U_m differ little. So classes
may be grouped: a group is one slab of all their channels and of whole cache lines of filters, and a
reader takes some of its rows. Rows of one class lie side by side, and classes in an order in which
neighbours agree (a Gray code of their members), so that what a reader takes is few runs. That
stores pairs that no reader uses. Groups are chosen by a cost in bytes,

    stored bytes + for every group of every reader: its entry and bit sets, `GROUP_COST`,

from the classes upwards, the pair that gains most first.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Bits = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Reader = TypeVar("Reader", bound=Hashable)

FLOAT = 4
"""Bytes of a stored weight."""
LINE = 16
"""Floats of a 64-byte cache line."""
ENTRY_BYTES = 48 + 3 * 4
"""Bytes of a plan per slab that it reads: a tensor's entry and three words."""
SET_BYTES = 48
"""Bytes of a plan per bit set, its words aside: a tensor's entry."""
SET_ALIGNMENT = 64
"""Bytes to whose multiples the words of a bit set are padded."""
GROUP_COST = 4096
"""Bytes that may be stored so that one reader has one slab less. A slab takes 0.14 us for each
panel of 64 filters (`python -m benchmarks.packing`), about a microsecond in all. Six domains of
ResNet-50 read 10.4 slabs per weight at 0 bytes, 3.7 at 2048, 2.7 at 4096 and 1.8 at 8192, and store
0.823, 0.840, 0.851 and 0.870 of the dense weights, of which they use 0.809."""
_MOST_GROUPS = 256
"""Groups that are compared in pairs."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The rectangle of a weight that one reader uses.

    Attributes:
        filters: Distinct filters, in any order.
        channels: Distinct channels, in any order.
    """

    filters: Indices
    channels: Indices


@dataclass(frozen=True, eq=False)
class Slab:
    """A stored rectangle.

    Attributes:
        channels: The channels of its rows.
        filters: Its filters, in the weight's order.
    """

    channels: Indices
    filters: Indices

    @property
    def pairs(self) -> int:
        """Stored pairs."""
        return len(self.channels) * len(self.filters)

    def take(self, weight: Array) -> Array:
        """Returns the slab's part of a weight.

        Args:
            weight: `(filters, channels, *kernel)`.

        Returns:
            Contiguous, `(taps, rows, filters)`.
        """
        part = weight[np.ix_(self.filters, self.channels)]
        flat = part.reshape(len(self.filters), len(self.channels), -1)
        return np.ascontiguousarray(flat.transpose(2, 1, 0))


@dataclass(frozen=True, eq=False)
class Reading:
    """What one reader takes of one slab.

    Attributes:
        slab: The slab's number.
        bits: Per stored filter whether it is used, None where all are.
        rows: Per stored row whether it is used, None where all are.
    """

    slab: int
    bits: Bits | None
    rows: Bits | None = None


@dataclass(frozen=True, eq=False)
class Readings:
    """All that one reader takes.

    Attributes:
        readings: The slabs, in order.
        channels: The reduction channels in the order of the slabs' rows.
        filters: The filters in stored order: the channels of the reader's output.
    """

    readings: tuple[Reading, ...]
    channels: Indices
    filters: Indices


@dataclass(frozen=True, eq=False)
class Union(Generic[Reader]):
    """One weight, stored once.

    Attributes:
        slabs: What is stored.
        readers: What every reader takes of it.
    """

    slabs: tuple[Slab, ...]
    readers: Mapping[Reader, Readings]

    @property
    def pairs(self) -> int:
        """Stored pairs."""
        return sum(slab.pairs for slab in self.slabs)

    def plan_bytes(self, reader: Reader) -> int:
        """Returns the bytes that the slabs take in a reader's plan, weights aside."""
        readings = self.readers[reader].readings
        every = [bits for reading in readings for bits in (reading.bits, reading.rows)]
        sets = {bits.tobytes(): len(bits) for bits in every if bits is not None}
        size = sum(int(_set_bytes(np.array(count))) for count in sets.values())
        return ENTRY_BYTES * len(readings) + size

    def lines(self, reader: Reader) -> tuple[int, int]:
        """Counts, for one tap, the cache lines that a reader touches and the weights it uses."""
        touched = used = 0
        for reading in self.readers[reader].readings:
            slab = self.slabs[reading.slab]
            every = np.arange(len(slab.channels))
            rows = every if reading.rows is None else np.flatnonzero(reading.rows)
            width = len(slab.filters)
            columns = np.arange(width) if reading.bits is None else np.flatnonzero(reading.bits)
            at = (rows[:, None] * width + columns) // LINE
            touched += int((np.diff(at.reshape(-1), prepend=-1) != 0).sum())
            used += at.size
        return touched, used


def union(
    selections: Mapping[Reader, Selection],
    order: Indices | None = None,
    *,
    taps: int = 1,
    grouped: bool = False,
) -> Union[Reader]:
    """Lays out one weight for all of its readers.

    Args:
        selections: What every reader uses.
        order: All filters of the weight in stored order; rising where None.
        taps: Weights per pair.
        grouped: Whether classes may be grouped. Without, exactly the used pairs are stored.

    Returns:
        The slabs, those that most readers share first, and what every reader takes.
    """
    readers = list(selections)
    chosen = list(selections.values())
    filters = 1 + max((int(s.filters.max()) for s in chosen if len(s.filters)), default=-1)
    channels = 1 + max((int(s.channels.max()) for s in chosen if len(s.channels)), default=-1)
    order = np.arange(filters) if order is None else order
    uses = np.array([_row(s.filters, 1 + int(order.max(initial=-1)))[order] for s in chosen])
    member = np.array([_row(s.channels, channels) for s in chosen])
    found = _classes(member, uses)
    if found and grouped:
        found = [
            _Group(group.rows, _whole_lines(group.filters), group.members)
            for group in _merge(found, member, uses, taps)
        ]
    found.sort(key=lambda group: (-int(group.members.sum()), int(group.rows.argmax())))
    slabs = [Slab(_side_by_side(group.rows, member), order[group.filters]) for group in found]
    taken = {
        reader: _readings(slabs, order, uses[index], member[index])
        for index, reader in enumerate(readers)
    }
    return Union(tuple(slabs), taken)


def _side_by_side(rows: Bits, member: Bits) -> Indices:
    """Returns rows by their class, in Gray code order: the bit sum is odd where a code's bit is."""
    chosen = np.flatnonzero(rows)
    codes = np.cumsum(member[:, chosen], axis=0) % 2
    return chosen[np.lexsort(codes[::-1])]


def _set_bytes(size: Floats | Indices) -> Floats:
    """Returns the bytes of a plan that bit sets of so many bits take."""
    words: Floats = np.ceil(size / (8 * SET_ALIGNMENT))
    return SET_BYTES + SET_ALIGNMENT * words


def _whole_lines(filters: Bits) -> Bits:
    """Adds filters until rows are whole cache lines, where there are enough."""
    missing = -int(filters.sum()) % LINE
    idle = np.flatnonzero(~filters)
    if len(idle) < missing:
        return filters
    filters = filters.copy()
    filters[idle[:missing]] = True
    return filters


def _row(indices: Indices, size: int) -> Bits:
    row = np.zeros(size, dtype=np.bool_)
    row[indices] = True
    return row


@dataclass(frozen=True, eq=False)
class _Group:
    """Channels that are stored with the same filters, positions of the filters in stored order."""

    rows: Bits
    filters: Bits
    members: Bits


def _classes(member: Bits, uses: Bits) -> list[_Group]:
    """Returns the channels that some reader uses by their class; both `(readers, n)`."""
    used = np.flatnonzero(member.any(axis=0))
    classes, which = np.unique(member[:, used], axis=1, return_inverse=True)
    which = which.reshape(-1)
    size = member.shape[1]
    return [
        _Group(_row(used[which == index], size), uses[row].any(axis=0), row)
        for index, row in enumerate(classes.T)
        if uses[row].any()
    ]


def _merge(groups: list[_Group], member: Bits, uses: Bits, taps: int) -> list[_Group]:
    """Merges groups while that lowers the cost: those with equal filters, then in pairs."""
    groups = _equal_filters(groups)
    if len(groups) > _MOST_GROUPS:  # only with many readers, and then the widest differ little
        groups.sort(key=lambda group: int(group.filters.sum()))
        widest = functools.reduce(_joined, groups[_MOST_GROUPS - 1 :])
        groups = [*groups[: _MOST_GROUPS - 1], widest]
    pairs = _Pairs(groups, member, uses, taps)
    while len(pairs.groups) > 1 and pairs.merge_best():
        pass
    return pairs.groups


class _Pairs:
    """Groups and what every pair of them would gain by merging, in bytes."""

    def __init__(self, groups: list[_Group], member: Bits, uses: Bits, taps: int) -> None:
        self.groups = groups
        self._taps = taps
        self._own_width = uses.sum(axis=1)
        self._filters = np.array([group.filters for group in groups], dtype=np.float32)
        self._members = np.array([group.members for group in groups])
        rows = np.array([group.rows for group in groups], dtype=np.float32)
        self._rows = np.rint(rows @ member.T.astype(np.float32))  # of every group and reader
        self._height = rows.sum(axis=1)
        self._cost = np.array([self._cost_with(i)[i] for i in range(len(groups))])
        self._gain = np.array([self._gain_with(i) for i in range(len(groups))])

    def merge_best(self) -> bool:
        """Merges the best pair; returns False where none gains."""
        a, b = sorted(int(i) for i in np.unravel_index(self._gain.argmax(), self._gain.shape))
        if self._gain[a, b] <= 0:
            return False
        self.groups[a] = _joined(self.groups[a], self.groups[b])
        self._filters[a] = np.maximum(self._filters[a], self._filters[b])
        self._members[a] |= self._members[b]
        self._rows[a] += self._rows[b]
        self._height[a] += self._height[b]
        del self.groups[b]
        for name in ("_filters", "_members", "_rows", "_height", "_cost"):
            setattr(self, name, np.delete(getattr(self, name), b, axis=0))
        self._gain = np.delete(np.delete(self._gain, b, axis=0), b, axis=1)
        self._cost[a] = self._cost_with(a)[a]
        self._gain[a, :] = self._gain[:, a] = self._gain_with(a)
        return True

    def _gain_with(self, a: int) -> Floats:
        gain: Floats = self._cost[a] + self._cost - self._cost_with(a)
        gain[a] = -np.inf
        return gain

    def _cost_with(self, a: int) -> Floats:
        """Returns the bytes that group a costs merged with each group; itself: as it is."""
        itself = np.arange(len(self.groups)) == a
        exact = np.maximum(self._filters[a], self._filters).sum(axis=1, dtype=np.float64)
        whole = np.ceil(exact / LINE) * LINE
        width = np.where(whole <= self._filters.shape[1], whole, exact)
        height = np.where(itself, 0.0, self._height) + self._height[a]
        members = self._members[a] | self._members
        rows = np.where(itself[:, None], 0.0, self._rows) + self._rows[a]
        bits = np.where(self._own_width < width[:, None], _set_bytes(width)[:, None], 0.0)
        some = np.where(rows < height[:, None], _set_bytes(height)[:, None], 0.0)
        plans = GROUP_COST + ENTRY_BYTES + bits + some
        stored = FLOAT * self._taps * width * height
        total: Floats = stored + (plans * members).sum(axis=1)
        return total


def _equal_filters(groups: list[_Group]) -> list[_Group]:
    found: dict[bytes, _Group] = {}
    for group in groups:
        key = np.packbits(group.filters).tobytes()
        found[key] = _joined(found[key], group) if key in found else group
    return list(found.values())


def _joined(a: _Group, b: _Group) -> _Group:
    return _Group(a.rows | b.rows, a.filters | b.filters, a.members | b.members)


def _readings(slabs: Sequence[Slab], order: Indices, uses: Bits, member: Bits) -> Readings:
    readings = []
    channels = []
    if uses.any():
        place = np.empty(1 + int(order.max()), dtype=np.int64)
        place[order] = np.arange(len(order))
        for number, slab in enumerate(slabs):
            rows = member[slab.channels]
            if not rows.any():
                continue
            bits = uses[place[slab.filters]]
            readings.append(
                Reading(number, None if bits.all() else bits, None if rows.all() else rows)
            )
            channels.append(slab.channels[rows])
    return Readings(
        tuple(readings),
        np.concatenate(channels) if channels else np.zeros(0, dtype=np.int64),
        order[np.flatnonzero(uses)],
    )

"""Weights that several domains read from one place.

While domains are lowered one after the other, a product's weight is a *part*: filters and channels
of a stored weight, and columns of the domain's own where exactness changed them. When all domains
are known, the parts of one stored weight are laid out together: slabs that hold the union of what
is used, and per product the slabs, bit sets and channel order that make its part, or a copy of its
own, packed as it is read. `layout.choose` says which.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...evaluate import Array
from ...layout.choose import Choice, Reader, SharedWeight, choose
from ...layout.store import StoreWriter
from ...layout.union import Selection, Slab
from ...passes.elements import Indices
from ...passes.stored import StoredWeight
from ...report import WeightLayout
from .product import packed

Key = tuple[str, str, bytes, bytes]


@dataclass(frozen=True, eq=False)
class Part:
    """What one product reads of a stored weight.

    Attributes:
        key: The stored weight.
        filters: Its filters, the channels of the product's output.
        channels: Its channels that are read as they are stored.
        positions: Where these stand among the channels that the product selects.
        own_positions: Where columns of the domain's own stand there.
        own: Those columns, `(filters, columns, *kernel)`; None for none.
        order: All filters of the stored weight in stored order; None for the natural one.
    """

    key: Key
    filters: Indices
    channels: Indices
    positions: Indices
    own_positions: Indices
    own: Array | None
    order: Indices | None


@dataclass(frozen=True, eq=False)
class Placed:
    """Where a product's weight lies.

    Attributes:
        form: 0 for slabs, 1 for packed.
        weights: Per slab its offset and shape in the weight file, and which filters are used (None
            for all).
        order: The reduction channels as positions among the channels that the product selects.
    """

    form: int
    weights: tuple[tuple[int, tuple[int, ...], Array | None], ...]
    order: Indices


@dataclass
class SharedWeights:
    """All parts of all domains.

    Attributes:
        store: The weight file.
        choices: Name, dense bytes and choice of every weight that was placed.
        slabs: The slabs of every weight with their offsets.
        readers: The domains of every reader of a weight, by its name.
    """

    store: StoreWriter
    choices: list[tuple[str, int, Choice]] = field(default_factory=list)
    slabs: dict[Key, list[tuple[Slab, int]]] = field(default_factory=dict)
    readers: dict[str, list[str]] = field(default_factory=dict)
    _weights: dict[Key, Array] = field(default_factory=dict)
    _parts: dict[Key, dict[Reader, Part]] = field(default_factory=dict)
    _readers: int = 0

    def add(self, domain: str, stored: StoredWeight, emitted: Array) -> int:
        """Takes a product's part.

        Args:
            domain: The domain that it belongs to.
            stored: What its weight is a part of.
            emitted: Its weight in canonical form.

        Returns:
            The part's number.
        """
        weight = np.ascontiguousarray(stored.weight, dtype=np.float32)
        digest = hashlib.sha256(repr(weight.shape).encode() + weight.tobytes()).digest()
        order = b"" if stored.order is None else stored.order.tobytes()
        key = stored.use.name, stored.use.version, digest, order
        self._weights.setdefault(key, weight)
        shared = np.flatnonzero(stored.shared & stored.used)
        own = np.flatnonzero(~stored.shared & stored.used)
        if not len(shared) and not len(own):
            own = np.zeros(1, dtype=np.int64)  # a product reads at least one channel
        self._readers += 1
        self._parts.setdefault(key, {})[domain, self._readers] = Part(
            key=key,
            filters=stored.filters,
            channels=stored.channels[shared],
            positions=shared,
            own_positions=own,
            own=emitted[:, own].astype(np.float32) if len(own) else None,
            order=stored.order,
        )
        return self._readers

    def place(self, limit: int | None = None) -> Mapping[int, Placed]:
        """Writes all weights; returns where every part lies, by its number.

        Args:
            limit: Most bytes of the weight file, other constants that it holds included.

        Raises:
            BudgetError: The limit is below what the union takes.
        """
        room = None if limit is None else max(0, limit - self.store.size)
        choices = choose({key: self._readers_of(key) for key in self._parts}, room)
        found: dict[int, Placed] = {}
        for key, choice in choices.items():
            weight, parts = self._weights.pop(key), self._parts[key]
            for reader in sorted(choice.private):
                found[reader[1]] = self._packed(reader[0], weight, parts[reader])
            if choice.layout is not None:
                found.update(self._slabs(key, weight, choice))
            self.choices.append((key[0], weight.nbytes, choice))
            self.readers.setdefault(key[0], []).extend(domain for domain, _ in parts)
        return found

    def layout(self) -> tuple[WeightLayout, ...]:
        """Returns what was chosen, by name; versions of a weight are added up."""
        found: dict[str, WeightLayout] = {}
        for name, dense, choice in self.choices:
            private = {domain for domain, _ in choice.private}
            before = found.get(name)
            if before is None:
                before = WeightLayout(name, 0, 0, 0, 0, (), (), choice.reason)
            reasons = dict.fromkeys([*before.reason.split("; "), choice.reason])
            found[name] = WeightLayout(
                name=name,
                bytes_dense=before.bytes_dense + dense,
                bytes_union=before.bytes_union + choice.union,
                bytes_copies=before.bytes_copies + choice.copies,
                bytes_stored=before.bytes_stored + choice.stored,
                readers=tuple(dict.fromkeys(self.readers[name])),
                private=tuple(sorted(private.union(before.private))),
                reason="; ".join(reasons),
            )
        return tuple(found.values())

    def _readers_of(self, key: Key) -> SharedWeight:
        weight, parts = self._weights[key], self._parts[key]
        order = next(iter(parts.values())).order
        return SharedWeight(
            taps=int(np.prod(weight.shape[2:], dtype=np.int64)),
            order=np.arange(len(weight)) if order is None else order,
            selections={
                reader: Selection(part.filters, part.channels) for reader, part in parts.items()
            },
            own={reader: len(part.own_positions) for reader, part in parts.items()},
        )

    def _packed(self, domain: str, weight: Array, part: Part) -> Placed:
        columns = weight[np.ix_(part.filters, part.channels)]
        if part.own is not None:
            columns = np.concatenate([columns, part.own], axis=1)
        order = np.concatenate([part.positions, part.own_positions])
        rising = np.argsort(order)
        array = packed(columns[:, rising], 1)
        offset = self.store.add(array, domain).offset
        return Placed(1, ((offset, array.shape, None),), order[rising])

    def _slabs(self, key: Key, weight: Array, choice: Choice) -> dict[int, Placed]:
        layout = choice.layout
        assert layout is not None
        slabs = [slab.take(weight) for slab in layout.slabs]
        offsets: dict[int, int] = {}
        found: dict[int, Placed] = {}
        for (domain, number), readings in layout.readers.items():
            part = self._parts[key][domain, number]
            weights = []
            for reading in readings.readings:
                array = slabs[reading.slab]
                offset = offsets[reading.slab] = self.store.add(array, domain).offset
                weights.append((offset, array.shape, reading.bits))
            assert np.array_equal(readings.filters, part.filters) or not weights
            place = np.empty(weight.shape[1], dtype=np.int64)
            place[part.channels] = part.positions
            order = place[readings.channels]
            if part.own is not None:
                own = part.own.reshape(*part.own.shape[:2], -1).transpose(2, 1, 0)
                weights.append((self.store.add(own, domain).offset, own.shape, None))
                order = np.concatenate([order, part.own_positions])
            found[number] = Placed(0, tuple(weights), order)
        self.slabs[key] = [(layout.slabs[number], offset) for number, offset in offsets.items()]
        return found

"""Weights that several domains read from one place.

While domains are lowered one after the other, a product's weight is a *part*: filters and channels
of a stored weight, and columns of the domain's own where exactness changed them. When all domains
are known, the parts of one stored weight are laid out together: slabs that hold the union of what
is used, and per product the slabs, bit sets and channel order that make its part. Where all parts
are the same, or one domain alone has any, the part is packed as it is read: nothing is saved by
slabs, and packing them costs time in every call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...evaluate import Array
from ...layout.store import StoreWriter
from ...layout.union import Grouping, Selection, union
from ...passes.elements import Indices
from ...passes.stored import StoredWeight
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
    """

    store: StoreWriter
    _weights: dict[Key, Array] = field(default_factory=dict)
    _parts: dict[Key, dict[tuple[str, int], Part]] = field(default_factory=dict)
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

    def place(self) -> Mapping[int, Placed]:
        """Writes all weights; returns where every part lies, by its number."""
        found: dict[int, Placed] = {}
        for key, parts in self._parts.items():
            weight = self._weights.pop(key)
            if len({domain for domain, _ in parts}) < 2 or _all_equal(list(parts.values())):
                for (domain, number), part in parts.items():
                    found[number] = self._packed(domain, weight, part)
            else:
                found.update(self._slabs(weight, parts))
        return found

    def _packed(self, domain: str, weight: Array, part: Part) -> Placed:
        columns = weight[np.ix_(part.filters, part.channels)]
        if part.own is not None:
            columns = np.concatenate([columns, part.own], axis=1)
        order = np.concatenate([part.positions, part.own_positions])
        rising = np.argsort(order)
        array = packed(columns[:, rising], 1)
        offset = self.store.add(array, domain).offset
        return Placed(1, ((offset, array.shape, None),), order[rising])

    def _slabs(self, weight: Array, parts: Mapping[tuple[str, int], Part]) -> dict[int, Placed]:
        taps = int(np.prod(weight.shape[2:], dtype=np.int64))
        selections = {
            reader: Selection(part.filters, part.channels) for reader, part in parts.items()
        }
        order = next(iter(parts.values())).order
        order = np.arange(len(weight)) if order is None else order
        layout = union(selections, order, taps=taps, grouping=Grouping.FILTERS)
        slabs = [slab.take(weight) for slab in layout.slabs]
        found: dict[int, Placed] = {}
        for (domain, number), part in parts.items():
            readings = layout.readers[domain, number]
            weights = [
                (
                    self.store.add(slabs[reading.slab], domain).offset,
                    slabs[reading.slab].shape,
                    reading.bits,
                )
                for reading in readings.readings
            ]
            assert np.array_equal(readings.filters, part.filters) or not weights
            place = np.empty(weight.shape[1], dtype=np.int64)
            place[part.channels] = part.positions
            order = place[readings.channels]
            if part.own is not None:
                own = part.own.reshape(*part.own.shape[:2], -1).transpose(2, 1, 0)
                weights.append((self.store.add(own, domain).offset, own.shape, None))
                order = np.concatenate([order, part.own_positions])
            found[number] = Placed(0, tuple(weights), order)
        return found


def _all_equal(parts: list[Part]) -> bool:
    first = parts[0]
    return all(
        part.own is None
        and np.array_equal(part.filters, first.filters)
        and np.array_equal(part.channels, first.channels)
        for part in parts
    )

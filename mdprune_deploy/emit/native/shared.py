"""Weights that several domains read from one place.

While domains are lowered one after the other, a product's weight is a *part*: filters and channels
of a stored weight, and columns of the domain's own where exactness changed them. When all domains
are known, the parts of one stored weight are laid out together: slabs that hold the union of what
is used, and per product the slabs, bit sets and channel order that make its part, or a copy of its
own, packed as it is read. `layout.choose` says which.

A domain that is added to a bundle finds slabs there. It takes the rows and filters that it reads,
and has slabs of its own for what they lack. `layout.extend` says which.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import BundleError, CheckpointError
from ...evaluate import Array
from ...layout.choose import ALIGNMENT, Choice, Reader, SharedWeight, choose
from ...layout.extend import Taking, take
from ...layout.union import FLOAT, Bits, Selection, Slab, Union
from ...passes.bind import WeightUse
from ...passes.elements import Indices
from ...passes.stored import StoredWeight
from ...report import WeightLayout
from .files import WeightFiles
from .product import packed
from .record import Location, Record, StoredEntry, StoredReader, StoredSlab

Key = tuple[str, str, bytes, bytes]


@dataclass(frozen=True, eq=False)
class Piece:
    """What a product takes of one slab.

    Attributes:
        place: Where the slab lies.
        shape: Its shape.
        bits: Per stored filter whether it is used, None where all are.
        rows: Per row whether it is used, None where all are.
        outputs: Per filter of the product whether it is among the used ones, None where all are.
            Pieces that complete each other in the same rows follow each other.
    """

    place: Location
    shape: tuple[int, ...]
    bits: Bits | None = None
    rows: Bits | None = None
    outputs: Bits | None = None


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
        weights: The slabs, or the one packed copy.
        order: The reduction channels as positions among the channels that the product selects.
    """

    form: int
    weights: tuple[Piece, ...]
    order: Indices


@dataclass
class SharedWeights:
    """All parts of all domains.

    Attributes:
        files: The weight files.
        record: What a bundle holds that is added to; None for a new bundle.
        entries: What is stored of every weight, once it is placed; of a bundle that is added to all
            that it holds.
    """

    files: WeightFiles
    record: Record | None = None
    entries: list[StoredEntry] = field(default_factory=list)
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
            CheckpointError: The domain that is added has another backbone.
            BundleError: The bundle that is added to is damaged.
        """
        there = {key: entry for key in self._parts if (entry := self._there(key)) is not None}
        if self.record is not None and not any(entry.use.version == "" for entry in there.values()):
            raise CheckpointError("the domain shares no weight with those of the bundle")
        room = None if limit is None else max(0, limit - self.files.store.size)
        new = [key for key in self._parts if key not in there]
        choices = choose({key: self._shared_weight(key) for key in new}, room)
        self.entries = [] if self.record is None else list(self.record.weights)
        found: dict[int, Placed] = {}
        for key in self._parts:
            if key in there:
                found.update(self._extend(key, there[key]))
            else:
                found.update(self._store(key, choices[key]))
            del self._weights[key]
        return found

    def _shared_weight(self, key: Key) -> SharedWeight:
        weight, parts = self._weights[key], self._parts[key]
        return SharedWeight(
            taps=_taps(weight.shape),
            order=self._order(key),
            selections={
                reader: Selection(part.filters, part.channels) for reader, part in parts.items()
            },
            own={reader: len(part.own_positions) for reader, part in parts.items()},
        )

    def _order(self, key: Key) -> Indices:
        order = next(iter(self._parts[key].values())).order
        return np.arange(len(self._weights[key])) if order is None else order

    def _store(self, key: Key, choice: Choice) -> dict[int, Placed]:
        """Stores a weight as it was chosen."""
        weight, parts = self._weights[key], self._parts[key]
        found = {
            reader[1]: self._packed(reader[0], weight, parts[reader])
            for reader in sorted(choice.private)
        }
        slabs: list[StoredSlab] = []
        if choice.layout is not None:
            found.update(self._slabs(key, choice.layout, slabs))
        self.entries.append(
            StoredEntry(
                use=WeightUse(key[0], key[1]),
                digest=key[2].hex(),
                shape=weight.shape,
                order=self._order(key),
                slabs=tuple(slabs),
                readers=tuple(
                    _stored_reader(reader[0], part, reader in choice.private)
                    for reader, part in parts.items()
                ),
                reason=choice.reason,
            )
        )
        return found

    def _packed(self, domain: str, weight: Array, part: Part) -> Placed:
        columns = weight[np.ix_(part.filters, part.channels)]
        if part.own is not None:
            columns = np.concatenate([columns, part.own], axis=1)
        order = np.concatenate([part.positions, part.own_positions])
        rising = np.argsort(order)
        array = packed(columns[:, rising], 1)
        return Placed(1, (Piece(self.files.add(array, domain), array.shape),), order[rising])

    def _slabs(
        self, key: Key, layout: Union[Reader], stored: list[StoredSlab]
    ) -> dict[int, Placed]:
        weight = self._weights[key]
        arrays = [slab.take(weight) for slab in layout.slabs]
        places: dict[int, Location] = {}
        found: dict[int, Placed] = {}
        for (domain, number), readings in layout.readers.items():
            part = self._parts[key][domain, number]
            weights: list[Piece] = []
            for reading in readings.readings:
                array = arrays[reading.slab]
                place = places[reading.slab] = self.files.add(array, domain)
                weights.append(Piece(place, array.shape, reading.bits, reading.rows))
            assert np.array_equal(readings.filters, part.filters) or not weights
            found[number] = self._with_own(domain, part, weights, readings.channels)
        stored.extend(
            StoredSlab(places[number], slab.channels, slab.filters)
            for number, slab in enumerate(layout.slabs)
        )
        return found

    def _with_own(self, domain: str, part: Part, weights: list[Piece], channels: Indices) -> Placed:
        """Adds a slab of the columns that are the domain's own."""
        place = np.empty(1 + int(part.channels.max(initial=-1)), dtype=np.int64)
        place[part.channels] = part.positions
        order = place[channels]
        if part.own is not None:
            own = part.own.reshape(*part.own.shape[:2], -1).transpose(2, 1, 0)
            weights = [*weights, Piece(self.files.add(own, domain), own.shape)]
            order = np.concatenate([order, part.own_positions])
        return Placed(0, tuple(weights), order)

    # Adding to a bundle

    def _there(self, key: Key) -> StoredEntry | None:
        """Returns what a bundle that is added to holds of a weight."""
        name, version, digest, _ = key
        same = [
            entry
            for entry in (() if self.record is None else self.record.weights)
            if entry.use == WeightUse(name, version)
        ]
        for entry in same:
            if entry.digest == digest.hex():
                return entry
        if same and not version:
            raise CheckpointError(
                f"weight {name!r} is not the one that the bundle's domains share: the checkpoint "
                "has another backbone"
            )
        return None

    def _extend(self, key: Key, entry: StoredEntry) -> dict[int, Placed]:
        """Takes what is there of a weight, and stores what it lacks."""
        found: dict[int, Placed] = {}
        slabs, readers = list(entry.slabs), list(entry.readers)
        weight = self._weights[key]
        for (domain, number), part in self._parts[key].items():
            takings, missing = take(
                [Slab(slab.channels, slab.filters) for slab in slabs],
                Selection(part.filters, part.channels),
                _taps(weight.shape),
            )
            weights: list[Piece] = []
            channels: list[Indices] = []
            for taking in takings:
                slab = slabs[taking.slab]
                weights.append(self._taken(slab, weight, taking))
                channels.append(slab.channels[taking.rows])
                if not taking.outputs.all():
                    rest = Slab(channels[-1], part.filters[~taking.outputs])
                    slabs.append(self._rest(rest, weight, domain))
                    shape = (_taps(weight.shape), len(rest.channels), len(rest.filters))
                    weights.append(Piece(slabs[-1].place, shape, outputs=~taking.outputs))
            private = not weights
            if private:
                found[number] = self._packed(domain, weight, part)
            else:
                if len(missing):
                    slabs.append(self._rest(Slab(missing, part.filters), weight, domain))
                    shape = (_taps(weight.shape), len(missing), len(part.filters))
                    weights.append(Piece(slabs[-1].place, shape))
                    channels.append(missing)
                found[number] = self._with_own(domain, part, weights, np.concatenate(channels))
            readers.append(_stored_reader(domain, part, private))
        self.entries[self.entries.index(entry)] = dataclasses.replace(
            entry, slabs=tuple(slabs), readers=tuple(readers)
        )
        return found

    def _taken(self, stored: StoredSlab, weight: Array, taking: Taking) -> Piece:
        """Returns what is taken of a slab that is there, once its bytes are what they should be."""
        array = Slab(stored.channels, stored.filters).take(weight)
        if self.files.read(stored.place, array.nbytes) != array.astype("<f4").tobytes():
            raise BundleError(f"{stored.place.file}: a stored weight is not what the record says")
        sets = (
            None if members.all() else members
            for members in (taking.bits, taking.rows, taking.outputs)
        )
        return Piece(stored.place, array.shape, *sets)

    def _rest(self, slab: Slab, weight: Array, domain: str) -> StoredSlab:
        """Stores what no slab has."""
        return StoredSlab(self.files.add(slab.take(weight), domain), slab.channels, slab.filters)


def _stored_reader(domain: str, part: Part, private: bool) -> StoredReader:
    own = len(part.own_positions)
    return StoredReader(domain, private, part.filters, np.sort(part.channels), own)


def _taps(shape: Sequence[int]) -> int:
    return int(np.prod(shape[2:], dtype=np.int64))


def weight_layouts(entries: Sequence[StoredEntry]) -> tuple[WeightLayout, ...]:
    """Returns how weights are stored, by name; versions of a weight are added up."""
    found: dict[str, WeightLayout] = {}
    for entry in entries:
        if not entry.readers:
            continue
        readers = {(reader.domain, i): reader for i, reader in enumerate(entry.readers)}
        shared = SharedWeight(
            taps=_taps(entry.shape),
            order=entry.order,
            selections={key: Selection(r.filters, r.channels) for key, r in readers.items()},
            own={key: r.own for key, r in readers.items()},
        )
        private = [key for key, reader in readers.items() if reader.private]
        sizes = [len(slab.channels) * len(slab.filters) for slab in entry.slabs]
        sizes += [r.own * len(r.filters) for r in entry.readers if not r.private]
        slabs = sum(-(-FLOAT * shared.taps * size // ALIGNMENT) * ALIGNMENT for size in sizes)
        name = entry.use.name
        before = found.get(name, WeightLayout(name, 0, 0, 0, 0, (), (), entry.reason))
        found[name] = WeightLayout(
            name=name,
            bytes_dense=before.bytes_dense + FLOAT * int(np.prod(entry.shape)),
            bytes_union=before.bytes_union + shared.least_bytes,
            bytes_copies=before.bytes_copies + shared.copies_bytes(list(readers)),
            bytes_stored=before.bytes_stored + slabs + shared.copies_bytes(private),
            readers=tuple(dict.fromkeys([*before.readers, *(r.domain for r in entry.readers)])),
            private=tuple(sorted({*before.private, *(domain for domain, _ in private)})),
            reason="; ".join(dict.fromkeys([*before.reason.split("; "), entry.reason])),
        )
    return tuple(found.values())

"""`native/union.json`: what is stored where, so that a domain can be added to a bundle or dropped.

Plans say where a domain's weights lie; the record says what lies there: per stored weight its
digest, its readers and its slabs, per tensor of a weight file its hash. The runtime does not read
it. Lists of numbers are base64 of little-endian 32-bit integers, sets base64 of bits, bit 0 first.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BundleError
from ...passes.bind import WeightUse
from ...passes.elements import Indices
from ...passes.figures import UsedPairs

NAME = "union.json"
VERSION = 1
MAX_BYTES = 256 << 20

Bits = npt.NDArray[np.bool_]
UsedSets = Mapping[str, Mapping[WeightUse, UsedPairs]]


@dataclass(frozen=True)
class Location:
    """Where a tensor lies: a weight file's name and an offset in bytes."""

    file: str
    offset: int


@dataclass(frozen=True, eq=False)
class StoredSlab:
    """A slab `(taps, channels, filters)`."""

    place: Location
    channels: Indices
    filters: Indices


@dataclass(frozen=True, eq=False)
class StoredReader:
    """What one product of a domain reads of a weight.

    Attributes:
        domain: The domain.
        private: Whether it has a copy of its own.
        filters: In stored order.
        channels: Rising.
        own: How many columns of its own it has beside them.
    """

    domain: str
    private: bool
    filters: Indices
    channels: Indices
    own: int


@dataclass(frozen=True, eq=False)
class StoredEntry:
    """One stored weight.

    Attributes:
        use: The weight.
        digest: SHA-256 of its shape and bytes, in hexadecimal.
        shape: `(filters, channels, *kernel)`.
        order: All filters in stored order.
        slabs: What of it is stored to be shared.
        readers: Who reads it.
        reason: Why it is stored so.
    """

    use: WeightUse
    digest: str
    shape: tuple[int, ...]
    order: Indices
    slabs: tuple[StoredSlab, ...]
    readers: tuple[StoredReader, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of a weight file.

    Attributes:
        place: Where it lies.
        length: Its bytes.
        sha256: Of its bytes, in hexadecimal.
    """

    place: Location
    length: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Record:
    """All of the record.

    Attributes:
        orders: By value, all of its channels in the order of all domains.
        weights: The stored weights.
        tensors: All tensors of the weight files.
        used: The used set of every domain and weight.
    """

    orders: Mapping[str, Indices] = field(default_factory=dict)
    weights: tuple[StoredEntry, ...] = ()
    tensors: tuple[StoredTensor, ...] = ()
    used: UsedSets = field(default_factory=dict)


def without(record: Record, domain: str) -> Record:
    """Returns a record without one domain; what it shared stays where it lies."""
    weights = tuple(
        dataclasses.replace(entry, readers=readers)
        for entry in record.weights
        if (readers := tuple(r for r in entry.readers if r.domain != domain)) or entry.slabs
    )
    used = {name: sets for name, sets in record.used.items() if name != domain}
    return dataclasses.replace(record, weights=weights, used=used)


def within(record: Record, files: Collection[str]) -> Record:
    """Returns a record of the weight files that are left."""
    weights = tuple(
        dataclasses.replace(entry, slabs=slabs)
        for entry in record.weights
        if (slabs := tuple(s for s in entry.slabs if s.place.file in files)) or entry.readers
    )
    tensors = tuple(tensor for tensor in record.tensors if tensor.place.file in files)
    return dataclasses.replace(record, weights=weights, tensors=tensors)


def write_record(record: Record, folder: Path) -> None:
    """Writes the record into a bundle's `native` folder."""
    by_order: dict[bytes, list[str]] = {}
    for value, order in record.orders.items():
        by_order.setdefault(np.asarray(order, "<i4").tobytes(), []).append(value)
    tree = {
        "version": VERSION,
        "orders": [
            {"values": values, "order": base64.b64encode(order).decode()}
            for order, values in by_order.items()
        ],
        "weights": [_entry_to_json(entry) for entry in record.weights],
        "tensors": [
            [tensor.place.file, tensor.place.offset, tensor.length, tensor.sha256]
            for tensor in record.tensors
        ],
        "used": {
            domain: [_used_to_json(use, pairs) for use, pairs in sets.items()]
            for domain, sets in record.used.items()
        },
    }
    text = json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path) -> Record:
    """Reads the record of a bundle's `native` folder.

    Raises:
        BundleError: It is not there, of another version, or contradicts itself.
    """
    path = folder / NAME
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BundleError(f"{path} is larger than {MAX_BYTES} bytes")
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON: {error}") from error
    try:
        if tree["version"] != VERSION:
            raise BundleError(f"{path}: version {tree['version']}; this mdprune reads {VERSION}")
        return Record(
            orders={
                str(value): _permutation(_numbers(item["order"]))
                for item in tree["orders"]
                for value in item["values"]
            },
            weights=tuple(_entry(item) for item in tree["weights"]),
            tensors=tuple(
                StoredTensor(_location(file, offset), _size(length), str(sha256))
                for file, offset, length, sha256 in tree["tensors"]
            ),
            used={
                str(domain): dict(_used(item) for item in items)
                for domain, items in tree["used"].items()
            },
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise BundleError(f"{path}: damaged: {type(error).__name__} {error}") from error


def _entry_to_json(entry: StoredEntry) -> dict[str, Any]:
    place = np.empty(len(entry.order), dtype=np.int64)
    place[entry.order] = np.arange(len(entry.order))
    filters, channels = entry.shape[:2]
    return {
        "name": entry.use.name,
        "version": entry.use.version,
        "digest": entry.digest,
        "shape": list(entry.shape),
        "order": _text(entry.order),
        "reason": entry.reason,
        "slabs": [
            {
                "file": slab.place.file,
                "offset": slab.place.offset,
                "channels": _text(slab.channels),
                "filters": _bit_text(place[slab.filters], filters),
            }
            for slab in entry.slabs
        ],
        "readers": [
            {
                "domain": reader.domain,
                "private": reader.private,
                "filters": _bit_text(place[reader.filters], filters),
                "channels": _bit_text(reader.channels, channels),
                "own": reader.own,
            }
            for reader in entry.readers
        ],
    }


def _entry(tree: Any) -> StoredEntry:
    shape = tuple(_size(size) for size in tree["shape"])
    order = _permutation(_numbers(tree["order"]))
    if len(shape) < 2 or len(order) != shape[0]:
        raise ValueError(f"the order of weight {tree['name']!r} does not fit its shape")

    def chosen(text: str) -> Indices:
        return order[np.flatnonzero(_bits(text, shape[0]))]

    slabs = []
    for item in tree["slabs"]:
        channels = _numbers(item["channels"])
        if not len(channels) or channels.min() < 0 or channels.max() >= shape[1]:
            raise ValueError(f"a slab of weight {tree['name']!r} has channels that it has not")
        place = _location(item["file"], item["offset"])
        slabs.append(StoredSlab(place, channels, chosen(item["filters"])))
    return StoredEntry(
        use=WeightUse(str(tree["name"]), str(tree["version"])),
        digest=str(tree["digest"]),
        shape=shape,
        order=order,
        slabs=tuple(slabs),
        readers=tuple(
            StoredReader(
                domain=str(item["domain"]),
                private=bool(item["private"]),
                filters=chosen(item["filters"]),
                channels=np.flatnonzero(_bits(item["channels"], shape[1])),
                own=_size(item["own"]),
            )
            for item in tree["readers"]
        ),
        reason=str(tree["reason"]),
    )


def _used_to_json(use: WeightUse, used: UsedPairs) -> dict[str, Any]:
    rows, columns = (np.asarray(used.pairs.any(axis=axis)) for axis in (1, 0))
    tree = {
        "name": use.name,
        "version": use.version,
        "kernel": used.kernel,
        "shape": list(used.pairs.shape),
        "rows": _bit_text(np.flatnonzero(rows), len(rows)),
        "columns": _bit_text(np.flatnonzero(columns), len(columns)),
    }
    if not np.array_equal(used.pairs, np.outer(rows, columns)):
        tree["pairs"] = _bit_text(np.flatnonzero(used.pairs), used.pairs.size)
    return tree


def _used(tree: Any) -> tuple[WeightUse, UsedPairs]:
    filters, channels = (_size(size) for size in tree["shape"])
    if "pairs" in tree:
        pairs = _bits(tree["pairs"], filters * channels).reshape(filters, channels)
    else:
        pairs = np.outer(_bits(tree["rows"], filters), _bits(tree["columns"], channels))
    use = WeightUse(str(tree["name"]), str(tree["version"]))
    return use, UsedPairs(np.asarray(pairs, dtype=np.bool_), _size(tree["kernel"]))


def _text(numbers: Indices) -> str:
    return base64.b64encode(np.asarray(numbers, "<i4").tobytes()).decode()


def _numbers(text: str) -> Indices:
    return np.frombuffer(base64.b64decode(text, validate=True), "<i4").astype(np.int64)


def _permutation(numbers: Indices) -> Indices:
    if not np.array_equal(np.sort(numbers), np.arange(len(numbers))):
        raise ValueError("an order is no permutation")
    return numbers


def _bit_text(members: Indices, size: int) -> str:
    bits = np.zeros(size, dtype=np.bool_)
    bits[members] = True
    return base64.b64encode(np.packbits(bits, bitorder="little").tobytes()).decode()


def _bits(text: str, size: int) -> Bits:
    packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(packed) != -(-size // 8):
        raise ValueError(f"a set of {size} has {len(packed)} bytes")
    return np.unpackbits(packed, count=size, bitorder="little").astype(np.bool_)


def _location(file: Any, offset: Any) -> Location:
    if not isinstance(file, str) or not file or set(file) & set("/\\\0") or file in (".", ".."):
        raise ValueError(f"{file!r} is no plain file name")
    return Location(file, _size(offset))


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value

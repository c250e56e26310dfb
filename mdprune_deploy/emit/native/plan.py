"""A plan and its file; `docs/native-format.md` specifies both."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from ...errors import BundleError
from ...evaluate import Array
from .operators import OPERATORS, Operator

VERSION = 1
ALIGNMENT = 64
MAX_RANK = 8
_MAGIC = b"MDPPLAN\0"
_INDEX_MAGIC = b"MDPINDEX"
_HEADER = struct.Struct("<8sIIQQ8IQQQQ")
_FILE = struct.Struct("<IIQQ")
_TENSOR = struct.Struct("<BBBBIQ8I")
_PORT = struct.Struct("<IIII")
_LABEL = struct.Struct("<II")
_OPERATOR = struct.Struct("<IIIIII")
_DYNAMIC_BATCH = 1


class Place(IntEnum):
    """Where a tensor's bytes are."""

    ARENA = 0
    DATA = 1
    WEIGHTS = 2
    INPUT = 3
    OUTPUT = 4


class Type(IntEnum):
    """A tensor's elements."""

    F32 = 0
    I32 = 1

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """NumPy's type."""
        return np.dtype("<f4" if self is Type.F32 else "<i4")


@dataclass(frozen=True)
class Tensor:
    """A contiguous row-major array.

    Attributes:
        place: Where it is.
        type: Its elements.
        shape: Its sizes, at most 8.
        offset: Bytes from the start of its place; of an input or output its number.
        file: Of a tensor in a weight file: the file's number.
    """

    place: Place
    type: Type
    shape: tuple[int, ...]
    offset: int
    file: int = 0

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class WeightFile:
    """A file of weights in the plan's folder, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Port:
    """A named input or output."""

    name: str
    tensor: int


@dataclass(frozen=True)
class Plan:
    """One domain as the runtime executes it.

    Attributes:
        dynamic_batch: Whether the plan runs once per image of a batch of any size.
        arena: Bytes of activation memory.
        files: The weight files.
        tensors: All tensors.
        inputs: What the user gives, in order.
        outputs: What the user gets, in order.
        labels: Class names, or none.
        operators: What runs, in order.
        data: The plan's own bytes: index lists, scales, shifts, small tensors.
    """

    dynamic_batch: bool
    arena: int
    files: tuple[WeightFile, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    labels: tuple[str, ...]
    operators: tuple[Operator, ...]
    data: bytes

    def constant(self, number: int, folder: Path | None = None) -> Array:
        """Returns a tensor of the plan's data or of a weight file.

        Args:
            number: The tensor.
            folder: Where the weight files are.
        """
        tensor = self.tensors[number]
        count = tensor.elements
        if tensor.place is Place.DATA:
            array = np.frombuffer(self.data, tensor.type.dtype, count, tensor.offset)
        elif tensor.place is Place.WEIGHTS and folder is not None:
            path = folder / self.files[tensor.file].name
            array = np.fromfile(path, tensor.type.dtype, count, offset=tensor.offset)
        else:
            raise ValueError(f"tensor {number} is no constant")
        return array.reshape(tensor.shape)


def plan_bytes(plan: Plan) -> bytes:
    """Returns the plan's file."""
    strings = _Strings()
    words: list[int] = []
    operators = []
    for operator in plan.operators:
        own = operator.words()
        operators.append(
            _OPERATOR.pack(operator.code, len(words), len(own), *strings.add(operator.name), 0)
        )
        words.extend(own)
    tables = b"".join(
        [
            *(_FILE.pack(*strings.add(file.name), file.size, 0) for file in plan.files),
            *(_packed(tensor) for tensor in plan.tensors),
            *(
                _PORT.pack(port.tensor, *strings.add(port.name), 0)
                for port in (*plan.inputs, *plan.outputs)
            ),
            *(_LABEL.pack(*strings.add(label)) for label in plan.labels),
            *operators,
            np.asarray(words, dtype="<u4").tobytes(),
        ]
    )
    text = bytes(strings.data)
    end = _HEADER.size + len(tables) + len(text)
    start = -(-end // ALIGNMENT) * ALIGNMENT
    counts = (
        plan.files, plan.tensors, plan.inputs, plan.outputs, plan.labels, plan.operators, words,
    )  # fmt: skip
    header = _HEADER.pack(
        _MAGIC,
        VERSION,
        _DYNAMIC_BATCH if plan.dynamic_batch else 0,
        start + len(plan.data),
        plan.arena,
        *map(len, counts),
        0,
        len(text),
        start,
        len(plan.data),
        0,
    )
    return header + tables + text + bytes(start - end) + plan.data


def _packed(tensor: Tensor) -> bytes:
    rank = len(tensor.shape)
    sizes = (*tensor.shape, *[0] * (MAX_RANK - rank))
    return _TENSOR.pack(tensor.place, tensor.type, rank, 0, tensor.file, tensor.offset, *sizes)


class _Strings:
    def __init__(self) -> None:
        self.data = bytearray()
        self._places: dict[bytes, tuple[int, int]] = {}

    def add(self, text: str) -> tuple[int, int]:
        encoded = text.encode()
        if encoded not in self._places:
            self._places[encoded] = len(self.data), len(encoded)
            self.data += encoded
        return self._places[encoded]


def read_plan(path: Path) -> Plan:
    """Reads a plan's file.

    Raises:
        BundleError: It is no plan, of another version, or damaged.
    """
    try:
        return parse_plan(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: the plan cannot be read: {error}") from error


def parse_plan(content: bytes) -> Plan:
    """Reads a plan from its file's content.

    Raises:
        ValueError: The content is no plan; other exceptions of `struct` and `UnicodeDecodeError`
            where it is damaged.
    """
    magic, version, flags, size, arena, *rest = _HEADER.unpack_from(content)
    counts, (text_size, start, data_size, _) = rest[:8], rest[8:]
    if magic != _MAGIC or version != VERSION:
        raise ValueError("it is no plan of version 1")
    if size != len(content) or start + data_size != size:
        raise ValueError(f"it has {len(content)} bytes, its header says {size}")
    reader = _Tables(content, _HEADER.size)
    files = reader.table(_FILE, counts[0])
    tensors = reader.table(_TENSOR, counts[1])
    inputs, outputs = reader.table(_PORT, counts[2]), reader.table(_PORT, counts[3])
    labels = reader.table(_LABEL, counts[4])
    operators = reader.table(_OPERATOR, counts[5])
    words = np.frombuffer(content, "<u4", counts[6], reader.at).tolist()
    text = content[reader.at + 4 * counts[6] :][:text_size]

    def string(begin: int, length: int) -> str:
        return text[begin : begin + length].decode()

    return Plan(
        dynamic_batch=bool(flags & _DYNAMIC_BATCH),
        arena=arena,
        files=tuple(WeightFile(string(f[0], f[1]), f[2]) for f in files),
        tensors=tuple(
            Tensor(Place(t[0]), Type(t[1]), tuple(t[6 : 6 + t[2]]), t[5], t[4]) for t in tensors
        ),
        inputs=tuple(Port(string(p[1], p[2]), p[0]) for p in inputs),
        outputs=tuple(Port(string(p[1], p[2]), p[0]) for p in outputs),
        labels=tuple(string(*label) for label in labels),
        operators=tuple(
            OPERATORS[o[0]].parse(words[o[1] : o[1] + o[2]], string(o[3], o[4])) for o in operators
        ),
        data=content[start:],
    )


class _Tables:
    def __init__(self, content: bytes, at: int) -> None:
        self._content = content
        self.at = at

    def table(self, entry: struct.Struct, count: int) -> list[tuple[int, ...]]:
        begin, self.at = self.at, self.at + entry.size * count
        if self.at > len(self._content):
            raise ValueError("a table leaves the file")
        return list(entry.iter_unpack(self._content[begin : self.at]))


def index_bytes(domains: Sequence[tuple[str, str, int]]) -> bytes:
    """Returns `index.bin`: per domain its name, its plan's file and that file's size."""
    parts = [_INDEX_MAGIC, struct.pack("<II", VERSION, len(domains))]
    for name, plan, size in domains:
        for text in (name.encode(), plan.encode()):
            parts += [struct.pack("<I", len(text)), text]
        parts.append(struct.pack("<Q", size))
    return b"".join(parts)

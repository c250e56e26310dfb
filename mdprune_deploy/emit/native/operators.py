"""The operators of a plan, one frozen dataclass each, and their words.

The fields stand in the order of the words in `docs/native-format.md`; how a field is spelt in
words is its `Kind`. Tensors are numbers.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Annotated, Any, ClassVar, NamedTuple, cast, get_args, get_type_hints

NONE = 0xFFFFFFFF
Triple = tuple[int, int, int]
ONES: Triple = (1, 1, 1)
ZEROS: Triple = (0, 0, 0)


class Function(IntEnum):
    """Activation codes; `a` and `b` are an activation's parameters."""

    IDENTITY = 0
    RELU = 1
    CLIP = 2
    LEAKY_RELU = 3
    SIGMOID = 4
    SILU = 5
    HARD_SIGMOID = 6
    HARD_SWISH = 7
    TANH = 8
    GELU = 9
    GELU_TANH = 10
    ELU = 11
    SOFTPLUS = 12
    MISH = 13
    EXP = 14
    LOG = 15
    SQRT = 16
    RECIPROCAL = 17
    NEGATE = 18
    ABSOLUTE = 19
    ERF = 20
    SIGN = 21
    FLOOR = 22
    CEIL = 23
    ROUND = 24
    SIN = 25
    COS = 26
    SOFTSIGN = 27
    SQUARE = 28
    SELU = 29
    NOT = 30
    CELU = 31
    THRESHOLDED_RELU = 32


class BinaryKind(IntEnum):
    """What a `Binary` computes."""

    ADD = 0
    SUBTRACT = 1
    MULTIPLY = 2
    DIVIDE = 3
    POWER = 4
    MINIMUM = 5
    MAXIMUM = 6
    PRELU = 7
    EQUAL = 8
    LESS = 9
    LESS_OR_EQUAL = 10
    GREATER = 11
    GREATER_OR_EQUAL = 12
    MODULO = 13


class ReduceKind(IntEnum):
    """What a `Reduce` computes."""

    MEAN = 0
    SUM = 1
    MAXIMUM = 2
    MINIMUM = 3
    PRODUCT = 4
    L1 = 5
    L2 = 6
    SUM_OF_SQUARES = 7
    LOG_SUM = 8
    LOG_SUM_EXP = 9


class PoolKind(IntEnum):
    """What a `Pool` computes."""

    MAXIMUM = 0
    MEAN_INSIDE = 1
    MEAN_WHOLE = 2


class Activation(NamedTuple):
    """A function of one number; fused or alone."""

    function: Function = Function.IDENTITY
    a: float = 0.0
    b: float = 0.0


IDENTITY = Activation()


class Kind(Enum):
    """How a field is spelt in words."""

    READ = auto()
    WRITE = auto()
    COUNT = auto()
    REAL = auto()
    ACTIVATION = auto()
    TRIPLE = auto()
    WEIGHTS = auto()


Read = Annotated[int, Kind.READ]
MaybeRead = Annotated[int | None, Kind.READ]
Write = Annotated[int, Kind.WRITE]
MaybeWrite = Annotated[int | None, Kind.WRITE]
Count = Annotated[int, Kind.COUNT]
Real = Annotated[float, Kind.REAL]
Act = Annotated[Activation, Kind.ACTIVATION]
Axes = Annotated[Triple, Kind.TRIPLE]
Slab = tuple[int, int | None, int | None, int | None]
"""A stored weight, and bit sets of its filters and rows and of the output's filters."""
Weights = Annotated[tuple[Slab, ...], Kind.WEIGHTS]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator of a plan.

    Attributes:
        name: The ONNX node that it came from, for messages.
    """

    code: ClassVar[int]
    name: str = ""

    in_place: ClassVar[tuple[str, ...]] = ()
    """The operands that `y` may be the same memory as, where their shapes are equal."""

    def words(self) -> list[int]:
        """Returns the operator's words."""
        return [word for _, kind, value in self._spelt() for word in _encode(kind, value)]

    @classmethod
    def parse(cls, words: list[int], name: str = "") -> Operator:
        """Reads an operator's words.

        Raises:
            ValueError: There are too few or too many, or a code is unknown.
        """
        cursor = _Cursor(words)
        found = {
            field: _decode(kind, of, cursor) for field, (of, kind) in _spelling(cls).items()
        }  # fmt: skip
        cursor.end()
        return cls(name=name, **found)

    def reads(self) -> list[int]:
        """Returns the tensors that are read, in order."""
        found: list[int] = []
        for _, kind, value in self._spelt():
            if kind is Kind.READ and value is not None:
                found.append(value)
            elif kind is Kind.WEIGHTS:
                found.extend(t for slab in value for t in slab if t is not None)
        return found

    def writes(self) -> list[int]:
        """Returns the tensors that are written, in order."""
        return [v for _, kind, v in self._spelt() if kind is Kind.WRITE and v is not None]

    def may_replace(self) -> list[int]:
        """Returns the tensors that `y` may be the same memory as, where their shapes are equal."""
        found = [getattr(self, field) for field in self.in_place]
        return [tensor for tensor in found if tensor is not None]

    def renumbered(self, number: Callable[[int], int]) -> Operator:
        """Returns the operator with every tensor's number changed."""
        changed: dict[str, Any] = {}
        for field, kind, value in self._spelt():
            if kind in (Kind.READ, Kind.WRITE) and value is not None:
                changed[field] = number(value)
            elif kind is Kind.WEIGHTS:
                changed[field] = tuple(
                    (number(weight), *(None if t is None else number(t) for t in sets))
                    for weight, *sets in value
                )
        return dataclasses.replace(self, **changed)

    def _spelt(self) -> Iterator[tuple[str, Kind, Any]]:
        for field, (_, kind) in _spelling(type(self)).items():
            yield field, kind, getattr(self, field)


_SPELLINGS: dict[type[Operator], dict[str, tuple[Any, Kind]]] = {}


def _spelling(operator: type[Operator]) -> dict[str, tuple[Any, Kind]]:
    """Returns the fields that are spelt in words: their type and how."""
    if operator not in _SPELLINGS:
        found = {}
        for field, hint in get_type_hints(operator, include_extras=True).items():
            of, *kinds = get_args(hint) or (None,)
            if kinds and isinstance(kinds[0], Kind):
                found[field] = (of, kinds[0])
        _SPELLINGS[operator] = found
    return _SPELLINGS[operator]


@dataclass(frozen=True, kw_only=True)
class Convolution(Operator):
    """A convolution or a product with a constant matrix; `groups` 1 or more."""

    code = 1
    in_place = ("residual",)
    x: Read
    y: Write
    scale: MaybeRead = None
    shift: MaybeRead = None
    residual: MaybeRead = None
    index: MaybeRead = None
    activation: Act = IDENTITY
    y2: MaybeWrite = None
    scale2: MaybeRead = None
    shift2: MaybeRead = None
    activation2: Act = IDENTITY
    spatial: Count
    kernel: Axes = ONES
    stride: Axes = ONES
    dilation: Axes = ONES
    pad: Axes = ZEROS
    transposed: Count = 0
    groups: Count = 1
    form: Count = 1
    filters: Count
    weights: Weights = ()
    residual_index: MaybeRead = None

    def may_replace(self) -> list[int]:
        """Returns the residual, unless channels of it are selected."""
        return super().may_replace() if self.residual_index is None else []


@dataclass(frozen=True, kw_only=True)
class Depthwise(Operator):
    """A convolution of single channels."""

    code = 2
    in_place = ("residual",)
    x: Read
    y: Write
    scale: MaybeRead = None
    shift: MaybeRead = None
    residual: MaybeRead = None
    activation: Act = IDENTITY
    weight: Read
    spatial: Count
    kernel: Axes = ONES
    stride: Axes = ONES
    dilation: Axes = ONES
    pad: Axes = ZEROS


@dataclass(frozen=True, kw_only=True)
class Pool(Operator):
    """Windows over space, per channel."""

    code = 3
    x: Read
    y: Write
    kind: Annotated[PoolKind, Kind.COUNT]
    spatial: Count
    kernel: Axes = ONES
    stride: Axes = ONES
    dilation: Axes = ONES
    pad: Axes = ZEROS


@dataclass(frozen=True, kw_only=True)
class Affine(Operator):
    """Scale and shift per channel, of selected channels."""

    code = 4
    x: Read
    y: Write
    index: MaybeRead = None
    scale: MaybeRead = None
    shift: MaybeRead = None
    activation: Act = IDENTITY

    def may_replace(self) -> list[int]:
        """Returns the operand, unless a selection of it is read."""
        return [self.x] if self.index is None else []


@dataclass(frozen=True, kw_only=True)
class Unary(Operator):
    """A function of every element."""

    code = 5
    in_place = ("x",)
    x: Read
    y: Write
    activation: Act = IDENTITY


@dataclass(frozen=True, kw_only=True)
class Binary(Operator):
    """A function of two operands, broadcast."""

    code = 6
    in_place = ("a", "b")
    a: Read
    b: Read
    y: Write
    kind: Annotated[BinaryKind, Kind.COUNT]
    activation: Act = IDENTITY


@dataclass(frozen=True, kw_only=True)
class Select(Operator):
    """One of two operands, by a condition, broadcast."""

    code = 7
    condition: Read
    a: Read
    b: Read
    y: Write


@dataclass(frozen=True, kw_only=True)
class Reduce(Operator):
    """Reduction of the middle one of three axes."""

    code = 8
    x: Read
    y: Write
    kind: Annotated[ReduceKind, Kind.COUNT]
    outer: Count
    n: Count
    inner: Count


@dataclass(frozen=True, kw_only=True)
class Softmax(Operator):
    """Softmax over the middle one of three axes, or its logarithm."""

    code = 9
    in_place = ("x",)
    x: Read
    y: Write
    log: Count = 0
    outer: Count
    n: Count
    inner: Count


@dataclass(frozen=True, kw_only=True)
class Normalize(Operator):
    """Mean 0 and variance 1 over the middle one of three axes."""

    code = 10
    in_place = ("x",)
    x: Read
    y: Write
    epsilon: Real
    outer: Count
    n: Count
    inner: Count


@dataclass(frozen=True, kw_only=True)
class MatMul(Operator):
    """Product of the last two axes, the others broadcast."""

    code = 11
    a: Read
    b: Read
    y: Write


@dataclass(frozen=True, kw_only=True)
class Move(Operator):
    """Copies elements from strided places to strided places."""

    code = 12
    x: Read
    y: Write
    x_offset: Count = 0
    y_offset: Count = 0
    size: tuple[int, ...]
    x_stride: tuple[int, ...]
    y_stride: tuple[int, ...]

    def words(self) -> list[int]:
        """Returns the operator's words; the rank stands before offsets and lists."""
        numbers = [self.x, self.y, len(self.size), self.x_offset, self.y_offset]
        return [number & NONE for number in (*numbers, *self.size, *self.x_stride, *self.y_stride)]

    @classmethod
    def parse(cls, words: list[int], name: str = "") -> Operator:
        """Reads an operator's words."""
        cursor = _Cursor(words)
        x, y, rank = cursor.take(3)
        offsets = cursor.take(2)
        size, x_stride, y_stride = (tuple(cursor.take(rank)) for _ in range(3))
        cursor.end()
        signed = tuple(map(_signed, x_stride)), tuple(map(_signed, y_stride))
        return cls(
            name=name, x=x, y=y, x_offset=_signed(offsets[0]), y_offset=_signed(offsets[1]),
            size=size, x_stride=signed[0], y_stride=signed[1],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gather(Operator):
    """Selects entries of the middle one of three axes."""

    code = 13
    x: Read
    y: Write
    index: Read
    outer: Count
    n: Count
    inner: Count


@dataclass(frozen=True, kw_only=True)
class Fill(Operator):
    """Sets every element."""

    code = 14
    y: Write
    value: Real


@dataclass(frozen=True, kw_only=True)
class Interpolate(Operator):
    """Weighted sums of entries of the middle one of three axes."""

    code = 15
    x: Read
    y: Write
    index: Read
    weight: Read
    taps: Count
    outer: Count
    n: Count
    inner: Count


OPERATORS: dict[int, type[Operator]] = {
    kind.code: kind
    for kind in (
        Convolution, Depthwise, Pool, Affine, Unary, Binary, Select, Reduce, Softmax, Normalize,
        MatMul, Move, Gather, Fill, Interpolate,
    )
}  # fmt: skip
"""The operators by code."""


class _Cursor:
    def __init__(self, words: list[int]) -> None:
        self._words = words
        self._at = 0

    def take(self, count: int) -> list[int]:
        if self._at + count > len(self._words):
            raise ValueError("an operator has too few words")
        self._at += count
        return self._words[self._at - count : self._at]

    def end(self) -> None:
        if self._at != len(self._words):
            raise ValueError("an operator has too many words")


def _encode(kind: Kind, value: Any) -> list[int]:
    match kind:
        case Kind.READ | Kind.WRITE:
            return [NONE if value is None else int(value)]
        case Kind.COUNT:
            return [int(value)]
        case Kind.REAL:
            return [_bits(value)]
        case Kind.ACTIVATION:
            return [int(value.function), _bits(value.a), _bits(value.b)]
        case Kind.TRIPLE:
            return [int(number) for number in value]
        case Kind.WEIGHTS:
            return [len(value), *(NONE if t is None else t for slab in value for t in slab)]


def _decode(kind: Kind, of: Any, cursor: _Cursor) -> Any:
    match kind:
        case Kind.READ | Kind.WRITE:
            (number,) = cursor.take(1)
            return None if number == NONE else number
        case Kind.COUNT:
            return of(cursor.take(1)[0])
        case Kind.REAL:
            return _float(cursor.take(1)[0])
        case Kind.ACTIVATION:
            code, a, b = cursor.take(3)
            return Activation(Function(code), _float(a), _float(b))
        case Kind.TRIPLE:
            return tuple(cursor.take(3))
        case Kind.WEIGHTS:
            slabs = [cursor.take(4) for _ in range(cursor.take(1)[0])]
            return tuple(tuple(None if t == NONE else t for t in slab) for slab in slabs)


def _bits(value: float) -> int:
    return cast(int, struct.unpack("<I", struct.pack("<f", value))[0])


def _float(bits: int) -> float:
    return cast(float, struct.unpack("<f", struct.pack("<I", bits))[0])


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word

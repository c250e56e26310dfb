"""`mdprune::GatherConv`: a convolution that reads a domain's part of the shared weight files.

    y[n, f, p] = A(scale[f] * acc + shift[f] + residual[n, f, p]),
    acc = sum over r, t of W[f, r, t] x[n, index[r], p * stride + t * dilation - pad].

x is `(N, C, H, W)`, the optional residual has the shape of y, `(N, F, H', W')`. W is not an input:
it is put together from slabs of weight files, `(taps, rows, filters)` each, of which the node takes
some filters and rows; R reduction channels, the rows of the slabs one after the other.
`docs/tensorrt.md` lists the attributes; the C++ plug-in reads the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from ...errors import BundleError
from ...evaluate import Array
from ...passes.elements import Indices
from ..native.operators import IDENTITY, Activation, Function
from ..native.plan import ALIGNMENT

DOMAIN = "mdprune"
OP_TYPE = "GatherConv"
VERSION = "1"
_SLAB_INTS = 6
_FLOAT = 4
_MOST = 1 << 31

Bits = npt.NDArray[np.bool_]

FUNCTIONS: Mapping[Function, Callable[[Array, float, float], Array]] = {
    Function.IDENTITY: lambda y, a, b: y,
    Function.RELU: lambda y, a, b: np.maximum(y, 0),
    Function.CLIP: lambda y, a, b: np.clip(y, a, b),
    Function.LEAKY_RELU: lambda y, a, b: np.where(y < 0, y * a, y),
}
"""What a node may end with."""


@dataclass(frozen=True)
class WeightName:
    """A weight file in the bundle's `native` folder.

    Attributes:
        sha256: Of all of its bytes, in hexadecimal.
        begin: Where that begins which plug-in nodes of any domain read, in bytes.
        end: Where it ends.
        name: The file's name.
    """

    sha256: str
    begin: int
    end: int
    name: str


@dataclass(frozen=True, eq=False)
class Slab:
    """A stored `(taps, rows, filters)`, and what is taken of it.

    Attributes:
        file: The weight file's number.
        offset: Where it begins, in bytes: a multiple of 64.
        rows: Stored rows.
        filters: Stored filters.
        bits: Per stored filter whether it is used, None where all are.
        row_bits: Per stored row whether it is used, None where all are.
    """

    file: int
    offset: int
    rows: int
    filters: int
    bits: Bits | None = None
    row_bits: Bits | None = None

    @property
    def used_rows(self) -> int:
        """How many rows are used."""
        return self.rows if self.row_bits is None else int(self.row_bits.sum())


@dataclass(frozen=True, eq=False)
class GatherConv:
    """One node.

    Attributes:
        files: The weight files.
        slabs: What it reads of them.
        channels: Channels of x.
        index: Per reduction channel the channel of x.
        scale: Per filter.
        shift: Per filter.
        activation: One of `FUNCTIONS`.
        kernel: Height and width, as the next ones.
        strides: In positions.
        dilations: In positions.
        pads: Top, left, bottom, right.
    """

    files: tuple[WeightName, ...]
    slabs: tuple[Slab, ...]
    channels: int
    index: Indices
    scale: Array
    shift: Array
    kernel: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    dilations: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    activation: Activation = IDENTITY

    @property
    def filters(self) -> int:
        """Channels of y."""
        return len(self.scale)

    def attributes(self) -> dict[str, Any]:
        """Returns the node's ONNX attributes; what would be an empty list is left out."""
        bits = [_words(slab.bits) for slab in self.slabs if slab.bits is not None]
        rows = [_words(slab.row_bits) for slab in self.slabs if slab.row_bits is not None]
        found: dict[str, Any] = {
            "plugin_version": VERSION,
            "plugin_namespace": DOMAIN,
            "files": "\n".join(f"{f.sha256} {f.begin} {f.end} {f.name}" for f in self.files),
            "slabs": [number for slab in self.slabs for number in _slab_ints(slab)],
            "channels": self.channels,
            "index": self.index.tolist(),
            "scale": self.scale.astype(np.float32).tolist(),
            "shift": self.shift.astype(np.float32).tolist(),
            "activation": int(self.activation.function),
            "alpha": float(self.activation.a),
            "beta": float(self.activation.b),
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": list(self.pads),
        }
        if bits:
            found["bits"] = [word for words in bits for word in words]
        if rows:
            found["rows"] = [word for words in rows for word in words]
        return found

    def run(self, folder: Path, x: Array, residual: Array | None = None) -> Array:
        """Computes the node, without any runtime.

        Args:
            folder: Where the weight files lie.
            x: `(N, C, H, W)`. In float16 weights are rounded to it, sums are float32.
            residual: Of the output's shape.

        Raises:
            BundleError: A weight file is not there or too short, or the shapes do not fit.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise BundleError(
                f"{OP_TYPE}: the input's shape is {x.shape}, it takes {self.channels} channels"
            )
        weight = self.weight(folder)
        wide = np.dtype(np.float32) if x.dtype == np.float16 else x.dtype
        weight = weight.astype(x.dtype).astype(wide)
        top, left, bottom, right = self.pads
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        acc = torch.nn.functional.conv2d(
            torch.from_numpy(np.ascontiguousarray(padded[:, self.index].astype(wide))),
            torch.from_numpy(np.ascontiguousarray(weight)),
            stride=self.strides,
            dilation=self.dilations,
        ).numpy()
        per_filter = (1, -1, 1, 1)
        y = acc * self.scale.astype(wide).reshape(per_filter)
        y = y + self.shift.astype(wide).reshape(per_filter)
        if residual is not None:
            if residual.shape != y.shape:
                raise BundleError(
                    f"{OP_TYPE}: the residual's shape is {residual.shape}, the output's {y.shape}"
                )
            y = y + residual.astype(wide)
        function, a, b = self.activation
        return FUNCTIONS[function](y, a, b).astype(x.dtype)

    def weight(self, folder: Path) -> Array:
        """Returns the weight that the slabs make, `(filters, R, height, width)`."""
        taps = int(np.prod(self.kernel))
        parts = []
        for slab in self.slabs:
            path = folder / self.files[slab.file].name
            shape = (taps, slab.rows, slab.filters)
            end = slab.offset + _FLOAT * int(np.prod(shape))
            if not path.is_file() or path.stat().st_size < end:
                raise BundleError(f"{path} is not there or has less than {end:,} bytes")
            stored = np.memmap(path, "<f4", "r", slab.offset, shape)
            rows = slice(None) if slab.row_bits is None else np.flatnonzero(slab.row_bits)
            filters = slice(None) if slab.bits is None else np.flatnonzero(slab.bits)
            parts.append(np.asarray(stored[:, rows][:, :, filters]))
        joined = np.concatenate(parts, axis=1)
        return joined.transpose(2, 1, 0).reshape(joined.shape[2], joined.shape[1], *self.kernel)


def _slab_ints(slab: Slab) -> tuple[int, ...]:
    sets = int(slab.bits is not None), int(slab.row_bits is not None)
    return slab.file, slab.offset // ALIGNMENT, slab.rows, slab.filters, *sets


def _words(bits: Bits) -> list[int]:
    """Returns a bit set as signed 32-bit words, bit 0 first."""
    packed = np.packbits(bits, bitorder="little")
    words: list[int] = np.pad(packed, (0, -len(packed) % 4)).view("<i4").tolist()
    return words


def parse(node: ir.Node) -> GatherConv:
    """Reads a node, trusting nothing in it.

    Raises:
        BundleError: An attribute is missing, of another type or contradicts the others.
    """
    return _Parser(node).parse()


class _Parser:
    def __init__(self, node: ir.Node) -> None:
        self._node = node

    def fail(self, fact: str) -> BundleError:
        return BundleError(f"{OP_TYPE} {self._node.name!r}: {fact}")

    def _expect(self, fits: bool, fact: str) -> None:
        if not fits:
            raise self.fail(fact)

    def _get(self, name: str, kind: ir.AttributeType) -> Any:
        found = self._node.attributes.get(name)
        self._expect(found is not None and found.type == kind, f"it has no attribute {name!r}")
        assert found is not None
        return found.value

    def _list(self, name: str, length: int) -> list[int]:
        """Returns integers; a list that is absent is empty."""
        if name not in self._node.attributes and not length:
            return []
        values = list(self._get(name, ir.AttributeType.INTS))
        self._expect(len(values) == length, f"{name!r} has {len(values)} entries, not {length}")
        return values

    def _floats(self, name: str) -> Array:
        return np.asarray(self._get(name, ir.AttributeType.FLOATS), dtype=np.float32)

    def parse(self) -> GatherConv:
        version = self._get("plugin_version", ir.AttributeType.STRING)
        self._expect(version == VERSION, f"its version is {version!r}, not {VERSION!r}")
        files = self._files()
        kernel, strides, dilations = (
            self._list(name, 2) for name in ("kernel_shape", "strides", "dilations")
        )
        pads = self._list("pads", 4)
        positive = all(0 < n < _MOST for n in (*kernel, *strides, *dilations))
        self._expect(positive and min(pads) >= 0, "its window has a size that is not positive")
        scale, shift = self._floats("scale"), self._floats("shift")
        self._expect(0 < len(scale) == len(shift), "scale and shift differ in length")
        slabs, reduction = self._slabs(files, len(scale), kernel[0] * kernel[1])
        channels = self._get("channels", ir.AttributeType.INT)
        index = np.asarray(self._list("index", reduction), dtype=np.int64)
        inside = 0 < channels < _MOST and ((index >= 0) & (index < channels)).all()
        self._expect(bool(inside), "'index' names a channel that x does not have")
        return GatherConv(
            files=files,
            slabs=slabs,
            channels=channels,
            index=index,
            scale=scale,
            shift=shift,
            kernel=tuple(kernel),
            strides=tuple(strides),
            dilations=tuple(dilations),
            pads=tuple(pads),
            activation=self._activation(),
        )

    def _files(self) -> tuple[WeightName, ...]:
        text = self._get("files", ir.AttributeType.STRING)
        pattern = r"([0-9a-f]{64}) ([0-9]{1,15}) ([0-9]{1,15}) ([^\s/\\]+)"
        found = [re.fullmatch(pattern, line) for line in text.split("\n")]
        names = tuple(
            WeightName(m[1], int(m[2]), int(m[3]), m[4])
            for m in found
            if m and m[4] not in (".", "..") and int(m[2]) % ALIGNMENT == 0
        )
        self._expect(len(names) == len(found), "'files' is no list of hashes, spans and names")
        return names

    def _activation(self) -> Activation:
        code = self._get("activation", ir.AttributeType.INT)
        self._expect(code in set(FUNCTIONS), f"it has no activation {code}")
        a, b = (self._get(name, ir.AttributeType.FLOAT) for name in ("alpha", "beta"))
        return Activation(Function(code), a, b)

    def _slabs(
        self, files: tuple[WeightName, ...], filters: int, taps: int
    ) -> tuple[tuple[Slab, ...], int]:
        """Returns the slabs and how many reduction channels they have."""
        numbers = self._get("slabs", ir.AttributeType.INTS)
        self._expect(
            bool(numbers) and len(numbers) % _SLAB_INTS == 0 and min(numbers) >= 0,
            "'slabs' is no list of slabs",
        )
        entries = [numbers[i : i + _SLAB_INTS] for i in range(0, len(numbers), _SLAB_INTS)]
        words = iter(self._list("bits", sum(-(-e[3] // 32) for e in entries if e[4])))
        row_words = iter(self._list("rows", sum(-(-e[2] // 32) for e in entries if e[5])))
        slabs = []
        for file, at, rows, stored, has_bits, has_row_bits in entries:
            fits = file < len(files) and rows > 0 and stored > 0
            self._expect(fits, "a slab is of no file or empty")
            begin, end = at * ALIGNMENT, at * ALIGNMENT + _FLOAT * taps * rows * stored
            inside = files[file].begin <= begin and end <= files[file].end
            self._expect(inside, "a slab is outside of its file's span")
            bits = self._bits(words, stored) if has_bits else None
            taken = stored if bits is None else int(bits.sum())
            self._expect(taken == filters, f"a slab gives {taken} filters, scale has {filters}")
            row_bits = self._bits(row_words, rows) if has_row_bits else None
            slab = Slab(file, begin, rows, stored, bits, row_bits)
            self._expect(slab.used_rows > 0, "a slab has no row that is used")
            slabs.append(slab)
        return tuple(slabs), sum(slab.used_rows for slab in slabs)

    def _bits(self, words: Iterator[int], size: int) -> Bits:
        taken = np.array([next(words) for _ in range(-(-size // 32))], dtype="<i4")
        bits = np.unpackbits(taken.view(np.uint8), bitorder="little").astype(np.bool_)
        self._expect(not bits[size:].any(), "a bit set has bits past the last")
        return bits[:size]

"""What the passes know about one domain's graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..evaluate import Array, constant_array
from .elements import Indices, Known, Needed, Sets, compress, live
from .trace import Trace
from .widening import BLOCKED, Widening


@dataclass(frozen=True)
class Requirement:
    """What a node reads of one input.

    Attributes:
        sets: The product set that it reads, in the input's own indices.
        expand: For an input whose remaining channels are constants: the axis, the positions in
            the node's operand that `sets` fills, and the whole operand's constants (NaN where
            live) along that axis.
    """

    sets: Sets
    expand: tuple[int, Known] | None = None


@dataclass
class Facts:
    """Per value: shape, constant data, known elements, needed elements, kept sets.

    Attributes:
        trace: Shapes at the example input.
        known: See `elements`; filled by the forward pass.
        needed: Live elements on which the domain's outputs depend; filled by the backward pass.
        free: Axes that may be narrowed.
        kept: The product set that is emitted; only values that are emitted have one.
        required: What each node reads, by node and input index.
        widening: What may be kept and read besides.
        orders: By value, all of its channels in the order of all domains; others have the natural
            one.
    """

    trace: Trace
    known: dict[ir.Value, Known] = field(default_factory=dict)
    needed: dict[ir.Value, Needed] = field(default_factory=dict)
    free: dict[ir.Value, frozenset[int]] = field(default_factory=dict)
    kept: dict[ir.Value, Sets] = field(default_factory=dict)
    required: dict[tuple[ir.Node, int], Requirement] = field(default_factory=dict)
    widening: Widening = BLOCKED
    orders: Mapping[str, Indices] = field(default_factory=dict)

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Returns the shape at the example input."""
        if value.is_initializer():
            return tuple(constant_array(value).shape)
        assert value.name is not None
        return self.trace.shapes[value.name]

    def size(self, value: ir.Value, axis: int) -> int:
        """Returns the length of one axis at the example input."""
        return self.shape(value)[axis]

    def varying(self, value: ir.Value) -> frozenset[int]:
        """Returns the axes that follow the batch."""
        return self.trace.varying.get(value.name or "", frozenset())

    def dtype(self, value: ir.Value) -> np.dtype[np.generic]:
        """Returns the element type at the example input."""
        if value.is_initializer():
            return constant_array(value).dtype
        return self.trace.dtypes[value.name or ""]

    def constant(self, value: ir.Value | None) -> Array | None:
        """Returns the data of an initialiser, None for anything else."""
        return None if value is None or not value.is_initializer() else constant_array(value)

    def known_of(self, value: ir.Value) -> Known:
        """Returns what is known of a value, computing it for an initialiser."""
        if value not in self.known:
            array = self.constant(value)
            numeric = array is not None and array.dtype.kind in "fiub"
            self.known[value] = (
                compress(np.asarray(array, dtype=np.float64))
                if numeric
                else live(len(self.shape(value)))
            )
        return self.known[value]

    def is_live(self, value: ir.Value) -> bool:
        """Tells whether nothing at all is known of a value."""
        return bool(np.isnan(self.known_of(value)).all())

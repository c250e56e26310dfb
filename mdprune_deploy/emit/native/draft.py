"""A plan under construction: activations have no place yet, constants are still NumPy arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...evaluate import Array
from ...passes.elements import Indices
from .operators import Operator
from .plan import Place, Type


@dataclass(frozen=True, eq=False)
class DraftTensor:
    """A tensor of a draft.

    Attributes:
        place: `ARENA` for activations, `DATA` for constants until the weight files are written.
        type: Its elements.
        shape: Its sizes.
        storage: Tensors of one place and storage number are the same memory; the number of an
            input or output.
        array: A constant's data, in the precision in which it was computed.
        weight: Whether a constant is a weight, which lies in a weight file whatever its size.
        part: Of a weight that domains share: the number of the part, in place of the array.
    """

    place: Place
    type: Type
    shape: tuple[int, ...]
    storage: int
    array: Array | None = None
    weight: bool = False
    part: int | None = None

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(eq=False)
class Draft:
    """Operators over numbered tensors.

    Attributes:
        tensors: All tensors; operators name them by position.
        operators: What runs, in order.
        inputs: Name and tensor of each input.
        outputs: Name and tensor of each output.
    """

    tensors: list[DraftTensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: list[tuple[str, int]] = field(default_factory=list)
    outputs: list[tuple[str, int]] = field(default_factory=list)
    _constants: dict[tuple[object, ...], int] = field(default_factory=dict)
    _storages: int = 0

    def activation(self, shape: Sequence[int]) -> int:
        """Adds a tensor of activation memory."""
        self._storages += 1
        return self._add(DraftTensor(Place.ARENA, Type.F32, tuple(shape), self._storages))

    def input(self, name: str, shape: Sequence[int]) -> int:
        """Adds an input."""
        number = len(self.inputs)
        tensor = self._add(DraftTensor(Place.INPUT, Type.F32, tuple(shape), number))
        self.inputs.append((name, tensor))
        return tensor

    def output(self, name: str, shape: Sequence[int]) -> int:
        """Adds an output."""
        number = len(self.outputs)
        tensor = self._add(DraftTensor(Place.OUTPUT, Type.F32, tuple(shape), number))
        self.outputs.append((name, tensor))
        return tensor

    def constant(self, array: Array, *, weight: bool = False) -> int:
        """Adds a floating-point constant, or finds it; weights are kept in float32."""
        if weight:
            self._storages += 1
            small = np.asarray(array, dtype=np.float32)
            own = DraftTensor(Place.DATA, Type.F32, small.shape, self._storages, small, True)
            return self._add(own)
        return self._constant(np.asarray(array, dtype=np.float64), Type.F32)

    def part(self, number: int) -> int:
        """Adds a part of a weight that domains share."""
        self._storages += 1
        return self._add(
            DraftTensor(Place.WEIGHTS, Type.F32, (), self._storages, weight=True, part=number)
        )

    def weight_tensor(self, shape: Sequence[int]) -> int:
        """Adds a tensor of a weight file."""
        self._storages += 1
        return self._add(DraftTensor(Place.WEIGHTS, Type.F32, tuple(shape), self._storages))

    def index(self, indices: Indices) -> int:
        """Adds an index list, or finds it."""
        return self._constant(np.asarray(indices, dtype=np.int32), Type.I32)

    def view(self, tensor: int, shape: Sequence[int]) -> int:
        """Adds a tensor that is the same memory in another shape."""
        source = self.tensors[tensor]
        if source.shape == tuple(shape):
            return tensor
        assert int(np.prod(shape, dtype=np.int64)) == source.elements
        if source.array is not None and not source.weight:
            return self._constant(source.array.reshape(shape), source.type)
        return self._add(dataclasses.replace(source, shape=tuple(shape)))

    def array(self, tensor: int | None) -> Array | None:
        """Returns a constant's data, None for anything else."""
        return None if tensor is None else self.tensors[tensor].array

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Returns a tensor's sizes."""
        return self.tensors[tensor].shape

    def memory(self, tensor: int) -> tuple[Place, int]:
        """Returns what two tensors have in common exactly if they are the same memory."""
        found = self.tensors[tensor]
        return found.place, found.storage

    def readers(self) -> dict[tuple[Place, int], list[Operator]]:
        """Returns, per memory, what reads it; a graph output that is not written yet counts not."""
        found: dict[tuple[Place, int], list[Operator]] = {}
        for operator in self.operators:
            for memory in dict.fromkeys(self.memory(t) for t in operator.reads()):
                found.setdefault(memory, []).append(operator)
        return found

    def _add(self, tensor: DraftTensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _constant(self, array: Array, kind: Type) -> int:
        key = (kind, array.shape, array.tobytes())
        if key not in self._constants:
            self._storages += 1
            tensor = DraftTensor(Place.DATA, kind, array.shape, self._storages, array)
            self._constants[key] = self._add(tensor)
        return self._constants[key]

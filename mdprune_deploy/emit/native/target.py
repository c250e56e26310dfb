"""The `native` target: plans over shared weight files, and the index of the domains.

    native/index.bin      the domains and their plans
    native/STEM.plan      one domain
    native/weights.bin    weights, every distinct tensor once
    native/union.json     what is stored where, for adding and dropping domains

A bundle that is added to gets one more weight file, `native/weights-N.bin`.

Weights and other large constants lie in the weight file, the rest in the plan itself.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...errors import UnsupportedGraphError
from ...evaluate import Array
from ...layout.store import ClosesStore
from ...manifest import NativeFiles
from ...passes.elements import Indices
from ...report import LayerFigures, WeightLayout
from .arena import place_activations
from .draft import Draft, DraftTensor
from .files import WeightFiles
from .lower import lower
from .operators import Convolution
from .plan import (
    ALIGNMENT,
    Place,
    Plan,
    Port,
    Tensor,
    Type,
    index_bytes,
    plan_bytes,
)
from .record import Location, Record, UsedSets, write_record
from .shared import Placed, SharedWeights, weight_layouts

FOLDER = "native"
WEIGHTS = "weights.bin"
INDEX = "index.bin"
LARGE = 4096
"""Bytes from which on a constant that is no weight lies in the weight file too."""


class NativeTarget(ClosesStore):
    """Writes the target: drafts are collected domain by domain, files are written at the end.

    Use it as a context manager.

    Args:
        root: The bundle's directory; `native/` is made in it.
        stems: A file name without suffix per domain.
        record: What a bundle holds that is added to: its weight files lie in `native/` already.

    Attributes:
        store: The weight file that is written, for its figures.
        placed: Where the parts of shared weights lie, by number; known once files are written.
    """

    def __init__(self, root: Path, stems: Mapping[str, str], record: Record | None = None) -> None:
        self._folder = root / FOLDER
        self._stems = dict(stems)
        self._folder.mkdir(exist_ok=record is not None)
        self._files = WeightFiles(
            self._folder,
            WEIGHTS if record is None else free_name(self._folder, "weights-{}.bin"),
            () if record is None else record.tensors,
        )
        self.store = self._files.store
        self._shared = SharedWeights(self._files, record)
        self.placed: Mapping[int, Placed] = {}
        self._pending: dict[str, _Pending] = {}

    def discard(self) -> None:
        """Removes all that was written; nothing can be added after that."""
        self.store.close()
        self._pending.clear()
        shutil.rmtree(self._folder)

    def add(
        self,
        domain: str,
        model: ir.Model,
        feeds: Mapping[str, Array],
        *,
        dynamic_batch: bool,
        layers: Sequence[LayerFigures] = (),
        labels: Sequence[str] | None = None,
    ) -> None:
        """Takes one domain.

        Args:
            domain: One of the domains given at the start.
            model: The domain's narrowed graph in float64, with its batch norms.
            feeds: Example inputs by name.
            dynamic_batch: Whether the batch is free; the plan is then made for one image.
            layers: The graph's figures.
            labels: Class names.

        Raises:
            UnsupportedGraphError: The target lacks something; the message names it.
            OSError: A file cannot be written.
        """
        if dynamic_batch:
            if any(array.ndim == 0 for array in feeds.values()):
                raise UnsupportedGraphError("the native target lacks a scalar input beside a batch")
            feeds = {name: array[:1] for name, array in feeds.items()}
        draft = lower(model.graph, feeds, functools.partial(self._shared.add, domain))
        if dynamic_batch:
            _check_batch(draft)
        places: dict[int, Location] = {}
        for number, tensor in enumerate(draft.tensors):
            if tensor.array is not None and _is_large(tensor):
                places[number] = self._files.add(tensor.array.astype("<f4"), domain)
                place = Place.WEIGHTS  # the bytes are in the file
                draft.tensors[number] = dataclasses.replace(tensor, place=place, array=None)
        self._pending[domain] = _Pending(
            draft,
            places,
            dynamic_batch,
            tuple(labels or ()),
            sum(layer.params_emitted for layer in layers),
            sum(layer.macs_emitted for layer in layers),
        )

    @property
    def layout(self) -> tuple[WeightLayout, ...]:
        """How the weights are stored; known once the files are written."""
        return weight_layouts(self._shared.entries)

    def finish(self, memory_limit: int | None = None) -> dict[str, NativeFiles]:
        """Writes plans and index; returns the manifest's entries by domain.

        Args:
            memory_limit: Most bytes of the weight file; None for as few as the layout gives.

        Raises:
            BudgetError: The union of what the domains use is larger.
        """
        placed = self.placed = self._shared.place(memory_limit)
        self.store.flush()
        found: dict[str, NativeFiles] = {}
        index = []
        for domain, pending in self._pending.items():
            pending.take_parts(placed)
            plan = pending.plan(self._files)
            path = self._folder / f"{self._stems[domain]}.plan"
            content = plan_bytes(plan)
            path.write_bytes(content)
            index.append((domain, path.name, len(content)))
            weights = tuple(f"{FOLDER}/{file.name}" for file in plan.files)
            found[domain] = NativeFiles(
                f"{FOLDER}/{path.name}", weights, plan.arena, pending.params, pending.macs
            )
        write_index(self._folder, index)
        if not self.store.size:
            (self._folder / self._files.name).unlink()  # all is there already
        return found

    def write_record(self, orders: Mapping[str, Indices], used: UsedSets) -> None:
        """Writes what is stored where, once the files are written.

        Args:
            orders: The order of channels of all domains.
            used: The used sets of all domains, of the bundle that is added to included.
        """
        tensors = self._files.tensors()
        write_record(Record(orders, tuple(self._shared.entries), tensors, used), self._folder)


def write_index(folder: Path, plans: Sequence[tuple[str, str, int]]) -> None:
    """Writes the index of a bundle's `native` folder: domain, plan file and its size."""
    (folder / INDEX).write_bytes(index_bytes(plans))


def free_name(folder: Path, pattern: str) -> str:
    """Returns the first name of a pattern with a number that no file of a folder has."""
    return next(
        name
        for number in itertools.count(1)
        if not (folder / (name := pattern.format(number))).exists()
    )


@dataclasses.dataclass(eq=False)
class _Pending:
    """A domain whose plan is not written yet.

    Attributes:
        draft: Its operators.
        places: Where tensors of the weight files lie.
        dynamic_batch: Whether the batch is free.
        labels: Class names.
        params: Weight elements that it reads.
        macs: Its multiply-accumulates.
    """

    draft: Draft
    places: dict[int, Location]
    dynamic_batch: bool
    labels: tuple[str, ...]
    params: int
    macs: int

    def take_parts(self, placed: Mapping[int, Placed]) -> None:
        """Puts the places of shared weights in."""
        draft = self.draft
        for at, operator in enumerate(draft.operators):
            if not isinstance(operator, Convolution):
                continue
            part = draft.tensors[operator.weights[0][0]].part
            if part is None:
                continue
            place = placed[part]
            channels = draft.shape(operator.x)[-1]
            chosen = draft.array(operator.index)
            indices = place.order if chosen is None else chosen[place.order]
            whole = np.array_equal(indices, np.arange(channels))
            weights = []
            for piece in place.weights:
                weight = draft.weight_tensor(piece.shape)
                self.places[weight] = piece.place
                bits, rows, outputs = (
                    None if members is None else draft.index(_bit_set(members))
                    for members in (piece.bits, piece.rows, piece.outputs)
                )
                weights.append((weight, bits, rows, outputs))
            draft.operators[at] = dataclasses.replace(
                operator,
                form=place.form,
                index=None if whole else draft.index(indices),
                weights=tuple(weights),
            )

    def plan(self, files: WeightFiles) -> Plan:
        """Returns the finished plan."""
        draft = self.draft
        arena = place_activations(draft)
        used = sorted(
            {t for o in draft.operators for t in (*o.reads(), *o.writes())}
            | {t for _, t in (*draft.inputs, *draft.outputs)}
        )
        number = {tensor: position for position, tensor in enumerate(used)}
        names = sorted({self.places[t].file for t in used if t in self.places})
        data = bytearray()
        tensors = []
        for tensor in used:
            own = draft.tensors[tensor]
            file = 0
            match own.place:
                case Place.ARENA:
                    offset = arena.offsets[own.storage]
                case Place.WEIGHTS:
                    offset = self.places[tensor].offset
                    file = names.index(self.places[tensor].file)
                case Place.DATA:
                    data.extend(bytes(-len(data) % ALIGNMENT))
                    offset = len(data)
                    assert own.array is not None
                    data.extend(np.ascontiguousarray(own.array, own.type.dtype).tobytes())
                case _:
                    offset = own.storage
            tensors.append(Tensor(own.place, own.type, own.shape, offset, file))
        return Plan(
            dynamic_batch=self.dynamic_batch,
            arena=arena.size,
            files=tuple(files.size(name) for name in names),
            tensors=tuple(tensors),
            inputs=tuple(Port(name, number[tensor]) for name, tensor in draft.inputs),
            outputs=tuple(Port(name, number[tensor]) for name, tensor in draft.outputs),
            labels=self.labels,
            operators=tuple(o.renumbered(number.__getitem__) for o in draft.operators),
            data=bytes(data),
        )


def _bit_set(bits: Array) -> Array:
    """Returns a bit set as 32-bit words, bit 0 first."""
    packed = np.packbits(bits, bitorder="little")
    return np.pad(packed, (0, -len(packed) % 4)).view("<i4")


def _is_large(tensor: DraftTensor) -> bool:
    assert tensor.array is not None
    large = tensor.elements * tensor.type.dtype.itemsize >= LARGE
    return tensor.weight or (large and tensor.type is Type.F32)


def _check_batch(draft: Draft) -> None:
    for name, tensor in (*draft.inputs, *draft.outputs):
        if draft.shape(tensor)[:1] != (1,):
            raise UnsupportedGraphError(
                f"the native target runs a batch image by image, which {name!r} of shape "
                f"{draft.shape(tensor)} does not allow"
            )

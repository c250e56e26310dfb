"""The `tensorrt` target: per domain strongly typed models for TensorRT's ONNX parser.

    tensorrt/STEM.fp16.onnx           large late layers are plug-in nodes, the rest is stock
    tensorrt/STEM.fp32.onnx
    tensorrt/STEM.stock.fp16.onnx     stock operators alone
    tensorrt/STEM.stock.fp32.onnx
    tensorrt/weights.bin              every distinct tensor of these models, once

Plug-in nodes read the native target's weight files, which they name by SHA-256. Where no layer
gains by the plug-in there are the stock models alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ...errors import UnsupportedGraphError
from ...evaluate import Array, evaluate
from ...layout.store import ClosesStore, StoreWriter
from ...layout.union import FLOAT
from ...manifest import TensorrtFiles, TensorrtModel
from ...passes.lower import fold_batch_norms, to_float32
from ...report import PluginChoice, WeightLayout
from ..external import check_model, write_model
from ..native.shared import Placed
from ..native.target import FOLDER as NATIVE
from .choose import choose
from .fuse import is_candidate, replace
from .half import to_float16
from .node import WeightName

FOLDER = "tensorrt"
WEIGHTS = "weights.bin"
PRECISIONS = ("fp32", "fp16")


class TensorrtTarget(ClosesStore):
    """Writes the target: stock models domain by domain, those with plug-in nodes at the end.

    Use it as a context manager.

    Args:
        root: The bundle's directory; `tensorrt/` is made in it.
        stems: A file name without suffix per domain.

    Attributes:
        store: The weight file, for its figures.
        choices: Per weight whether the plug-in reads it; known once all is written.
        lacking: What the bundle lacks, with the reason.
    """

    def __init__(self, root: Path, stems: Mapping[str, str]) -> None:
        self._root = root
        self._folder = root / FOLDER
        self._stems = dict(stems)
        self._folder.mkdir()
        self.store = StoreWriter(self._folder / WEIGHTS)
        self.choices: tuple[PluginChoice, ...] = ()
        self.lacking: list[tuple[str, str]] = []
        self._pending: dict[str, _Pending] = {}
        self._models: dict[str, list[TensorrtModel]] = {}

    def add(
        self, domain: str, stock: ir.Model, gathered: ir.Model, feeds: Mapping[str, Array]
    ) -> None:
        """Takes one domain.

        Args:
            domain: One of the domains given at the start.
            stock: Its narrowed graph in float64 for stock operators, batch norms folded.
            gathered: Its narrowed graph in float64 as the native target took it: nodes say which
                part of a shared weight they read. It is changed when the models are written.
            feeds: Example inputs by name, at batch 1.

        Raises:
            UnsupportedGraphError: The model is not valid ONNX.
            OSError: A file cannot be written.
        """
        self._models[domain] = []
        self._write(domain, f"{self._stems[domain]}.stock", to_float32(stock), 0)
        shapes: dict[str, tuple[int, ...]] = {
            str(value.name): feeds[str(value.name)].shape for value in gathered.graph.inputs
        }
        evaluate(
            gathered.graph,
            feeds,
            observe=lambda value, array: shapes.update({str(value.name): array.shape}),
        )
        for node in gathered.graph:
            if "stored" in node.meta:  # the whole weight of every layer is not needed any more
                stored = node.meta["stored"]
                node.meta["stored"] = dataclasses.replace(stored, weight=stored.weight[:0])
        self._pending[domain] = _Pending(gathered, shapes)

    def finish(
        self, placed: Mapping[int, Placed], layout: Sequence[WeightLayout]
    ) -> dict[str, TensorrtFiles]:
        """Writes the models with plug-in nodes; returns the manifest's entries by domain.

        Args:
            placed: Where every part lies in the native target's weight files, which are written.
            layout: How these store weights.

        Raises:
            UnsupportedGraphError: A model is not valid ONNX.
            OSError: A file cannot be written.
        """
        activations: dict[str, int] = {}
        for pending in self._pending.values():
            for name, elements in pending.activations().items():
                activations[name] = max(activations.get(name, 0), elements)
        choices = choose(layout, activations)
        self.choices = tuple(choices.values())
        taken = {name for name, choice in choices.items() if choice.plugin}
        chosen = {
            domain: pending.plugin_nodes(taken, placed) for domain, pending in self._pending.items()
        }
        every = [placed[node.meta["part"]] for nodes in chosen.values() for node in nodes]
        files = self._weight_names(every)
        found = {}
        for domain, pending in self._pending.items():
            parts = [placed[node.meta["part"]] for node in chosen[domain]]
            names = sorted({piece.place.file for part in parts for piece in part.weights})
            if parts:
                own = [files[name] for name in names]
                for node, part in zip(chosen[domain], parts, strict=True):
                    replace(pending.model.graph, node, part, own, pending.shapes)
                fold_batch_norms(pending.model)
                self._write(domain, self._stems[domain], to_float32(pending.model), len(parts))
            found[domain] = TensorrtFiles(
                tuple(self._models[domain]),
                (f"{FOLDER}/{WEIGHTS}",),
                tuple(f"{NATIVE}/{name}" for name in names),
            )
        self._pending.clear()
        self.store.flush()
        return found

    def _weight_names(self, parts: Sequence[Placed]) -> dict[str, WeightName]:
        """Returns the files that parts lie in, with the span that all of them together take."""
        spans: dict[str, tuple[int, int]] = {}
        for part in parts:
            for piece in part.weights:
                place = piece.place
                begin, end = spans.get(place.file, (place.offset, 0))
                last = place.offset + FLOAT * math.prod(piece.shape)
                spans[place.file] = min(begin, place.offset), max(end, last)
        return {
            name: WeightName(_sha256(self._root / NATIVE / name), begin, end, name)
            for name, (begin, end) in spans.items()
        }

    def _write(self, domain: str, stem: str, model: ir.Model, plugins: int) -> None:
        """Writes a model in both precisions; float16 only where its range holds the constants."""
        self._write_one(domain, stem, "fp32", model, plugins)
        try:
            half = to_float16(model)
        except UnsupportedGraphError as error:
            self.lacking.append((f"{FOLDER}/{stem}.fp16.onnx", f"domain {domain!r}: {error}"))
            return
        self._write_one(domain, stem, "fp16", half, plugins)

    def _write_one(
        self, domain: str, stem: str, precision: str, model: ir.Model, plugins: int
    ) -> None:
        path = self._folder / f"{stem}.{precision}.onnx"
        write_model(model, path, self.store, domain)
        self.store.flush()
        check_model(path, domain)
        entry = TensorrtModel(f"{FOLDER}/{path.name}", precision, plugins, 0.0)
        self._models[domain].append(entry)


@dataclass(frozen=True, eq=False)
class _Pending:
    """A domain whose models with plug-in nodes are not written yet.

    Attributes:
        model: The graph that they are made of.
        shapes: Of its values.
    """

    model: ir.Model
    shapes: Mapping[str, Sequence[int]]

    def activations(self) -> dict[str, int]:
        """Returns, per weight that a plug-in could read, the elements that its layer moves."""
        found: dict[str, int] = {}
        for node in self.model.graph:
            if is_candidate(node):
                sizes = [self._elements(node.inputs[0]), self._elements(node.outputs[0])]
                name = node.meta["stored"].use.name
                found[name] = max(found.get(name, 0), sum(sizes))
        return found

    def _elements(self, value: ir.Value | None) -> int:
        assert value is not None
        return math.prod(self.shapes[str(value.name)])

    def plugin_nodes(self, taken: set[str], placed: Mapping[int, Placed]) -> list[ir.Node]:
        """Returns the nodes that become plug-in nodes: of the weights taken, where in slabs."""
        return [
            node
            for node in self.model.graph
            if is_candidate(node)
            and node.meta["stored"].use.name in taken
            and placed[node.meta["part"]].form == 0
        ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

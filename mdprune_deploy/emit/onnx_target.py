"""The `onnx` target: per domain one portable model, and one that this host's runtime maps.

All models stand in one folder with the one `weights.bin` that they name:

    onnx/weights.bin          every distinct tensor of every model, once
    onnx/STEM.onnx            stock operators, for any runtime
    onnx/STEM.ISA.onnx        the same, ready-optimised for one instruction set and version

The domain's name is free text; `STEM` is its safe spelling, and the manifest maps one to the other.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from mdprune_deploy.emit.external import check_model, write_model
from mdprune_deploy.emit.mapped import write_mapped
from mdprune_deploy.errors import UnsupportedGraphError
from mdprune_deploy.layout.nchwc import BlockedLayout
from mdprune_deploy.layout.store import ClosesStore, StoreWriter
from mdprune_deploy.manifest import DomainModel, MappedVariant, OnnxFiles, TensorSpec

FOLDER = "onnx"
WEIGHTS = "weights.bin"
_LONGEST_STEM = 64


def file_stems(domains: Sequence[str]) -> dict[str, str]:
    """Returns a file name without suffix for each domain.

    Names are letters, digits, `-` and `_`, at most 64 of them, and differ by more than case.
    """
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for domain in domains:
        base = re.sub(r"[^A-Za-z0-9_-]+", "_", domain)[:_LONGEST_STEM].strip("_") or "domain"
        stem, count = base, 1
        while stem.lower() in taken:
            count += 1
            stem = f"{base[: _LONGEST_STEM - 6]}-{count}"
        taken.add(stem.lower())
        stems[domain] = stem
    return stems


class OnnxTarget(ClosesStore):
    """Writes the target, one domain at a time, so that only one domain's weights are in memory.

    Use it as a context manager; the store is complete when the block is left.

    Args:
        root: The bundle's directory; `onnx/` is made in it.
        domains: The names of all domains.
        layout: The blocked layout to make ready-optimised variants for; None makes none. It must
            be this host's: the installed runtime does the work.
        stems: A file name without suffix per domain; from the names where None.
        weights: The name of the weight file; another one beside those of a bundle that is added to.

    Attributes:
        store: The shared store, for its figures.
    """

    def __init__(
        self,
        root: Path,
        domains: Sequence[str],
        layout: BlockedLayout | None,
        *,
        stems: Mapping[str, str] | None = None,
        weights: str = WEIGHTS,
    ) -> None:
        self._folder = root / FOLDER
        self._stems = file_stems(domains) if stems is None else dict(stems)
        self._layout = layout
        self._folder.mkdir(exist_ok=weights != WEIGHTS)
        self.store = StoreWriter(self._folder / weights)
        self._weights = weights

    def add(self, domain: str, model: ir.Model, labels: Sequence[str] | None = None) -> DomainModel:
        """Writes one domain's models.

        Args:
            domain: One of the domains given at the start.
            model: The domain's finished graph: float32, stock operators. It is not changed.
            labels: Class names, in the order of the output's classes.

        Returns:
            The manifest's entry for the domain. Its files can be opened already.

        Raises:
            UnsupportedGraphError: The model is not valid ONNX, or ONNX Runtime does not take it.
            OSError: A file cannot be written.
        """
        described = describe(domain, model.graph, labels)
        path = self._folder / f"{self._stems[domain]}.onnx"
        proto = write_model(model, path, self.store, domain)
        self.store.flush()
        check_model(path, domain)
        mapped: tuple[MappedVariant, ...] = ()
        if self._layout is not None:
            variant = write_mapped(proto, path, self.store, domain, self._layout)
            mapped = (dataclasses.replace(variant, file=f"{FOLDER}/{variant.file}"),)
            self.store.flush()
        files = OnnxFiles(f"{FOLDER}/{path.name}", f"{FOLDER}/{self._weights}", mapped)
        return dataclasses.replace(described, onnx=files)


def describe(domain: str, graph: ir.Graph, labels: Sequence[str] | None) -> DomainModel:
    """Returns what a caller must know to run a graph, in float32, without any target's files.

    Raises:
        UnsupportedGraphError: An input or output has no shape or element type.
    """
    inputs = tuple(_tensor_spec(domain, value) for value in graph.inputs)
    return DomainModel(
        labels=None if labels is None else tuple(labels),
        inputs=inputs,
        outputs=tuple(_tensor_spec(domain, value) for value in graph.outputs),
        dynamic_batch=all(spec.shape[:1] == (None,) for spec in inputs),
    )


def _tensor_spec(domain: str, value: ir.Value) -> TensorSpec:
    if value.name is None or value.shape is None or value.dtype is None:
        raise UnsupportedGraphError(
            f"domain {domain!r}: input or output {value.name!r} has no shape or element type"
        )
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    dtype = ir.DataType.FLOAT if value.dtype == ir.DataType.DOUBLE else value.dtype
    return TensorSpec(value.name, shape, dtype.numpy().name)

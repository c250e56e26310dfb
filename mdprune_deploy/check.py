"""Checks a bundle on disk against the checkpoint that it claims to be made from.

Nothing of the compile is trusted. First every file is compared with its sha256 and the figures of
every layer with what the checkpoint's masks give. Then three things are held against the masked
dense model in float64, on random, large and constant inputs:

* the graph that the passes make, in float64: at most 1e-9;
* the ONNX graph and weights that are stored, evaluated in float64 without any runtime: at most
  1e-5, which is what storing them in float32 may cost;
* what the engines give that run the stored files here: at most 1e-5.

For the native target that is the graph in float64 and its engine: a plan is run, not evaluated. The
tensorrt target's models are evaluated without a runtime: in float32 at most 1e-5, in float16 5e-3.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .bundle import Bundle, read_bundle
from .checkpoint import Checkpoint, load_checkpoint
from .emit.external import read_model, write_model
from .emit.mapped import write_mapped
from .emit.tensorrt.verify import in_half, model_error, tolerance
from .engines.cuda import CudaEngine
from .engines.native import NativeEngine
from .engines.ort import OnnxRuntimeEngine, Variant
from .errors import BackendUnavailableError, VerificationError
from .evaluate import Array, constant_array, evaluate
from .layout.nchwc import host_layout
from .layout.store import StoreWriter
from .manifest import DomainModel, OnnxFiles, TensorrtFiles
from .masks import fit_budget
from .passes.remove import Removed, remove_for
from .pipeline import feeds_of, run_engine
from .precision import widen
from .report import LayerFigures
from .verify import (
    ARTIFACT_TOLERANCE,
    GRAPH_TOLERANCE,
    HALF_TOLERANCE,
    Case,
    Error,
    can_batch,
    cases,
    check,
    first_difference,
    first_rounding,
    largest_error,
)


@dataclass(frozen=True)
class DomainCheck:
    """How far one domain is from its reference; all errors are max |y - r| / max |r|.

    Attributes:
        graph_rel_error: The graph that the passes make, in float64.
        stored_rel_error: The stored ONNX graph and weights, evaluated in float64; None where the
            bundle has none.
        max_abs_error: max |y - r| of the engine that is farthest off.
        max_rel_error: The same over max |r|.
        engines: Relative error by engine and variant, such as `onnxruntime avx512-mapped`; those in
            float16 count in no maximum.
        skipped: What could not run on this host, with the reason.
    """

    graph_rel_error: float
    stored_rel_error: float | None
    max_abs_error: float
    max_rel_error: float
    engines: dict[str, float]
    skipped: dict[str, str] = field(default_factory=dict)


def verify_bundle(
    bundle_dir: str | os.PathLike[str],
    checkpoint_or_path: Checkpoint | str | os.PathLike[str],
    *,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, DomainCheck]:
    """Checks every file, every figure and every domain of a bundle.

    Args:
        bundle_dir: The bundle.
        checkpoint_or_path: The checkpoint that was compiled, or its file. Its masks are fitted to
            the budget that the bundle records.
        device: Where the native target runs beside the processor, such as `"cuda"`.
        progress: Told the domain that begins, how many are done, and how many there are.

    Returns:
        The errors per domain, in the bundle's order.

    Raises:
        BackendUnavailableError: The device is not there.
        BundleError: A file is missing, damaged or not what the manifest says.
        CheckpointError: The checkpoint is unreadable or contradicts itself.
        VerificationError: The bundle is not this checkpoint's, or a domain differs from its
            reference; the message names the first node that differs.
    """
    bundle = read_bundle(Path(bundle_dir))
    bundle.check_hashes()
    checkpoint = (
        checkpoint_or_path
        if isinstance(checkpoint_or_path, Checkpoint)
        else load_checkpoint(checkpoint_or_path)
    )
    _same_domains(bundle, checkpoint)
    report = bundle.manifest.report
    if report.budget is not None:
        checkpoint = fit_budget(checkpoint, report.budget, report.metric, report.fit)  # type: ignore[arg-type]
    found = {}
    for index, name in enumerate(bundle.manifest.models):
        if progress is not None:
            progress(name, index, len(bundle.manifest.models))
        found[name] = _DomainVerifier(bundle, checkpoint, name, device).run()
    return found


def _same_domains(bundle: Bundle, checkpoint: Checkpoint) -> None:
    if set(bundle.manifest.models) != set(checkpoint.domains):
        raise VerificationError(
            f"{bundle.root} has the domains {', '.join(sorted(bundle.manifest.models))}; the "
            f"checkpoint has {', '.join(sorted(checkpoint.domains))}"
        )


class _DomainVerifier:
    """The checks of one domain; holds what they share."""

    def __init__(self, bundle: Bundle, checkpoint: Checkpoint, name: str, device: str) -> None:
        self._device = device
        self._root = bundle.root
        self._name = name
        self._model: DomainModel = bundle.manifest.models[name]
        self._recorded = bundle.manifest.report.domains[name].layers
        self._checkpoint = checkpoint

    def run(self) -> DomainCheck:
        files, native = self._model.onnx, self._model.native
        tensorrt = self._model.tensorrt
        targets = [name for name, part in (("onnx", files), ("native", native)) if part]
        if not targets:
            raise BackendUnavailableError(
                f"the bundle has no target for domain {self._name!r} that this version of mdprune "
                "can check"
            )
        graphs = remove_for(self._checkpoint, self._name, targets)
        self._same_figures(graphs[targets[0]])
        found = cases(self._checkpoint, self._name)
        batched = can_batch(self._checkpoint, found)
        graph = max(self._graph_error(r, found, batched).relative for r in graphs.values())
        stored: float | None = None
        engines: dict[str, Error] = {}
        skipped: dict[str, str] = {}
        if files is not None:
            removed = graphs["onnx"]
            stored = self._stored_error(files, removed, found, batched).relative
            engines, skipped = self._engine_errors(files, removed, found, batched)
        if native is not None:
            self._native_error(graphs["native"], found, batched, engines, skipped)
        half: dict[str, Error] = {}
        if native is not None and self._device != "cpu":
            self._device_errors(found, batched, engines, half)
        if tensorrt is not None:
            self._tensorrt_errors(tensorrt, found, batched, engines, half)
        worst = max(engines.values(), key=lambda error: error.relative, default=Error())
        return DomainCheck(
            graph_rel_error=graph,
            stored_rel_error=stored,
            max_abs_error=worst.absolute,
            max_rel_error=worst.relative,
            engines={name: error.relative for name, error in {**engines, **half}.items()},
            skipped=skipped,
        )

    def _same_figures(self, removed: Removed) -> None:
        for recorded, actual in zip_longest(self._recorded, removed.layers):
            if _uses(recorded) != _uses(actual):
                layer = (actual or recorded).name
                raise VerificationError(
                    f"domain {self._name!r}: the bundle is not of these masks: of layer {layer!r} "
                    f"it uses {_uses(recorded)[1]:,} weights, the checkpoint's masks "
                    f"{_uses(actual)[1]:,}; was it compiled from another checkpoint?"
                )

    def _graph_error(self, removed: Removed, found: list[Case], batched: bool) -> Error:
        graph = removed.model.graph
        error = largest_error(found, lambda feeds: evaluate(graph, feeds), batched=batched)
        if error.relative > GRAPH_TOLERANCE:
            where = self._first_difference(graph, removed, found, error, GRAPH_TOLERANCE)
            check(self._name, "the narrowed graph in float64", error, GRAPH_TOLERANCE, where)
        return error

    def _stored_error(
        self, files: OnnxFiles, removed: Removed, found: list[Case], batched: bool
    ) -> Error:
        model = read_model(self._root / files.portable)
        self._same_inputs(model, files.portable)
        widen(model.graph)
        error = largest_error(found, lambda feeds: evaluate(model.graph, feeds), batched=batched)
        if error.relative > ARTIFACT_TOLERANCE:
            where = self._first_difference(model.graph, removed, found, error, ARTIFACT_TOLERANCE)
            check(self._name, f"the graph in {files.portable}", error, ARTIFACT_TOLERANCE, where)
        return error

    def _same_inputs(self, model: ir.Model, path: str) -> None:
        stored = [str(value.name) for value in model.graph.inputs]
        if stored != list(self._checkpoint.examples):
            raise VerificationError(
                f"domain {self._name!r}: {path} takes {', '.join(stored)}; the checkpoint's "
                f"network takes {', '.join(self._checkpoint.examples)}"
            )

    def _engine_errors(
        self, files: OnnxFiles, removed: Removed, found: list[Case], batched: bool
    ) -> tuple[dict[str, Error], dict[str, str]]:
        errors: dict[str, Error] = {}
        skipped: dict[str, str] = {}
        variants: tuple[Variant, ...] = ("portable", "mapped") if files.mapped else ("portable",)
        for variant in variants:
            try:
                engine = OnnxRuntimeEngine(self._root, self._name, self._model, 1, variant)
            except BackendUnavailableError as reason:
                skipped[f"onnxruntime {variant}"] = str(reason)
                continue
            error = largest_error(found, lambda feeds: run_engine(engine, feeds), batched=batched)  # noqa: B023
            if error.relative > ARTIFACT_TOLERANCE:
                where = self._where_engine_differs(variant, files, removed, found, error)
                check(
                    self._name,
                    f"the {variant} ONNX model in ONNX Runtime",
                    error,
                    ARTIFACT_TOLERANCE,
                    where,
                )
            errors[f"onnxruntime {engine.variant}"] = error
        return errors, skipped

    def _native_error(
        self,
        removed: Removed,
        found: list[Case],
        batched: bool,
        errors: dict[str, Error],
        skipped: dict[str, str],
    ) -> None:
        """Runs the plan and notes its error, or why it could not run."""
        try:
            engine = NativeEngine(self._root, self._name, self._model)
        except BackendUnavailableError as reason:
            skipped["native"] = str(reason)
            return
        error = largest_error(found, lambda feeds: run_engine(engine, feeds), batched=batched)
        if error.relative > ARTIFACT_TOLERANCE:
            where = first_rounding(removed.model, feeds_of(found, error))
            check(self._name, "the native plan", error, ARTIFACT_TOLERANCE, where)
        errors[f"native {engine.variant}"] = error

    def _device_errors(
        self, found: list[Case], batched: bool, errors: dict[str, Error], half: dict[str, Error]
    ) -> None:
        """Runs the plan on the device and notes its errors, those of float16 apart."""
        for precision, limit, noted in (
            ("float32", ARTIFACT_TOLERANCE, errors),
            ("float16", HALF_TOLERANCE, half),
        ):
            engine = CudaEngine(
                self._root, self._name, self._model, device=self._device, precision=precision
            )
            ordinary = found if noted is errors else in_half(found)
            error = largest_error(ordinary, partial(run_engine, engine), batched=batched)
            check(self._name, f"the native plan on {engine.variant}", error, limit, None)
            noted[f"native {engine.variant}"] = error

    def _tensorrt_errors(
        self,
        files: TensorrtFiles,
        found: list[Case],
        batched: bool,
        errors: dict[str, Error],
        half: dict[str, Error],
    ) -> None:
        """Evaluates the models and notes their errors, those of float16 apart."""
        for model in files.models:
            error = model_error(self._root, model, found, batched)
            check(self._name, model.file, error, tolerance(model), None)
            kind = "plug-ins" if model.plugins else "stock"
            noted = half if model.precision == "fp16" else errors
            noted[f"evaluated tensorrt {kind} {model.precision}"] = error

    def _where_engine_differs(
        self,
        variant: Variant,
        files: OnnxFiles,
        removed: Removed,
        found: list[Case],
        error: Error,
    ) -> str | None:
        changed = _first_changed_node(self._root, files) if variant == "mapped" else None
        return changed or first_rounding(removed.model, feeds_of(found, error))

    def _first_difference(
        self,
        graph: ir.Graph,
        removed: Removed,
        found: list[Case],
        error: Error,
        tolerance: float,
    ) -> str | None:
        return first_difference(
            self._checkpoint, self._name, graph, removed.origins, feeds_of(found, error), tolerance
        )


def _uses(layer: LayerFigures | None) -> tuple[int, int]:
    return (0, 0) if layer is None else (layer.params_dense, layer.params_used)


def _first_changed_node(root: Path, files: OnnxFiles) -> str | None:
    """Returns the first node of the mapped model that this runtime would not make of the portable.

    The blocked weights have no counterpart in the reference; but the model was made from the
    portable one by the runtime that is installed here, so making it again shows what changed.
    """
    layout = host_layout()
    fitting = [variant for variant in files.mapped if layout and variant.isa == layout.isa]
    if layout is None or not fitting:
        return None
    stored = read_model(root / fitting[0].file)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with StoreWriter(path.with_name("weights.bin")) as store:
            proto = write_model(read_model(root / files.portable), path, store, "")
            store.flush()
            again = write_mapped(proto, path, store, "", layout)
        fresh = read_model(path.with_name(again.file))
        for old, new in zip(stored.graph, fresh.graph, strict=False):
            if old.op_type != new.op_type or not _same_constants(old, new):
                return f"{old.op_type} {old.name!r}"
    return None


def _same_constants(first: ir.Node, second: ir.Node) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(_constants(first), _constants(second), strict=True)
    )


def _constants(node: ir.Node) -> Iterator[Array]:
    for value in node.inputs:
        if value is not None and value.is_initializer():
            yield constant_array(value)


def to_json(checks: Mapping[str, DomainCheck]) -> dict[str, object]:
    """Returns the checks as plain JSON types."""
    return {"version": 1, "domains": {name: asdict(check) for name, check in checks.items()}}

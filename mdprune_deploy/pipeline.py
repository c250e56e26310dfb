"""The compile: checkpoint -> passes -> layout -> emit -> verify -> bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import onnx_ir as ir

from .budget import Metric
from .bundle import BundleWriter
from .checkpoint import Checkpoint, load_checkpoint
from .emit.native.record import Record
from .emit.native.target import NativeTarget, free_name
from .emit.onnx_target import OnnxTarget, describe, file_stems
from .emit.tensorrt.target import TensorrtTarget
from .emit.tensorrt.verify import verified
from .engines.native import NativeEngine, load_library
from .engines.ort import OnnxRuntimeEngine
from .errors import BackendUnavailableError, UnsupportedGraphError, UsageError
from .evaluate import Array, evaluate
from .export import OPSET
from .layout.nchwc import host_layout
from .layout.store import StoreWriter
from .manifest import DomainModel
from .masks import fit_budget
from .passes.bind import WeightUse
from .passes.elements import Indices
from .passes.figures import UsedPairs, union_and_intersection
from .passes.lower import to_float32
from .passes.remove import Removed, remove, remove_for, shared_orders
from .passes.trace import example_feeds
from .report import CompileReport, DomainReport, Held, Missing, PluginChoice, WeightLayout
from .verify import (
    ARTIFACT_TOLERANCE,
    GRAPH_TOLERANCE,
    Case,
    Error,
    Feeds,
    can_batch,
    cases,
    check,
    check_rounding,
    first_difference,
    first_rounding,
    largest_error,
)

TARGETS = ("onnx", "native", "tensorrt")
DEFAULT_TARGETS = ("onnx", "native")


class Progress(Protocol):
    """Told of every stage as it begins."""

    def __call__(self, domain: str, stage: str, done: int, total: int) -> None:
        """Takes the domain and stage that begin, and how many stages are done of all."""


def compile(
    checkpoint_or_path: Checkpoint | str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    budget: float | None = None,
    metric: Metric = "params",
    targets: Sequence[str] | None = None,
    fit: Literal["magnitude"] | None = None,
    overwrite: bool = False,
    memory_limit: int | None = None,
    progress: Progress | None = None,
) -> CompileReport:
    """Compiles every domain of a checkpoint into one bundle.

    Args:
        checkpoint_or_path: A checkpoint, or the file of one.
        output_dir: The bundle's directory; it appears whole or not at all.
        budget: Largest used share of a domain's masked weights, in (0, 1]; None takes the masks
            as they are.
        metric: What the budget counts: `"params"`, `"macs"` or `"switches"`.
        targets: What to emit, such as `("onnx", "native")`. None: both, and where the native
            target cannot express the graph or check it here, the report's `missing` says why.
            `"tensorrt"` brings `"native"` with it, whose weights its plug-in nodes read.
        fit: `"magnitude"` lets boolean masks outside the budget be cut by weight norm.
        overwrite: Replace a bundle that stands at `output_dir`.
        memory_limit: Most bytes of the native target's weight file. What the union of all domains
            leaves of it is spent on private copies where they save most time. None: the union.
        progress: Told of every stage.

    Returns:
        The figures; `manifest.json` holds the same without the seconds.

    Raises:
        CheckpointError: The checkpoint is unreadable or contradicts itself.
        BudgetError: The masks do not fit the budget, or the weights the memory limit.
        UnsupportedGraphError: The graph holds something that cannot be compiled exactly.
        VerificationError: What was compiled differs from the reference.
        BackendUnavailableError: A target is not available.
        UsageError: An argument is wrong or the output cannot be written.
    """
    start = time.perf_counter()
    _check_targets(targets)
    if targets is not None and "tensorrt" in targets and "native" not in targets:
        targets = [*targets, "native"]
    if memory_limit is not None and targets is not None and "native" not in targets:
        raise UsageError("a memory limit is one of the native target, which was not asked for")
    with BundleWriter(Path(output_dir), overwrite) as writer:
        checkpoint = (
            checkpoint_or_path
            if isinstance(checkpoint_or_path, Checkpoint)
            else load_checkpoint(checkpoint_or_path)
        )
        if budget is not None:
            checkpoint = fit_budget(checkpoint, budget, metric, fit)
        run = Run(checkpoint, writer.root, targets, memory_limit, progress)
        report = dataclasses.replace(run.compile(), budget=budget, metric=metric, fit=fit)
        writer.finish(report, run.models, versions())
    return dataclasses.replace(report, seconds=time.perf_counter() - start)


@dataclasses.dataclass(frozen=True)
class Onto:
    """A bundle that is added to; what it keeps lies in the root already.

    Attributes:
        record: What its weight files hold.
        stems: A file name without suffix per domain that is added.
    """

    record: Record
    stems: Mapping[str, str]


class Run:
    """One compile, a domain at a time, so that one domain's weights are in memory.

    Args:
        checkpoint: What is compiled.
        root: Where the bundle is built.
        targets: What to emit; None for all, the native one where it can be.
        memory_limit: Most bytes of the native weight file.
        progress: Told of every stage.
        onto: A bundle that is added to.

    Attributes:
        models: Per domain what runs it, once it is compiled.
        used: Per domain the used set of every weight.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        root: Path,
        targets: Sequence[str] | None,
        memory_limit: int | None,
        progress: Progress | None,
        onto: Onto | None = None,
    ) -> None:
        self._onto = onto
        self.models: dict[str, DomainModel] = {}
        self._checkpoint = checkpoint
        self._root = root
        self._insists = targets is not None
        self._targets = list(DEFAULT_TARGETS if targets is None else targets)
        self._memory_limit = memory_limit
        self._layout: tuple[WeightLayout, ...] = ()
        self._plugins: tuple[PluginChoice, ...] = ()
        self._progress = progress
        self._done = 0
        self.used: dict[str, dict[WeightUse, UsedPairs]] = {}
        self._held: list[Held] = []
        self._orders: dict[str, Indices] = {}
        self._missing: list[Missing] = []
        self._cases: dict[str, tuple[list[Case], bool]] = {}

    def compile(self) -> CompileReport:
        """Compiles every domain; returns the figures."""
        names = list(self._checkpoint.domains)
        stores: list[StoreWriter] = []
        with contextlib.ExitStack() as stack:
            onnx = native = tensorrt = None
            if "onnx" in self._targets:
                onnx = stack.enter_context(self._onnx_target(names))
                stores.append(onnx.store)
            if "native" in self._targets:
                native = stack.enter_context(self._native_target(names))
                self._tolerate(native, load_library)
            if "tensorrt" in self._targets:
                target = TensorrtTarget(self._root, file_stems(names))
                tensorrt = stack.enter_context(target)
                stores.append(tensorrt.store)
            if self._onto is not None:
                self._orders = dict(self._onto.record.orders)
            elif "native" in self._targets and len(names) > 1:
                self._orders = shared_orders(self._checkpoint)
            reports = {name: self._domain(name, onnx, native, tensorrt) for name in names}
            if native is not None and self._tolerate(native, lambda: self._finish(native, reports)):
                stores.append(native.store)
            if native is not None and tensorrt is not None:
                self._finish_tensorrt(tensorrt, native, reports)
        union, intersection = union_and_intersection(self.used)
        return CompileReport(
            domains=reports,
            params_union=union,
            params_intersection=intersection,
            bytes_shared=sum(store.bytes_shared for store in stores),
            bytes_private=sum(store.bytes_private for store in stores),
            seconds=None,
            held=tuple(self._held),
            missing=tuple(self._missing),
            layout=self._layout,
            memory_limit=self._memory_limit,
            plugins=self._plugins,
        )

    def _onnx_target(self, names: list[str]) -> OnnxTarget:
        if self._onto is None:
            return OnnxTarget(self._root, names, host_layout())
        weights = free_name(self._root / "onnx", "weights-{}.bin")
        stems = self._onto.stems
        return OnnxTarget(self._root, names, host_layout(), stems=stems, weights=weights)

    def _native_target(self, names: list[str]) -> NativeTarget:
        if self._onto is None:
            return NativeTarget(self._root, file_stems(names))
        return NativeTarget(self._root, self._onto.stems, self._onto.record)

    def _tolerate(self, native: NativeTarget, step: Callable[[], object]) -> bool:
        """Takes a step of the native target, if it is still there; tells whether it worked.

        Where nobody insisted on the target, the bundle goes without it and the report says why.
        """
        if "native" not in self._targets:
            return False
        try:
            step()
        except (UnsupportedGraphError, BackendUnavailableError) as error:
            if self._insists:
                raise
            native.discard()
            self._targets.remove("native")
            self._missing.append(Missing("native", str(error)))
            return False
        return True

    def _domain(
        self,
        name: str,
        onnx: OnnxTarget | None,
        native: NativeTarget | None,
        tensorrt: TensorrtTarget | None,
    ) -> DomainReport:
        self._begin(name, "remove")
        forms = [target for target in self._targets if target != "tensorrt"]
        if tensorrt is not None and "onnx" not in forms:
            forms.append("onnx")  # its stock models
        graphs = remove_for(self._checkpoint, name, forms, self._orders)
        removed = next(iter(graphs.values()))
        self.used[name] = dict(removed.used)
        self._held.extend(removed.held)
        self._begin(name, "check the graph")
        found = cases(self._checkpoint, name)
        batched = can_batch(self._checkpoint, found)
        for graph in graphs.values():
            self._check_graph(name, graph, found, batched)
        self._begin(name, "emit")
        labels = self._checkpoint.domains[name].labels
        self.models[name] = describe(name, removed.model.graph, labels)
        if native is not None and "native" in graphs:
            self._cases[name] = self._slim(found), batched
            self._tolerate(native, lambda: self._add_native(native, name, graphs["native"]))
        if tensorrt is not None:
            self._add_tensorrt(tensorrt, name, graphs)
        error = Error()
        if onnx is not None:
            self.models[name] = onnx.add(name, to_float32(graphs["onnx"].model), labels)
            self._begin(name, "check the files")
            error = self._check_files(name, graphs["onnx"], found, batched)
        totals = {
            figure: sum(getattr(layer, figure) for layer in removed.layers)
            for figure in (
                "params_dense", "params_used", "params_emitted", "macs_dense", "macs_emitted",
            )
        }  # fmt: skip
        return DomainReport(
            **totals,
            max_abs_error=error.absolute,
            max_rel_error=error.relative,
            layers=removed.layers,
        )

    def _add_native(self, native: NativeTarget, name: str, graph: Removed) -> None:
        try:
            native.add(
                name,
                graph.model,
                example_feeds(self._checkpoint),
                dynamic_batch=self._checkpoint.dynamic_batch,
                layers=graph.layers,
                labels=self._checkpoint.domains[name].labels,
            )
        except UnsupportedGraphError as error:
            raise UnsupportedGraphError(f"domain {name!r}: {error}") from error

    def _add_tensorrt(
        self, tensorrt: TensorrtTarget, name: str, graphs: Mapping[str, Removed]
    ) -> None:
        feeds = example_feeds(self._checkpoint)
        if self._checkpoint.dynamic_batch:
            feeds = {key: array[:1] for key, array in feeds.items()}
        tensorrt.add(name, graphs["onnx"].model, graphs["native"].model, feeds)

    def _finish_tensorrt(
        self, tensorrt: TensorrtTarget, native: NativeTarget, reports: dict[str, DomainReport]
    ) -> None:
        """Writes the models with plug-in nodes and evaluates all models."""
        written = tensorrt.finish(native.placed, native.layout)
        self._plugins = tensorrt.choices
        self._missing.extend(Missing(*lacking) for lacking in tensorrt.lacking)
        for name, files in written.items():
            self._begin(name, "check the TensorRT models")
            found, batched = self._cases[name]
            files, error, missing = verified(self._root, name, files, found, batched)
            self.models[name] = dataclasses.replace(self.models[name], tensorrt=files)
            self._missing.extend(missing)
            reports[name] = reports[name].with_error(error.absolute, error.relative)

    def _slim(self, found: list[Case]) -> list[Case]:
        """Keeps one copy of the inputs, which are the same for all domains."""
        first = next(iter(self._cases.values()), (found, False))[0]
        inputs = {case.name: case.feeds for case in first}
        return [dataclasses.replace(case, feeds=inputs[case.name]) for case in found]

    def _finish(self, native: NativeTarget, reports: dict[str, DomainReport]) -> None:
        """Writes the plans and runs them."""
        for name, files in native.finish(self._memory_limit).items():
            self.models[name] = dataclasses.replace(self.models[name], native=files)
        self._layout = native.layout
        before = {} if self._onto is None else self._onto.record.used
        native.write_record(self._orders, {**before, **self.used})
        try:
            for name, report in reports.items():
                self._begin(name, "check the plan")
                error = self._check_plan(name)
                reports[name] = report.with_error(error.absolute, error.relative)
        except UnsupportedGraphError:
            self._layout = ()
            for name, model in self.models.items():
                self.models[name] = dataclasses.replace(model, native=None)
            raise

    def _begin(self, name: str, stage: str) -> None:
        if self._progress is not None:
            stages = 3 + len(self._targets)
            self._progress(name, stage, self._done, stages * len(self._checkpoint.domains))
        self._done += 1

    def _check_graph(self, name: str, removed: Removed, found: list[Case], batched: bool) -> None:
        graph = removed.model.graph
        error = largest_error(found, lambda feeds: evaluate(graph, feeds), batched=batched)
        if error.relative > GRAPH_TOLERANCE:
            where = first_difference(
                self._checkpoint, name, graph, removed.origins, feeds_of(found, error),
                GRAPH_TOLERANCE,
            )  # fmt: skip
            check(name, "the narrowed graph in float64", error, GRAPH_TOLERANCE, where)

    def _check_files(self, name: str, removed: Removed, found: list[Case], batched: bool) -> Error:
        worst = Error()
        model = self.models[name]
        variants: list[Literal["portable", "mapped"]] = ["portable"]
        if model.onnx is not None and model.onnx.mapped:
            variants.append("mapped")
        for variant in variants:
            engine = OnnxRuntimeEngine(self._root, name, model, 1, variant)
            error = largest_error(found, lambda feeds: run_engine(engine, feeds), batched=batched)  # noqa: B023
            feeds = feeds_of(found, error)
            check_rounding(name, f"the {variant} ONNX model", error, removed.model, feeds)
            worst = max(worst, error, key=lambda e: e.relative)
        return worst

    def _check_plan(self, name: str) -> Error:
        found, batched = self._cases[name]
        engine = NativeEngine(self._root, name, self.models[name])
        error = largest_error(found, lambda feeds: run_engine(engine, feeds), batched=batched)
        if error.relative > ARTIFACT_TOLERANCE:
            removed = remove(self._checkpoint, name, "native")
            refuse_mixed_images(name, removed.model, found, batched)
            where = first_rounding(removed.model, feeds_of(found, error))
            check(name, "the native plan", error, ARTIFACT_TOLERANCE, where)
        return error


def feeds_of(found: Sequence[Case], error: Error) -> Feeds:
    """Returns the inputs on which an error was found; none where there is no error."""
    return next((case.feeds for case in found if case.name == error.case), {})


def refuse_mixed_images(name: str, model: ir.Model, found: Sequence[Case], batched: bool) -> None:
    """Refuses a graph that computes something else of a batch than of its images.

    Raises:
        UnsupportedGraphError: The images of a batch meet, which a plan cannot express.
    """

    def image_by_image(feeds: Feeds) -> list[Array]:
        count = next(iter(feeds.values())).shape[0]
        parts = [
            evaluate(model.graph, {key: array[i : i + 1] for key, array in feeds.items()})
            for i in range(count)
        ]
        return [np.concatenate(images) for images in zip(*parts, strict=True)]

    if batched and largest_error(found, image_by_image, batched=True).relative > GRAPH_TOLERANCE:
        raise UnsupportedGraphError(
            f"domain {name!r}: the images of a batch depend on each other; the native target runs "
            "a batch image by image"
        )


def run_engine(engine: Callable[..., Array | list[Array]], feeds: Feeds) -> list[Array]:
    """Runs an engine on inputs given in float64."""
    arrays = [a.astype(np.float32) if a.dtype == np.float64 else a for a in feeds.values()]
    outputs = engine(*arrays)
    return outputs if isinstance(outputs, list) else [outputs]


def _check_targets(targets: Sequence[str] | None) -> None:
    if targets is None:
        return
    for target in targets:
        if target not in TARGETS:
            raise UsageError(f"unknown target {target!r}; there are {', '.join(TARGETS)}")
    if not targets:
        raise UsageError(f"no target was named; there are {', '.join(TARGETS)}")


def versions() -> dict[str, str]:
    """Returns the versions of what makes a bundle."""
    return {
        "mdprune": metadata.version("mdprune-deploy"),
        "onnxruntime": metadata.version("onnxruntime"),
        "opset": str(OPSET),
    }

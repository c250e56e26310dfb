"""The compile: checkpoint -> passes -> layout -> emit -> verify -> bundle."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from .budget import Metric
from .bundle import BundleWriter
from .checkpoint import Checkpoint, load_checkpoint
from .emit.onnx_target import OnnxTarget
from .engines.ort import OnnxRuntimeEngine
from .errors import BackendUnavailableError, UsageError
from .evaluate import Array, evaluate
from .export import OPSET
from .layout.nchwc import host_layout
from .manifest import DomainModel
from .masks import fit_budget
from .passes.bind import WeightUse
from .passes.figures import UsedPairs, union_and_intersection
from .passes.lower import to_float32
from .passes.remove import Removed, remove
from .report import CompileReport, DomainReport, Held
from .verify import (
    GRAPH_TOLERANCE,
    Case,
    Error,
    Feeds,
    can_batch,
    cases,
    check,
    check_rounding,
    first_difference,
    largest_error,
)

TARGETS = ("onnx", "native", "tensorrt")
DEFAULT_TARGETS = ("onnx",)


class Progress(Protocol):
    """Told of every stage as it begins."""

    def __call__(self, domain: str, stage: str, done: int, total: int) -> None:
        """Takes the domain and stage that begin, and how many stages are done of all."""


STAGES = ("remove", "check the graph", "emit", "check the files")


def compile(
    checkpoint_or_path: Checkpoint | str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    budget: float | None = None,
    metric: Metric = "params",
    targets: Sequence[str] = DEFAULT_TARGETS,
    fit: Literal["magnitude"] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CompileReport:
    """Compiles every domain of a checkpoint into one bundle.

    Args:
        checkpoint_or_path: A checkpoint, or the file of one.
        output_dir: The bundle's directory; it appears whole or not at all.
        budget: Largest used share of a domain's masked weights, in (0, 1]; None takes the masks
            as they are.
        metric: What the budget counts: `"params"`, `"macs"` or `"switches"`.
        targets: What to emit: `"onnx"`.
        fit: `"magnitude"` lets boolean masks outside the budget be cut by weight norm.
        overwrite: Replace a bundle that stands at `output_dir`.
        progress: Told of every stage.

    Returns:
        The figures; `manifest.json` holds the same without the seconds.

    Raises:
        CheckpointError: The checkpoint is unreadable or contradicts itself.
        BudgetError: The masks do not fit the budget.
        UnsupportedGraphError: The graph holds something that cannot be compiled exactly.
        VerificationError: What was compiled differs from the reference.
        BackendUnavailableError: A target is not available.
        UsageError: An argument is wrong or the output cannot be written.
    """
    start = time.perf_counter()
    _check_targets(targets)
    with BundleWriter(Path(output_dir), overwrite) as writer:
        checkpoint = (
            checkpoint_or_path
            if isinstance(checkpoint_or_path, Checkpoint)
            else load_checkpoint(checkpoint_or_path)
        )
        if budget is not None:
            checkpoint = fit_budget(checkpoint, budget, metric, fit)
        run = _Run(checkpoint, writer.root, progress)
        report = dataclasses.replace(run.compile(), budget=budget, metric=metric, fit=fit)
        writer.finish(report, run.models, _versions())
    return dataclasses.replace(report, seconds=time.perf_counter() - start)


class _Run:
    """One compile, a domain at a time, so that one domain's weights are in memory."""

    def __init__(self, checkpoint: Checkpoint, root: Path, progress: Progress | None) -> None:
        self.models: dict[str, DomainModel] = {}
        self._checkpoint = checkpoint
        self._root = root
        self._progress = progress
        self._done = 0
        self._used: dict[str, dict[WeightUse, UsedPairs]] = {}
        self._held: list[Held] = []

    def compile(self) -> CompileReport:
        checkpoint = self._checkpoint
        reports = {}
        with OnnxTarget(self._root, list(checkpoint.domains), host_layout()) as target:
            for name in checkpoint.domains:
                reports[name] = self._domain(name, target)
        union, intersection = union_and_intersection(self._used)
        return CompileReport(
            domains=reports,
            params_union=union,
            params_intersection=intersection,
            bytes_shared=target.store.bytes_shared,
            bytes_private=target.store.bytes_private,
            seconds=None,
            held=tuple(self._held),
        )

    def _domain(self, name: str, target: OnnxTarget) -> DomainReport:
        self._begin(name)
        removed = remove(self._checkpoint, name)
        self._used[name] = dict(removed.used)
        self._held.extend(removed.held)
        self._begin(name)
        found = cases(self._checkpoint, name)
        batched = can_batch(self._checkpoint, found)
        self._check_graph(name, removed, found, batched)
        self._begin(name)
        emitted = to_float32(removed.model)
        self.models[name] = target.add(name, emitted, self._checkpoint.domains[name].labels)
        self._begin(name)
        error = self._check_files(name, removed, found, batched)
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

    def _begin(self, name: str) -> None:
        if self._progress is not None:
            stage = STAGES[self._done % len(STAGES)]
            total = len(STAGES) * len(self._checkpoint.domains)
            self._progress(name, stage, self._done, total)
        self._done += 1

    def _check_graph(self, name: str, removed: Removed, found: list[Case], batched: bool) -> None:
        graph = removed.model.graph
        error = largest_error(found, lambda feeds: evaluate(graph, feeds), batched=batched)
        if error.relative > GRAPH_TOLERANCE:
            where = self._locate(name, removed, found, error, GRAPH_TOLERANCE)
            check(name, "the narrowed graph in float64", error, GRAPH_TOLERANCE, where)

    def _locate(
        self, name: str, removed: Removed, found: list[Case], error: Error, tolerance: float
    ) -> str | None:
        feeds = next(case.feeds for case in found if case.name == error.case)
        return first_difference(
            self._checkpoint, name, removed.model.graph, removed.origins, feeds, tolerance
        )

    def _check_files(self, name: str, removed: Removed, found: list[Case], batched: bool) -> Error:
        worst = Error()
        model = self.models[name]
        variants: list[Literal["portable", "mapped"]] = ["portable"]
        if model.onnx is not None and model.onnx.mapped:
            variants.append("mapped")
        for variant in variants:
            engine = OnnxRuntimeEngine(self._root, name, model, 1, variant)
            error = largest_error(found, lambda feeds: run_engine(engine, feeds), batched=batched)  # noqa: B023
            feeds = next((case.feeds for case in found if case.name == error.case), {})
            check_rounding(name, f"the {variant} ONNX model", error, removed.model, feeds)
            worst = max(worst, error, key=lambda e: e.relative)
        return worst


def run_engine(engine: Callable[..., Array | list[Array]], feeds: Feeds) -> list[Array]:
    """Runs an engine on inputs given in float64."""
    arrays = [a.astype(np.float32) if a.dtype == np.float64 else a for a in feeds.values()]
    outputs = engine(*arrays)
    return outputs if isinstance(outputs, list) else [outputs]


def _check_targets(targets: Sequence[str]) -> None:
    for target in targets:
        if target not in TARGETS:
            raise UsageError(f"unknown target {target!r}; there are {', '.join(TARGETS)}")
        if target not in DEFAULT_TARGETS:
            raise BackendUnavailableError(
                f"this version of mdprune cannot emit the {target} target; use the onnx target"
            )
    if not targets:
        raise UsageError(f"no target was named; there are {', '.join(DEFAULT_TARGETS)}")


def _versions() -> dict[str, str]:
    return {
        "mdprune": metadata.version("mdprune-deploy"),
        "onnxruntime": metadata.version("onnxruntime"),
        "opset": str(OPSET),
    }

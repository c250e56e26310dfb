"""The `onnxruntime` engine: one session per domain, weights mapped, one arena for all sessions.

Of a domain's models the ready-optimised one runs if this host has the layout and the version that
it was made for; otherwise the portable one, and `note` says why. All sessions of a process take
their activations from one arena, so memory grows with the largest domain, not with their number.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from mdprune_deploy.engines.base import Array, DomainEngine, check_inputs
from mdprune_deploy.errors import (
    BackendUnavailableError,
    BundleError,
    UnsupportedGraphError,
    UsageError,
)
from mdprune_deploy.layout.nchwc import BlockedLayout, host_layout
from mdprune_deploy.manifest import DomainModel, MappedVariant, OnnxFiles

Variant = Literal["portable", "mapped"]
VARIANTS: tuple[Variant, ...] = ("portable", "mapped")


class OnnxRuntimeEngine(DomainEngine):
    """Runs one domain with ONNX Runtime on the CPU; one object serves any number of threads.

    Args:
        root: The bundle's directory.
        domain: The domain's name.
        model: The manifest's entry for it.
        threads: Threads that one call uses.
        variant: `"portable"` or `"mapped"` to insist on one, None for the best that fits this host.

    Raises:
        BackendUnavailableError: The bundle has no ONNX target, or the mapped variant was asked for
            and none fits this host.
        BundleError: ONNX Runtime cannot open the model.
        UsageError: `threads` or `variant` is wrong.
    """

    name = "onnxruntime"

    def __init__(
        self,
        root: Path,
        domain: str,
        model: DomainModel,
        threads: int = 1,
        variant: str | None = None,
    ) -> None:
        if variant is not None and variant not in VARIANTS:
            raise UsageError(f"unknown variant {variant!r}; there are {', '.join(VARIANTS)}")
        super().__init__(domain, model, threads, "onnx", model.onnx)
        assert model.onnx is not None
        mapped, self.note = (None, None) if variant == "portable" else _fitting(model.onnx)
        if variant == "mapped" and mapped is None:
            raise BackendUnavailableError(f"domain {domain!r}: {self.note}")
        self.variant = "portable" if mapped is None else f"{mapped.isa}-mapped"
        path = root / (model.onnx.portable if mapped is None else mapped.file)
        self._session = _open(path, threads, mapped)

    def __call__(self, *arrays: Array) -> Array | list[Array]:
        """Runs the domain; see `Engine`."""
        check_inputs(self.domain, self.inputs, arrays)
        feeds = {spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}
        try:
            outputs: list[Array] = self._session.run([spec.name for spec in self.outputs], feeds)
        except _REFUSALS as error:  # an operator that the runtime opens but cannot run
            raise UnsupportedGraphError(
                f"domain {self.domain!r}: ONNX Runtime cannot run the model: {error}"
            ) from error
        return outputs[0] if len(outputs) == 1 else outputs


def _fitting(files: OnnxFiles) -> tuple[MappedVariant | None, str | None]:
    """Returns the ready-optimised variant that this host can run, or why there is none."""
    here = host_layout()
    for variant in files.mapped:
        if here == BlockedLayout(variant.isa, variant.block, variant.onnxruntime):
            return variant, None
    made_for = ", ".join(f"{v.isa} with ONNX Runtime {v.onnxruntime}" for v in files.mapped)
    have = f"{here.isa} with ONNX Runtime {here.onnxruntime}" if here else "no blocked layout"
    return None, f"ready-optimised variants are for {made_for or 'nothing'}; this host has {have}"


def _open(path: Path, threads: int, mapped: MappedVariant | None) -> onnxruntime.InferenceSession:
    _share_arena()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if mapped is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        prepacking = "0" if mapped.prepacking else "1"
        options.add_session_config_entry("session.disable_prepacking", prepacking)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _REFUSALS as error:
        raise BundleError(f"{path}: ONNX Runtime cannot open the model: {error}") from error


_REFUSALS = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoSuchFile,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)


@functools.cache
def _share_arena() -> None:
    """Registers the arena that all sessions of this process share; once is enough."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, None)

"""The `tensorrt` engine: one execution context per domain, buffers and timing by pycuda.

The engine is taken from beside the bundle, or built there first, which takes minutes. Domains whose
models have plug-in nodes read one copy of the bundle's weights on the device.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np

from mdprune_deploy.bundle import Bundle
from mdprune_deploy.engines.base import Array, DomainEngine, check_inputs
from mdprune_deploy.engines.tensorrt_build import (
    build_engine,
    choose_model,
    device_name,
    engine_path,
    import_cuda,
    import_runtime,
    load_plugins,
)
from mdprune_deploy.errors import BackendUnavailableError, UsageError
from mdprune_deploy.manifest import TensorSpec

VARIANTS = ("plugins", "stock")
_PRECISIONS = {"float16": "fp16", "float32": "fp32"}


class TensorrtEngine(DomainEngine):
    """Runs one domain with TensorRT; calls from several threads take turns.

    Args:
        bundle: The bundle.
        domain: The domain's name.
        threads: Threads of the host; the GPU does the work.
        variant: `"plugins"` or `"stock"` to insist on one; None for plug-ins if there are some.
        precision: `"float32"` or `"float16"`: the type of activations and weights.

    Raises:
        BackendUnavailableError: TensorRT, pycuda, a GPU or the bundle's target is not there.
        BundleError: The bundle's model cannot be read.
        UnsupportedGraphError: TensorRT does not take the model.
        UsageError: An argument is unknown.
    """

    name = "tensorrt"
    device = "cuda"

    def __init__(
        self,
        bundle: Bundle,
        domain: str,
        threads: int = 1,
        variant: str | None = None,
        precision: str = "float32",
    ) -> None:
        model = bundle.manifest.models[domain]
        super().__init__(domain, model, threads, "tensorrt", model.tensorrt)
        if variant is not None and variant not in VARIANTS:
            raise UsageError(f"unknown variant {variant!r}; there are {', '.join(VARIANTS)}")
        if precision not in _PRECISIONS:
            raise UsageError(f"unknown precision {precision!r}; there are float32, float16")
        self.precision = precision
        plugins = None if variant is None else variant == "plugins"
        kind = _PRECISIONS[precision]
        chosen, self.note = choose_model(bundle, domain, kind, plugins)
        self.variant = f"{'plugins' if chosen.plugins else 'stock'} {kind}"
        trt = import_runtime("tensorrt")
        self._cuda = import_cuda()
        path = engine_path(bundle, domain, chosen, device_name(trt))
        if not path.is_file():
            build_engine(bundle, domain, precision=kind, plugins=bool(chosen.plugins))
        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        if chosen.plugins:
            load_plugins(trt, runtime.get_plugin_registry(), bundle)
        self._engine = _deserialize(runtime, path)
        self._runtime = runtime  # outlives the engine
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendUnavailableError(f"{path}: TensorRT has no memory for its context")
        self._stream = self._cuda.Stream()
        self._events = [self._cuda.Event() for _ in range(4)]
        self._buffers: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._phases: dict[str, float] = {}

    def __call__(self, *arrays: Array) -> Array | list[Array]:
        """Runs the domain; see `Engine`."""
        check_inputs(self.domain, self.inputs, arrays)
        with self._lock:
            outputs = self._run([np.ascontiguousarray(array) for array in arrays])
        return outputs[0] if len(outputs) == 1 else outputs

    def phases(self) -> dict[str, float]:
        """Returns seconds of the last call; see `DeviceEngine`."""
        return dict(self._phases)

    def _run(self, arrays: list[Array]) -> list[Array]:
        cuda, stream = self._cuda, self._stream
        start, copied, computed, end = self._events
        start.record(stream)
        for spec, array in zip(self.inputs, arrays, strict=True):
            if not self._context.set_input_shape(spec.name, array.shape):
                raise UsageError(
                    f"domain {self.domain!r}: the engine was not built for input {spec.name!r} of "
                    f"shape {tuple(array.shape)}; mdprune build-trt --batch sets the largest batch"
                )
            cuda.memcpy_htod_async(self._bind(spec, array.shape), array, stream)
        outputs = []
        for spec in self.outputs:
            shape = tuple(self._context.get_tensor_shape(spec.name))
            self._bind(spec, shape)
            outputs.append(np.empty(shape, dtype=spec.dtype))
        copied.record(stream)
        if not self._context.execute_async_v3(stream.handle):
            raise BackendUnavailableError(
                f"domain {self.domain!r}: TensorRT could not run the engine; it said why above"
            )
        computed.record(stream)
        for spec, array in zip(self.outputs, outputs, strict=True):
            cuda.memcpy_dtoh_async(array, self._buffers[spec.name], stream)
        end.record(stream)
        stream.synchronize()
        self._phases = {
            "host_to_device": copied.time_since(start) / 1e3,
            "compute": computed.time_since(copied) / 1e3,
            "device_to_host": end.time_since(computed) / 1e3,
        }
        return outputs

    def _bind(self, spec: TensorSpec, shape: tuple[int, ...]) -> Any:
        """Returns the device memory of an input or output, larger where it has to be."""
        needed = math.prod(shape) * np.dtype(spec.dtype).itemsize
        buffer = self._buffers.get(spec.name)
        if buffer is None or buffer.size < needed:
            buffer = self._buffers[spec.name] = _Memory(self._cuda.mem_alloc(needed), needed)
        self._context.set_tensor_address(spec.name, int(buffer))
        return buffer


class _Memory:
    """Device memory that knows its size; pycuda takes what gives an address."""

    def __init__(self, memory: Any, size: int) -> None:
        self._memory = memory
        self.size = size

    def __int__(self) -> int:
        return int(self._memory)

    __index__ = __int__


def _deserialize(runtime: Any, path: Path) -> Any:
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BackendUnavailableError(
            f"{path}: TensorRT cannot load the engine; remove it and it is built anew"
        )
    return engine

"""Builds TensorRT engines of a bundle's `tensorrt` target.

An engine is for one GPU and one TensorRT version, so it is no part of the bundle: engines lie in
`BUNDLE.engines`, beside it, under names that say what they were made of. What TensorRT measured
while it built lies there too, so that the next build is faster.

TensorRT-RTX builds for desktop GPUs, on machines without one; it takes the stock models.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..bundle import Bundle
from ..errors import BackendUnavailableError, BundleError, UnsupportedGraphError, UsageError
from ..files import write_whole
from ..manifest import TensorrtModel, TensorSpec

Runtime = Literal["tensorrt", "tensorrt-rtx"]
PRECISIONS = ("fp16", "fp32")
PLUGIN_LIBRARY = "libmdprune_tensorrt.so"
PLUGIN_VARIABLE = "MDPRUNE_TENSORRT_LIBRARY"
"""Environment variable that may name the plug-in library's file."""

_INSTALL = {
    "tensorrt": "TensorRT is not installed: pip install 'mdprune-deploy[tensorrt]'; on a Jetson it "
    "comes with JetPack: apt install python3-libnvinfer",
    "tensorrt-rtx": "TensorRT-RTX is not installed: pip install 'mdprune-deploy[tensorrt-rtx]'",
}


@dataclass(frozen=True)
class Built:
    """An engine that was built.

    Attributes:
        domain: The domain.
        model: The model that it was built of, relative to the bundle.
        file: Where it lies.
        precision: `fp16` or `fp32`.
        plugins: How many of its layers read the bundle's weights.
        runtime: What built it, with its version.
        bytes: The size of the file.
        seconds: What the build took.
    """

    domain: str
    model: str
    file: str
    precision: str
    plugins: int
    runtime: str
    bytes: int
    seconds: float


def import_runtime(runtime: Runtime) -> Any:
    """Returns TensorRT's module.

    Raises:
        BackendUnavailableError: It is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(runtime.replace("-", "_"))
    except ImportError as error:
        raise BackendUnavailableError(_INSTALL[runtime]) from error


def import_cuda() -> Any:
    """Returns pycuda's driver with the device's primary context made current.

    Raises:
        BackendUnavailableError: pycuda or a GPU is not there.
    """
    try:
        importlib.import_module("pycuda.autoprimaryctx")
        return importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise BackendUnavailableError(
            "pycuda is not installed: pip install 'mdprune-deploy[tensorrt]'"
        ) from error
    except Exception as error:  # pycuda's own errors, which cannot be named without it
        raise BackendUnavailableError(f"there is no GPU that CUDA can use: {error}") from error


def plugin_library() -> Path | None:
    """Returns the plug-in library, or None where there is none."""
    named = os.environ.get(PLUGIN_VARIABLE)
    path = Path(named) if named else Path(__file__).parents[1] / PLUGIN_LIBRARY
    return path if path.is_file() else None


def choose_model(
    bundle: Bundle, domain: str, precision: str, plugins: bool | None
) -> tuple[TensorrtModel, str | None]:
    """Returns the model to build, and why it is not the one with plug-in nodes.

    Args:
        bundle: A bundle.
        domain: One of its domains.
        precision: `fp16` or `fp32`.
        plugins: Whether it has plug-in nodes; None: if there are some and the library is there.

    Raises:
        BackendUnavailableError: The bundle has no such model, or the plug-in library is missing.
        UsageError: The precision or the domain is unknown.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}; there are {', '.join(PRECISIONS)}")
    models = bundle.manifest.models
    if domain not in models:
        raise UsageError(f"unknown domain {domain!r}; {bundle.root} has {', '.join(models)}")
    files = models[domain].tensorrt
    if files is None:
        raise BackendUnavailableError(
            f"the bundle has no tensorrt target for domain {domain!r}; compile it with --target "
            "tensorrt"
        )
    fitting = [entry for entry in files.models if entry.precision == precision]
    stock = next((entry for entry in fitting if not entry.plugins), None)
    own = next((entry for entry in fitting if entry.plugins), None)
    library = plugin_library()
    if plugins and own is not None and library is None:
        raise BackendUnavailableError(
            f"{PLUGIN_LIBRARY} is not there: build it (docs/jetson.md) and name it in "
            f"{PLUGIN_VARIABLE}"
        )
    chosen = own if plugins or (plugins is None and library is not None and own) else stock
    if chosen is None:
        kind = "with plug-in nodes" if plugins else "of stock operators"
        raise BackendUnavailableError(
            f"the bundle has no {precision} model {kind} for domain {domain!r}: "
            f"{_why_missing(bundle, domain)}"
        )
    note = None
    if plugins is None and own is not None and chosen is stock:
        note = f"{PLUGIN_LIBRARY} is not there: every domain has its own copy of the weights"
    return chosen, note


def _why_missing(bundle: Bundle, domain: str) -> str:
    reasons = [
        missing.reason
        for missing in bundle.manifest.report.missing
        if missing.target.startswith("tensorrt/") and f"domain {domain!r}" in missing.reason
    ]
    return reasons[0] if reasons else "no layer gains by the plug-in"


def engine_path(bundle: Bundle, domain: str, model: TensorrtModel, where: str) -> Path:
    """Returns where an engine lies: the name tells its model's and weights' content."""
    files = bundle.manifest.models[domain].tensorrt
    assert files is not None
    parts = [model.file, *files.weights, *(files.plugin_weights if model.plugins else ())]
    digests = "".join(bundle.manifest.files[part].sha256 for part in parts)
    content = hashlib.sha256(digests.encode()).hexdigest()[:12]
    folder = bundle.root.absolute().with_name(f"{bundle.root.absolute().name}.engines")
    stem = Path(model.file).name.removesuffix(".onnx")
    return folder / f"{stem}.{where}.{content}.engine"


def load_plugins(runtime: Any, registry: Any, bundle: Bundle) -> None:
    """Loads the plug-in library into a registry and tells it of the bundle.

    Raises:
        BackendUnavailableError: The library cannot be loaded.
    """
    library = plugin_library()
    if library is None or registry.load_library(str(library)) is None:
        raise BackendUnavailableError(
            f"{library or PLUGIN_LIBRARY} cannot be loaded into {runtime.__name__} "
            f"{runtime.__version__}; was it built for this version?"
        )
    ctypes.CDLL(str(library)).mdprune_tensorrt_add_bundle(os.fsencode(bundle.root.absolute()))


def build_engine(
    bundle: Bundle,
    domain: str,
    *,
    precision: str = "fp16",
    plugins: bool | None = None,
    runtime: Runtime = "tensorrt",
    batch: int = 1,
    capabilities: Sequence[str] = (),
) -> Built:
    """Builds one engine.

    Args:
        bundle: The bundle.
        domain: The domain.
        precision: `fp16` or `fp32`.
        plugins: See `choose_model`; TensorRT-RTX takes the stock models only.
        runtime: What builds.
        batch: The largest batch; 1 to it are taken, where the network's batch is free.
        capabilities: For TensorRT-RTX the GPUs to build for, such as `SM89`; all where empty.

    Raises:
        BackendUnavailableError: TensorRT, a GPU, the plug-in library or the model is not there.
        UnsupportedGraphError: TensorRT does not take the model.
        UsageError: An argument is unknown, or the engine cannot be written.
    """
    if batch < 1:
        raise UsageError(f"batch is {batch}, at least 1 is needed")
    if runtime == "tensorrt-rtx":
        if plugins:
            raise UsageError("TensorRT-RTX builds the stock models only")
        plugins = False
    elif capabilities:
        raise UsageError("TensorRT builds for the GPU that is there; --gpu is TensorRT-RTX's")
    model, _ = choose_model(bundle, domain, precision, plugins)
    trt = import_runtime(runtime)
    where = f"rtx{trt.__version__}" if runtime == "tensorrt-rtx" else device_name(trt)
    path = engine_path(bundle, domain, model, where)
    start = time.perf_counter()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    if model.plugins:
        load_plugins(trt, builder.get_plugin_registry(), bundle)
    network = _parse(trt, builder, logger, bundle.root / model.file)
    config = builder.create_builder_config()
    _set_capabilities(trt, config, capabilities)
    spec = bundle.manifest.models[domain]
    if spec.dynamic_batch:
        _set_profile(builder, config, spec.inputs, batch)
    elif batch != 1:
        raise UsageError(f"the batch of domain {domain!r} is fixed by its network")
    cache = None if runtime == "tensorrt-rtx" else path.with_name(f"timing.{where}.cache")
    if cache is not None:
        known = cache.read_bytes() if cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise UnsupportedGraphError(
            f"{runtime} {trt.__version__} cannot build {model.file}; it said why above"
        )
    data = bytes(serialized)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, data)
    if cache is not None:
        write_whole(cache, bytes(config.get_timing_cache().serialize()))
    return Built(
        domain=domain,
        model=model.file,
        file=str(path),
        precision=precision,
        plugins=model.plugins,
        runtime=f"{runtime} {trt.__version__}",
        bytes=len(data),
        seconds=time.perf_counter() - start,
    )


def device_name(trt: Any) -> str:
    """Returns what an engine depends on: the GPU's compute capability and TensorRT's version."""
    cuda = import_cuda()
    major, minor = cuda.Context.get_device().compute_capability()
    return f"sm{major}{minor}.trt{trt.__version__}"


def _parse(trt: Any, builder: Any, logger: Any, path: Path) -> Any:
    """Parses a model into a strongly typed network, the only kind from TensorRT 11 on."""
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        if not path.is_file():
            raise BundleError(f"{path} is not there")
        raise UnsupportedGraphError(f"{path}: {trt.__name__} cannot parse it: {errors}")
    return network


def _set_capabilities(trt: Any, config: Any, capabilities: Sequence[str]) -> None:
    if not capabilities:
        return
    config.num_compute_capabilities = len(capabilities)
    for position, name in enumerate(capabilities):
        found = getattr(trt.ComputeCapability, name, None)
        if found is None or name == "NONE":
            known = ", ".join(k for k in trt.ComputeCapability.__members__ if k.startswith("SM"))
            raise UsageError(f"unknown GPU {name!r}; TensorRT-RTX builds for {known}")
        config.set_compute_capability(found, position)


def _set_profile(builder: Any, config: Any, inputs: Sequence[TensorSpec], batch: int) -> None:
    profile = builder.create_optimization_profile()
    for spec in inputs:
        if any(size is None for size in spec.shape[1:]):
            raise UnsupportedGraphError(
                f"input {spec.name!r} has a free size beside the batch: {spec.shape}"
            )
        rest = spec.shape[1:]
        profile.set_shape(spec.name, (1, *rest), (batch, *rest), (batch, *rest))
    config.add_optimization_profile(profile)

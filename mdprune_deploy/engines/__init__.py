"""The engines: what runs one domain of a bundle."""

from __future__ import annotations

from pathlib import Path

from mdprune_deploy.bundle import Bundle, read_bundle
from mdprune_deploy.engines.base import Array, Engine
from mdprune_deploy.engines.cuda import CudaEngine
from mdprune_deploy.engines.native import NativeEngine
from mdprune_deploy.engines.ort import OnnxRuntimeEngine
from mdprune_deploy.engines.tensorrt import TensorrtEngine
from mdprune_deploy.errors import BackendUnavailableError, UsageError

__all__ = ["ENGINES", "Array", "Engine", "load"]

ENGINES = ("native", "onnxruntime", "tensorrt")


def load(
    bundle_dir: str | Path | Bundle,
    domain: str,
    engine: str = "native",
    threads: int = 1,
    *,
    variant: str | None = None,
    device: str = "cpu",
    precision: str = "float32",
    tune: bool = False,
) -> Engine:
    """Loads one domain of a bundle.

    Args:
        bundle_dir: The bundle's directory, or a bundle read before: many domains load faster if
            the manifest is read once.
        domain: The domain's name.
        engine: `"native"`, `"onnxruntime"` or `"tensorrt"`.
        threads: Threads that one call uses.
        variant: For `"onnxruntime"`: `"portable"` or `"mapped"` to insist on one. For `"native"`:
            an instruction set, such as `"avx2"` or `"portable"`. For `"tensorrt"`: `"plugins"` or
            `"stock"`.
        device: Where the native engine computes: `"cpu"`, `"cuda"` or `"cuda:1"`.
        precision: In which type it computes: `"float32"`, or on a GPU `"float16"`.
        tune: Whether the native engine measures its kernels' tilings on a GPU first; what it finds
            stays in the bundle.

    Returns:
        The engine; `engine(x)` runs it and `engine.variant` tells what runs.

    Raises:
        BackendUnavailableError: The engine is not here; the message says what to do.
        BundleError: The bundle or the domain's model cannot be read.
        UsageError: The domain, the engine or another argument is unknown.
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}; there are {', '.join(ENGINES)}")
    on_host = (device, precision) == ("cpu", "float32")
    if engine == "onnxruntime" and not on_host:
        raise BackendUnavailableError(f"there is no {engine} engine on {device} in {precision}")
    bundle = bundle_dir if isinstance(bundle_dir, Bundle) else read_bundle(bundle_dir)
    models = bundle.manifest.models
    if domain not in models:
        raise UsageError(f"unknown domain {domain!r}; {bundle.root} has {', '.join(models)}")
    if engine == "tensorrt":
        return TensorrtEngine(bundle, domain, threads, variant, precision)
    if engine == "native":
        _check_native(bundle, domain)
        if not on_host:
            return CudaEngine(
                bundle.root, domain, models[domain], threads, variant, device, precision, tune
            )
        return NativeEngine(bundle.root, domain, models[domain], threads, variant)
    return OnnxRuntimeEngine(bundle.root, domain, models[domain], threads, variant)


def _check_native(bundle: Bundle, domain: str) -> None:
    """Says why a bundle has no native target, where the compile recorded it."""
    if bundle.manifest.models[domain].native is not None:
        return
    for missing in bundle.manifest.report.missing:
        if missing.target == "native":
            raise BackendUnavailableError(
                f"{bundle.root} has no native target: {missing.reason}; use the onnxruntime engine"
            )

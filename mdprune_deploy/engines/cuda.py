"""The `native` engine on a GPU: the same runtime, which loads libmdprune_cuda."""

from __future__ import annotations

from pathlib import Path

from mdprune_deploy.engines.native import Context, DeviceMemory, NativeEngine
from mdprune_deploy.manifest import DomainModel


class CudaEngine(NativeEngine):
    """Runs one domain on a GPU: inputs are copied there, outputs back.

    Weights of all domains are on the GPU once, however many engines of one precision there are.

    Args:
        root: The bundle's directory.
        domain: The domain's name.
        model: The manifest's entry for it.
        threads: Not used by a GPU.
        variant: Must be None: instruction sets are a processor's.
        device: `"cuda"` or `"cuda:1"`.
        precision: Of activations and weights, `"float32"` or `"float16"`; inputs and outputs are
            float32.
        tune: Whether tilings that the bundle does not know are measured now.

    Raises:
        BackendUnavailableError: There is no such device, or the library for it is not there.
        BundleError: The runtime cannot read the bundle.
        UsageError: An argument is wrong.
    """

    def __init__(
        self,
        root: Path,
        domain: str,
        model: DomainModel,
        threads: int = 1,
        variant: str | None = None,
        device: str = "cuda",
        precision: str = "float32",
        tune: bool = False,
    ) -> None:
        self.device = device
        self.precision = precision
        self._tune = tune
        super().__init__(root, domain, model, threads, variant)

    def phases(self) -> dict[str, float]:
        """Returns seconds of the last call: copying there, computing, copying back."""
        times = self._context.device_times()
        return {
            "host_to_device": times.to_device / 1e9,
            "compute": times.compute / 1e9,
            "device_to_host": times.to_host / 1e9,
        }

    def memory(self) -> DeviceMemory:
        """Returns the bytes that the GPU holds for all domains and for this engine."""
        return self._context.device_memory()

    def _make_context(self, variant: str | None) -> Context:
        return Context(
            self._model,
            self.domain,
            self.threads,
            variant,
            device=self.device,
            precision=self.precision,
            tune=self._tune,
        )

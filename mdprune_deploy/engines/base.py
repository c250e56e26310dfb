"""What every engine has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mdprune_deploy.errors import BackendUnavailableError, UsageError
from mdprune_deploy.manifest import DomainModel, TensorSpec

Array = npt.NDArray[Any]


@runtime_checkable
class Engine(Protocol):
    """Runs one domain of a bundle.

    Attributes:
        name: The engine, such as `onnxruntime`.
        domain: The domain that it runs.
        variant: Which of the bundle's variants runs, such as `portable` or `avx512-mapped`.
        note: Why it is not the variant that the bundle was optimised for, or None.
        labels: Class names in the order of the output's classes, or None.
        threads: Threads that one call uses.
        inputs: What a call takes, in order.
        outputs: What a call returns, in order.
    """

    name: str
    domain: str
    variant: str
    note: str | None
    labels: tuple[str, ...] | None
    threads: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __call__(self, *arrays: Array) -> Array | list[Array]:
        """Runs the domain.

        Args:
            *arrays: One array per input, of exactly its dtype and shape.

        Returns:
            The output, or a list of them if there are several; the caller owns them.

        Raises:
            UsageError: The number, a dtype or a shape of the arrays is wrong.
        """
        ...


@runtime_checkable
class DeviceEngine(Engine, Protocol):
    """An engine that computes elsewhere than where its inputs are.

    Attributes:
        device: Where, such as `cuda`.
        precision: In which type, such as `float16`.
    """

    device: str
    precision: str

    def phases(self) -> dict[str, float]:
        """Returns seconds of the last call: `host_to_device`, `compute` and `device_to_host`."""
        ...


class DomainEngine:
    """What an engine keeps of its arguments and of the manifest's entry; see `Engine`.

    Args:
        domain: The domain's name.
        model: The manifest's entry for it.
        threads: Threads that one call uses.
        target: The target of the bundle that the engine runs.
        files: What the entry has of that target.

    Raises:
        BackendUnavailableError: The bundle has not that target.
        UsageError: `threads` is wrong.
    """

    def __init__(
        self, domain: str, model: DomainModel, threads: int, target: str, files: object
    ) -> None:
        if threads < 1:
            raise UsageError(f"threads is {threads}, at least 1 is needed")
        if files is None:
            raise BackendUnavailableError(
                f"the bundle has no {target} target for domain {domain!r}; compile it with "
                f"--target {target}"
            )
        self.domain = domain
        self.labels = model.labels
        self.threads = threads
        self.inputs = model.inputs
        self.outputs = model.outputs


def check_inputs(domain: str, specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> None:
    """Compares a call's arrays with what the domain takes; nothing is converted.

    Raises:
        UsageError: They differ; the message names the input, what was given and what is taken.
    """
    if len(arrays) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise UsageError(
            f"domain {domain!r} takes {len(specs)} inputs ({names}), {len(arrays)} given"
        )
    for spec, array in zip(specs, arrays, strict=True):
        place = f"domain {domain!r}, input {spec.name!r}"
        if not isinstance(array, np.ndarray):
            raise UsageError(f"{place}: a NumPy array is needed, not {type(array).__name__}")
        if array.dtype != np.dtype(spec.dtype):
            raise UsageError(f"{place}: dtype is {array.dtype}, it takes {spec.dtype}")
        if len(array.shape) != len(spec.shape) or any(
            size not in (None, given) for size, given in zip(spec.shape, array.shape, strict=True)
        ):
            taken = ", ".join("any" if size is None else str(size) for size in spec.shape)
            raise UsageError(f"{place}: shape is {tuple(array.shape)}, it takes ({taken})")

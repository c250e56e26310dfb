"""What a compile reports: the figures of `manifest.json` and of `--json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

VERSION = 1


@dataclass(frozen=True)
class Held:
    """A masked channel that could not be removed, and the operator that held it.

    Attributes:
        domain: The domain.
        value: The tensor whose channels stayed.
        axis: The axis of that tensor.
        channels: How many masked channels stayed.
        operator: The operator type that needs them, such as `LayerNormalization`.
        node: The node's name.
        reason: Why the operator needs them.
    """

    domain: str
    value: str
    axis: int
    channels: int
    operator: str
    node: str
    reason: str


@dataclass(frozen=True)
class Missing:
    """A target that the bundle lacks though it was not refused.

    Attributes:
        target: The target, such as `native`.
        reason: What it lacks, and of which domain where it is one.
    """

    target: str
    reason: str


@dataclass(frozen=True)
class LayerFigures:
    """One convolution or matrix product of one domain; parameters count weights without biases.

    Attributes:
        name: The weight's name.
        kind: The operator type.
        params_dense: Elements of the whole weight.
        params_used: Elements that masks and dead code leave.
        params_emitted: Elements of the emitted weight.
        macs_dense: Multiply-accumulates at the example input with batch 1.
        macs_emitted: The same for the emitted operator.
    """

    name: str
    kind: str
    params_dense: int
    params_used: int
    params_emitted: int
    macs_dense: int
    macs_emitted: int


@dataclass(frozen=True)
class WeightLayout:
    """How the native target stores one weight for all domains.

    Attributes:
        name: The weight's name.
        bytes_dense: Bytes of the whole weight, of every version where domains have their own.
        bytes_union: Bytes of the union of what the domains use, each element once: the least that
            can be stored.
        bytes_copies: Bytes of a copy for every domain that uses another part.
        bytes_stored: Bytes that are stored.
        readers: Domains that read it.
        private: Those that have a copy of their own; the others read the union.
        reason: Why it is stored so.
    """

    name: str
    bytes_dense: int
    bytes_union: int
    bytes_copies: int
    bytes_stored: int
    readers: tuple[str, ...]
    private: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class PluginChoice:
    """Whether the `tensorrt` target's plug-in reads one weight; bytes are those of float16.

    Attributes:
        name: The weight's name.
        plugin: Whether plug-in nodes read it; else every domain has a stock layer.
        bytes_copies: Bytes of a copy for every domain that uses another part.
        bytes_stored: Bytes of what the native target stores.
        bytes_activations: Input and output of the layer at batch 1.
        reason: Why.
    """

    name: str
    plugin: bool
    bytes_copies: int
    bytes_stored: int
    bytes_activations: int
    reason: str


@dataclass(frozen=True)
class DomainReport:
    """The figures of one domain; parameters count weights without biases and norms.

    `params_emitted`, `macs_emitted` and `layers` are those of the `onnx` target where there is one.
    """

    params_dense: int
    params_used: int
    params_emitted: int
    macs_dense: int
    macs_emitted: int
    max_abs_error: float
    max_rel_error: float
    layers: tuple[LayerFigures, ...] = ()

    def with_error(self, absolute: float, relative: float) -> DomainReport:
        """Returns the figures with an error that was found besides, if it is larger."""
        if relative <= self.max_rel_error:
            return self
        return replace(self, max_abs_error=absolute, max_rel_error=relative)


@dataclass(frozen=True)
class CompileReport:
    """The figures of one compile.

    Attributes:
        domains: Figures per domain, in the checkpoint's order.
        params_union: Weight elements that at least one domain uses: what must be stored.
        params_intersection: Weight elements that all domains use.
        bytes_shared: Bytes of the weight files of all targets that two or more domains name.
        bytes_private: Bytes of the weight files of all targets that one domain names.
        seconds: Wall-clock time of the compile; None in a bundle, which is the same whenever it was
            made.
        held: Every place where a masked channel could not be removed.
        missing: Targets that a compile for all targets could not emit, and float16 models.
        layout: How the native target stores weights, in graph order; empty without it.
        memory_limit: Most bytes that its weight file may have, None for no limit.
        plugins: Which weights the `tensorrt` target reads through its plug-in.
        budget: The budget that the masks were fitted to, None for masks as they were.
        metric: What the budget counted.
        fit: How boolean masks outside the budget were cut, None for not at all.
    """

    domains: dict[str, DomainReport]
    params_union: int
    params_intersection: int
    bytes_shared: int
    bytes_private: int
    seconds: float | None
    held: tuple[Held, ...] = ()
    missing: tuple[Missing, ...] = ()
    layout: tuple[WeightLayout, ...] = ()
    memory_limit: int | None = None
    plugins: tuple[PluginChoice, ...] = ()
    budget: float | None = None
    metric: str = "params"
    fit: str | None = None
    version: int = field(default=VERSION)

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON types, keys as the contract names them."""
        return asdict(self)

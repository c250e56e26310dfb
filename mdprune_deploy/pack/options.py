"""What `pack` is told, what it reports, and how the texts of its options are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..checkpoint import Checkpoint
from ..domain import Axis, Site
from ..errors import CheckpointError, UsageError
from ..weights import did_you_mean

Layout = Literal["domains-first", "per-domain"]


@dataclass(frozen=True)
class PackOptions:
    """What `pack` needs to know; one field per option of the command line.

    Attributes:
        output: The checkpoint to write.
        factory: `package.module:factory`; called without arguments it returns the dense network.
        weights: The state dict that all domains share.
        switches: Pattern of the switch tensors' names, with `module` or `weight`.
        inputs: Example shapes, one per input of the network, such as `1,3,32,32`.
        layout: `domains-first`: switches of shape `(domains, channels)` in `weights`;
            `per-domain`: of shape `(channels,)` in the files of `domain_weights`.
        axis: Whether the switches are on input or output channels.
        threshold: The score above which a channel is on; boolean and 0/1 integer switches
            have none.
        site: What a switch on output channels zeroes.
        domains: Domain names, in the order of the switches' rows. By default the names of
            `domain_weights`, else what `{domain}` matched, else the row numbers.
        domain_weights: `NAME=PATH` per domain: a state dict of its own. Parameters that
            differ from the shared ones become the domain's.
        state: Rules `PATTERN->TARGET` for parameters of domains in the shared file, such as
            `{module}.bns.{domain}.{name}->{module}.{name}`; `{domain}` is a name or a number.
        labels: `NAME=PATH` per domain: a text file with one class name per line.
        key: Entry of the files that holds the state dict, such as `state_dict`.
        prefix: Removed from the front of all names that have it, such as `module.`.
        ignore: Shell patterns of names that need no place.
    """

    output: Path
    factory: str
    weights: Path
    switches: str
    inputs: tuple[str, ...]
    layout: Layout = "domains-first"
    axis: Axis = "in"
    threshold: float = 0.0
    site: Site = "weight"
    domains: tuple[str, ...] = ()
    domain_weights: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    key: str | None = None
    prefix: str = ""
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackReport:
    """What went where.

    Attributes:
        domains: Domain names, in order.
        masks: Masks per domain.
        state: Own parameters and buffers per domain.
        shared: Parameters and buffers of the network that all domains share.
        ignored: Names that were ignored as asked.
        dynamic_batch: Whether the network holds for any batch size.
    """

    domains: tuple[str, ...]
    masks: dict[str, int]
    state: dict[str, int]
    shared: int
    ignored: tuple[str, ...]
    dynamic_batch: bool


def report(checkpoint: Checkpoint, shared: int, ignored: Sequence[str] = ()) -> PackReport:
    """Counts what a packed checkpoint holds."""
    domains = checkpoint.domains
    return PackReport(
        domains=tuple(domains),
        masks={name: len(domain.masks) for name, domain in domains.items()},
        state={name: len(domain.state) for name, domain in domains.items()},
        shared=shared,
        ignored=tuple(ignored),
        dynamic_batch=checkpoint.dynamic_batch,
    )


def pairs(texts: Sequence[str], option: str) -> list[tuple[str, str]]:
    """Splits texts of the form NAME=PATH; `option` is named in errors."""
    found = []
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UsageError(f"{option} {text!r} is not of the form NAME=PATH")
        found.append((name, path))
    if len({name for name, _ in found}) < len(found):
        raise UsageError(f"{option} names a domain twice")
    return found


def shapes(texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Reads shapes such as `1,3,32,32`."""
    found = []
    for text in texts:
        sizes = re.split(r"[,x]", text)
        if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
            raise UsageError(f"input shape {text!r} is not like 1,3,32,32")
        found.append(tuple(int(size) for size in sizes))
    return found


def read_labels(texts: Sequence[str], domains: Sequence[str]) -> dict[str, list[str]]:
    """Reads the class names, one per line, of the files `NAME=PATH`."""
    found = {}
    for name, path in pairs(texts, "labels"):
        try:
            found[name] = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"labels {path!r} cannot be read: {error}") from error
        if name not in domains:
            raise UsageError(f"labels for unknown domain {name!r}{did_you_mean(name, domains)}")
    return found


def as_switches(key: str, values: torch.Tensor) -> torch.Tensor:
    """Returns the switches or scores of one weight; integers 0 and 1 become bool.

    Raises:
        CheckpointError: They have more than one axis, or are other integers.
    """
    if values.ndim != 1:
        raise CheckpointError(
            f"switches of {key!r} have shape {list(values.shape)}, not (channels,)"
        )
    if values.is_floating_point() or values.dtype == torch.bool:
        return values
    if bool(((values != 0) & (values != 1)).any()):
        raise CheckpointError(f"switches of {key!r} are integers other than 0 and 1")
    return values.bool()


def listed(names: Sequence[str]) -> str:
    """Returns the first five names, quoted, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"

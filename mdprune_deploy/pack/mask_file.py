"""Masks, own parameters and labels of all domains in one file, by the names of its arrays.

| name | array |
| --- | --- |
| `DOMAIN/in/WEIGHT` | switches or scores of the weight's input channels |
| `DOMAIN/out/WEIGHT` | of its filters: off zeroes the weights |
| `DOMAIN/output/WEIGHT` | of its output channels: off zeroes the output, bias included |
| `DOMAIN/threshold/WEIGHT` | one number: scores of this weight are on above it |
| `DOMAIN/state/TENSOR` | the domain's own tensor |
| `DOMAIN/labels` | class names |

Domain names hold no slash, so what is behind the second slash is the weight's name as it is. The
file is what `numpy.savez` writes, or a safetensors file or state dict, which cannot hold labels.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..domain import Axis, Domain, Mask, Site
from ..errors import CheckpointError
from ..weights import did_you_mean
from .options import as_switches
from .state_dict import read_state_dict

_MASKS: dict[str, tuple[Axis, Site]] = {
    "in": ("in", "weight"),
    "out": ("out", "weight"),
    "output": ("out", "output"),
}
_KINDS = (*_MASKS, "threshold", "state")
_FORM = "a name is DOMAIN/KIND/WEIGHT, with a kind of in, out, output, threshold or state, or " \
    "DOMAIN/labels"  # fmt: skip


@dataclass
class _Entries:
    """What a file says about one domain."""

    masks: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    labels: list[str] | None = None


def read_mask_file(
    path: Path, domains: Sequence[str] = (), threshold: float = 0.0
) -> dict[str, Domain]:
    """Reads a mask file; nothing in it is run.

    Args:
        path: The file.
        domains: Domains that come first, in this order; the file need not mention them.
        threshold: The score above which a channel is on, where the file gives none.

    Raises:
        CheckpointError: The file is unreadable, or an array's name or content is not of the form.
    """
    where = f"masks {str(path)!r}"
    found = {name: _Entries() for name in domains}
    arrays = _read(path, where)
    if not arrays and not domains:
        raise CheckpointError(f"{where}: holds no arrays; {_FORM}")
    for name, array in arrays.items():
        try:
            _add(found, name, array)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: array {name!r}: {error}") from error
    return {
        name: _domain(f"{where}: domain {name!r}", entries, threshold)
        for name, entries in found.items()
    }


def _read(path: Path, where: str) -> dict[str, NDArray[Any] | torch.Tensor]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            if all(name.endswith(".npy") for name in names):
                if len(set(names)) < len(names):
                    raise CheckpointError(f"{where}: holds one name twice")
                with np.load(path, allow_pickle=False) as arrays:
                    return {name: arrays[name] for name in arrays.files}
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{where}: is corrupt, or holds more than arrays: {error}") from error
    return dict(read_state_dict(path, what="masks"))


def _add(found: dict[str, _Entries], name: str, array: NDArray[Any] | torch.Tensor) -> None:
    domain, _, rest = name.partition("/")
    kind, slash, key = rest.partition("/")
    if kind == "labels" and domain and not slash:
        found.setdefault(domain, _Entries()).labels = _labels(array)
        return
    if not domain or kind not in _KINDS or not key:
        raise CheckpointError(f"{_FORM}{did_you_mean(kind, _KINDS)}")
    entries = found.setdefault(domain, _Entries())
    tensor = _tensor(array)
    if kind == "state":
        entries.state[key] = tensor
    elif kind == "threshold":
        if tensor.numel() != 1:
            raise CheckpointError(f"has shape {list(tensor.shape)}; a threshold is one number")
        entries.thresholds[key] = float(tensor)
    else:
        entries.masks[key, kind] = as_switches(key, tensor)


def _labels(array: NDArray[Any] | torch.Tensor) -> list[str]:
    if isinstance(array, torch.Tensor) or array.dtype.kind != "U" or array.ndim != 1:
        raise CheckpointError("labels are strings along one axis")
    return [str(label) for label in array]


def _tensor(array: NDArray[Any] | torch.Tensor) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        raise CheckpointError(f"holds {array.dtype}, not numbers or switches") from error


def _domain(where: str, entries: _Entries, threshold: float) -> Domain:
    masks: dict[str, list[Mask]] = {}
    for (key, kind), values in entries.masks.items():
        axis, site = _MASKS[kind]
        limit = entries.thresholds.get(key, threshold)
        masks.setdefault(key, []).append(Mask(values, axis, site, limit))
    for key in entries.thresholds:
        if not any(mask.is_score for mask in masks.get(key, ())):
            raise CheckpointError(f"{where}: has a threshold but no scores for {key!r}")
    return Domain(masks, entries.state, entries.labels)

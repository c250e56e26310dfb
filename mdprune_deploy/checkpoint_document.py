"""What a checkpoint says, as the JSON document and the tensors of its file.

The document names every tensor, and every tensor is named once; see `docs/checkpoint-format.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from .checkpoint_graph import with_data, without_data
from .domain import Axis, Domain, Mask, Site
from .errors import CheckpointError

FORMAT = "mdprune-checkpoint"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network, and the domains that share it.

    Attributes:
        model: The graph. Parameters and buffers are initialisers under their PyTorch names,
            float32 or integer; constants are initialisers too. Intermediate values have no shape.
        examples: Graph input name to the example array, as the user gave it.
        domains: The domains, in the user's order.
        parameters: Which initialisers are parameters or buffers.
        aliases: Further state-dict names: to the parameter of the same storage (tied weights), or
            to `""` where the graph does not use it and overriding it changes nothing.
        sites: Mask key to the name of the value that is the weight: an initialiser, or a value
            computed from initialisers (a parametrised weight).
        dynamic_batch: Whether axis 0 of the inputs is symbolic; otherwise the graph holds for the
            examples' shapes only.
    """

    model: ir.Model
    examples: dict[str, NDArray[Any]]
    domains: dict[str, Domain]
    parameters: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    dynamic_batch: bool = False


def masks_of(masks: Mask | Sequence[Mask]) -> list[Mask]:
    """Returns one or several masks as a list."""
    return [masks] if isinstance(masks, Mask) else list(masks)


def to_document(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Returns a checkpoint as JSON types and the tensors that they name."""
    proto = without_data(checkpoint.model, checkpoint.parameters)
    graph = proto.SerializeToString(deterministic=True)
    tensors = {"graph": torch.frombuffer(bytearray(graph), dtype=torch.uint8)}
    for name in checkpoint.parameters:
        data = checkpoint.model.graph.initializers[name].const_value
        assert data is not None
        tensors[f"parameter/{name}"] = torch.from_numpy(np.array(data.numpy(), order="C"))
    for name, example in checkpoint.examples.items():
        tensors[f"example/{name}"] = torch.from_numpy(np.array(example, order="C"))
    domains = [
        _pack_domain(index, name, domain, tensors)
        for index, (name, domain) in enumerate(checkpoint.domains.items())
    ]
    document = {
        "format": FORMAT,
        "version": VERSION,
        "opset": checkpoint.model.graph.opset_imports[""],
        "dynamic_batch": checkpoint.dynamic_batch,
        "examples": list(checkpoint.examples),
        "parameters": list(checkpoint.parameters),
        "aliases": checkpoint.aliases,
        "sites": checkpoint.sites,
        "domains": domains,
    }
    return document, tensors


def _pack_domain(
    index: int, name: str, domain: Domain, tensors: dict[str, torch.Tensor]
) -> dict[str, Any]:
    masks: list[dict[str, Any]] = []
    state: dict[str, str] = {}
    for key, value in domain.masks.items():
        for mask in masks_of(value):
            tensor = f"mask/{index}/{len(masks)}"
            tensors[tensor] = _plain(mask.values)
            masks.append(
                {
                    "key": key,
                    "axis": mask.axis,
                    "site": mask.site,
                    "threshold": float(mask.threshold),
                    "tensor": tensor,
                }
            )
    for key, override in domain.state.items():
        state[key] = f"state/{index}/{key}"
        tensors[state[key]] = _plain(override)
    labels = None if domain.labels is None else list(domain.labels)
    return {"name": name, "labels": labels, "masks": masks, "state": state}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    # A copy: safetensors refuses tensors that share storage.
    return tensor.detach().cpu().contiguous().clone()


_FIELDS: dict[str, type] = {
    "format": str,
    "version": int,
    "opset": int,
    "dynamic_batch": bool,
    "examples": list,
    "parameters": list,
    "aliases": dict,
    "sites": dict,
    "domains": list,
    "sha256": str,
}
_DOMAIN_FIELDS: dict[str, type] = {"name": str, "labels": object, "masks": list, "state": dict}
_MASK_FIELDS: dict[str, type] = {
    "key": str,
    "axis": str,
    "site": str,
    "threshold": float,
    "tensor": str,
}


def from_document(document: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    """Returns the checkpoint that a document and its tensors describe.

    Raises:
        CheckpointError: A member is missing, unknown or of another type, or a tensor is missing
            or left over.
    """
    _check_fields(document, _FIELDS, "metadata")
    remaining = dict(tensors)
    graph = _take(remaining, "graph")
    examples = {
        name: _take(remaining, f"example/{name}").numpy()
        for name in _names(document["examples"], "examples")
    }
    parameters = _names(document["parameters"], "parameters")
    data = {name: _take(remaining, f"parameter/{name}").numpy() for name in parameters}
    domains: dict[str, Domain] = {}
    for index, entry in enumerate(document["domains"]):
        name, domain = _unpack_domain(index, entry, remaining)
        if name in domains:
            raise CheckpointError(f"holds two domains called {name!r}")
        domains[name] = domain
    if remaining:
        raise CheckpointError(f"holds tensor {min(remaining)!r}, which nothing names")
    return Checkpoint(
        model=with_data(graph.numpy().tobytes(), list(examples), data, document["opset"]),
        examples=examples,
        domains=domains,
        parameters=tuple(parameters),
        aliases=_strings(document["aliases"], "aliases"),
        sites=_strings(document["sites"], "sites"),
        dynamic_batch=document["dynamic_batch"],
    )


def _unpack_domain(
    index: int, entry: object, tensors: dict[str, torch.Tensor]
) -> tuple[str, Domain]:
    where = f"domain {index}"
    fields = _expect(entry, dict, where)
    _check_fields(fields, _DOMAIN_FIELDS, where)
    masks: dict[str, list[Mask]] = {}
    for position, item in enumerate(fields["masks"]):
        place = f"mask {position} of {where}"
        mask = _expect(item, dict, place)
        _check_fields(mask, _MASK_FIELDS, place)
        if mask["tensor"] != f"mask/{index}/{position}":
            raise CheckpointError(f"{place} names tensor {mask['tensor']!r}")
        masks.setdefault(mask["key"], []).append(
            Mask(
                _take(tensors, mask["tensor"]),
                axis=cast(Axis, mask["axis"]),
                site=cast(Site, mask["site"]),
                threshold=mask["threshold"],
            )
        )
    state = _strings(fields["state"], f"state of {where}")
    for key, tensor in state.items():
        if tensor != f"state/{index}/{key}":
            raise CheckpointError(f"state {key!r} of {where} names tensor {tensor!r}")
    labels = fields["labels"]
    return fields["name"], Domain(
        masks={key: found[0] if len(found) == 1 else found for key, found in masks.items()},
        state={key: _take(tensors, tensor) for key, tensor in state.items()},
        labels=None if labels is None else _list_of_strings(labels, f"labels of {where}"),
    )


def _check_fields(fields: Mapping[str, Any], types: Mapping[str, type], where: str) -> None:
    for name in types:
        if name not in fields:
            raise CheckpointError(f"{where} lacks {name!r}")
    for name, value in fields.items():
        if name not in types:
            raise CheckpointError(f"{where} holds unknown field {name!r}")
        _expect(value, types[name], f"{name!r} of {where}")


def _expect(value: object, kind: type, where: str) -> Any:
    good = isinstance(value, kind) and (kind is not int or not isinstance(value, bool))
    if not good:
        raise CheckpointError(f"{where} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _list_of_strings(value: object, where: str) -> list[str]:
    return [_expect(item, str, f"an entry of {where}") for item in _expect(value, list, where)]


def _names(value: object, where: str) -> list[str]:
    names = _list_of_strings(value, where)
    if len(set(names)) != len(names):
        raise CheckpointError(f"{where} names one tensor twice")
    return names


def _strings(value: dict[str, Any], where: str) -> dict[str, str]:
    return {key: _expect(item, str, f"{key!r} of {where}") for key, item in value.items()}


def _take(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in tensors:
        raise CheckpointError(f"lacks tensor {name!r}")
    return tensors.pop(name)

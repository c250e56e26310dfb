"""The checkpoint's file: safetensors with one metadata entry; see `docs/checkpoint-format.md`.

This module knows the container: names, types, lengths and the digest. Whether masks and states
fit the graph is the business of `checkpoint_checks`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import onnx
import onnx_ir as ir
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from .domain import Axis, Domain, Mask, Site
from .errors import CheckpointError, UsageError

FORMAT = "mdprune-checkpoint"
VERSION = 1
OLDEST_OPSET, NEWEST_OPSET = 18, 23
_KEY = "mdprune"
_NO_DIGEST = "0" * 64


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


def graph_without_data(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Returns the graph with its parameters as graph inputs after the network's own."""
    proto = ir.to_proto(checkpoint.model)
    parameters = set(checkpoint.parameters)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name in checkpoint.parameters:
        tensor = tensors[name]
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        )
    for repeated in (proto.graph.initializer, proto.graph.value_info):
        kept = [item for item in repeated if item.name not in parameters]
        del repeated[:]
        repeated.extend(kept)
    return proto


# Writing


def write(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Writes a checkpoint under a temporary name and renames it: it appears whole or not at all.

    Raises:
        UsageError: The file cannot be written.
    """
    document, tensors = _pack(checkpoint)
    text = _sealed(document, tensors)
    _write_whole(Path(path), safetensors.torch.save(tensors, metadata={_KEY: text}))


def _pack(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    graph = graph_without_data(checkpoint).SerializeToString(deterministic=True)
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


def _sealed(document: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    text = json.dumps({**document, "sha256": _NO_DIGEST}, separators=(",", ":"), allow_nan=False)
    return f'{text[:-66]}{_digest(text, tensors)}"}}'


def _digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Digests all tensors and the JSON text, whose last member is a digest of 64 zeros."""
    digest = hashlib.sha256()
    for name in sorted(tensors, key=lambda name: name.encode()):
        tensor = tensors[name]
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{shape}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(text.encode())
    return digest.hexdigest()


def _write_whole(path: Path, data: bytes) -> None:
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise UsageError(f"cannot write checkpoint {str(path)!r}: {error.strerror}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


# Reading


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint's container; nothing in it is run.

    Raises:
        CheckpointError: The file is not a whole, unaltered checkpoint of this version.
    """
    name = os.fspath(path)
    with _naming(name):
        _recognise(Path(name))
        text, tensors = _open(name)
        document = _parse(text)
        _check_version(document)
        _check_digest(text, tensors)
        return _unpack(document, tensors)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Puts the file's name in front of every message."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path!r}: {error}") from error.__cause__


def _recognise(path: Path) -> None:
    """Tells a safetensors file from what users hold by mistake, before anything parses it."""
    try:
        if not path.is_file():
            raise CheckpointError("is not a file" if path.exists() else "does not exist")
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}") from error
    if head[8:9] == b"{":
        return
    if head.startswith(b"PK") or head[:2] in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"):
        raise CheckpointError(
            "is a pickle as torch.save writes it, which is never loaded here because a pickle can "
            "run code; turn it into a checkpoint with `mdprune pack`"
        )
    raise CheckpointError("is not an mdprune checkpoint, or its beginning is lost")


def _open(path: str) -> tuple[str, dict[str, torch.Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if set(metadata) != {_KEY}:
                raise CheckpointError(
                    f"is a safetensors file without the one metadata entry {_KEY!r}; "
                    "plain state dicts become checkpoints with `mdprune pack`"
                )
            return metadata[_KEY], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"is truncated or corrupt: {error}") from error


def _parse(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its metadata is corrupt: {error}") from error
    fields: dict[str, Any] = _expect(document, dict, "metadata")
    return fields


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"{name!r} is given twice")
        fields[name] = value
    return fields


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _check_version(document: Mapping[str, Any]) -> None:
    if document.get("format") != FORMAT:
        raise CheckpointError(f"its metadata does not say that it is of the format {FORMAT!r}")
    version = document.get("version")
    if version != VERSION or isinstance(version, bool):
        raise CheckpointError(f"has version {version!r}; this program reads version {VERSION}")


def _check_digest(text: str, tensors: Mapping[str, torch.Tensor]) -> None:
    blank = f'{text[:-66]}{_NO_DIGEST}"}}'
    if text != f'{text[:-66]}{_digest(blank, tensors)}"}}':
        raise CheckpointError("is corrupt: its content does not match its sha256")


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


def _unpack(document: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Checkpoint:
    _check_fields(document, _FIELDS, "metadata")
    remaining = dict(tensors)
    graph = _take(remaining, "graph")
    examples = {
        name: _take(remaining, f"example/{name}").numpy()
        for name in _names(document["examples"], "examples")
    }
    parameters = _names(document["parameters"], "parameters")
    data = {name: _take(remaining, f"parameter/{name}") for name in parameters}
    domains: dict[str, Domain] = {}
    for index, entry in enumerate(document["domains"]):
        name, domain = _unpack_domain(index, entry, remaining)
        if name in domains:
            raise CheckpointError(f"holds two domains called {name!r}")
        domains[name] = domain
    if remaining:
        raise CheckpointError(f"holds tensor {min(remaining)!r}, which nothing names")
    return Checkpoint(
        model=_read_graph(graph, list(examples), data, document["opset"]),
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


def _read_graph(
    graph: torch.Tensor, examples: list[str], data: Mapping[str, torch.Tensor], opset: int
) -> ir.Model:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(graph.numpy().tobytes())
        _check_proto(proto, [*examples, *data], opset)
        onnx.checker.check_model(proto)
        model: ir.Model = ir.from_proto(proto)
        _own_constants(model.graph)
        ir.to_proto(model).SerializeToString()  # finds text that is not UTF-8
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"its graph is corrupt: {_first_line(error)}") from error
    for value in [value for value in model.graph.inputs if value.name in data]:
        tensor = data[str(value.name)]
        array = tensor.numpy()
        declared = (value.dtype, None if value.shape is None else list(value.shape))
        actual = (ir.DataType.from_numpy(array.dtype), list(array.shape))
        if declared != actual:
            raise CheckpointError(
                f"parameter {value.name!r} is {actual[0]} {actual[1]} but its graph declares "
                f"{declared[0]} {declared[1]}"
            )
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    return model


def _own_constants(graph: ir.Graph) -> None:
    """Decodes the constants now: a wrong length would otherwise be found at first use."""
    for value in graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                attribute.as_tensor().numpy()


def _check_proto(proto: onnx.ModelProto, inputs: list[str], opset: int) -> None:
    """Refuses what a checkpoint's graph may not hold, before a graph library sees it."""
    if len(proto.functions) or len(proto.training_info) or len(proto.graph.sparse_initializer):
        raise CheckpointError("its graph holds functions, training steps or sparse tensors")
    versions = [item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")]
    if versions != [opset] or not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise CheckpointError(
            f"its graph uses operator sets {versions} where the metadata says {opset}; "
            f"{OLDEST_OPSET} to {NEWEST_OPSET} can be read"
        )
    if [item.name for item in proto.graph.input] != inputs:
        raise CheckpointError("the inputs of its graph are not its examples and parameters")
    for graph in _graphs(proto.graph):
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        for text in [text for item in attributes for text in (item.s, *item.strings)]:
            text.decode()  # the checker lets bytes pass that are no text
        inline = [tensor for item in attributes for tensor in (item.t, *item.tensors)]
        for tensor in [*graph.initializer, *inline]:
            if tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data):
                raise CheckpointError(f"its graph keeps tensor {tensor.name!r} in another file")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _graphs(body)


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

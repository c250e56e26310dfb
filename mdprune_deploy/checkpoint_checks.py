"""What must hold between a checkpoint's graph, masks, states and labels; at save and at load."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnx.shape_inference
import onnx_ir as ir
import torch

from .checkpoint_document import Checkpoint, masks_of
from .checkpoint_graph import without_data
from .domain import Domain, Mask
from .errors import CheckpointError
from .weight_parts import weight_part
from .weights import Reader, did_you_mean, readers, readers_of

LONGEST_NAME = 200
"""Bytes of a domain's name: it becomes a file name."""
_SCORES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Shapes = dict[str, list[int | None]]


def check_domains(domains: Mapping[str, Domain]) -> None:
    """Checks what can be checked about domains without the network.

    Raises:
        CheckpointError: A name, type, rank or value is wrong.
    """
    if not isinstance(domains, Mapping) or not domains:
        raise CheckpointError("there are no domains: give a mapping of at least one name to Domain")
    for name, domain in domains.items():
        _check_name(name)
        where = f"domain {name!r}"
        if not isinstance(domain, Domain):
            raise CheckpointError(f"{where} is a {type(domain).__name__}, not a Domain")
        for field, named in (("masks", domain.masks), ("state", domain.state)):
            if not isinstance(named, Mapping) or not all(isinstance(key, str) for key in named):
                raise CheckpointError(f"{where}: {field} is not a mapping of names")
        for key, masks in domain.masks.items():
            place = f"{where}: mask on {key!r}"
            if not isinstance(masks, (Mask, Sequence)) or not masks_of(masks):
                raise CheckpointError(f"{place} is a {type(masks).__name__}, not a Mask")
            for mask in masks_of(masks):
                _check_mask(place, mask)
        for key, tensor in domain.state.items():
            _check_tensor(f"{where}: state {key!r}", tensor)
        _check_labels(where, domain.labels)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"domain name {name!r} is not a non-empty string")
    bad = [c for c in name if c in "/\\" or unicodedata.category(c).startswith("C")]
    if bad or name in (".", "..") or len(name.encode(errors="replace")) > LONGEST_NAME:
        raise CheckpointError(
            f"domain name {name!r} cannot name a folder: no slashes or control characters, "
            f"not '.' or '..', at most {LONGEST_NAME} bytes"
        )


def _check_mask(place: str, mask: object) -> None:
    if not isinstance(mask, Mask):
        raise CheckpointError(f"{place} is a {type(mask).__name__}, not a Mask")
    if mask.axis not in ("in", "out"):
        raise CheckpointError(f"{place} has axis {mask.axis!r}; it is 'in' or 'out'")
    if mask.site not in ("weight", "output"):
        raise CheckpointError(f"{place} has site {mask.site!r}; it is 'weight' or 'output'")
    if mask.site == "output" and mask.axis != "out":
        raise CheckpointError(f"{place} has site 'output', which needs axis 'out', not 'in'")
    if not isinstance(mask.threshold, (int, float)) or not math.isfinite(mask.threshold):
        raise CheckpointError(f"{place} has threshold {mask.threshold!r}, not a finite number")
    values = mask.values
    _check_tensor(place, values)
    if values.ndim != 1:
        raise CheckpointError(f"{place} has shape {tuple(values.shape)}; masks have one axis")
    if values.dtype == torch.bool:
        _check_bits(place, values)
    elif values.dtype not in _SCORES:
        raise CheckpointError(f"{place} is {values.dtype}; switches are bool, scores floating")
    elif not bool(torch.isfinite(values).all()):
        channel = int((~torch.isfinite(values)).nonzero()[0])
        raise CheckpointError(f"{place} has score {float(values[channel])} at channel {channel}")


def _check_tensor(place: str, tensor: object) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise CheckpointError(f"{place} is a {type(tensor).__name__}, not a tensor")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise CheckpointError(f"{place} is a sparse, quantized or meta tensor; only plain ones fit")


def _check_bits(place: str, values: torch.Tensor) -> None:
    stored = values.detach().cpu().contiguous().view(torch.uint8)
    if stored.numel() and int(stored.max()) > 1:
        raise CheckpointError(f"{place} holds a byte that is neither 0 nor 1")


def _check_labels(where: str, labels: object) -> None:
    if labels is None:
        return
    good = isinstance(labels, Sequence) and not isinstance(labels, str)
    if not good or not all(isinstance(label, str) for label in labels):  # type: ignore[attr-defined]
        raise CheckpointError(f"{where}: labels are not a sequence of strings")


def check_against_graph(checkpoint: Checkpoint) -> None:
    """Checks examples, aliases, sites, and that every domain's masks and state fit the graph.

    Raises:
        CheckpointError: Something does not fit; the message names the domain and the parameter.
    """
    _check_tables(checkpoint)
    _check_examples(checkpoint)
    proto = without_data(checkpoint.model, checkpoint.parameters)
    _fix_inputs(proto, checkpoint)
    candidates = readers(checkpoint.model.graph)
    inferred: dict[str, Shapes] = {}
    for name, domain in checkpoint.domains.items():
        changed = _check_state(f"domain {name!r}", domain, checkpoint)
        key = repr(sorted(changed.items()))
        if key not in inferred:
            inferred[key] = _infer(f"domain {name!r}", proto, changed)
        shapes = inferred[key]
        _check_lengths(f"domain {name!r}", domain, checkpoint, candidates, shapes)
        _check_classes(f"domain {name!r}", domain, checkpoint, shapes)


def _check_tables(checkpoint: Checkpoint) -> None:
    initializers = checkpoint.model.graph.initializers
    for name in checkpoint.parameters:
        if name not in initializers:
            raise CheckpointError(f"parameter {name!r} is not in the graph")
        dtype = initializers[name].dtype
        if dtype is None or (dtype.is_floating_point() and dtype.name != "FLOAT"):
            raise CheckpointError(f"parameter {name!r} is {dtype}; only FLOAT can be compiled")
    for name, target in checkpoint.aliases.items():
        if name in checkpoint.parameters or (target and target not in checkpoint.parameters):
            raise CheckpointError(f"alias {name!r} of {target!r} fits no parameter")
    keys = {key for domain in checkpoint.domains.values() for key in domain.masks}
    if keys != set(checkpoint.sites):
        wrong = min(keys ^ set(checkpoint.sites))
        raise CheckpointError(f"the sites and the masks disagree about {wrong!r}")


def _check_examples(checkpoint: Checkpoint) -> None:
    inputs = checkpoint.model.graph.inputs
    if [value.name for value in inputs] != list(checkpoint.examples):
        raise CheckpointError("the graph's inputs are not the examples")
    for value, example in zip(inputs, checkpoint.examples.values(), strict=True):
        dims = None if value.shape is None else list(value.shape)
        typed = value.dtype == ir.DataType.from_numpy(example.dtype)
        sized = dims is not None and len(dims) == example.ndim and example.size > 0
        pairs = zip(dims or (), example.shape, strict=False)
        if not (typed and sized and all(not isinstance(d, int) or d == n for d, n in pairs)):
            raise CheckpointError(
                f"the example for input {value.name!r} is {example.dtype} {list(example.shape)}; "
                f"the graph takes {value.dtype} {dims}"
            )


def _fix_inputs(proto: onnx.ModelProto, checkpoint: Checkpoint) -> None:
    for info in proto.graph.input:
        if info.name in checkpoint.examples:
            _set_shape(info, checkpoint.examples[info.name].shape)


def _set_shape(info: onnx.ValueInfoProto, shape: Iterable[int]) -> None:
    del info.type.tensor_type.shape.dim[:]
    for size in shape:
        info.type.tensor_type.shape.dim.add().dim_value = size


def _check_state(where: str, domain: Domain, checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Returns the parameters that a domain gives another shape."""
    initializers = checkpoint.model.graph.initializers
    known = {**{name: name for name in checkpoint.parameters}, **checkpoint.aliases}
    given: dict[str, tuple[str, torch.Tensor]] = {}
    changed = {}
    for name, tensor in domain.state.items():
        if name not in known:
            raise CheckpointError(
                f"{where}: state for unknown parameter {name!r}{did_you_mean(name, known)}"
            )
        target = known[name]
        if not target:
            continue
        if target in given and not torch.equal(given[target][1], tensor):
            raise CheckpointError(
                f"{where}: {given[target][0]!r} and {name!r} are one tensor but differ in state"
            )
        given[target] = name, tensor
        data = initializers[target].const_value
        assert data is not None
        expected = torch.from_numpy(data.numpy()[()]) if data.shape else torch.tensor(data.numpy())
        if tensor.dtype != expected.dtype:
            raise CheckpointError(
                f"{where}: state {name!r} is {tensor.dtype}, the parameter {expected.dtype}"
            )
        if tensor.ndim != expected.ndim:
            raise CheckpointError(
                f"{where}: state {name!r} has shape {list(tensor.shape)}, the parameter "
                f"{list(expected.shape)}"
            )
        if tensor.shape != expected.shape:
            changed[target] = tuple(tensor.shape)
    return changed


def _infer(where: str, proto: onnx.ModelProto, changed: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Returns the shape of every value at the examples, with some parameters reshaped."""
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    for info in own.graph.input:
        if info.name in changed:
            _set_shape(info, changed[info.name])
    because = (
        f"with its {', '.join(f'{n} {list(s)}' for n, s in changed.items())} " if changed else ""
    )
    try:
        own = onnx.shape_inference.infer_shapes(
            own, check_type=True, strict_mode=True, data_prop=True
        )
    except Exception as error:
        line = str(error).strip().splitlines()[-1]
        raise CheckpointError(f"{where}: {because}the shapes do not fit: {line}") from error
    shapes: Shapes = {tensor.name: list(tensor.dims) for tensor in own.graph.initializer}
    for info in [*own.graph.input, *own.graph.value_info, *own.graph.output]:
        if info.type.tensor_type.HasField("shape"):
            shapes[info.name] = [
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in info.type.tensor_type.shape.dim
            ]
    for node in own.graph.node:
        _check_operands(where, because, node, shapes)
    return shapes


def _check_operands(where: str, because: str, node: onnx.NodeProto, shapes: Shapes) -> None:
    """Checks the lengths that ONNX's shape inference passes over."""
    wanted: list[tuple[str, int | None]] = []
    output = shapes.get(node.output[0]) if node.output else None
    if output is not None and len(output) > 1:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
            wanted.append((node.input[2], output[1]))
        if node.op_type == "BatchNormalization":
            wanted.extend((name, output[1]) for name in node.input[1:])
    for name, length in wanted:
        actual = (shapes.get(name) or [None])[-1]
        broadcast = node.op_type == "Gemm" and actual == 1
        if None not in (length, actual) and actual != length and not broadcast:
            raise CheckpointError(
                f"{where}: {because}the shapes do not fit: {name!r} of {node.op_type} "
                f"{node.name!r} has {actual} channels instead of {length}"
            )


def _check_lengths(
    where: str,
    domain: Domain,
    checkpoint: Checkpoint,
    candidates: Sequence[Reader],
    shapes: Shapes,
) -> None:
    for key, masks in domain.masks.items():
        site = checkpoint.sites[key]
        found = readers_of(site, candidates)
        if not found:
            raise CheckpointError(
                f"{where}: mask on {key!r}: no convolution or matrix product reads {site!r} as "
                "its weight"
            )
        for reader in found:
            for mask in masks_of(masks):
                _check_length(f"{where}: mask on {key!r}", mask, reader, site, shapes)


def _check_length(place: str, mask: Mask, reader: Reader, site: str, shapes: Shapes) -> None:
    def shape_of(value: ir.Value) -> tuple[int, ...]:
        shape = shapes.get(str(value.name))
        known = [size for size in shape or [] if size is not None]
        if shape is None or len(known) != len(shape):
            raise CheckpointError(
                f"{place}: the shape of the weight of {reader.node.op_type} "
                f"{reader.node.name!r} cannot be derived"
            )
        return tuple(known)

    if len(shape_of(reader.operand)) < 2:
        raise CheckpointError(
            f"{place}: the weight of {reader.node.op_type} {reader.node.name!r} has no two axes"
        )
    part = weight_part(reader, site, shape_of)
    expected = part.channels(mask.axis)
    if len(mask.values) != expected:
        side = "input" if mask.axis == "in" else "output"
        owner = (
            f"{reader.node.op_type} {reader.node.name!r}"
            if part.whole in (reader.operand, reader.weight)
            else f"{part.whole.name!r}, of which {reader.node.op_type} {reader.node.name!r} reads,"
        )
        raise CheckpointError(
            f"{place} has {len(mask.values)} entries; {owner} has {expected} {side} channels"
        )


def _check_classes(where: str, domain: Domain, checkpoint: Checkpoint, shapes: Shapes) -> None:
    """Compares the number of labels with the outputs' classes, where their shapes are known.

    Classes are axis 1; of an output with three axes they may also be the last (token models).
    """
    if domain.labels is None:
        return
    sizes: set[int | None] = set()
    for value in checkpoint.model.graph.outputs:
        shape = shapes.get(str(value.name), [])
        sizes.update(shape[1:] if len(shape) == 3 else shape[1:2] or [None])
    known = sorted(size for size in sizes if size is not None)
    if None not in sizes and len(domain.labels) not in known:
        raise CheckpointError(
            f"{where} has {len(domain.labels)} labels but its output has "
            f"{' or '.join(map(str, known))} classes: a domain of its own classes needs a head of "
            "its own in state"
        )

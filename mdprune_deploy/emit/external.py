"""Writes and reads ONNX models whose weights lie in the shared store, as ONNX external data.

A model names a tensor by (`location`, `offset`, `length`); `location` is relative to the model's
folder and must stay inside it, so models and `weights.bin` stand side by side. Operands of a few
bytes stay in the model: runtimes read shapes, axes and pads while they infer shapes, before any
external file is open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from mdprune_deploy.errors import BundleError, UnsupportedGraphError
from mdprune_deploy.evaluate import constant_array
from mdprune_deploy.layout.store import StoreWriter

INLINE_BELOW = 64
"""Bytes under which a floating-point tensor stays in the model."""
INLINE_INTEGERS_BELOW = 1024
"""Bytes under which an integer or bool tensor stays in the model."""
IR_VERSION = 10
"""The oldest IR version that allows opset 20 and 21: what most runtimes read."""


def write_model(model: ir.Model, path: Path, store: StoreWriter, domain: str) -> onnx.ModelProto:
    """Writes a model next to the store; the model itself is left as it was.

    Names and shapes stay; metadata and documentation of single nodes are dropped, since exporters
    put source paths there, which differ from machine to machine and slow down loading.

    Args:
        model: The model, initialisers of any size.
        path: The file to write, in the store's folder.
        store: Takes the tensors.
        domain: The domain that names them.

    Returns:
        What was written, weights not included.

    Raises:
        OSError: A file cannot be written.
    """
    with _weights_in(store, model, domain):
        proto = ir.to_proto(model)
    proto.ir_version = IR_VERSION
    proto.producer_name = "mdprune"
    proto.producer_version = ""
    _drop_metadata(proto.graph)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return proto


def check_model(path: Path, domain: str) -> None:
    """Checks a model that was written.

    Raises:
        UnsupportedGraphError: It is not valid ONNX.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedGraphError(
            f"domain {domain!r}: the emitted model is not valid ONNX: {path.name}: {error}"
        ) from error


def read_model(path: Path) -> ir.Model:
    """Reads a model and the tensors that it names.

    Raises:
        BundleError: It cannot be read.
    """
    try:
        model = ir.load(path)
        for value in model.graph.initializers.values():
            constant_array(value)
    except Exception as error:  # onnx_ir raises whatever the damage leads to
        raise BundleError(f"{path}: the model cannot be read: {error}") from error
    return model


@contextlib.contextmanager
def _weights_in(store: StoreWriter, model: ir.Model, domain: str) -> Iterator[None]:
    """Lets the model's initialisers name the store for the length of the block."""
    held: list[tuple[ir.Value, ir.TensorProtocol]] = []
    try:
        for graph in model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is None or _stays_inline(tensor):
                    continue
                held.append((value, tensor))
                value.const_value = _external(store, tensor, value.name, domain)
        yield
    finally:
        for value, tensor in held:
            value.const_value = tensor


def _stays_inline(tensor: ir.TensorProtocol) -> bool:
    if tensor.dtype == ir.DataType.STRING:
        return True
    return tensor.nbytes < (
        INLINE_BELOW if tensor.dtype.is_floating_point() else INLINE_INTEGERS_BELOW
    )


def _external(
    store: StoreWriter, tensor: ir.TensorProtocol, name: str | None, domain: str
) -> ir.ExternalTensor:
    ref = store.add(tensor.tobytes(), domain)
    return ir.ExternalTensor(
        store.path.name,
        ref.offset,
        ref.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name or "",
        base_dir=store.path.parent,
    )


def _drop_metadata(graph: onnx.GraphProto) -> None:
    entries = [graph, *graph.node, *graph.value_info, *graph.input, *graph.output]
    for entry in [*entries, *graph.initializer]:
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _drop_metadata(attribute.g)

"""The graph of a checkpoint as it is stored: without the parameters' data, and nothing hidden."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from .errors import CheckpointError

OLDEST_OPSET, NEWEST_OPSET = 18, 23
Array = NDArray[Any]


def without_data(model: ir.Model, parameters: Sequence[str]) -> onnx.ModelProto:
    """Returns the graph with its parameters as graph inputs after the network's own."""
    proto = ir.to_proto(model)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name in parameters:
        tensor = tensors[name]
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        )
    named = set(parameters)
    for repeated in (proto.graph.initializer, proto.graph.value_info):
        kept = [item for item in repeated if item.name not in named]
        del repeated[:]
        repeated.extend(kept)
    return proto


def with_data(
    graph: bytes, examples: Sequence[str], data: Mapping[str, Array], opset: int
) -> ir.Model:
    """Reads a graph and makes its parameters initialisers.

    Args:
        graph: A serialised `ModelProto`, as `without_data` makes it.
        examples: Names of the network's inputs.
        data: The parameters by name, in the order of the graph's inputs.
        opset: The operator set that the graph must use.

    Raises:
        CheckpointError: The graph is corrupt or holds what a checkpoint's graph may not.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(graph)
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
        array = data[str(value.name)]
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

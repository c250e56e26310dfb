"""From an ONNX file of any exporter to the kind of graph that `export` makes of a module.

The file is converted to one operator set. Its float32 tensors of at least one axis are the
network's parameters, under their own names: initialisers, and Constant nodes under the name of
what they make. Everything else is a constant. An `Identity` of a tensor is a tensor of its own:
exporters merge parameters that happen to be equal, and a domain may change one of them.

The result is compared with the file in ONNX Runtime, so that neither the conversion nor the tidying
defines what is correct.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes import common

from .errors import CheckpointError, UnsupportedGraphError, UsageError
from .evaluate import Array, attribute, evaluate
from .export import EXPORT_TOLERANCE, OPSET, Exported, tidy

Shape = tuple[int, ...]

OLDEST_OPSET = 7
"""Before it, operators broadcast by attributes and dropout depended on them."""
_TYPES = {
    *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BOOL, ir.DataType.STRING),
    *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
    *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
}
_INTEGER_ARITHMETIC = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
                       "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")  # fmt: skip
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
           "Multinomial")  # fmt: skip
_NOT_WEIGHTS = {"Resize": (1, 2), "Upsample": (1,)}
"""Operands that are read as numbers: regions and scales."""


def import_onnx(
    path: Path, shapes: Sequence[Shape] = (), own: Mapping[str, set[Shape]] | None = None
) -> Exported:
    """Reads a dense network.

    Args:
        path: The file; tensors that it keeps in other files must stand beside it.
        shapes: Shapes of example inputs; empty where the file gives every axis but the batch.
        own: Shapes of the parameters that domains bring, by name.

    Raises:
        CheckpointError: The file is unreadable or no valid ONNX.
        UnsupportedGraphError: The file holds something that cannot be compiled exactly; the
            message names the operator, the node and why.
        UsageError: The shapes do not fit the network's inputs.
    """
    where = f"ONNX model {str(path)!r}"
    proto = _converted(_read(path, where), where)
    _check_supported(_lifted(proto).graph, where)
    examples = _examples(_lifted(proto).graph, shapes, where)
    session = _session(path, where)
    if all(symbolic for symbolic, _ in examples.values()):
        try:
            return _import(proto, examples, own or {}, session, where, dynamic=True)
        except UnsupportedGraphError:
            pass  # a batch of one is written into its reshapes, whatever its inputs say
    return _import(proto, examples, own or {}, session, where, dynamic=False)


def _read(path: Path, where: str) -> onnx.ModelProto:
    try:
        proto = onnx.load(path)
        onnx.checker.check_model(path)
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise CheckpointError(f"{where}: is no valid ONNX: {_first_line(error)}") from error
    return proto


def _converted(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Brings a model to `OPSET`; the converter drops the nodes' metadata, which is put back."""
    (version,) = [item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")]
    if version == OPSET:
        return proto
    if version < OLDEST_OPSET:
        raise UnsupportedGraphError(
            f"{where}: uses operator set {version}; {OLDEST_OPSET} is the oldest that is read: "
            "export it anew"
        )
    try:
        converted = onnx.version_converter.convert_version(proto, OPSET)
    except Exception as error:
        raise UnsupportedGraphError(
            f"{where}: operator set {version} cannot be converted to {OPSET}: {_first_line(error)}"
        ) from error
    metadata = {node.name: node.metadata_props for node in proto.graph.node if node.name}
    for node in converted.graph.node:
        if node.name in metadata and not node.metadata_props:
            node.metadata_props.extend(metadata[node.name])
    return converted


def _lifted(proto: onnx.ModelProto) -> ir.Model:
    """Returns the model with all constants as initialisers that hold data of their own."""
    model: ir.Model = ir.from_proto(proto)
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    graph = model.graph
    for value in graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Identity" else None
        if source is None or not source.is_initializer() or node.outputs[0].is_graph_output():
            continue
        copy = ir.val(str(node.outputs[0].name), const_value=source.const_value)
        node.outputs[0].name = None
        copy.shape, copy.type = source.shape, source.type
        graph.register_initializer(copy)
        node.outputs[0].replace_all_uses_with(copy)
        graph.remove(node, safe=True)
    return model


def _check_supported(graph: ir.Graph, where: str) -> None:
    """Refuses by name what no later stage could make exact."""
    for value in [*graph.inputs, *graph.initializers.values()]:
        if value.dtype not in _TYPES:
            kind = "input" if value.is_graph_input() else "tensor"
            raise UnsupportedGraphError(
                f"{where}: {kind} {value.name!r} is {value.dtype}; only float32 networks can be "
                "packed"
            )
    for node in graph:
        reason = _reason(node)
        if reason is not None:
            operator = node.op_type if node.domain == "" else f"{node.domain}::{node.op_type}"
            raise UnsupportedGraphError(f"{where}: {operator} (node {node.name!r}) {reason}")


def _reason(node: ir.Node) -> str | None:
    if node.domain != "":
        return "is not a standard ONNX operator"
    if any(
        attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attr in node.attributes.values()
    ):
        return "holds a subgraph; control flow that depends on data cannot be compiled"
    if node.op_type in _INTEGER_ARITHMETIC:
        return "computes in integers; only float32 networks can be packed"
    if node.op_type in _RANDOM or _drops(node):
        return "draws random numbers"
    if node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0):
        return "is in training mode: its output depends on the batch; export in eval mode"
    if node.op_type == "Cast" and ir.DataType(attribute(node, "to", 1)) not in _TYPES:
        return f"casts to {ir.DataType(node.attributes['to'].as_int())}; only float32 can be packed"
    return None


def _drops(node: ir.Node) -> bool:
    training = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    return training is not None and not (
        training.const_value is not None and not training.const_value.numpy().any()
    )


def _examples(
    graph: ir.Graph, shapes: Sequence[Shape], where: str
) -> dict[str, tuple[bool, Array]]:
    """Returns, by input, whether its batch axis is symbolic, and a random example."""
    if shapes and len(shapes) != len(graph.inputs):
        raise UsageError(f"{where}: takes {len(graph.inputs)} inputs but {len(shapes)} shapes came")
    rng = np.random.default_rng(0)
    found = {}
    for index, value in enumerate(graph.inputs):
        if value.dtype != ir.DataType.FLOAT:
            raise UnsupportedGraphError(
                f"{where}: input {value.name!r} is {value.dtype}; only float32 inputs can be packed"
            )
        dims = None if value.shape is None else [
            dim if isinstance(dim, int) and dim > 0 else None for dim in value.shape
        ]  # fmt: skip
        size = shapes[index] if shapes else _whole(dims)
        if size is None:
            raise UsageError(
                f"{where}: input {value.name!r} has shape {_shown(value)}: give its size with "
                "--input, such as --input 1,3,224,224"
            )
        if dims is not None and not (
            len(dims) == len(size)
            and all(dim in (None, given) for dim, given in zip(dims, size, strict=True))
        ):
            raise UsageError(
                f"{where}: input {value.name!r} has shape {_shown(value)}, which "
                f"{','.join(map(str, size))} does not fit"
            )
        symbolic = len(size) > 1 and (dims is None or dims[0] is None)
        found[str(value.name)] = symbolic, rng.standard_normal(size).astype(np.float32)
    return found


def _whole(dims: Sequence[int | None] | None) -> Shape | None:
    """Returns the shape with batch 1, or None where another axis is unknown."""
    if dims is None or None in dims[1:]:
        return None
    return tuple(dim or 1 for dim in dims)


def _shown(value: ir.Value) -> str:
    if value.shape is None:
        return "unknown"
    names = [dim if isinstance(dim, int) else dim.value or "?" for dim in value.shape]
    return f"({', '.join(map(str, names))})"


def _session(path: Path, where: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UnsupportedGraphError(
            f"{where}: ONNX Runtime, which it is compared with, refuses it: {_first_line(error)}"
        ) from error


def _import(
    proto: onnx.ModelProto,
    examples: Mapping[str, tuple[bool, Array]],
    own: Mapping[str, set[Shape]],
    session: onnxruntime.InferenceSession,
    where: str,
    *,
    dynamic: bool,
) -> Exported:
    model = _lifted(proto)
    graph = model.graph
    arrays = {name: example for name, (_, example) in examples.items()}
    _set_shapes(graph, arrays, dynamic=dynamic)
    named = list(graph.initializers)
    parameters = tuple(name for name in named if name in own or _is_weight(graph, name))
    reshaped = {
        name
        for name in parameters
        if any(tuple(graph.initializers[name].shape or ()) != shape for shape in own.get(name, ()))
    }
    tidy(model, parameters, reshaped)
    for batch in (1, 2) if dynamic else (None,):
        _compare(graph, session, arrays, batch, where)
    used = tuple(name for name in parameters if name in graph.initializers)
    return Exported(
        model=model,
        examples=arrays,
        parameters=used,
        aliases={name: "" for name in parameters if name not in used},
        modules=(),
        dynamic_batch=dynamic,
    )


def _set_shapes(graph: ir.Graph, examples: Mapping[str, Array], *, dynamic: bool) -> None:
    """Gives the inputs the examples' shapes, and forgets all that followed from others."""
    for value in graph.inputs:
        size = examples[str(value.name)].shape
        value.shape = ir.Shape(["batch", *size[1:]] if dynamic else size)
    for node in graph:
        for value in node.outputs:
            keep_rank = value.is_graph_output() and value.shape is not None
            value.shape = ir.Shape([None] * len(value.shape or ())) if keep_rank else None


def _is_weight(graph: ir.Graph, name: str) -> bool:
    value = graph.initializers[name]
    if value.dtype != ir.DataType.FLOAT or value.shape is None or len(value.shape) == 0:
        return False
    return (
        not all(use.idx in _NOT_WEIGHTS.get(use.node.op_type, ()) for use in value.uses())
        or not value.uses()
    )


def _compare(
    graph: ir.Graph,
    session: onnxruntime.InferenceSession,
    examples: Mapping[str, Array],
    batch: int | None,
    where: str,
) -> None:
    """Runs graph and file on random inputs of this batch, or of the examples' where it is None."""
    rng = np.random.default_rng(1)
    feeds = {
        name: rng.standard_normal(
            x.shape if batch is None else (batch, *x.shape[1:])
        ).astype(np.float32)
        for name, x in examples.items()
    }  # fmt: skip
    try:
        expected = session.run(None, feeds)
    except Exception as error:
        raise UnsupportedGraphError(
            f"{where}: does not run in ONNX Runtime: {_first_line(error)}"
        ) from error
    actual = evaluate(graph, feeds)
    for value, left, right in zip(graph.outputs, expected, actual, strict=True):
        found = _error(left, right)
        if not found <= EXPORT_TOLERANCE:
            raise UnsupportedGraphError(
                f"{where}: output {value.name!r} differs by {found:.1e} of its largest value "
                "between ONNX Runtime and the ONNX specification"
            )


def _error(expected: Array, actual: Array) -> float:
    """Returns max |y - r| / max |r|; infinite where shapes or infinities differ."""
    if expected.shape != actual.shape:
        return float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(actual)):
        return float("inf")
    left, right = expected[finite].astype(np.float64), actual[finite].astype(np.float64)
    difference = float(np.abs(left - right).max(initial=0.0))
    return difference / (float(np.abs(left).max(initial=0.0)) or 1.0)


def _first_line(error: Exception) -> str:
    lines: Iterator[str] = (line.strip() for line in str(error).splitlines())
    text = next((line for line in lines if line), type(error).__name__)
    return text if len(text) <= 300 else text[:297] + "..."

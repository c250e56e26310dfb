"""From an ONNX file of any exporter to the kind of graph that `export` makes of a module.

The file is converted to one operator set. Its float32 tensors of at least one axis are the
network's parameters, under their own names: initialisers, and Constant nodes under the name of
what they make. Everything else is a constant. An `Identity` of a tensor is a tensor of its own:
exporters merge parameters that happen to be equal, and a domain may change one of them.

The result is compared with the file in ONNX Runtime, so that neither the conversion nor the tidying
defines what is correct. Networks that magnify float32 rounding are compared in float64 too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from . import onnx_file
from .errors import UnsupportedGraphError, UsageError
from .evaluate import Array, evaluate
from .export import EXPORT_TOLERANCE, EXPORT_TOLERANCE_64, Exported, relative_error, tidy
from .precision import widened

Shape = tuple[int, ...]

_NOT_WEIGHTS = {"Resize": (1, 2), "Upsample": (1,)}
"""Operands that are read as numbers: regions and scales."""
_ROUNDINGS = 10.0
"""How many times as much one float32 evaluation of a network may round as another."""


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
    original = onnx_file.read(path, where)
    proto = onnx_file.converted(original, where)
    graph = onnx_file.lifted(proto).graph
    onnx_file.check_supported(graph, where)
    examples = _examples(graph, shapes, where)
    file = _File(onnx_file.lifted(original).graph, _session(path, where), where)
    if all(symbolic for symbolic, _ in examples.values()):
        try:
            return _import(proto, examples, own or {}, file, dynamic=True)
        except UnsupportedGraphError:
            pass  # a batch of one is written into its reshapes, whatever its inputs say
    return _import(proto, examples, own or {}, file, dynamic=False)


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
        reason = onnx_file.first_line(error)
        raise UnsupportedGraphError(
            f"{where}: ONNX Runtime, which it is compared with, refuses it: {reason}"
        ) from error


def _import(
    proto: onnx.ModelProto,
    examples: Mapping[str, tuple[bool, Array]],
    own: Mapping[str, set[Shape]],
    file: _File,
    *,
    dynamic: bool,
) -> Exported:
    model = onnx_file.lifted(proto)
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
        _compare(graph, file, arrays, batch)
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


@dataclass(frozen=True, eq=False)
class _File:
    """The file as it is, which says what is correct.

    Attributes:
        graph: Its graph, in its own operator set.
        session: ONNX Runtime on it.
        where: Its name, for messages.
    """

    graph: ir.Graph
    session: onnxruntime.InferenceSession
    where: str


def _compare(
    graph: ir.Graph, file: _File, examples: Mapping[str, Array], batch: int | None
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
        expected = file.session.run(None, feeds)
    except Exception as error:
        raise UnsupportedGraphError(
            f"{file.where}: does not run in ONNX Runtime: {onnx_file.first_line(error)}"
        ) from error
    actual = evaluate(graph, feeds)
    found = _errors(expected, actual)
    if max(found, default=0.0) <= EXPORT_TOLERANCE or _rounds(graph, file, feeds, expected, actual):
        return
    index = int(np.argmax(found))
    raise UnsupportedGraphError(
        f"{file.where}: output {graph.outputs[index].name!r} differs by {found[index]:.1e} of its "
        "largest value between ONNX Runtime and the ONNX specification"
    )


def _rounds(
    graph: ir.Graph,
    file: _File,
    feeds: Mapping[str, Array],
    expected: Sequence[Array],
    actual: Sequence[Array],
) -> bool:
    """Tells whether graph and file differ in float32 by nothing but its rounding.

    ONNX Runtime has no float64 of most operators. Graph and file must agree in float64, and ONNX
    Runtime must be about as near to that as the graph in float32 is.
    """
    wide = {name: x.astype(np.float64) for name, x in feeds.items()}
    exact = evaluate(widened(graph), wide)
    try:
        own = evaluate(widened(file.graph), wide)
    except UnsupportedGraphError:  # an operator of an old set that nothing else can run
        return False
    if max(_errors(own, exact)) > EXPORT_TOLERANCE_64:
        return False
    rounding = _errors(exact, actual)
    return all(
        error <= max(EXPORT_TOLERANCE, _ROUNDINGS * own)
        for error, own in zip(_errors(exact, expected), rounding, strict=True)
    )


def _errors(expected: Sequence[Array], actual: Sequence[Array]) -> list[float]:
    return [relative_error(left, right) for left, right in zip(expected, actual, strict=True)]

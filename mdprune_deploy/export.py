"""From a PyTorch module to one ONNX graph whose initialisers keep the names of the state dict.

`torch.export` traces the module in eval mode, `torch.onnx` translates it without optimising, and
the graph is tidied once: functions inlined, arithmetic that no parameter feeds folded, equal
constants and equal nodes merged, everything unused removed. Parameters are graph inputs while
that runs, so none is folded away, split or merged.

The result is compared with the module on the examples: an exporter that changes what the network
computes must not define what is correct. Some networks magnify float32 rounding a hundred thousand
times, so where the two differ in float32 they are compared in float64.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from .errors import CheckpointError, UnsupportedGraphError
from .evaluate import Array, evaluate
from .precision import widened

OPSET = 20
"""The ONNX operator set of exported graphs: the newest that TensorRT 10 and OpenVINO both read."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""The node metadata that names the module a node comes from; all other metadata is dropped."""
EXPORT_TOLERANCE = 1e-3
"""Largest error relative to the output's largest value; float32 rounding of deep networks is
near 1e-5, a wrong translation is near 1."""
EXPORT_TOLERANCE_64 = 1e-5
"""The same in float64, where a graph stores what it has from attributes (epsilon) in float32."""


@dataclass(frozen=True, eq=False)
class Exported:
    """A traced network.

    Attributes:
        model: The graph; parameters and buffers that it uses are initialisers.
        examples: Example array per graph input, as the caller gave them.
        parameters: The initialisers that are parameters or buffers, in the module's order.
        aliases: Other names of those, and names that the graph does not use (to `""`).
        modules: Names of all submodules.
        dynamic_batch: Whether axis 0 of the inputs is symbolic.
    """

    model: ir.Model
    examples: dict[str, Array]
    parameters: tuple[str, ...]
    aliases: dict[str, str]
    modules: tuple[str, ...]
    dynamic_batch: bool


def export(
    model: torch.nn.Module,
    example_inputs: torch.Tensor | Sequence[torch.Tensor],
    reshaped: Collection[str] = (),
) -> Exported:
    """Traces a copy of a module in eval mode on the CPU.

    Args:
        model: The network; its floating-point parameters and buffers are float32.
        example_inputs: The forward call's positional arguments.
        reshaped: Names of parameters whose axis 0 some domain changes; nothing that depends on
            their shape is folded.

    Raises:
        CheckpointError: The module or the examples are not what can be stored.
        UnsupportedGraphError: PyTorch cannot trace or translate the module, or the graph does not
            compute what the module computes.
    """
    examples = _examples(example_inputs)
    network = _eval_copy(model)
    tensors = _named_tensors(network)
    try:
        return _export(network, tensors, examples, reshaped, dynamic=True)
    except UnsupportedGraphError:
        return _export(network, tensors, examples, reshaped, dynamic=False)


def _examples(example_inputs: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    given = [example_inputs] if isinstance(example_inputs, torch.Tensor) else list(example_inputs)
    if not given:
        raise CheckpointError("example_inputs is empty: give one tensor per input of the model")
    for index, tensor in enumerate(given):
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"example input {index} is a {type(tensor).__name__}, not a tensor"
            )
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise CheckpointError(f"example input {index} is {_dtype(tensor)}, not float32")
        if tensor.numel() == 0:
            raise CheckpointError(f"example input {index} has shape {_shape(tensor)}: no elements")
    return [tensor.detach().cpu().clone() for tensor in given]


def _eval_copy(model: torch.nn.Module) -> torch.nn.Module:
    # Tensors that a forward pass left on a module (the old weight_norm) refuse to be copied.
    memo: dict[int, object] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    network = copy.deepcopy(model, memo).eval().cpu()
    return network.requires_grad_(False)


def _named_tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    tensors = {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }
    for name, tensor in tensors.items():
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise CheckpointError(
                f"parameter {name!r} is {_dtype(tensor)}; only float32 models can be stored: "
                "call model.float() first"
            )
    return tensors


def _export(
    network: torch.nn.Module,
    tensors: dict[str, torch.Tensor],
    examples: list[torch.Tensor],
    reshaped: Collection[str],
    *,
    dynamic: bool,
) -> Exported:
    graph_model = _trace(network, examples, dynamic=dynamic)
    graph = graph_model.graph
    if len(graph.inputs) != len(examples):
        raise UnsupportedGraphError(
            f"the model takes {len(examples)} example inputs but its graph has "
            f"{len(graph.inputs)} inputs"
        )
    parameters = tuple(name for name in tensors if name in graph.initializers)
    tidy(graph_model, parameters, reshaped)
    parameters = tuple(name for name in parameters if name in graph.initializers)
    _own_data(graph)
    arrays = {
        str(value.name): tensor.numpy()
        for value, tensor in zip(graph.inputs, examples, strict=True)
    }
    _check_against(network, graph, examples)
    if dynamic and any(x.ndim and x.shape[0] > 1 for x in examples):
        # The trace assumes a batch of at least two; a network may branch on a batch of one.
        _check_against(network, graph, [x[:1] if x.ndim else x for x in examples])
    return Exported(
        model=graph_model,
        examples=arrays,
        parameters=parameters,
        aliases=_aliases(tensors, parameters),
        modules=tuple(name for name, _ in network.named_modules() if name),
        dynamic_batch=dynamic,
    )


def _trace(network: torch.nn.Module, examples: list[torch.Tensor], *, dynamic: bool) -> ir.Model:
    arguments = tuple(examples)
    shapes: tuple[dict[int, object] | None, ...] | None = None
    if dynamic:
        # torch.export specialises an axis of size 1, so the example batch is doubled.
        arguments = tuple(x.repeat(2, *[1] * (x.ndim - 1)) if x.ndim else x for x in examples)
        shapes = tuple({0: torch.export.Dim.DYNAMIC} if x.ndim else None for x in examples)
    try:
        with _quiet(), torch.no_grad():
            exported = torch.export.export(network, arguments, dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(
                exported, dynamo=True, optimize=False, verbose=False, opset_version=OPSET
            )
    except Exception as error:
        raise UnsupportedGraphError(f"the model cannot be exported: {_reason(error)}") from error
    assert program is not None
    return program.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the exporters print, warn and log; their errors still arrive as exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _reason(error: BaseException) -> str:
    """Returns the root cause's first two lines that say something."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("File ", "#", "%", "^"))]
    text = " ".join(said[:2]) or type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."


def tidy(model: ir.Model, parameters: Collection[str], reshaped: Collection[str] = ()) -> None:
    """Simplifies a graph in place without touching its parameters.

    Args:
        model: The graph, with its parameters among the initialisers.
        parameters: Names of the initialisers that are parameters.
        reshaped: Parameters whose axis 0 is not fixed.
    """
    graph = model.graph
    data = {name: graph.initializers[name].const_value for name in parameters}
    moved = _parameters_to_inputs(graph, parameters)
    common.InlinePass()(model)
    _make_names_unique(graph, moved)
    _forget_shapes_after(graph, [value for value in moved if value.name in reshaped])
    with _quiet():
        fold_constants(model, onnx_shape_inference=True)
    common.IdentityEliminationPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    _drop_zero_biases(graph)
    common.RemoveUnusedNodesPass()(model)
    _make_names_unique(graph, moved)
    _inputs_to_parameters(graph, moved, data)
    _strip(model)


def _parameters_to_inputs(graph: ir.Graph, parameters: Collection[str]) -> list[ir.Value]:
    values = [graph.initializers.pop(name) for name in parameters]
    for value in values:
        value.const_value = None
        graph.inputs.append(value)
    return values


def _inputs_to_parameters(
    graph: ir.Graph, values: Sequence[ir.Value], data: Mapping[str, ir.TensorProtocol | None]
) -> None:
    for value in values:
        graph.inputs.remove(value)
        if value.uses() or value.is_graph_output():
            value.const_value = data[str(value.name)]
            graph.register_initializer(value)


def _make_names_unique(graph: ir.Graph, parameters: Sequence[ir.Value]) -> None:
    """Renames values that are called like a parameter (a module's `relu`) or like each other."""
    taken = {str(value.name) for value in parameters}
    inputs = [value for value in graph.inputs if value not in parameters]
    made = [value for node in graph for value in node.outputs]
    for value in [*inputs, *graph.initializers.values(), *made]:
        base, count = value.name or "value", 0
        name = base
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        if name != value.name:
            value.name = name


def _forget_shapes_after(graph: ir.Graph, reshaped: Sequence[ir.Value]) -> None:
    """Makes axis 0 of some parameters unknown, and every shape that may depend on it."""
    doubtful = set(reshaped)
    for value in reshaped:
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape([None, *value.shape[1:]])
    for node in graph:
        if any(value in doubtful for value in node.inputs):
            for output in node.outputs:
                output.shape = None
                doubtful.add(output)


def _drop_zero_biases(graph: ir.Graph) -> None:
    """Removes the zero bias that the exporter gives to functional convolutions without one."""
    for node in graph:
        if node.op_type not in ("Conv", "ConvTranspose") or len(node.inputs) < 3:
            continue
        bias = node.inputs[2]
        if bias is not None and bias.const_value is not None and not bias.const_value.numpy().any():
            node.resize_inputs(2)


def _strip(model: ir.Model) -> None:
    """Removes shapes of intermediate values, and metadata that names the user's machine."""
    graph = model.graph
    model.metadata_props.clear()
    model.producer_name, model.producer_version, model.doc_string = "mdprune", None, None
    graph.metadata_props.clear()
    graph.doc_string, graph.name = None, "network"
    for index, node in enumerate(graph):
        scopes = node.metadata_props.get(SCOPES)
        node.metadata_props.clear()
        if scopes is not None:
            node.metadata_props[SCOPES] = scopes
        node.doc_string = None
        node.name = node.name or f"{node.op_type}_{index}"
        for value in node.outputs:
            keep_rank = value.is_graph_output() and value.shape is not None
            value.shape = ir.Shape([None] * len(value.shape)) if keep_rank and value.shape else None
            value.metadata_props.clear()
    for value in [*graph.inputs, *graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
    _name_batch(graph)


def _name_batch(graph: ir.Graph) -> None:
    """Calls the symbolic axis 0 `batch` where all inputs share it."""
    symbols = {
        dim.value
        for value in graph.inputs
        for dim in (value.shape or ())
        if isinstance(dim, ir.SymbolicDim)
    }
    if len(symbols) != 1:
        return
    for value in graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(
                ["batch" if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape]
            )


def _own_data(graph: ir.Graph) -> None:
    """Copies every initialiser, so that the graph holds no view of the module."""
    for value in graph.initializers.values():
        assert value.const_value is not None
        array = np.array(value.const_value.numpy(), order="C", copy=True)
        value.const_value = ir.tensor(array, name=value.name)
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)


def _aliases(tensors: dict[str, torch.Tensor], parameters: Collection[str]) -> dict[str, str]:
    by_identity = {id(tensors[name]): name for name in parameters}
    return {
        name: by_identity.get(id(tensor), "")
        for name, tensor in tensors.items()
        if name not in parameters
    }


def _check_against(network: torch.nn.Module, graph: ir.Graph, examples: list[torch.Tensor]) -> None:
    """Compares graph and module on the examples with noise added, so that zeros are no example.

    Raises:
        UnsupportedGraphError: They differ, by more than float32 rounding explains.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [
        x + torch.randn(x.shape, generator=generator) if x.is_floating_point() else x
        for x in examples
    ]
    try:
        expected = _run_module(network, inputs)
    except Exception as error:
        raise UnsupportedGraphError(f"the model fails on its examples: {_reason(error)}") from error
    actual = _run_graph(graph, inputs)
    if len(expected) != len(actual):
        raise UnsupportedGraphError(
            f"the model returns {len(expected)} tensors but its graph {len(actual)}"
        )
    found = _differences(expected, actual)
    if max(found, default=0.0) <= EXPORT_TOLERANCE or _agree_in_float64(network, graph, inputs):
        return
    index = int(np.argmax(found))
    raise UnsupportedGraphError(
        f"output {index} of the exported graph differs from the model's by {found[index]:.1e} of "
        "its largest value; a network that is random in eval mode cannot be stored"
    )


def _agree_in_float64(
    network: torch.nn.Module, graph: ir.Graph, inputs: list[torch.Tensor]
) -> bool:
    """Tells whether graph and module differ in float32 by nothing but its rounding."""
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    try:
        expected = _run_module(copy.deepcopy(network).double(), wide)
    except Exception:  # it makes float32 tensors of its own: nothing is shown
        return False
    found = _differences(expected, _run_graph(widened(graph), wide))
    return max(found, default=0.0) <= EXPORT_TOLERANCE_64


def _run_module(network: torch.nn.Module, inputs: list[torch.Tensor]) -> list[Array]:
    with torch.no_grad(), _quiet():
        leaves = torch.utils._pytree.tree_leaves(network(*inputs))
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _run_graph(graph: ir.Graph, inputs: list[torch.Tensor]) -> list[Array]:
    feeds = {str(value.name): x.numpy() for value, x in zip(graph.inputs, inputs, strict=True)}
    return evaluate(graph, feeds)


def _differences(expected: list[Array], actual: list[Array]) -> list[float]:
    return [relative_error(left, right) for left, right in zip(expected, actual, strict=True)]


def relative_error(expected: Array, actual: Array) -> float:
    """Returns max |y - r| / max |r|; infinite where shapes or infinities differ."""
    if expected.shape != actual.shape:
        return float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(actual)):
        return float("inf")
    left, right = expected[finite].astype(np.float64), actual[finite].astype(np.float64)
    difference = float(np.abs(left - right).max(initial=0.0))
    return difference / (float(np.abs(left).max(initial=0.0)) or 1.0)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))

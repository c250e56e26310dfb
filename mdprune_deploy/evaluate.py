"""Evaluates an ONNX graph in NumPy, in the precision of its constants.

Every operator comes from `onnx.reference`, the executable form of the ONNX specification, except
the windowed ones, where PyTorch's kernels replace its Python loops. ONNX Runtime cannot stand in:
its convolution has no float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812
from onnx.reference.ops._op_list import load_op

from .errors import UnsupportedGraphError

Array = np.ndarray[Any, np.dtype[Any]]
Kernel = Callable[..., Sequence[Array]]
NodeRunner = Callable[[ir.Node, Sequence[Array | None], int], Sequence[Array]]
"""Takes a node, an array per input (None where it is absent) and the opset; gives the outputs."""


def evaluate(
    graph: ir.Graph,
    feeds: Mapping[str, Array],
    *,
    observe: Callable[[ir.Value, Array], None] | None = None,
    run: NodeRunner | None = None,
) -> list[Array]:
    """Runs a graph.

    Args:
        graph: A graph without functions, whose initialisers hold their data.
        feeds: One array per graph input, by name.
        observe: Called with every value that a node makes, as soon as it is made.
        run: Runs a node in place of `evaluate_node`.

    Returns:
        One array per graph output.

    Raises:
        UnsupportedGraphError: An operator is unknown to `onnx.reference`.
    """
    values: dict[ir.Value, Array] = {
        value: constant_array(value) for value in graph.initializers.values()
    }
    values.update({value: feeds[_name(value)] for value in graph.inputs})
    remaining = {value: len(value.uses()) for node in graph for value in node.outputs}
    for value in graph.outputs:
        remaining[value] = remaining.get(value, 0) + 1
    opset = graph.opset_imports.get("", 0)
    run = evaluate_node if run is None else run
    for node in graph:
        arguments = [None if value is None else values[value] for value in node.inputs]
        for value, array in zip(node.outputs, run(node, arguments, opset), strict=False):
            values[value] = array
            if observe is not None:
                observe(value, array)
        for operand in node.inputs:
            if operand is not None and operand in remaining:
                remaining[operand] -= 1
                if remaining[operand] == 0:
                    values.pop(operand, None)
    return [values[value] for value in graph.outputs]


def evaluate_node(node: ir.Node, arguments: Sequence[Array | None], opset: int) -> Sequence[Array]:
    """Runs one node.

    Args:
        node: The node; only its operator and attributes matter.
        arguments: One array per input, None where the input is absent.
        opset: The version of the ONNX operator set.

    Returns:
        One array per output.

    Raises:
        UnsupportedGraphError: The operator is unknown to `onnx.reference`, or it refuses the
            arguments.
    """
    kernel = _WINDOWED.get(node.op_type)
    try:
        with np.errstate(all="ignore"):
            if kernel is not None:
                return kernel(node, *arguments)
            return [np.asarray(array) for array in _reference_kernel(node, opset)(*arguments)]
    except UnsupportedGraphError:
        raise
    except Exception as error:
        raise UnsupportedGraphError(
            f"{node.op_type} (node {node.name!r}) cannot be evaluated: {error}"
        ) from error


def constant_array(value: ir.Value) -> Array:
    """Returns the data of an initialiser."""
    if value.const_value is None:
        raise UnsupportedGraphError(f"initialiser {value.name!r} has no data")
    return value.const_value.numpy()


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Returns a node's attribute, or the operator's default where it is absent."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def _reference_kernel(node: ir.Node, opset: int) -> Callable[..., Iterable[Array]]:
    attributes = tuple(node.attributes.values())
    cached = node.meta.get("mdprune_kernel")
    if cached is not None and [*map(id, cached[0])] == [*map(id, attributes)]:
        return cached[1]  # type: ignore[no-any-return]
    if node.domain != "":
        raise UnsupportedGraphError(
            f"{node.domain}::{node.op_type} (node {node.name!r}) is not a standard ONNX operator"
        )
    proto = ir.serde.serialize_node(node)
    parameters = {"log": _no_log, "opsets": {"": opset}, "verbose": 0, "new_ops": None}
    try:
        kernel = load_op("", node.op_type, opset, node=proto)(proto, parameters)
    except Exception:
        kernel = onnx.reference.ReferenceEvaluator(_single_node_model(proto, opset))
        names = [name for name in proto.input if name]
        run: Callable[..., Iterable[Array]] = lambda *arrays: kernel.run(  # noqa: E731
            None, dict(zip(names, [a for a in arrays if a is not None], strict=True))
        )
    else:
        run = kernel.run
    node.meta["mdprune_kernel"] = (attributes, run)  # a clone may change its attributes
    return run


def _single_node_model(proto: onnx.NodeProto, opset: int) -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        [proto],
        "node",
        [onnx.helper.make_empty_tensor_value_info(name) for name in proto.input if name],
        [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output if name],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])


def _no_log(*_: object) -> None:
    return None


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name


def _torch(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def window(node: ir.Node, x_shape: Sequence[int], kernel: Sequence[int]) -> _Window:
    """Reads a windowed operator's attributes, with `auto_pad` resolved to explicit padding."""
    return _Window(node, x_shape, kernel)


class _Window:
    """Stride, dilation and padding of a convolution or pooling node, per spatial axis."""

    def __init__(self, node: ir.Node, x_shape: Sequence[int], kernel: Sequence[int]) -> None:
        rank = len(kernel)
        self.kernel = tuple(kernel)
        self.strides = tuple(attribute(node, "strides", (1,) * rank))
        self.dilations = tuple(attribute(node, "dilations", (1,) * rank))
        pads = tuple(attribute(node, "pads", (0,) * 2 * rank))
        self.begin, self.end = pads[:rank], pads[rank:]
        auto_pad = attribute(node, "auto_pad", "NOTSET")
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            spatial = x_shape[2:]
            totals = [
                max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
                for size, s, k, d in zip(
                    spatial, self.strides, self.kernel, self.dilations, strict=True
                )
            ]
            low = tuple(total // 2 for total in totals)
            high = tuple(total - half for total, half in zip(totals, low, strict=True))
            self.begin, self.end = (low, high) if auto_pad == "SAME_UPPER" else (high, low)

    @property
    def padded(self) -> bool:
        """Whether any border is padded."""
        return any(self.begin) or any(self.end)

    def pad(self, x: torch.Tensor, value: float) -> torch.Tensor:
        """Pads the spatial axes with a constant."""
        if not self.padded:
            return x
        pairs = [
            n for low, high in zip(self.begin[::-1], self.end[::-1], strict=True)
            for n in (low, high)
        ]  # fmt: skip
        return F.pad(x, pairs, value=value)


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _conv(node: ir.Node, x: Array, weight: Array, bias: Array | None = None) -> list[Array]:
    geometry = window(node, x.shape, weight.shape[2:])
    y = _CONV[weight.ndim - 2](
        geometry.pad(_torch(x), 0.0),
        _torch(weight),
        None if bias is None else _torch(bias),
        stride=geometry.strides,
        dilation=geometry.dilations,
        groups=attribute(node, "group", 1),
    )
    return [y.numpy()]


def _conv_transpose(
    node: ir.Node, x: Array, weight: Array, bias: Array | None = None
) -> list[Array]:
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attributes:
        raise UnsupportedGraphError(
            f"ConvTranspose (node {node.name!r}) with auto_pad or output_shape is not supported; "
            "give explicit pads and output_padding"
        )
    geometry = window(node, x.shape, weight.shape[2:])
    y = _CONV_TRANSPOSE[weight.ndim - 2](
        _torch(x),
        _torch(weight),
        None if bias is None else _torch(bias),
        stride=geometry.strides,
        dilation=geometry.dilations,
        groups=attribute(node, "group", 1),
        output_padding=tuple(attribute(node, "output_padding", (0,) * (weight.ndim - 2))),
    )
    crop = tuple(
        slice(low, size - high)
        for low, high, size in zip(geometry.begin, geometry.end, y.shape[2:], strict=True)
    )
    return [np.ascontiguousarray(y.numpy()[(slice(None), slice(None), *crop)])]


def _ceil_extra(node: ir.Node, x: Array, geometry: _Window) -> tuple[int, ...]:
    """Returns how far the last window reaches past the padded input, per axis (`ceil_mode`)."""
    extra = []
    for axis, size in enumerate(x.shape[2:]):
        reach = (geometry.kernel[axis] - 1) * geometry.dilations[axis] + 1
        padded = size + geometry.begin[axis] + geometry.end[axis]
        steps = padded - reach
        stride = geometry.strides[axis]
        windows = -(-steps // stride) if attribute(node, "ceil_mode", 0) else steps // stride
        if windows * stride >= size + geometry.begin[axis]:
            windows -= 1  # a window that starts in the padding after the end is not made
        extra.append(max(0, windows * stride + reach - padded))
    return tuple(extra)


def _max_pool(node: ir.Node, x: Array) -> list[Array]:
    if len(node.outputs) > 1:
        raise UnsupportedGraphError(
            f"MaxPool (node {node.name!r}) with the Indices output is not supported"
        )
    geometry = window(node, x.shape, node.attributes["kernel_shape"].value)
    geometry.end = tuple(
        end + more for end, more in zip(geometry.end, _ceil_extra(node, x, geometry), strict=True)
    )
    y = _MAX_POOL[x.ndim - 2](
        geometry.pad(_torch(x), -torch.inf),
        geometry.kernel,
        stride=geometry.strides,
        dilation=geometry.dilations,
    )
    return [y.numpy()]


def _average_pool(node: ir.Node, x: Array) -> list[Array]:
    """Averages by a depthwise convolution of ones, divided by what each window covers."""
    geometry = window(node, x.shape, node.attributes["kernel_shape"].value)
    extra = _ceil_extra(node, x, geometry)
    data = _torch(x).flatten(0, 1)[:, None]
    inside = torch.ones((1, 1, *x.shape[2:]), dtype=data.dtype)
    if attribute(node, "count_include_pad", 0):
        inside = geometry.pad(inside, 1.0)
    else:
        inside = geometry.pad(inside, 0.0)
    data = geometry.pad(data, 0.0)
    over = [n for more in extra[::-1] for n in (0, more)]
    data, inside = F.pad(data, over), F.pad(inside, over)
    ones = torch.ones((1, 1, *geometry.kernel), dtype=data.dtype)
    convolve = functools.partial(
        _CONV[x.ndim - 2], weight=ones, stride=geometry.strides, dilation=geometry.dilations
    )
    y = convolve(data) / convolve(inside)
    return [y.reshape(*x.shape[:2], *y.shape[2:]).numpy()]


def _lrn(node: ir.Node, x: Array) -> list[Array]:
    """Divides by a power of the squares' sum over a window of channels.

    `onnx.reference` fills in as many channels as there are images (onnx 1.23).
    """
    size = node.attributes["size"].as_int()
    before, after = (size - 1) // 2, size // 2
    squares = np.pad(x * x, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
    windows = np.lib.stride_tricks.sliding_window_view(squares, size, axis=1)
    scale = attribute(node, "bias", 1.0) + attribute(node, "alpha", 1e-4) / size * windows.sum(-1)
    return [x / scale ** attribute(node, "beta", 0.75)]


_WINDOWED: dict[str, Kernel] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LRN": _lrn,
}

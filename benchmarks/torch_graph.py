"""Runs a compiled domain's portable ONNX model by PyTorch: the physically pruned network.

Only the operators that convolutional networks are lowered to; activations are channels-last, as is
fastest on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

Operator = Callable[[ir.Node, list[Tensor]], Tensor]


class TorchGraph(torch.nn.Module):
    """A model of one input and one output.

    Args:
        path: The ONNX model.
        device: Where it computes.
        dtype: Of weights and activations; the input and the output are float32.

    Raises:
        NotImplementedError: It has an operator that is not known here.
    """

    def __init__(self, path: Path, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self._graph = ir.load(path).graph
        self._dtype = dtype
        self._constants: dict[str, Tensor] = {}
        for name, value in self._graph.initializers.items():
            assert value.const_value is not None
            tensor = torch.from_numpy(np.array(value.const_value.numpy()))
            if tensor.is_floating_point():
                tensor = tensor.to(device, dtype)
                if tensor.ndim == 4:
                    tensor = tensor.to(memory_format=torch.channels_last)
            self._constants[name] = tensor
        unknown = {node.op_type for node in self._graph} - set(OPERATORS)
        if unknown:
            raise NotImplementedError(f"{path}: {', '.join(sorted(unknown))}")
        # Index lists are used on the device; all other integers are read by Python.
        for node in self._graph:
            if node.op_type == "Gather":
                name = str(node.inputs[1].name)  # type: ignore[union-attr]
                self._constants[name] = self._constants[name].to(device)

    def forward(self, x: Tensor) -> Tensor:
        """Maps the network's input to its output."""
        values = dict(self._constants)
        x = x.to(self._dtype)
        values[str(self._graph.inputs[0].name)] = (
            x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
        )
        for node in self._graph:
            inputs = [values[str(value.name)] for value in node.inputs if value is not None]
            values[str(node.outputs[0].name)] = OPERATORS[node.op_type](node, inputs)
        return values[str(self._graph.outputs[0].name)].float()


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    found = node.attributes.get(name)
    return default if found is None else list(found.as_ints())


def _conv(node: ir.Node, inputs: list[Tensor]) -> Tensor:
    x, weight, *bias = inputs
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    pads = _ints(node, "pads", [0, 0, 0, 0])
    assert pads[:2] == pads[2:]
    return functional.conv2d(
        x, weight, bias[0] if bias else None, _ints(node, "strides", [1, 1]), pads[:2],
        _ints(node, "dilations", [1, 1]), groups,
    )  # fmt: skip


def _max_pool(node: ir.Node, inputs: list[Tensor]) -> Tensor:
    pads = _ints(node, "pads", [0, 0, 0, 0])
    return functional.max_pool2d(
        inputs[0], _ints(node, "kernel_shape", []), _ints(node, "strides", [1, 1]), pads[:2]
    )


def _slice(_: ir.Node, inputs: list[Tensor]) -> Tensor:
    x, starts, ends, axes = inputs[:4]
    for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist(), strict=True):
        x = x.narrow(axis, start, min(end, x.shape[axis]) - start)
    return x


def _mean(node: ir.Node, inputs: list[Tensor]) -> Tensor:
    axes = inputs[1].tolist() if len(inputs) > 1 else _ints(node, "axes", [])
    kept = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int() == 1
    return inputs[0].mean(axes, keepdim=kept)


def _gemm(node: ir.Node, inputs: list[Tensor]) -> Tensor:
    a, b, *c = inputs
    if "transB" in node.attributes and node.attributes["transB"].as_int() == 1:
        b = b.t()
    return a @ b + c[0] if c else a @ b


def _gather(node: ir.Node, inputs: list[Tensor]) -> Tensor:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return inputs[0].index_select(axis, inputs[1])


OPERATORS: dict[str, Operator] = {
    "Add": lambda _, inputs: inputs[0] + inputs[1],
    "Concat": lambda node, inputs: torch.cat(inputs, node.attributes["axis"].as_int()),
    "Conv": _conv,
    "Flatten": lambda _, inputs: inputs[0].flatten(1),
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, inputs: inputs[0].mean((2, 3), keepdim=True),
    "MatMul": lambda _, inputs: inputs[0] @ inputs[1],
    "MaxPool": _max_pool,
    "Mul": lambda _, inputs: inputs[0] * inputs[1],
    "ReduceMean": _mean,
    "Relu": lambda _, inputs: torch.relu(inputs[0]),
    "Slice": _slice,
}

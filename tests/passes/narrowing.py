"""Small graphs written node by node, and the check that removal changes no element of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch

from mdprune_deploy.checkpoint import Checkpoint
from mdprune_deploy.domain import Domain, Mask
from mdprune_deploy.evaluate import Array, constant_array, evaluate
from mdprune_deploy.passes.bind import bind
from mdprune_deploy.passes.elements import sizes
from mdprune_deploy.passes.facts import Facts
from mdprune_deploy.passes.order import order
from mdprune_deploy.passes.place import place
from mdprune_deploy.passes.remove import Removed, analyzed, remove
from mdprune_deploy.verify import deviation

TOLERANCE = 1e-9
"""Of float64, relative to the largest element: sums in another order differ by about 1e-13."""


class Net:
    """Writes a graph; every layer's weight is `NAME.weight`, drawn from the seed."""

    def __init__(
        self, shape: Sequence[int] = (1, 3, 8, 8), *, seed: int = 0, dynamic: bool = True
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        self.dynamic = dynamic
        self.example = self.rng.standard_normal(shape).astype(np.float32)
        sizes = ["batch", *shape[1:]] if dynamic else list(shape)
        self.input = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape(sizes))
        self.channels = {self.input: shape[1]}

    def constant(self, name: str, array: Array) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.val(name, dtype=tensor.dtype, shape=tensor.shape, const_value=tensor)
        self.weights.append(value)
        return value

    def op(self, op_type: str, name: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        """Adds any operator; the output has the channels of the first input."""
        node = ir.node(op_type, list(inputs), attributes, name=name)  # type: ignore[arg-type]
        node.outputs[0].name = f"{name}_out"
        self.nodes.append(node)
        if inputs and inputs[0] in self.channels:
            self.channels[node.outputs[0]] = self.channels[inputs[0]]
        return node.outputs[0]

    def draw(self, *shape: int, scale: float = 1.0) -> Array:
        return (scale * self.rng.standard_normal(shape)).astype(np.float32)

    def conv(
        self, name: str, x: ir.Value, filters: int, kernel: int = 3, *,
        groups: int = 1, bias: bool = False, stride: int = 1,
    ) -> ir.Value:  # fmt: skip
        fan_in = self.channels[x] // groups
        weight = self.draw(filters, fan_in, kernel, kernel, scale=(fan_in * kernel**2) ** -0.5)
        operands = [x, self.constant(f"{name}.weight", weight)]
        if bias:
            operands.append(self.constant(f"{name}.bias", self.draw(filters)))
        y = self.op(
            "Conv", name, *operands, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4,
            group=groups, strides=[stride] * 2,
        )  # fmt: skip
        self.channels[y] = filters
        return y

    def norm(self, name: str, x: ir.Value) -> ir.Value:
        size = self.channels[x]
        parts = [
            self.constant(f"{name}.{key}", array)
            for key, array in (
                ("weight", self.draw(size)),
                ("bias", self.draw(size)),
                ("mean", self.draw(size)),
                ("var", np.exp(self.draw(size, scale=0.3))),
            )
        ]
        epsilon = float(np.float32(1e-5))  # as it is stored
        return self.op("BatchNormalization", name, x, *parts, epsilon=epsilon)

    def relu(self, name: str, x: ir.Value) -> ir.Value:
        return self.op("Relu", name, x)

    def add(self, name: str, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.op("Add", name, a, b)

    def head(self, name: str, x: ir.Value, classes: int = 5) -> ir.Value:
        """Mean over space and a linear layer, without a Reshape between."""
        axes = self.constant(f"{name}.axes", np.asarray([2, 3]))
        return self.linear(
            name, self.op("ReduceMean", f"{name}_mean", x, axes, keepdims=0), classes
        )

    def linear(self, name: str, x: ir.Value, outputs: int) -> ir.Value:
        channels = self.channels[x]
        weight = self.constant(f"{name}.weight", self.draw(outputs, channels))
        bias = self.constant(f"{name}.bias", self.draw(outputs))
        y = self.op("Gemm", name, x, weight, bias, transB=1)
        self.channels[y] = outputs
        return y

    def reshape(self, name: str, x: ir.Value, *shape: int) -> ir.Value:
        y = self.op("Reshape", name, x, self.constant(f"{name}.shape", np.asarray(shape)))
        if len(shape) > 1:
            self.channels[y] = shape[1]
        return y

    def checkpoint(
        self, outputs: ir.Value | Sequence[ir.Value], masks: Mapping[str, Mask | Sequence[Mask]]
    ) -> Checkpoint:
        """Returns a checkpoint with one domain, `"d"`."""
        results = [outputs] if isinstance(outputs, ir.Value) else list(outputs)
        for value in results:
            value.dtype = ir.DataType.FLOAT
        graph = ir.Graph(
            [self.input], results, nodes=self.nodes, initializers=self.weights,
            opset_imports={"": 20}, name="net",
        )  # fmt: skip
        for value, array in zip(results, evaluate(graph, {"x": self.example}), strict=True):
            value.shape = ir.Shape(["batch", *array.shape[1:]] if self.dynamic else array.shape)
        return Checkpoint(
            model=ir.Model(graph, ir_version=10),
            examples={"x": self.example},
            domains={"d": Domain(dict(masks))},
            parameters=tuple(str(value.name) for value in self.weights),
            sites={key: key for key in masks},
            dynamic_batch=self.dynamic,
        )


def keeping(size: int, on: Iterable[int], axis: str = "in", site: str = "weight") -> Mask:
    """Returns a mask with these channels on."""
    values = torch.zeros(size, dtype=torch.bool)
    values[list(on)] = True
    return Mask(values, axis, site)  # type: ignore[arg-type]


def some(rng: np.random.Generator, size: int, count: int) -> Array:
    """Draws sorted channels."""
    return np.sort(rng.permutation(size)[:count])


def placed(checkpoint: Checkpoint, *, ordered: bool = False) -> tuple[ir.Graph, Facts]:
    """Returns the masked dense graph and what the passes decided about it."""
    model, facts = analyzed(checkpoint, "d")
    place(model.graph, facts)
    if ordered:
        order(model.graph, facts)
    return model.graph, facts


def kept(graph: ir.Graph, facts: Facts, name: str) -> Array:
    """Returns the channels that are emitted of a node's output, in order."""
    output = next(node for node in graph if node.name == name).outputs[0]
    indices = facts.kept[output][1]
    return np.arange(facts.size(output, 1)) if indices is None else indices


def exact(checkpoint: Checkpoint, domain: str = "d") -> Removed:
    """Removes, and compares every emitted element with the masked dense model's.

    A dynamic batch is run with one, two and three items.
    """
    removed = remove(checkpoint, domain)
    dense = bind(checkpoint, domain).graph
    emitted = removed.model.graph
    assert [v.name for v in emitted.outputs] == [v.name for v in checkpoint.model.graph.outputs]
    assert all(value.dtype is not None for value in emitted.outputs)
    for feeds in _feeds(checkpoint):
        reference: dict[str, Array] = {}
        expected = evaluate(
            dense, feeds, observe=lambda v, a, r=reference: r.update({str(v.name): a})
        )
        compared: list[str] = []

        def compare(value: ir.Value, array: Array, r=reference, seen=compared) -> None:
            origin = removed.origins.get(str(value.name))
            if origin is None or origin.value not in r:
                return
            part = r[origin.value]
            for axis, indices in enumerate(origin.sets):
                part = part if indices is None else np.take(part, indices, axis=axis)
            assert array.shape == part.shape, f"{value.name} holds another part of {origin.value}"
            assert deviation(part, array)[1] <= TOLERANCE, f"{value.name} is not {origin.value}"
            seen.append(str(value.name))

        answers = evaluate(emitted, feeds, observe=compare)
        for want, have in zip(expected, answers, strict=True):
            assert deviation(want, have)[1] <= TOLERANCE
        assert len(compared) >= len(expected)
    return removed


def _feeds(checkpoint: Checkpoint) -> Iterable[dict[str, Array]]:
    ((name, example),) = checkpoint.examples.items()
    shape = example.shape
    rng = np.random.default_rng(7)
    for batch in (1, 2, 3) if checkpoint.dynamic_batch else shape[:1]:
        for make in (rng.standard_normal, lambda s: 1e3 * rng.standard_normal(s), np.ones):
            yield {name: make((batch, *shape[1:]))}


def count(removed: Removed, *op_types: str) -> int:
    """Returns how many nodes of these types are emitted."""
    return sum(node.op_type in op_types for node in removed.model.graph)


def emitted_shape(removed: Removed, weight: str) -> tuple[int, ...]:
    """Returns the shape of an emitted weight."""
    return tuple(constant_array(removed.model.graph.initializers[weight]).shape)


def kept_sizes(facts: Facts) -> dict[str, tuple[int, ...]]:
    """Returns the emitted shape of every value that is kept."""
    return {str(v.name): sizes(sets, facts.shape(v)) for v, sets in facts.kept.items()}

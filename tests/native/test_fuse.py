"""What is joined, and what is not because somebody else reads it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from plans import Graph, expect

from mdprune_deploy.emit.native.operators import (
    Activation,
    Affine,
    Binary,
    Convolution,
    Function,
    Operator,
    Unary,
)
from mdprune_deploy.emit.native.plan import Plan

IMAGE = (1, 6, 8, 8)
RELU = Activation(Function.RELU)


def operators(plan: Plan, kind: type[Operator]) -> list[Operator]:
    return [operator for operator in plan.operators if isinstance(operator, kind)]


def kinds(plan: Plan) -> Counter[str]:
    return Counter(type(o).__name__ for o in plan.operators if type(o).__name__ != "Move")


def conv(g: Graph, x: ir.Value, filters: int = 6, channels: int = 6) -> ir.Value:
    return g.op("Conv", x, g.weight(filters, channels, 3, 3), pads=[1] * 4)


def norm(g: Graph, x: ir.Value, channels: int = 6) -> ir.Value:
    parts = [g.constant(g.draw(channels)) for _ in range(3)]
    return g.op("BatchNormalization", x, *parts, g.constant(np.exp(g.draw(channels))))


def test_convolution_norm_sum_and_function() -> None:
    g = Graph(IMAGE)
    x = conv(g, g.inputs[0])
    y = g.op("Relu", g.op("Add", norm(g, conv(g, g.op("Relu", norm(g, x)))), x))
    plan = expect(g, y)
    assert kinds(plan) == {"Convolution": 2}
    first, second = operators(plan, Convolution)
    assert first.y2 is not None and first.activation2 == RELU
    assert second.residual is not None and second.activation == RELU
    assert None not in (second.scale, second.shift)


def test_the_later_of_two_convolutions_takes_the_sum() -> None:
    g = Graph(IMAGE)
    a, b = conv(g, g.inputs[0]), conv(g, g.inputs[0])
    plan = expect(g, g.op("Relu", g.op("Add", a, b)))
    assert [c.residual is None for c in operators(plan, Convolution)] == [True, False]


def test_a_depthwise_convolution_takes_norm_and_function() -> None:
    g = Graph(IMAGE)
    x = g.op("Conv", conv(g, g.inputs[0]), g.weight(6, 1, 3, 3), group=6)
    assert kinds(expect(g, g.op("HardSwish", norm(g, x)))) == {"Convolution": 1, "Depthwise": 1}


def test_norm_and_function_alone_are_one() -> None:
    g = Graph(IMAGE)
    x = g.op("MaxPool", conv(g, g.inputs[0]), kernel_shape=[2, 2])
    plan = expect(g, g.op("Relu", norm(g, norm(g, x))))
    (affine,) = operators(plan, Affine)
    assert affine.activation == RELU


def test_arithmetic_with_numbers_is_one_scale_and_shift() -> None:
    g = Graph(IMAGE)
    x = g.op("MaxPool", conv(g, g.inputs[0]), kernel_shape=[2, 2])
    for kind, number in (("Mul", 2.0), ("Add", 3.0), ("Sub", 0.5), ("Div", 4.0)):
        x = g.op(kind, x, g.constant(number))
    assert kinds(expect(g, g.op("Sub", g.constant(1.0), x)))["Affine"] == 1


def test_a_value_that_another_reads_stays() -> None:
    g = Graph(IMAGE)
    x = conv(g, g.inputs[0])
    plan = expect(g, g.op("Relu", x), conv(g, x))
    first = operators(plan, Convolution)[0]
    assert first.activation.function is Function.IDENTITY
    assert first.activation2 == RELU


def test_a_function_of_an_output_stays() -> None:
    g = Graph(IMAGE)
    x = g.op("MaxPool", g.inputs[0], kernel_shape=[2, 2])
    y = g.op("Add", x, g.constant(1.0))
    plan = expect(g, y, g.op("Relu", y))
    assert kinds(plan) == {"Pool": 1, "Affine": 1, "Unary": 1}


def test_a_norm_of_some_channels_is_a_second_output_where_convolutions_select() -> None:
    g = Graph(IMAGE)
    x = conv(g, g.inputs[0], 9)
    some = g.op("Gather", x, g.integers(1, 4, 7, 8), axis=1)
    y = g.op("Relu", norm(g, some, 4))
    fewer = g.op("Gather", y, g.integers(3, 0), axis=1)
    other = g.op("Gather", x, g.integers(0, 2), axis=1)
    plan = expect(g, conv(g, y, 3, 4), conv(g, fewer, 3, 2), conv(g, other, 3, 2))
    assert kinds(plan) == {"Convolution": 4}
    indices = [plan.constant(c.index).tolist() for c in operators(plan, Convolution)[1:]]
    assert indices == [[1, 4, 7, 8], [8, 1], [0, 2]]


def test_a_norm_of_some_channels_stays_where_another_reads_it() -> None:
    g = Graph(IMAGE)
    x = conv(g, g.inputs[0], 9)
    y = norm(g, g.op("Gather", x, g.integers(1, 4, 7, 8), axis=1), 4)
    plan = expect(g, g.op("MaxPool", y, kernel_shape=[2, 2]), g.op("Neg", x))
    assert [a.index is not None for a in operators(plan, Affine)] == [True]


def test_a_function_of_a_selection() -> None:
    g = Graph(IMAGE)
    x = g.op("MaxPool", g.inputs[0], kernel_shape=[2, 2])
    some = g.op("Gather", x, g.integers(5, 0, 1), axis=1)
    assert kinds(expect(g, g.op("Relu", some), g.op("Neg", x))) == {
        "Pool": 1, "Affine": 1, "Unary": 1,
    }  # fmt: skip


def test_a_convolution_selects_the_channels_of_its_residual() -> None:
    g = Graph(IMAGE)
    x = conv(g, g.inputs[0], 9)
    some = g.op("Gather", x, g.integers(8, 1, 2, 4), axis=1)
    y = g.op("Relu", g.op("Add", conv(g, x, 4, 9), some))
    run = g.op("Slice", x, g.integers(3), g.integers(7), g.integers(1))
    z = g.op("Add", run, conv(g, x, 4, 9))
    plan = expect(g, y, z)
    assert kinds(plan) == {"Convolution": 3}
    found = [
        plan.constant(c.residual_index).tolist()
        for c in operators(plan, Convolution)
        if c.residual_index is not None
    ]
    assert found == [[8, 1, 2, 4], [3, 4, 5, 6]]


def gate(g: Graph, x: ir.Value, kind: str) -> ir.Value:
    if kind == "silu":
        return g.op("Mul", x, g.op("Sigmoid", x))
    if kind == "hard swish":
        return g.op("Mul", g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5), x)
    if kind == "hard swish, spelt out":
        bounds = [g.constant(0.0), g.constant(6.0)]
        clipped = g.op("Clip", g.op("Add", x, g.constant(3.0)), *bounds)
        return g.op("Mul", x, g.op("Div", clipped, g.constant(6.0)))
    if kind == "hard swish, divided last":
        bounds = [g.constant(0.0), g.constant(6.0)]
        clipped = g.op("Clip", g.op("Add", x, g.constant(3.0)), *bounds)
        return g.op("Div", g.op("Mul", x, clipped), g.constant(6.0))
    return g.op("Mul", x, g.op("Tanh", g.op("Softplus", x)))


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("silu", Function.SILU),
        ("hard swish", Function.HARD_SWISH),
        ("hard swish, spelt out", Function.HARD_SWISH),
        ("hard swish, divided last", Function.HARD_SWISH),
        ("mish", Function.MISH),
    ],
)
def test_gates_are_functions(kind: str, function: Function) -> None:
    g = Graph(IMAGE)
    plan = expect(g, gate(g, conv(g, g.inputs[0]), kind))
    assert [c.activation.function for c in operators(plan, Convolution)] == [function]
    assert kinds(plan) == {"Convolution": 1}


def test_a_gate_by_another_value_stays() -> None:
    g = Graph(IMAGE)
    x = conv(g, g.inputs[0])
    plan = expect(g, g.op("Mul", x, g.op("Sigmoid", conv(g, x))))
    assert len(operators(plan, Binary)) == 1
    assert not operators(plan, Unary)


def test_what_nobody_reads_is_not_computed() -> None:
    g = Graph(IMAGE)
    pieces = g.ops("Split", conv(g, g.inputs[0]), axis=1, outputs=2, num_outputs=2)
    g.op("Relu", pieces[1])
    assert not operators(expect(g, g.op("Neg", pieces[0])), Unary)[1:]

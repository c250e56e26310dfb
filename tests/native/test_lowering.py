"""Every family of operators: the plan gives what the graph gives in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from plans import Graph, expect, written

from mdprune_deploy.emit.native.plan import Place, Plan
from mdprune_deploy.errors import UnsupportedGraphError

IMAGE = (1, 6, 8, 8)


def kinds(plan: Plan) -> Counter[str]:
    return Counter(type(operator).__name__ for operator in plan.operators)


def conv(g: Graph, x: ir.Value, filters: int, channels: int, kernel: int = 3, **more: object):
    weight = g.weight(filters, channels // int(more.get("group", 1)), kernel, kernel)
    more.setdefault("pads", [kernel // 2] * 4)
    return g.op("Conv", x, weight, g.constant(g.draw(filters)), **more)


def body(g: Graph, channels: int = 6) -> ir.Value:
    """A value that lies channels-last, as in the middle of a network."""
    return conv(g, g.inputs[0], channels, 6)


# Convolutions and matrix products


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 2]},
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        {"pads": [1, 0, 0, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2], "pads": None},
        {"group": 2},
        {"group": 3},
        {"group": 6},
    ],
    ids=str,
)
def test_convolutions(attributes: dict[str, object]) -> None:
    g = Graph(IMAGE)
    more = {key: value for key, value in attributes.items() if value is not None}
    if "auto_pad" in attributes:
        y = g.op("Conv", g.inputs[0], g.weight(18, 6, 3, 3), **more)
    else:
        y = conv(g, g.inputs[0], 18, 6, **more)
    expect(g, y)


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks(rank: int) -> None:
    g = Graph((1, 4, *[6] * rank))
    weight = g.weight(5, 4, *[3] * rank)
    y = g.op("Conv", g.inputs[0], weight, pads=[1] * 2 * rank, strides=[2] + [1] * (rank - 1))
    expect(g, y)


def test_a_convolution_of_one_channel_needs_no_move() -> None:
    g = Graph((1, 1, 8, 8))
    plan = expect(g, g.op("Relu", g.op("Conv", g.inputs[0], g.weight(5, 1, 3, 3))))
    assert plan.operators[0].reads()[0] == plan.inputs[0].tensor or len(plan.operators) == 2


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("rank", [1, 2])
def test_transposed_convolutions(rank: int, group: int) -> None:
    g = Graph((1, 4, *[5] * rank))
    y = g.op(
        "ConvTranspose", g.inputs[0], g.weight(4, 6 // group, *[3] * rank), g.constant(g.draw(6)),
        strides=[2] * rank, pads=[1] * 2 * rank, output_padding=[1] * rank, group=group,
        dilations=[2] + [1] * (rank - 1),
    )  # fmt: skip
    expect(g, y)


def test_a_convolution_selects_its_channels_itself() -> None:
    g = Graph(IMAGE)
    x = g.op("Relu", body(g, 9))
    some = g.op("Gather", x, g.integers(7, 1, 2, 4), axis=1)
    run = g.op("Slice", x, g.integers(2), g.integers(7), g.integers(1))
    twice = g.op("Gather", run, g.integers(4, 0), axis=1)
    y = [conv(g, value, 5, n) for value, n in ((some, 4), (run, 5), (twice, 2), (x, 9))]
    plan = expect(g, *y)
    assert kinds(plan)["Gather"] == 0
    assert kinds(plan)["Convolution"] == 5


def test_gemm() -> None:
    g = Graph((3, 7))
    x = g.inputs[0]
    a = g.op("Gemm", x, g.weight(5, 7), g.constant(g.draw(5)), transB=1, alpha=0.5, beta=2.0)
    b = g.op("Gemm", x, g.weight(7, 4))
    c = g.op("Gemm", a, b, g.constant(g.draw(5, 4)), transA=1, alpha=2.0, beta=0.5)
    d = g.op("Gemm", x, x, transB=1)
    expect(g, a, b, c, d)


def test_matrix_products() -> None:
    g = Graph((1, 4, 6, 5), (5,), (1, 6, 4))
    x, vector, rows = g.inputs
    a = g.op("MatMul", x, g.weight(5, 7))
    b = g.op("MatMul", x, g.op("Transpose", x, perm=[0, 1, 3, 2]))
    c = g.op("MatMul", x, vector)
    d = g.op("MatMul", g.weight(3, 6), rows)
    e = g.op("MatMul", rows, g.weight(2, 1, 4, 3))
    f = g.op("MatMul", vector, g.weight(5, 2))
    expect(g, a, b, c, d, e, f)


def test_a_product_selects_its_columns_itself() -> None:
    g = Graph((1, 4, 9))
    x = g.op("Relu", g.inputs[0])
    y = g.op("MatMul", g.op("Gather", x, g.integers(8, 3, 1), axis=2), g.weight(3, 5))
    assert kinds(expect(g, y)) == {"Unary": 1, "Convolution": 1}


# Element by element

UNARY: dict[str, dict[str, float]] = {
    "Abs": {}, "Ceil": {}, "Cos": {}, "Erf": {}, "Exp": {}, "Floor": {}, "HardSwish": {},
    "Mish": {}, "Neg": {}, "Relu": {}, "Round": {}, "Sigmoid": {}, "Sign": {}, "Sin": {},
    "Softplus": {}, "Softsign": {}, "Tanh": {}, "LeakyRelu": {"alpha": 0.25},
    "HardSigmoid": {"alpha": 0.25, "beta": 0.5}, "Elu": {"alpha": 0.5}, "Celu": {"alpha": 0.5},
    "Selu": {}, "Gelu": {}, "ThresholdedRelu": {"alpha": 0.5}, "Identity": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", UNARY)
def test_functions(kind: str) -> None:
    g = Graph(IMAGE)
    expect(g, g.op(kind, g.inputs[0], **UNARY[kind]), g.op(kind, body(g), **UNARY[kind]))


@pytest.mark.parametrize("kind", ["Log", "Sqrt", "Reciprocal"])
def test_functions_of_positive_numbers(kind: str) -> None:
    g = Graph(IMAGE)
    positive = g.op("Add", g.op("Abs", g.inputs[0]), g.constant(0.5))
    expect(g, g.op(kind, positive))


def test_gelu_by_tanh() -> None:
    g = Graph(IMAGE)
    expect(g, g.op("Gelu", g.inputs[0], approximate="tanh"))


def test_clip() -> None:
    g = Graph(IMAGE)
    x = body(g)
    a = g.op("Clip", x, g.constant(-0.5), g.constant(0.25))
    b = g.op("Clip", x, None, g.constant(0.25))
    expect(g, a, b)


BINARY = ["Add", "Sub", "Mul", "Div", "Min", "Max", "Equal", "Less", "LessOrEqual", "Greater",
          "GreaterOrEqual"]  # fmt: skip
OTHER = [IMAGE, (1, 6, 1, 1), (8, 1), (8,), (), (1, 1, 8, 1)]


@pytest.mark.parametrize("other", OTHER, ids=str)
@pytest.mark.parametrize("kind", BINARY)
def test_two_operands(kind: str, other: tuple[int, ...]) -> None:
    g = Graph(IMAGE, other)
    x, y, array = body(g), g.inputs[1], g.draw(*other)
    if kind == "Div":  # far from zero, where rounding is magnified
        x, y = (g.op("Add", g.op("Abs", value), g.constant(0.5)) for value in (x, y))
        array = np.abs(array) + 0.5
    first, second = g.op(kind, x, y), g.op(kind, y, x)
    constant = g.constant(array)
    third, fourth = g.op(kind, x, constant), g.op(kind, constant, x)
    outputs = [first, second, third, fourth]
    if kind in BINARY[6:]:
        outputs = [g.op("Cast", value, to=int(ir.DataType.DOUBLE)) for value in outputs]
    expect(g, *outputs)


def test_powers_slopes_and_remainders() -> None:
    g = Graph(IMAGE)
    x = body(g)
    positive = g.op("Add", g.op("Abs", x), g.constant(0.5))
    power = g.op("Pow", positive, g.constant(1.5))
    square = g.op("Pow", x, g.constant(2.0))
    slope = g.op("PRelu", x, g.constant(g.draw(6, 1, 1)))
    remainder = g.op("Mod", x, g.constant(0.5), fmod=1)
    expect(g, power, square, slope, remainder)


def test_many_operands() -> None:
    g = Graph(IMAGE, IMAGE, (1, 6, 1, 1))
    x = body(g)
    expect(g, *(g.op(kind, x, *g.inputs[1:]) for kind in ("Sum", "Mean", "Max", "Min")))


def test_truth_values() -> None:
    g = Graph(IMAGE, IMAGE)
    x, y = body(g), g.inputs[1]
    zero = g.constant(0.0)
    a, b = g.op("Greater", x, zero), g.op("Less", y, zero)
    found = [g.op(kind, a, b) for kind in ("And", "Or", "Xor")] + [g.op("Not", a)]
    numbers = [g.op("Cast", value, to=int(ir.DataType.DOUBLE)) for value in found]
    chosen = g.op("Where", found[0], x, y)
    constant = g.op("Where", found[1], g.constant(1.5), y)
    expect(g, *numbers, chosen, constant)


# Movement


def test_reshapes_and_transpositions() -> None:
    g = Graph(IMAGE)
    x, y = g.inputs[0], body(g)
    found = []
    for value in (x, y):
        flat = g.op("Reshape", value, g.integers(1, 6, 64))
        found += [
            g.op("Relu", flat),
            g.op("Transpose", flat, perm=[0, 2, 1]),
            g.op("Transpose", value, perm=[0, 2, 3, 1]),
            g.op("Transpose", value, perm=[3, 1, 0, 2]),
            g.op("Flatten", value),
            g.op("Squeeze", value, g.integers(0)),
            g.op("Unsqueeze", value, g.integers(2)),
            g.op("Reshape", value, g.integers(2, 3, 8, 8)),
        ]
    expect(g, *found)


def test_tokens_of_a_map_are_where_they_are() -> None:
    g = Graph(IMAGE)
    flat = g.op("Reshape", body(g), g.integers(1, 6, 64))
    y = g.op("MatMul", g.op("Transpose", flat, perm=[0, 2, 1]), g.weight(6, 5))
    assert kinds(expect(g, y)) == {"Move": 1, "Convolution": 2}


def test_concatenation() -> None:
    g = Graph(IMAGE, IMAGE)
    x, y = body(g), g.inputs[1]
    constant = g.constant(g.draw(1, 2, 8, 8))
    a = g.op("Concat", x, y, constant, axis=1)
    b = g.op("Concat", x, g.op("Relu", x), axis=2)
    c = g.op("Concat", y, y, axis=0)
    expect(g, a, b, c)


def test_slices_pieces_and_selections() -> None:
    g = Graph(IMAGE)
    found = []
    for value in (g.inputs[0], body(g)):
        found += [
            g.op("Slice", value, g.integers(1, 7, 0), g.integers(5, -9, 8), g.integers(1, 2, 3),
                 g.integers(2, -2, 3)),
            g.op("Slice", value, g.integers(-3), g.integers(9), g.integers(1)),
            *g.ops("Split", value, g.integers(1, 3, 2), axis=1, outputs=3),
            *g.ops("Split", value, axis=2, outputs=2, num_outputs=2),
            g.op("Gather", value, g.integers(5, 0, 0, 3), axis=1),
            g.op("Gather", value, g.integers(-1, 2, 7), axis=3),
            g.op("Gather", value, g.constant(np.asarray([[0, 5], [2, 2]])), axis=1),
            g.op("Gather", value, g.constant(np.asarray(2)), axis=1),
        ]  # fmt: skip
    expect(g, *found)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_borders(mode: str) -> None:
    g = Graph(IMAGE)
    found = []
    for value in (g.inputs[0], body(g)):
        found.append(g.op("Pad", value, g.integers(0, 0, 1, 2, 0, 0, 3, 0), mode=mode))
        if mode == "constant":
            fill = g.constant(1.5)
            found.append(g.op("Pad", value, g.integers(0, 2, 1, 0, 0, 1, 0, 2), fill))
            found.append(g.op("Pad", value, g.integers(1, 2), fill, g.integers(3)))
    expect(g, *found)


def test_repetition() -> None:
    g = Graph((1, 6, 1, 8), (6, 1, 1))
    x, y = g.op("Conv", g.inputs[0], g.weight(6, 6, 1, 1)), g.inputs[1]
    found = []
    for value in (g.inputs[0], x):
        found += [
            g.op("Expand", value, g.integers(1, 6, 3, 8)),
            g.op("Tile", value, g.integers(1, 2, 3, 2)),
        ]
    expect(g, *found, g.op("Expand", y, g.integers(1, 6, 2, 3)))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_and_space(mode: str) -> None:
    g = Graph((1, 12, 4, 6))
    found = []
    for value in (g.inputs[0], g.op("Conv", g.inputs[0], g.weight(12, 12, 1, 1))):
        found.append(g.op("DepthToSpace", value, blocksize=2, mode=mode))
        found.append(g.op("SpaceToDepth", value, blocksize=2))
    expect(g, *found)


# Operators that mix

REDUCTIONS = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1",
              "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"]  # fmt: skip


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("kind", REDUCTIONS)
def test_reductions(kind: str, keepdims: int) -> None:
    g = Graph(IMAGE)
    found = []
    for value in (g.inputs[0], body(g)):
        for axes in ((2, 3), (1,), (3,), (2,), (1, 3), (0, 1), (1, 2, 3), (-1, -2)):
            found.append(g.op(kind, value, g.integers(*axes), keepdims=keepdims))
    expect(g, *found, g.op(kind, g.inputs[0], keepdims=keepdims))


def test_global_pools_and_the_logarithm_of_a_sum() -> None:
    g = Graph(IMAGE)
    positive = g.op("Add", g.op("Abs", body(g)), g.constant(0.5))
    found = [g.op(kind, body(g)) for kind in ("GlobalAveragePool", "GlobalMaxPool")]
    expect(g, *found, g.op("ReduceLogSum", positive, g.integers(1), keepdims=1))


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_softmax(axis: int) -> None:
    g = Graph(IMAGE)
    found = []
    for value in (g.inputs[0], body(g)):
        found += [g.op(kind, value, axis=axis) for kind in ("Softmax", "LogSoftmax")]
        found.append(g.op("LpNormalization", value, axis=axis))
    expect(g, *found)


def test_norms() -> None:
    g = Graph(IMAGE)
    found = []

    def some(*shape: int) -> ir.Value:
        return g.constant(g.draw(*shape))

    for value in (g.inputs[0], body(g)):
        variance = g.constant(np.exp(g.draw(6)))
        found += [
            g.op("BatchNormalization", value, some(6), some(6), some(6), variance),
            g.op("InstanceNormalization", value, some(6), some(6)),
            g.op("LayerNormalization", value, some(8), some(8)),
            g.op("LayerNormalization", value, some(6, 8, 8), axis=1),
            g.op("LRN", value, size=3, alpha=0.5, beta=0.75, bias=2.0),
            g.op("LRN", value, size=4),
        ]
    expect(g, *found)


@pytest.mark.xfail(
    raises=UnsupportedGraphError, reason="onnx.reference has no kernel for it", strict=True
)
def test_group_norms() -> None:
    g = Graph(IMAGE, opset=21)
    found = [
        g.op("GroupNormalization", x, g.constant(g.draw(6)), g.constant(g.draw(6)), num_groups=2)
        for x in (g.inputs[0], body(g))
    ]
    expect(g, *found)


def test_a_norm_of_a_selection_selects_itself() -> None:
    g = Graph(IMAGE)
    x = g.op("MaxPool", body(g), kernel_shape=[1, 1])
    some = g.op("Gather", x, g.integers(5, 0, 2), axis=1)
    parts = [g.constant(np.abs(g.draw(3))) for _ in range(4)]
    y = g.op("BatchNormalization", some, *parts)
    assert "Gather" not in kinds(expect(g, y, g.op("Relu", x)))


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 2], "strides": [3, 2], "ceil_mode": 1},
        {"kernel_shape": [2, 2], "dilations": [2, 2], "pads": [0, 1, 1, 0]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"kernel_shape": [3, 3], "strides": [3, 3], "ceil_mode": 1, "pads": [1, 1, 0, 0]},
    ],
    ids=str,
)
def test_pools(attributes: dict[str, object]) -> None:
    g = Graph(IMAGE)
    x = body(g)
    found = [
        g.op("MaxPool", x, **attributes),
        g.op("AveragePool", x, **attributes),
        g.op("AveragePool", x, count_include_pad=1, **attributes),
    ]
    expect(g, *found)


@pytest.mark.parametrize("rank", [1, 3])
def test_pools_of_other_ranks(rank: int) -> None:
    g = Graph((1, 3, *[6] * rank))
    shape = {"kernel_shape": [2] * rank, "strides": [2] * rank}
    expect(g, *(g.op(kind, g.inputs[0], **shape) for kind in ("MaxPool", "AveragePool")))


@pytest.mark.parametrize("p", [1, 2])
def test_lp_pools(p: int) -> None:
    g = Graph(IMAGE)
    expect(g, g.op("LpPool", body(g), kernel_shape=[2, 2], strides=[2, 2], p=p))


TRANSFORMATIONS = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_resizing(mode: str, transformation: str) -> None:
    g = Graph((1, 3, 4, 5))
    more = {"mode": mode, "coordinate_transformation_mode": transformation}
    found = []
    for value in (g.inputs[0], g.op("Conv", g.inputs[0], g.weight(3, 3, 1, 1))):
        by_scale = g.constant(np.asarray([1, 1, 2, 1.5], dtype=np.float32))
        found.append(g.op("Resize", value, None, by_scale, **more))
        found.append(g.op("Resize", value, None, None, g.integers(1, 3, 7, 3), **more))
    expect(g, *found)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_rounding_of_nearest_neighbours(rounding: str) -> None:
    g = Graph((1, 3, 4, 5))
    expect(g, g.op("Resize", g.inputs[0], None, None, g.integers(1, 3, 6, 8),
                   nearest_mode=rounding))  # fmt: skip


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums(exclusive: int, reverse: int) -> None:
    g = Graph(IMAGE)
    axis = g.constant(np.asarray(1))
    y = g.op("CumSum", body(g), axis, exclusive=exclusive, reverse=reverse)
    expect(g, y)


# Shapes, outputs, refusals


def test_shapes_are_constants() -> None:
    g = Graph(IMAGE)
    shape = g.op("Shape", g.inputs[0], start=0, end=2)
    whole = g.op("Concat", shape, g.integers(-1), axis=0)
    expect(g, g.op("Reshape", body(g), whole))


def test_outputs_of_every_kind() -> None:
    g = Graph(IMAGE)
    y = body(g)
    constant = g.op("Add", g.constant(g.draw(3)), g.constant(1.0))
    expect(g, y, g.op("Relu", y), g.op("Identity", g.inputs[0]), constant, g.op("Identity", y))


def test_an_output_is_written_where_the_user_gets_it() -> None:
    g = Graph((1, 8))
    plan = expect(g, g.op("Gemm", g.inputs[0], g.weight(8, 5)))
    assert kinds(plan) == {"Convolution": 1}
    (written,) = plan.operators[0].writes()
    assert plan.tensors[written].place is Place.OUTPUT
    assert plan.arena == 0


REFUSED: dict[str, Callable[[Graph], ir.Value]] = {
    "Acos .node 'acos_0'.: the native target lacks it: there is no such operator": lambda g: g.op(
        "Acos", g.inputs[0]
    ),
    "ArgMax .*makes int64 of the inputs' data|ArgMax .*there is no such operator": lambda g: g.op(
        "ArgMax", g.inputs[0]
    ),
    "MaxPool .*its second output is read": lambda g: g.ops(
        "MaxPool", g.inputs[0], kernel_shape=[1, 1], outputs=2
    )[1],
}


@pytest.mark.parametrize("message", list(REFUSED)[:2])
def test_refusals_name_operator_node_and_target(message: str, tmp_path) -> None:
    g = Graph(IMAGE)
    model = g.model(REFUSED[message](g))
    with pytest.raises(UnsupportedGraphError, match=message):
        written(model, g.feeds, tmp_path)

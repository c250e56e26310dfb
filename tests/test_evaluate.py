"""The float64 evaluator: its own kernels against PyTorch, padding written out by hand."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import TensorProto, helper

from mdprune_deploy.errors import UnsupportedGraphError
from mdprune_deploy.evaluate import evaluate, evaluate_node

RNG = np.random.default_rng(0)
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def run(op: str, *arrays: np.ndarray | None, opset: int = 20, **attributes: object) -> np.ndarray:
    """Evaluates one node."""
    inputs = [None if a is None else ir.Value(name=f"i{n}") for n, a in enumerate(arrays)]
    node = ir.node(op, inputs, attributes)
    node.outputs[0].name = "y"
    return np.asarray(evaluate_node(node, arrays, opset)[0])


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


def assert_equal(actual: np.ndarray, expected: torch.Tensor) -> None:
    assert actual.dtype == np.float64
    assert actual.shape == tuple(expected.shape)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    ("stride", "dilation", "pad", "groups"),
    [(1, 1, 0, 1), (2, 1, 1, 2), (1, 2, 3, 1), (3, 2, 2, 4)],
)
def test_conv(rank: int, stride: int, dilation: int, pad: int, groups: int) -> None:
    x = RNG.standard_normal((2, 4, *[7] * rank))
    w = RNG.standard_normal((8, 4 // groups, *[3] * rank))
    b = RNG.standard_normal(8)
    y = run(
        "Conv", x, w, b, strides=[stride] * rank, dilations=[dilation] * rank,
        pads=[pad] * 2 * rank, group=groups,
    )  # fmt: skip
    expected = CONV[rank](tensor(x), tensor(w), tensor(b), stride, pad, dilation, groups)
    assert_equal(y, expected)


def test_conv_pads_each_side_by_its_own() -> None:
    x, w = RNG.standard_normal((1, 2, 5, 6)), RNG.standard_normal((3, 2, 3, 3))
    y = run("Conv", x, w, pads=[0, 1, 2, 3])
    assert_equal(y, F.conv2d(F.pad(tensor(x), (1, 3, 0, 2)), tensor(w)))


@pytest.mark.parametrize(("mode", "pads"), [("SAME_UPPER", (0, 1)), ("SAME_LOWER", (1, 0))])
def test_conv_pads_the_odd_one_where_auto_pad_says(mode: str, pads: tuple[int, int]) -> None:
    """Input 6, kernel 3, stride 2: three outputs, one padded element in all."""
    x, w = RNG.standard_normal((1, 2, 6, 6)), RNG.standard_normal((3, 2, 3, 3))
    y = run("Conv", x, w, auto_pad=mode, strides=[2, 2])
    assert_equal(y, F.conv2d(F.pad(tensor(x), pads * 2), tensor(w), stride=2))


def test_conv_with_same_padding_and_dilation() -> None:
    x, w = RNG.standard_normal((1, 2, 8)), RNG.standard_normal((3, 2, 3))
    y = run("Conv", x, w, auto_pad="SAME_UPPER", dilations=[3])
    assert_equal(y, F.conv1d(tensor(x), tensor(w), padding=3, dilation=3))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    ("stride", "dilation", "pad", "extra", "groups"),
    [(1, 1, 0, 0, 1), (2, 1, 1, 1, 2), (2, 2, 1, 1, 1), (3, 1, 2, 2, 4)],
)
def test_conv_transpose(
    rank: int, stride: int, dilation: int, pad: int, extra: int, groups: int
) -> None:
    x = RNG.standard_normal((2, 4, *[4] * rank))
    w = RNG.standard_normal((4, 8 // groups, *[3] * rank))
    b = RNG.standard_normal(8)
    y = run(
        "ConvTranspose", x, w, b, strides=[stride] * rank, dilations=[dilation] * rank,
        pads=[pad] * 2 * rank, output_padding=[extra] * rank, group=groups,
    )  # fmt: skip
    expected = TRANSPOSED[rank](
        tensor(x), tensor(w), tensor(b), stride, pad, extra, groups, dilation
    )
    assert_equal(y, expected)


@pytest.mark.parametrize("attributes", [{"auto_pad": "SAME_UPPER"}, {"output_shape": [9, 9]}])
def test_conv_transpose_refuses_computed_padding(attributes: dict[str, object]) -> None:
    x, w = np.zeros((1, 2, 4, 4)), np.zeros((2, 2, 3, 3))
    with pytest.raises(UnsupportedGraphError) as error:
        run("ConvTranspose", x, w, **attributes)
    assert str(error.value) == (
        "ConvTranspose (node None) with auto_pad or output_shape is not supported; "
        "give explicit pads and output_padding"
    )


@pytest.mark.parametrize("size", range(5, 10))
@pytest.mark.parametrize(
    ("kernel", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (3, 3, 1), (2, 3, 1), (5, 2, 2)]
)
@pytest.mark.parametrize("ceil", [False, True])
def test_pools(size: int, kernel: int, stride: int, pad: int, ceil: bool) -> None:
    x = RNG.standard_normal((2, 3, size, size))
    options: dict[str, object] = {
        "kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4,
        "ceil_mode": int(ceil),
    }  # fmt: skip
    y = run("MaxPool", x, **options)
    assert_equal(y, F.max_pool2d(tensor(x), kernel, stride, pad, ceil_mode=ceil))
    for include in (False, True):
        y = run("AveragePool", x, count_include_pad=int(include), **options)
        assert_equal(y, F.avg_pool2d(tensor(x), kernel, stride, pad, ceil, include))


def test_max_pool_dilates() -> None:
    x = RNG.standard_normal((1, 2, 9))
    y = run("MaxPool", x, kernel_shape=[3], dilations=[2], pads=[1, 1])
    assert_equal(y, F.max_pool1d(tensor(x), 3, 1, 1, dilation=2))


def test_max_pool_of_negative_numbers_ignores_the_padding() -> None:
    y = run("MaxPool", np.full((1, 1, 3, 3), -5.0), kernel_shape=[3, 3], pads=[1] * 4)
    assert (y == -5.0).all()


def test_max_pool_with_indices_is_refused() -> None:
    node = ir.node("MaxPool", [ir.Value(name="x")], {"kernel_shape": [2]}, num_outputs=2, name="p")
    with pytest.raises(
        UnsupportedGraphError, match=r"MaxPool \(node 'p'\) with the Indices output"
    ):
        evaluate_node(node, [np.zeros((1, 1, 4))], 20)


def test_average_pool_with_same_padding() -> None:
    x = RNG.standard_normal((1, 2, 5, 5))
    y = run("AveragePool", x, kernel_shape=[3, 3], auto_pad="SAME_UPPER")
    assert_equal(y, F.avg_pool2d(tensor(x), 3, 1, 1, count_include_pad=False))


def test_average_pool_dilates() -> None:
    x = RNG.standard_normal((1, 1, 7))
    y = run("AveragePool", x, kernel_shape=[2], dilations=[3])
    assert_equal(y, (tensor(x)[..., :4] + tensor(x)[..., 3:]) / 2)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", [(2, 6, 4, 4), (1, 9, 3, 3), (3, 2, 5, 5)])
def test_lrn(size: int, shape: tuple[int, ...]) -> None:
    """Of any batch and any number of channels: the reference kernel confuses the two."""
    x = RNG.standard_normal(shape)
    y = run("LRN", x, size=size, alpha=0.25, beta=0.5, bias=2.0)
    assert_equal(y, F.local_response_norm(tensor(x), size, 0.25, 0.5, 2.0))


def test_lrn_of_an_even_window_leans_forwards() -> None:
    x = np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    y = run("LRN", x, size=2, alpha=2.0, beta=1.0, bias=0.0).reshape(-1)
    np.testing.assert_allclose(y, [1 / 5, 2 / 13, 3 / 9], rtol=1e-12)


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "HardSwish", "Erf", "Softmax"])
def test_other_operators_stay_in_float64(op: str) -> None:
    x = np.array([[1e-12, 1.0, -3.0]])
    assert run(op, x).dtype == np.float64


def test_unknown_operator_is_named() -> None:
    node = ir.node("Fused", [ir.Value(name="x")], {}, domain="com.example", name="f")
    with pytest.raises(UnsupportedGraphError) as error:
        evaluate_node(node, [np.zeros(1)], 20)
    assert str(error.value) == "com.example::Fused (node 'f') is not a standard ONNX operator"


def test_wrong_arguments_are_named() -> None:
    node = ir.node("MatMul", [ir.Value(name="a"), ir.Value(name="b")], {}, name="m")
    with pytest.raises(UnsupportedGraphError, match=r"^MatMul \(node 'm'\) cannot be evaluated: "):
        evaluate_node(node, [np.zeros((2, 3)), np.zeros((2, 3))], 20)


def test_node_whose_attributes_change_is_evaluated_anew() -> None:
    node = ir.node("Softmax", [ir.Value(name="x")], {"axis": 0})
    x = np.array([[0.0, 0.0]])
    assert evaluate_node(node, [x], 20)[0].tolist() == [[1.0, 1.0]]
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    assert evaluate_node(node, [x], 20)[0].tolist() == [[0.5, 0.5]]


def test_graph_frees_what_is_read_and_shows_what_is_made() -> None:
    """A small graph with an unused output and a value that is read twice."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Split", ["a"], ["b", "unused"], axis=1, num_outputs=2),
        helper.make_node("Mul", ["b", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    seen: list[str | None] = []
    (y,) = evaluate(ir.from_proto(model).graph, {"x": x}, observe=lambda v, a: seen.append(v.name))
    assert seen == ["a", "b", "unused", "y"]
    session = onnxruntime.InferenceSession(model.SerializeToString())
    np.testing.assert_allclose(y, session.run(None, {"x": x})[0], rtol=1e-6)

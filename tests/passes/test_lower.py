"""Norms into the products before them or into convolutions, and the float32 copy."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from narrowing import Net, count, emitted_shape, exact, keeping, placed

from mdprune_deploy.evaluate import constant_array, evaluate
from mdprune_deploy.passes.emit_graph import emit_graph
from mdprune_deploy.passes.lower import fold_batch_norms, norms_to_convolutions, to_float32
from mdprune_deploy.passes.remove import analyzed
from mdprune_deploy.verify import deviation

ROUNDING = 1e-13
"""Of float64: one more product and sum per weight."""


def emitted(checkpoint):
    """The narrowed graph before it is lowered, and the ranks of its values."""
    graph, facts = placed(checkpoint)
    model, _ = analyzed(checkpoint, "d")
    model, origins = emit_graph(ir.Model(graph, ir_version=model.ir_version), facts)
    return model, {name: len(origin.sets) for name, origin in origins.items()}


def answers(model, checkpoint, batch=2):
    shape = checkpoint.examples["x"].shape
    rng = np.random.default_rng(11)
    return evaluate(model.graph, {"x": rng.standard_normal((batch, *shape[1:]))})


def ops(model):
    return [node.op_type for node in model.graph]


def assert_same(before, after):
    for a, b in zip(before, after, strict=True):
        assert deviation(a, b)[1] <= ROUNDING


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_norm_folds_into_the_convolution_before_it(groups, bias):
    net = Net((1, 8, 5, 5))
    y = net.norm("norm", net.conv("conv", net.input, 8, groups=groups, bias=bias))
    checkpoint = net.checkpoint(y, {})
    model, _ = emitted(checkpoint)
    before = answers(model, checkpoint)
    fold_batch_norms(model)
    assert ops(model) == ["Conv"]
    assert_same(before, answers(model, checkpoint))
    exact(checkpoint)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_norm_folds_into_the_transposed_convolution_before_it(groups, bias):
    net = Net((1, 6, 5, 5))
    weight = net.constant("up.weight", net.draw(6, 4 // groups, 3, 3))
    operands = [weight, *([net.constant("up.bias", net.draw(4))] if bias else [])]
    y = net.op(
        "ConvTranspose", "up", net.input, *operands, group=groups, strides=[2, 2], pads=[1] * 4
    )
    net.channels[y] = 4
    checkpoint = net.checkpoint(net.norm("norm", y), {"up.weight": keeping(6, [0, 1, 3, 4])})
    model, _ = emitted(checkpoint)
    before = answers(model, checkpoint)
    fold_batch_norms(model)
    assert "BatchNormalization" not in ops(model)
    assert_same(before, answers(model, checkpoint))
    exact(checkpoint)


def test_a_norm_folds_into_the_linear_layer_before_it():
    net = Net((1, 3, 4, 4))
    y = net.head("hidden", net.conv("conv", net.input, 8), classes=6)
    checkpoint = net.checkpoint(net.linear("last", net.norm("norm", y), 2), {})
    model, _ = emitted(checkpoint)
    before = answers(model, checkpoint)
    fold_batch_norms(model)
    assert ops(model) == ["Conv", "ReduceMean", "Gemm", "Gemm"]
    assert_same(before, answers(model, checkpoint))
    exact(checkpoint)


def test_a_norm_does_not_fold_where_the_product_is_read_elsewhere():
    net = Net((1, 3, 4, 4))
    x = net.conv("conv", net.input, 12)
    checkpoint = net.checkpoint(net.add("sum", net.norm("norm", x), x), {})
    removed = exact(checkpoint)
    assert count(removed, "BatchNormalization") == 1
    dense = constant_array(checkpoint.model.graph.initializers["conv.weight"])
    kept = constant_array(removed.model.graph.initializers["conv.weight"])
    assert np.array_equal(dense.astype(np.float64), kept)


def test_a_norm_does_not_fold_where_the_product_is_an_output():
    net = Net((1, 3, 4, 4))
    x = net.conv("conv", net.input, 12)
    removed = exact(net.checkpoint([net.norm("norm", x), x], {}))
    assert count(removed, "BatchNormalization") == 1


def test_two_norms_in_a_row_fold_into_one_layer():
    net = Net((1, 3, 4, 4))
    y = net.norm("second", net.norm("first", net.conv("conv", net.input, 8)))
    removed = exact(net.checkpoint(y, {}))
    assert ops(removed.model) == ["Conv"]


def test_a_weight_that_two_layers_read_serves_each_with_its_own_norm():
    net = Net((1, 4, 4, 4))
    x = net.conv("conv", net.input, 4)
    again = net.op("Conv", "again", x, net.weights[0], kernel_shape=[3, 3], pads=[1] * 4)
    net.channels[again] = 4
    y = net.add("sum", net.norm("norm", again), x)
    removed = exact(net.checkpoint(y, {"conv.weight": keeping(4, [0, 2])}))
    assert ops(removed.model).count("Conv") == 2 and "BatchNormalization" not in ops(removed.model)


@pytest.mark.parametrize(("channels", "turned"), [(16, True), (32, True), (12, False), (24, False)])
def test_a_norm_that_is_left_becomes_a_convolution_in_whole_blocks(channels, turned):
    net = Net((1, 3, 4, 4))
    y = net.norm("norm", net.relu("relu", net.conv("conv", net.input, channels)))
    checkpoint = net.checkpoint(net.relu("out", y), {})
    removed = exact(checkpoint)
    node = list(removed.model.graph)[-2]
    assert node.op_type == ("Conv" if turned else "BatchNormalization")
    if turned:
        assert node.attributes["group"].as_int() == channels
        assert constant_array(node.inputs[1]).shape == (channels, 1, 1, 1)


def test_a_norm_of_another_rank_stays_a_norm():
    net = Net((1, 3, 4, 4))
    x = net.relu("relu", net.conv("conv", net.input, 16))
    rows = net.relu("rows_relu", net.norm("norm3", net.reshape("rows", x, -1, 16, 16)))
    axes = net.constant("axes", np.asarray([2]))
    mean = net.op("ReduceMean", "mean", rows, axes, keepdims=0)
    y = net.linear("last", net.norm("norm2", mean), 3)
    removed = exact(net.checkpoint(y, {}))
    assert count(removed, "BatchNormalization") == 2


def test_a_norm_with_its_own_epsilon():
    net = Net((1, 3, 4, 4))
    y = net.norm("norm", net.relu("relu", net.conv("conv", net.input, 16)))
    net.nodes[-1].attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.5)
    y = net.norm("folded", net.conv("next", y, 8))
    net.nodes[-1].attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.25)
    assert ops(exact(net.checkpoint(y, {})).model) == ["Conv", "Relu", "Conv", "Conv"]


def test_a_norm_that_makes_an_output_keeps_its_name_and_type():
    net = Net((1, 3, 4, 4))
    first = net.norm("first", net.conv("conv", net.input, 16))
    second = net.norm("second", net.relu("relu", first))
    removed = exact(net.checkpoint([first, second], {}))
    assert [value.name for value in removed.model.graph.outputs] == ["first_out", "second_out"]
    lowered = to_float32(removed.model)
    onnx.checker.check_model(ir.to_proto(lowered), full_check=True)


def test_norms_to_convolutions_reports_only_through_the_graph():
    net = Net((1, 3, 4, 4))
    y = net.norm("norm", net.relu("relu", net.conv("conv", net.input, 16)))
    checkpoint = net.checkpoint(y, {})
    model, ranks = emitted(checkpoint)
    before = answers(model, checkpoint)
    norms_to_convolutions(model, {})
    assert "BatchNormalization" in ops(model), "a value of unknown rank is left"
    norms_to_convolutions(model, ranks)
    assert ops(model) == ["Conv", "Relu", "Conv"]
    assert not [name for name in model.graph.initializers if name.startswith("norm.var")]
    assert_same(before, answers(model, checkpoint))


def mixed_types():
    net = Net((1, 3, 4, 4))
    x = net.conv("conv", net.input, 8)
    large = net.op("Greater", "large", x, net.constant("zero", np.zeros(1, np.float32)))
    flags = net.op("Cast", "flags", large, to=int(ir.DataType.FLOAT))
    y = net.head("head", net.op("Mul", "positive", x, flags))
    return net.checkpoint(y, {"head.weight": keeping(8, range(5))})


def test_the_float32_copy_leaves_the_float64_model_as_it_was():
    checkpoint = mixed_types()
    model = exact(checkpoint).model
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    expected = answers(model, checkpoint)
    lowered = to_float32(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert_same(expected, answers(model, checkpoint))
    kinds = {constant_array(v).dtype for v in lowered.graph.initializers.values()}
    assert kinds == {np.dtype(np.float32), np.dtype(np.int64)}
    for name, value in lowered.graph.initializers.items():
        wide = constant_array(model.graph.initializers[name])
        narrow = wide.astype(np.float32) if wide.dtype == np.float64 else wide
        assert np.array_equal(constant_array(value), narrow)
        assert value.dtype == value.const_value.dtype and tuple(value.shape) == narrow.shape


def test_the_float32_copy_is_a_valid_model_of_float32():
    lowered = to_float32(exact(mixed_types()).model)
    cast = next(node for node in lowered.graph if node.op_type == "Cast")
    assert cast.attributes["to"].as_int() == int(ir.DataType.FLOAT)
    values = [*lowered.graph.inputs, *lowered.graph.outputs]
    assert {value.dtype for value in values} == {ir.DataType.FLOAT}
    onnx.checker.check_model(ir.to_proto(lowered), full_check=True)


def test_tensors_in_attributes_are_narrowed_too():
    net = Net((1, 3, 4, 4))
    y = net.conv("conv", net.input, 4)
    checkpoint = net.checkpoint(y, {})
    model, _ = emitted(checkpoint)
    fill = ir.node("ConstantOfShape", [], {"value": ir.tensor(np.ones(1))}, name="fill")
    fill.outputs[0].name = "fill_out"
    model.graph.insert_before(next(iter(model.graph)), fill)
    lowered = to_float32(model)
    kinds = [
        next(n for n in graph if n.name == "fill").attributes["value"].as_tensor().dtype
        for graph in (model.graph, lowered.graph)
    ]
    assert kinds == [ir.DataType.DOUBLE, ir.DataType.FLOAT]


def test_a_folded_layer_is_narrowed_like_any_other():
    net = Net((1, 3, 4, 4))
    x = net.relu("relu", net.norm("norm", net.conv("conv", net.input, 12)))
    masks = {"last.weight": keeping(12, [1, 4, 5, 11])}
    removed = exact(net.checkpoint(net.head("head", net.conv("last", x, 4)), masks))
    assert ops(removed.model)[:2] == ["Conv", "Relu"]
    assert emitted_shape(removed, "conv.weight") == (4, 3, 3, 3)

"""Shapes that follow the batch: resolved, and holding no channels."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import compile_exactly, emitted_params, run_graph
from graphs import Network, mask
from onnx import helper

from mdprune_deploy import Domain
from mdprune_deploy.passes.bind import bind
from mdprune_deploy.passes.remove import remove
from mdprune_deploy.passes.trace import add_initializer, resolve_shapes

pytestmark = pytest.mark.usefixtures("narrowest")
READ = mask([0, 1, 0, 0, 0, 1, 0, 0])


def add(n: Network, op: str, inputs: list[str], **attributes: object) -> str:
    """Adds a node that has no PyTorch form of its own."""
    name = n.fresh(op.lower())
    n.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
    return name


def stem_filters(n: Network) -> int:
    removed = compile_exactly(n, Domain({n.layers[-2].weight: READ}))
    assert removed.held == ()
    return emitted_params(removed)[n.layers[0].weight] // 27


def test_shape_of_an_intermediate_value_keeps_no_channel() -> None:
    """view(x.size(0), -1, ...) as exporters write it, at full length."""
    n = Network()
    x = n.conv_bn_act("x", 8)
    batch = add(n, "Gather", [add(n, "Shape", [x]), n.constant(0)], axis=0)
    whole = add(n, "Unsqueeze", [batch, n.constant([0])])
    shape = add(n, "Concat", [whole, n.constant([8, 36])], axis=0)
    y = add(n, "Reshape", [x, shape])
    n.add_step(lambda run, x: x.flatten(2), [x], y)
    z = n.reshape(y, [0, 8, 6, 6])
    n.head(n.conv(z, 4, 1))
    assert stem_filters(n) == 2


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_to_the_size_of_another_value(mode: str) -> None:
    n = Network()
    x = n.conv_bn_act("x", 8)
    small = n.max_pool(x)
    batch = add(n, "Slice", [add(n, "Shape", [small]), *map(n.constant, ([0], [2], [0]))])
    space = add(n, "Slice", [add(n, "Shape", [x]), *map(n.constant, ([2], [4], [0]))])
    sizes = add(n, "Concat", [batch, space], axis=0)
    transform = "asymmetric" if mode == "nearest" else "half_pixel"
    y = add(n, "Resize", [small, "", "", sizes], mode=mode, nearest_mode="floor",
            coordinate_transformation_mode=transform)  # fmt: skip
    how = {"nearest": "nearest", "linear": "bilinear"}[mode]
    n.add_step(lambda run, x: F.interpolate(x, size=(6, 6), mode=how), [small], y)
    n.head(n.conv(y, 4, 1))
    assert stem_filters(n) == 2


def test_multiples_of_the_batch_are_recomputed() -> None:
    """Groups as images: (batch * 2, 4, ...) and back; the batch is not what Reshape copies."""
    n = Network()
    x = n.conv_bn_act("x", 8)
    batch = add(n, "Shape", [x], start=0, end=1)
    twice = add(n, "Mul", [batch, n.constant([2])])
    shape = add(n, "Concat", [twice, n.constant([4, 6, 6])], axis=0)
    folded = add(n, "Reshape", [x, shape])
    n.add_step(lambda run, x: x.reshape(-1, 4, 6, 6), [x], folded)
    gate = n.act(n.mean(folded, keep=True), "Sigmoid")
    n.head(n.conv(n.reshape(n.mul(folded, gate), [-1, 8, 6, 6]), 4, 1))
    # Channels 1 and 5 are the same channel of the two groups.
    assert stem_filters(n) == 2


def test_batch_that_moves_past_the_channels_mixes_images() -> None:
    """A reshape from (channels, batch) to (batch, channels): nothing can go, and it stays exact."""
    n = Network()
    x = n.transpose(n.conv_bn_act("x", 8), [1, 0, 2, 3])
    y = add(n, "Reshape", [x, n.constant([-1, 8, 6, 6])])
    n.add_step(lambda run, x: x.reshape(-1, 8, 6, 6), [x], y)
    n.head(n.conv(y, 4, 1))
    removed = compile_exactly(n, Domain({n.layers[-2].weight: READ}))
    assert emitted_params(removed)[n.layers[0].weight] == 8 * 27


def test_integers_that_depend_on_the_data_are_not_folded() -> None:
    """The index of the largest sum is the same for all traces of the example, but no constant."""
    n = Network()
    x = n.conv_bn_act("x", 8)
    n.head(x)
    total = n.node("ReduceSum", [x, n.constant([0, 2, 3])], lambda run, x: x.sum((0, 2, 3)),
                   keepdims=0)  # fmt: skip
    best = add(n, "ArgMax", [total], axis=0, keepdims=0)
    y = add(n, "Gather", [total, best], axis=0)
    n.add_step(lambda run, t: t[t.argmax()], [total], y)
    n.outputs.append(y)
    removed = remove(n.checkpoint(d=Domain()), "d")
    for seed in range(4):
        image = np.random.default_rng(seed).standard_normal((1, 3, 6, 6))
        (_, want), (_, have) = n.expected(Domain(), image), run_graph(removed.model, image)
        np.testing.assert_allclose(have, want, rtol=1e-9)


def test_trace_tells_what_follows_the_batch() -> None:
    n = Network()
    x = n.conv_bn_act("x", 8)
    flat = n.flatten(x)
    n.outputs.append(n.linear(flat, 3))
    checkpoint = n.checkpoint(d=Domain())
    trace = resolve_shapes(bind(checkpoint, "d"), checkpoint)
    assert trace.shapes[flat] == (trace.batch, 288)
    assert trace.varying[flat] == {0}
    assert trace.varying[n.layers[0].weight] == frozenset()
    assert trace.dtypes[flat] == np.float64


def test_initialisers_get_names_of_their_own() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20})
    names = [add_initializer(graph, np.zeros(1), "a").name for _ in range(3)]
    assert names == ["a", "a_1", "a_2"]
    assert add_initializer(graph, np.zeros(1), None).name == "constant"


def test_static_batch_keeps_its_shape() -> None:
    n = Network()
    x = n.reshape(n.conv_bn_act("x", 8), [1, 8, 36])
    n.head(n.conv(n.reshape(x, [1, 8, 6, 6]), 4, 1))
    checkpoint = n.checkpoint(d=Domain({n.layers[1].weight: READ}))
    object.__setattr__(checkpoint, "dynamic_batch", False)
    removed = remove(checkpoint, "d")
    image = torch.randn(1, 3, 6, 6).double().numpy()
    (want,) = n.expected(checkpoint.domains["d"], image)
    np.testing.assert_allclose(run_graph(removed.model, image)[0], want, rtol=1e-9)

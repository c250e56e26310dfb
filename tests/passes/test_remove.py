"""All passes together: exact, repeatable, and with figures that are those of the emitted graph."""

import numpy as np
import onnx_ir as ir
import pytest
from narrowing import Net, count, exact, keeping, some

from benchmarks.masks import make_domains
from benchmarks.networks import resnet_tiny, wrn_tiny
from mdprune_deploy.checkpoint import load_checkpoint, save_checkpoint
from mdprune_deploy.errors import CheckpointError
from mdprune_deploy.evaluate import constant_array, evaluate
from mdprune_deploy.passes import place as placing
from mdprune_deploy.passes.operators import product
from mdprune_deploy.passes.remove import analyzed, remove


@pytest.fixture(scope="module", params=[resnet_tiny, wrn_tiny])
def residual(request, tmp_path_factory):
    """A residual network with one regular and one learned domain."""
    network, example = request.param()
    regular = make_domains(network, 1)["domain0"]
    learned = make_domains(network, 2, style="learned")["domain1"]
    path = tmp_path_factory.mktemp("remove") / "model.pt"
    save_checkpoint(path, network, example, {"regular": regular, "learned": learned})
    return load_checkpoint(path)


@pytest.mark.parametrize("domain", ["regular", "learned"])
@pytest.mark.parametrize("threshold", [None, 0])
def test_residual_networks_stay_exact(residual, domain, threshold, monkeypatch):
    if threshold is not None:  # as networks with more work are compiled
        monkeypatch.setattr(placing, "WORTH_ROUNDING", threshold)
        monkeypatch.setattr(product, "WORTH_ROUNDING", threshold)
    removed = exact(residual, domain)
    assert sum(x.macs_emitted for x in removed.layers) < 0.75 * sum(
        x.macs_dense for x in removed.layers
    )


@pytest.mark.parametrize("domain", ["regular", "learned"])
def test_the_figures_are_those_of_the_emitted_graph(residual, domain):
    removed = remove(residual, domain)
    shapes = {}
    ((name, example),) = residual.examples.items()
    evaluate(
        removed.model.graph,
        {name: example.astype(np.float64)},
        observe=lambda value, array: shapes.update({value: array.shape}),
    )
    figures = {layer.name: layer for layer in removed.layers}
    seen = set()
    for node in removed.model.graph:
        weight = node.inputs[1] if node.op_type in ("Conv", "Gemm") else None
        if weight is None or weight.name not in figures:
            continue  # a norm that became a convolution is no layer of the network
        layer, array = figures[weight.name], constant_array(weight)
        seen.add(weight.name)
        positions = np.prod(shapes[node.outputs[0]][2:], dtype=int)
        assert layer.params_emitted == array.size
        assert layer.macs_emitted == array.size * positions
        assert layer.params_used <= layer.params_emitted <= layer.params_dense
        assert np.count_nonzero(array) >= layer.params_used * 0.999
    assert seen == {name for name, layer in figures.items() if layer.macs_emitted}


def test_removal_is_the_same_every_time(residual):
    first, second = (remove(residual, "learned") for _ in range(2))
    protos = [ir.to_proto(removed.model) for removed in (first, second)]
    assert protos[0].SerializeToString(deterministic=True) == protos[1].SerializeToString(
        deterministic=True
    )
    assert first.layers == second.layers and first.held == second.held


def test_removal_leaves_the_checkpoint_as_it_was(residual):
    before = ir.to_proto(residual.model).SerializeToString(deterministic=True)
    remove(residual, "regular")
    assert ir.to_proto(residual.model).SerializeToString(deterministic=True) == before


def test_masks_that_cut_every_path_are_refused():
    net = Net()
    y = net.head("head", net.conv("conv", net.input, 4))
    checkpoint = net.checkpoint(y, {"conv.weight": keeping(3, [])})
    with pytest.raises(CheckpointError) as refusal:
        analyzed(checkpoint, "d")
    assert str(refusal.value) == (
        "domain 'd': its masks cut every path: no output depends on the input"
    )


def test_two_readers_of_one_tensor_keep_different_channels():
    rng = np.random.default_rng(0)
    net = Net()
    x = net.conv("stem", net.input, 20)
    ons = {name: some(rng, 20, 7) for name in "ab"}
    outputs = [net.head(f"{name}_head", net.conv(name, x, 4)) for name in ons]
    masks = {f"{name}.weight": keeping(20, on) for name, on in ons.items()}
    removed = exact(net.checkpoint(outputs, masks))
    weights = removed.model.graph.initializers
    assert [constant_array(weights[f"{name}.weight"]).shape for name in "ab"] == [(4, 7, 3, 3)] * 2
    union = len(np.union1d(ons["a"], ons["b"]))
    assert constant_array(weights["stem.weight"]).shape[0] == union


def test_a_constant_channel_is_right_at_the_border():
    # A filter without weights carries its norm's shift into a padded convolution.
    net = Net()
    x = net.norm("norm", net.conv("stem", net.input, 8))
    y = net.conv("conv", x, 4)
    removed = exact(net.checkpoint(y, {"stem.weight": keeping(8, [0, 3, 6], "out")}))
    # One of the five constant channels stands for all of them.
    assert constant_array(removed.model.graph.initializers["conv.weight"]).shape[1] == 4
    assert [held.operator for held in removed.held] == ["Conv"]


def test_every_value_has_a_name_of_its_own():
    net = Net()
    x = net.conv("stem", net.input, 32)
    parts = [net.conv(f"conv{i}", x, 4, kernel=1) for i in range(6)]
    masks = {
        f"conv{i}.weight": keeping(32, some(np.random.default_rng(i), 32, 9)) for i in range(6)
    }
    removed = exact(net.checkpoint([net.head(f"head{i}", y) for i, y in enumerate(parts)], masks))
    names = [value.name for node in removed.model.graph for value in node.outputs]
    names += [*removed.model.graph.initializers, "x"]
    assert len(set(names)) == len(names)
    assert count(removed, "Gather", "Slice") == 6

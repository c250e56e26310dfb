"""What an emitted product says of the stored weight that its own is a part of."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs import Network, mask

from mdprune_deploy import Domain
from mdprune_deploy.evaluate import constant_array
from mdprune_deploy.passes.emit_graph import emit_graph
from mdprune_deploy.passes.operators import product
from mdprune_deploy.passes.place import place
from mdprune_deploy.passes.remove import analyzed
from mdprune_deploy.passes.stored import StoredWeight

pytestmark = pytest.mark.usefixtures("narrowest")


def emitted(n: Network, domain: Domain) -> ir.Model:
    model, facts = analyzed(n.checkpoint(d=domain), "d")
    place(model.graph, facts)
    return emit_graph(model, facts)[0]


def stored_of(n: Network, domain: Domain) -> list[tuple[StoredWeight, np.ndarray]]:
    """Per emitted product with a weight what is noted on it, and its weight as it lies there."""
    found = []
    for node in emitted(n, domain).graph:
        if "stored" in node.meta:
            weight = next(v for v in node.inputs if v is not None and v.is_initializer())
            found.append((node.meta["stored"], constant_array(weight)))
    return found


def chain() -> Network:
    n = Network()
    n.head(n.conv_bn_act(n.conv_bn_act("x", 8), 4))
    return n


def test_a_rectangle_of_the_weight_before_any_mask() -> None:
    n = chain()
    domain = Domain({n.layers[1].weight: mask([1, 0, 1, 1, 0, 0, 0, 0])})
    (first, a), (second, b), (head, c) = stored_of(n, domain)
    for layer, (stored, _) in zip(n.layers, [(first, a), (second, b), (head, c)], strict=True):
        assert stored.use.name == layer.weight and stored.use.version == ""
    np.testing.assert_array_equal(second.weight, n.parameters[n.layers[1].weight])
    assert second.weight.dtype == np.float32
    assert first.filters.tolist() == second.channels.tolist() == [0, 2, 3]
    assert first.channels.tolist() == [0, 1, 2] and second.filters.tolist() == [0, 1, 2, 3]
    for stored, weight in ((first, a), (second, b)):
        assert stored.shared.all() and stored.used.all() and stored.live.all()
        part = stored.weight[np.ix_(stored.filters, stored.channels)]
        np.testing.assert_array_equal(part, weight.astype(np.float32))


@pytest.mark.parametrize("kind", ["conv_transpose", "linear", "conv1x1"])
def test_every_product_has_filters_first(kind: str) -> None:
    n = Network()
    x = n.conv_bn_act("x", 6)
    if kind == "linear":
        x = n.linear(n.mean(x), 5)
    else:
        x = n.conv_transpose(x, 5) if kind == "conv_transpose" else n.conv(x, 5, 1)
    n.outputs.append(x)
    on = [1, 1, 0, 1, 0, 1]
    stored = stored_of(n, Domain({n.layers[1].weight: mask(on)}))[1][0]
    original = n.parameters[n.layers[1].weight]
    want = np.swapaxes(original, 0, 1) if kind == "conv_transpose" else original
    np.testing.assert_array_equal(stored.weight, want)
    assert stored.channels.tolist() == [0, 1, 3, 5] and stored.shared.all()


def test_a_constant_channel_at_a_border_has_a_combined_weight_of_its_own() -> None:
    n = Network()
    x = n.act(n.bn(n.conv("x", 8)), "Sigmoid")
    n.head(n.conv(x, 4))
    # Filters 1 and 5 are off: after the batch norm they are constants, one carries both.
    domain = Domain({n.layers[0].weight: mask([1, 0, 1, 1, 1, 0, 1, 1], "out")})
    first, second = (stored for stored, _ in stored_of(n, domain)[:2])
    assert second.shared.sum() == 6 and second.used.sum() == 7
    assert set(second.channels[~second.shared].tolist()) < {1, 5}
    constant = second.channels[~second.shared].item()
    assert first.live.tolist() == [channel != constant for channel in first.filters.tolist()]
    assert first.shared.all()  # the constant filter need not match


def test_a_channel_that_is_read_again_has_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "WORTH_ROUNDING", 0)  # a convolution reads multiples of 4
    n = chain()
    domain = Domain({n.layers[1].weight: mask([0, 1, 1, 1, 1, 0, 1, 0])})
    stored = stored_of(n, domain)[1][0]
    assert stored.channels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    for row in (stored.shared, stored.used):
        assert row.tolist() == [False, True, True, True, True, False, True, False]


def test_own_parameters_are_another_version() -> None:
    n = chain()
    own = torch.ones(n.parameters[n.layers[1].weight].shape)
    stored = stored_of(n, Domain(state={n.layers[1].weight: own}))[1][0]
    assert stored.use.version != "" and (stored.weight == 1).all() and stored.shared.all()


@pytest.mark.parametrize("on", [[1] * 8, [1, 1, 1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0, 0, 0]])
def test_grouped_products_are_private(on: list[int]) -> None:
    n = Network()
    n.head(n.conv(n.conv("x", 8), 8, groups=4))
    masked = Domain({n.layers[1].weight: mask(on)})
    names = [stored.use.name for stored, _ in stored_of(n, masked)]
    assert names == [n.layers[0].weight, n.layers[2].weight]


def test_a_clone_keeps_the_note() -> None:
    model = emitted(chain(), Domain())
    noted = [[n.meta.get("stored") for n in m.graph] for m in (model, model.clone())]
    assert noted[0] == noted[1] and sum(x is not None for x in noted[0]) == 3

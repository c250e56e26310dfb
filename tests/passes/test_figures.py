"""Counts by hand: dense, used and emitted, what domains share, and what is held."""

import numpy as np
import pytest
from checks import compile_exactly
from graphs import Network, mask

from mdprune_deploy import Domain
from mdprune_deploy.passes.bind import WeightUse
from mdprune_deploy.passes.figures import UsedPairs, union_and_intersection
from mdprune_deploy.passes.operators import product
from mdprune_deploy.passes.remove import remove
from mdprune_deploy.report import LayerFigures

pytestmark = pytest.mark.usefixtures("narrowest")


def test_figures_of_a_chain() -> None:
    """3x3 stem of 8 filters, strided 3x3 of 4, linear of 3, on 6x6 images."""
    n = Network()
    n.head(n.conv_bn_act(n.conv_bn_act("x", 8), 4, stride=2))
    stem, middle, head = (layer.weight for layer in n.layers)
    domain = Domain({middle: mask([1, 1, 1, 0, 0, 0, 0, 0]), head: mask([1, 1, 0, 0])})
    removed = compile_exactly(n, domain)
    assert removed.layers == (
        LayerFigures(stem, "Conv", 216, 81, 81, 216 * 36, 81 * 36),
        LayerFigures(middle, "Conv", 288, 54, 54, 288 * 9, 54 * 9),
        LayerFigures(head, "Gemm", 12, 6, 6, 12, 6),
    )


def test_work_counts_per_image_of_a_batch() -> None:
    n = Network()
    n.example = np.concatenate([n.example] * 5)
    n.head(n.conv("x", 8))
    removed = remove(n.checkpoint(d=Domain()), "d")
    assert [layer.macs_dense for layer in removed.layers] == [216 * 36, 24]


def test_transposed_convolutions_work_counts_at_the_input() -> None:
    n = Network()
    n.head(n.conv_transpose("x", 4))
    removed = compile_exactly(n, Domain())
    assert removed.layers[0].macs_dense == 3 * 4 * 9 * 36


def test_work_of_a_product_follows_the_rows_that_are_kept() -> None:
    """A product over space, on channels of which the reader takes two."""
    n = Network()
    x = n.reshape(n.conv_bn_act("x", 8), [0, 8, 36])
    name = n.parameter("mix.weight", n.rng.standard_normal((36, 36)) / 6)
    mixed = n.node("MatMul", [x, name], lambda run, x: x @ n.value(run, name))
    n.head(n.conv(n.reshape(mixed, [0, 8, 6, 6]), 4, 1))
    read = mask([1, 0, 0, 0, 0, 0, 0, 1])
    removed = compile_exactly(n, Domain({n.layers[1].weight: read}))
    product = next(layer for layer in removed.layers if layer.name == name)
    assert product.macs_dense == 8 * 36 * 36
    assert product.macs_emitted == 2 * 36 * 36


def test_unused_branch_counts_as_dense_only() -> None:
    n = Network()
    x = n.conv_bn_act("x", 8)
    n.head(n.add(n.mul(x, x), n.conv(x, 8, 1)))
    branch = n.layers[1].weight
    domain = Domain({branch: mask([0] * 8)})
    figures = {layer.name: layer for layer in compile_exactly(n, domain).layers}
    assert figures[branch] == LayerFigures(branch, "Conv", 64, 0, 0, 64 * 36, 0)


def use(name: str, version: str = "") -> WeightUse:
    return WeightUse(name, version)


def pairs(*rows: str, kernel: int = 1) -> UsedPairs:
    return UsedPairs(np.array([[c == "1" for c in row] for row in rows]), kernel)


def test_union_and_intersection() -> None:
    domains = {
        "a": {use("w"): pairs("110", "000", kernel=9), use("v"): pairs("11")},
        "b": {use("w"): pairs("011", "001", kernel=9), use("v"): pairs("10")},
        "c": {use("w"): pairs("010", "001", kernel=9), use("v", "own"): pairs("11")},
    }
    # w: pairs 0, 1, 2 and 5 in some domain, pair 1 in all. v: c has its own.
    assert union_and_intersection(domains) == (4 * 9 + 2 + 2, 1 * 9)


def test_one_domain_shares_all_with_itself() -> None:
    assert union_and_intersection({"a": {use("w"): pairs("101")}}) == (2, 2)
    assert union_and_intersection({}) == (0, 0)


def test_held_filters_are_named_at_the_layer_that_makes_them() -> None:
    """Through batch norm, activation and a shuffle to the softmax that needs them."""
    n = Network()
    x = n.softmax(n.shuffle(n.conv_bn_act("x", 8, "Sigmoid"), 2))
    n.head(n.conv(x, 4, 1))
    off = mask([1, 1, 0, 0, 0, 1, 1, 1], "out")
    (held,) = compile_exactly(n, Domain({n.layers[0].weight: off})).held
    assert (held.domain, held.value, held.axis, held.channels) == ("d", n.nodes[0].output[0], 1, 3)
    assert (held.operator, held.reason) == (
        "Softmax", "every output depends on all channels along axis 1",
    )  # fmt: skip


@pytest.mark.parametrize("site", ["weight", "output"])
def test_an_output_of_the_network_holds_its_masked_channels(site: str) -> None:
    """The number of classes stays: two of the head's rows are computed as zeros."""
    n = Network()
    n.head(n.conv_bn_act("x", 8), 5)
    head = n.layers[1].weight
    removed = compile_exactly(n, Domain({head: mask([1, 0, 1, 1, 0], "out", site)}))
    figures = removed.layers[1]
    assert (figures.params_used, figures.params_emitted) == (3 * 8, 5 * 8)
    (held,) = removed.held
    assert (held.operator, held.channels, held.axis) == ("Output", 2, 1)
    assert held.node == removed.model.graph.outputs[0].name
    assert held.reason == "it reads the whole tensor"


def test_rounding_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that fill a kernel's block could go; they are no refusal."""
    n = Network()
    n.head(n.conv(n.conv_bn_act("x", 16), 16))
    read = mask([1] * 7 + [0] * 9)
    monkeypatch.setattr(product, "WORTH_ROUNDING", 0)
    removed = compile_exactly(n, Domain({n.layers[1].weight: read}))
    assert removed.layers[1].params_used == 16 * 7 * 9
    assert removed.layers[1].params_emitted > 16 * 7 * 9
    assert removed.held == ()


def test_what_is_zero_is_not_held_by_a_product_behind_it() -> None:
    """The sum's padded half needs the branch in its middle only; that holds no masked channel."""
    n = Network()
    x = n.conv_bn_act("x", 8)
    y = n.bn(n.conv(n.conv(x, 8, groups=8, bias=False), 8, 1))
    inner = n.slice(n.slice(y, 1, 5, axis=2), 1, 5, axis=3)
    part = n.pad(n.slice(inner, 0, 4), [0, 4, 0, 0, 0, 0, 0, 0])
    n.head(n.add(part, inner))
    depthwise = mask([1, 1, 0, 0, 0, 1, 0, 0])
    removed = compile_exactly(n, Domain({n.layers[1].weight: depthwise}))
    assert removed.held == ()

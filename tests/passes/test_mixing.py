"""Operators that read whole axes: what they hold, what they say, and what still goes."""

from collections.abc import Callable

import pytest
from checks import compile_exactly, emitted_params, used_params
from graphs import Network, mask

from mdprune_deploy import Domain
from mdprune_deploy.passes.remove import Removed

pytestmark = pytest.mark.usefixtures("narrowest")
OFF = mask([1, 0, 1, 0, 0, 1, 1, 1], "out")
READ = mask([1, 1, 1, 0, 0, 0, 0, 0])
Middle = Callable[[Network, str], str]


def channels_last_norm(n: Network, x: str) -> str:
    return n.transpose(n.layer_norm(n.transpose(x, [0, 2, 3, 1])), [0, 3, 1, 2])


HOLDING: dict[str, tuple[Middle, str]] = {
    "softmax": (lambda n, x: n.softmax(x), "Softmax"),
    "layer norm": (channels_last_norm, "LayerNormalization"),
    "layer norm of all axes": (lambda n, x: n.layer_norm(x, 1), "LayerNormalization"),
    "local response norm": (lambda n, x: n.lrn(x), "LRN"),
    "group norm of one group": (lambda n, x: n.group_norm(x, 1), "InstanceNormalization"),
}  # fmt: skip


def compile_with(middle: Middle, m: object, layer: int) -> tuple[Removed, Network]:
    n = Network()
    n.head(n.conv(middle(n, n.conv_bn_act("x", 8, "Sigmoid")), 4, 1))
    return compile_exactly(n, Domain({n.layers[layer].weight: m})), n


@pytest.mark.parametrize("case", HOLDING)
def test_mixing_operator_holds_constants_and_says_so(case: str) -> None:
    middle, operator = HOLDING[case]
    removed, n = compile_with(middle, OFF, 0)
    assert used_params(removed)[n.layers[0].weight] == 5 * 27
    assert emitted_params(removed)[n.layers[0].weight] == 8 * 27
    (held,) = removed.held
    assert (held.operator, held.channels, held.axis) == (operator, 3, 1)
    assert held.value == n.nodes[0].output[0]
    assert held.reason.startswith("every output depends on all channels along axis ")


@pytest.mark.parametrize("case", HOLDING)
def test_reader_behind_a_mixing_operator_still_narrows(case: str) -> None:
    removed, n = compile_with(HOLDING[case][0], READ, 1)
    assert emitted_params(removed)[n.layers[1].weight] == 4 * 3


def test_group_norm_loses_whole_groups() -> None:
    removed, n = compile_with(lambda n, x: n.group_norm(x, 4), READ, 1)
    # Channels 0 to 2 are read; their groups are (0, 1) and (2, 3).
    assert used_params(removed)[n.layers[0].weight] == 4 * 27
    assert emitted_params(removed)[n.layers[0].weight] == 4 * 27


def test_instance_norm_goes_with_its_channel() -> None:
    removed, n = compile_with(lambda n, x: n.instance_norm(x), READ, 1)
    assert emitted_params(removed)[n.layers[0].weight] == 3 * 27
    assert removed.held == ()


def test_layer_norm_over_space_keeps_channels_apart() -> None:
    removed, n = compile_with(lambda n, x: n.layer_norm(x, 2), READ, 1)
    assert emitted_params(removed)[n.layers[0].weight] == 3 * 27
    assert removed.held == ()


def test_mean_over_channels_needs_the_live_ones() -> None:
    """A spatial gate: constants meet live channels in the mean, so they are held."""

    def gate(n: Network, x: str) -> str:
        return n.mul(x, n.act(n.conv(n.mean(x, [1], keep=True), 1), "Sigmoid"))

    n = Network()
    n.head(n.conv(gate(n, n.conv_bn_act("x", 8, "Sigmoid")), 4, 1))
    removed = compile_exactly(n, Domain({n.layers[0].weight: OFF}))
    assert used_params(removed)[n.layers[0].weight] == 5 * 27
    assert sum(h.channels for h in removed.held if h.value == n.nodes[0].output[0]) >= 3


def test_squeeze_and_excite_loses_both_sides() -> None:
    n = Network()
    x = n.squeeze_excite(n.conv_bn_act("x", 8), 4)
    n.head(n.conv(x, 4, 1))
    stem, reduce, expand, last = (layer.weight for layer in n.layers[:4])
    masks = {reduce: mask([0, 0, 0, 0, 1, 1, 0, 0]), expand: mask([1, 1, 0, 0]), last: READ}
    removed = compile_exactly(n, Domain(masks))
    # Made: channels 0 to 2 for the reader, 4 and 5 for the squeeze.
    assert emitted_params(removed) == {
        stem: 5 * 27, reduce: 2 * 2, expand: 3 * 2, last: 4 * 3, n.layers[4].weight: 12,
    }  # fmt: skip
    assert removed.held == ()


def test_gram_matrix_loses_channels_that_are_zero_on_both_sides() -> None:
    """The reader takes three rows of the matrix; all columns stay since each row needs them."""
    n = Network()
    x = n.reshape(n.conv_bn_act("x", 8), [0, 8, 36])
    gram = n.matmul(x, n.transpose(x, [0, 2, 1]))
    n.head(n.conv(n.reshape(gram, [0, 8, 8, 1]), 4, 1))
    removed = compile_exactly(n, Domain({n.layers[1].weight: READ}))
    assert emitted_params(removed)[n.layers[0].weight] == 8 * 27
    product = next(layer for layer in removed.layers if layer.kind == "MatMul")
    assert (product.macs_dense, product.macs_emitted) == (8 * 8 * 36, 3 * 8 * 36)


def test_maximum_over_space_is_per_channel() -> None:
    removed, n = compile_with(lambda n, x: n.maximum(n.maximum(x, 3, True), 2, True), READ, 1)
    assert emitted_params(removed)[n.layers[0].weight] == 3 * 27


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_between_transpositions(mode: str) -> None:
    """ONNX Runtime moves transpositions through a resize, and must still read its scales right."""

    def middle(n: Network, x: str) -> str:
        return channels_last_norm(n, n.upsample(channels_last_norm(n, x), mode=mode))

    removed, n = compile_with(middle, READ, 1)
    assert emitted_params(removed)[n.layers[1].weight] == 4 * 3


@pytest.mark.parametrize("rank", [1, 3])
def test_local_response_norm_of_other_ranks_runs(rank: int) -> None:
    """ONNX Runtime has the operator for images only; it refused 1-D and 3-D at run time."""
    n = Network(shape=(3, *[4] * rank))
    y = n.conv(n.lrn(n.conv_bn_act("x", 8)), 4, 1)
    n.outputs.append(n.linear(n.mean(y), 3))
    removed = compile_exactly(n, Domain({n.layers[1].weight: READ}))
    assert used_params(removed)[n.layers[1].weight] == 4 * 3
    assert [held.operator for held in removed.held] == ["LRN"]


def test_gram_matrix_of_constants_is_constant() -> None:
    """A branch that masks cut is a constant, its Gram matrix and what reads it too."""
    n = Network()
    x = n.conv_bn_act("x", 8)
    rows = n.reshape(n.act(n.conv(x, 8, 1), "Sigmoid"), [0, 8, 36])
    gram = n.matmul(rows, n.transpose(rows, [0, 2, 1]))
    y = n.mean(n.conv(n.reshape(gram, [0, 8, 8, 1]), 4, 1), keep=True)
    n.head(n.add(y, n.conv(x, 4, 1)))
    removed = compile_exactly(n, Domain({n.layers[1].weight: mask([0] * 8)}))
    used = used_params(removed)
    assert [used[layer.weight] for layer in n.layers] == [8 * 27, 0, 0, 4 * 8, 12]
    product = next(layer for layer in removed.layers if layer.kind == "MatMul")
    assert (product.macs_dense, product.macs_emitted) == (8 * 8 * 36, 0)


def test_product_of_activations_with_zeros_on_one_side_is_zero_there() -> None:
    """Row 0 of the matrix is zero in every channel that is contracted: no column is needed."""
    n = Network()
    x = n.conv_bn_act("x", 8)
    left = n.reshape(n.conv(x, 8, 1), [0, 8, 36])
    right = n.transpose(n.reshape(n.conv(x, 4, 1), [0, 4, 36]), [0, 2, 1])
    n.head(n.conv(n.reshape(n.matmul(left, right), [0, 8, 4, 1]), 4, 1))
    on = mask([1, 0, 0, 1, 1, 0, 0, 0], "out", "output")
    removed = compile_exactly(n, Domain({n.layers[1].weight: on}))
    used = used_params(removed)
    assert [used[layer.weight] for layer in n.layers] == [8 * 27, 3 * 8, 32, 4 * 3, 12]

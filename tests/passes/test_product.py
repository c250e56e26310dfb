"""Convolutions and matrix products: what is removed of each, counted by hand, exact everywhere."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from checks import compile_exactly, emitted_params, used_params
from graphs import Network, Run, mask, masks_of
from onnx import helper

from mdprune_deploy import Domain
from mdprune_deploy.evaluate import constant_array
from mdprune_deploy.passes.operators import groups
from mdprune_deploy.passes.remove import Removed

pytestmark = pytest.mark.usefixtures("narrowest")


def counts(removed: Removed) -> list[tuple[int, int]]:
    """(used, emitted) weight elements per weight, in the graph's order."""
    used, emitted = used_params(removed), emitted_params(removed)
    return [(used[name], emitted[name]) for name in dict.fromkeys(x.name for x in removed.layers)
            if name in used]  # fmt: skip


def stem(network: Network, filters: int = 8) -> str:
    return network.conv_bn_act("x", filters)


def compile_with(network: Network, *masks: tuple[int, object]) -> Removed:
    """Compiles a domain with masks on layers by their index."""
    chosen: dict[str, list] = {}
    for index, m in masks:
        chosen.setdefault(network.layers[index].weight, []).append(m)
    return compile_exactly(network, Domain(chosen))


def test_input_mask_removes_the_filters_before() -> None:
    n = Network()
    n.head(n.conv_bn_act(stem(n), 4))
    removed = compile_with(n, (1, mask([1, 1, 1, 0, 0, 0, 0, 0])))
    assert counts(removed) == [(3 * 3 * 9, 3 * 3 * 9), (4 * 3 * 9, 4 * 3 * 9), (12, 12)]
    assert removed.held == ()


def test_two_readers_keep_different_channels() -> None:
    n = Network()
    x = stem(n)
    n.head(n.add(n.conv(x, 4), n.conv(x, 4, 1)))
    removed = compile_with(
        n, (1, mask([1, 1, 1, 0, 0, 0, 0, 0])), (2, mask([0, 0, 1, 1, 0, 0, 0, 0]))
    )
    # Channels 0 to 3 are made; the readers take three and two of them.
    assert counts(removed) == [(4 * 27,) * 2, (4 * 3 * 9,) * 2, (4 * 2,) * 2, (12, 12)]


def test_output_tap_needs_all_channels_of_one_reader() -> None:
    n = Network()
    x = stem(n)
    n.head(x)
    n.head(n.conv(x, 4))
    removed = compile_with(n, (2, mask([1, 0, 0, 0, 0, 0, 0, 0])))
    assert counts(removed) == [(8 * 27,) * 2, (3 * 8,) * 2, (4 * 1 * 9,) * 2, (12, 12)]


def test_filters_before_a_live_batch_norm_become_constants() -> None:
    """Through zero padding a constant is a pattern: one channel of five carries all of them."""
    n = Network()
    n.head(n.conv(n.act(n.bn(n.conv("x", 8)), "Sigmoid"), 4))
    removed = compile_with(n, (0, mask([1, 0, 1, 0, 0, 1, 0, 0], "out")))
    assert counts(removed)[:2] == [(3 * 27, 4 * 27), (4 * 3 * 9, 4 * 4 * 9)]
    (held,) = removed.held
    assert (held.channels, held.operator) == (1, "Conv")
    assert held.reason == "a constant channel makes a pattern at its zero-padded border"


def test_constants_fold_into_the_bias_where_nothing_is_padded() -> None:
    n = Network()
    n.head(n.conv(n.act(n.bn(n.conv("x", 8)), "Sigmoid"), 4, pad=0))
    removed = compile_with(n, (0, mask([1, 0, 1, 0, 0, 1, 0, 0], "out")))
    assert counts(removed)[:2] == [(3 * 27, 3 * 27), (4 * 3 * 9, 4 * 3 * 9)]
    assert removed.held == ()


def test_masked_output_is_zero_and_needs_no_channel() -> None:
    n = Network()
    n.head(n.conv(n.conv("x", 8), 4))
    removed = compile_with(n, (0, mask([1, 0, 1, 0, 0, 1, 0, 0], "out", "output")))
    assert counts(removed)[:2] == [(3 * 27, 3 * 27), (4 * 3 * 9, 4 * 3 * 9)]
    assert removed.held == ()


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2}, {"dilation": 2}, {"kernel": 5}, {"kernel": 2, "stride": 2, "pad": 1},
        {"kernel": 3, "stride": 3, "pad": 2},
    ],
    ids=str,
)  # fmt: skip
def test_border_pattern_is_exact(options: dict[str, int]) -> None:
    n = Network(shape=(3, 7, 7))
    n.head(n.conv_bn_act(n.conv_bn_act("x", 8, "Sigmoid"), 4, **options))
    removed = compile_with(n, (0, mask([1, 0, 1, 0, 0, 1, 0, 0], "out")))
    assert counts(removed)[1][1] == 4 * 4 * options.get("kernel", 3) ** 2


def test_transposed_convolution_keeps_one_constant_channel() -> None:
    n = Network()
    n.head(n.conv_transpose(n.conv_bn_act("x", 8, "Sigmoid"), 4))
    removed = compile_with(n, (0, mask([1, 0, 1, 0, 0, 1, 0, 0], "out")))
    assert counts(removed)[:2] == [(3 * 27, 4 * 27), (4 * 3 * 9, 4 * 4 * 9)]


def test_transposed_convolution_loses_filters_and_channels() -> None:
    n = Network()
    n.head(n.conv(n.conv_transpose(stem(n), 8), 4, 1))
    removed = compile_with(
        n, (1, mask([1, 1, 0, 0, 0, 0, 0, 0])), (2, mask([0, 0, 0, 0, 0, 1, 1, 1]))
    )
    assert counts(removed) == [(2 * 27,) * 2, (3 * 2 * 9,) * 2, (4 * 3,) * 2, (12, 12)]


def test_grouped_transposed_convolution_loses_a_group() -> None:
    n = Network()
    n.head(n.conv(n.conv_transpose(stem(n), 8, groups=2), 4, 1))
    removed = compile_with(n, (2, mask([0, 0, 0, 0, 0, 1, 1, 1])))
    # Filters 5 to 7 belong to the second group, which reads channels 4 to 7.
    assert counts(removed) == [(4 * 27,) * 2, (3 * 4 * 9,) * 2, (4 * 3,) * 2, (12, 12)]


def test_depthwise_follows_its_reader() -> None:
    n = Network()
    x = n.conv_bn_act(stem(n), 8, groups=8)
    n.head(n.conv(x, 4, 1))
    removed = compile_with(n, (2, mask([0, 1, 0, 0, 1, 0, 0, 1])))
    assert counts(removed) == [(3 * 27,) * 2, (3 * 9,) * 2, (4 * 3,) * 2, (12, 12)]


def test_depthwise_with_multiplier_two_keeps_equally_wide_groups() -> None:
    n = Network()
    x = n.conv_bn_act(stem(n), 16, groups=8)
    n.head(n.conv(x, 4, 1))
    removed = compile_with(n, (2, mask([1, 1, 0, 1, *[0] * 12])))
    # Filters 0, 1 of channel 0 and filter 3 of channel 1 are used; both channels keep two.
    assert counts(removed)[:2] == [(2 * 27,) * 2, (3 * 9, 4 * 9)]
    assert [(h.operator, h.channels) for h in removed.held] == [("Conv", 1)]
    assert removed.held[0].reason == "its groups must stay equally wide"


def test_depthwise_with_multiplier_two_loses_whole_channels() -> None:
    n = Network()
    n.head(n.conv(n.conv_bn_act(stem(n), 16, groups=8), 4, 1))
    removed = compile_with(n, (2, mask([1, 0, 0, 1, *[0] * 12])))
    assert counts(removed)[:2] == [(2 * 27,) * 2, (2 * 9,) * 2]
    assert removed.held == ()


def test_grouped_mask_indexes_the_channels_of_the_layer() -> None:
    n = Network()
    n.head(n.conv(stem(n), 4, groups=2))
    removed = compile_with(n, (1, mask([1, 0, 1, 0, 0, 1, 0, 1])))
    assert counts(removed) == [(4 * 27,) * 2, (4 * 2 * 9,) * 2, (12, 12)]
    assert removed.held == ()


def shapes(removed: Removed, op_type: str = "Conv") -> list[tuple[int, ...]]:
    """The stored shapes of the emitted weights of one operator, in the graph's order."""
    return [
        constant_array(node.inputs[1]).shape  # type: ignore[arg-type]
        for node in removed.model.graph if node.op_type == op_type
    ]  # fmt: skip


def test_unbalanced_input_channels_of_groups_are_removed() -> None:
    """The first group keeps three of four channels, the second one: nothing is padded."""
    n = Network()
    n.head(n.conv(stem(n), 4, groups=2))
    removed = compile_with(n, (1, mask([1, 1, 1, 0, 0, 1, 0, 0])))
    assert counts(removed)[:2] == [(4 * 27,) * 2, ((2 * 3 + 2 * 1) * 9,) * 2]
    assert shapes(removed) == [(4, 3, 3, 3), (2, 3, 3, 3), (2, 1, 3, 3)]
    assert removed.held == ()
    macs = next(x for x in removed.layers if x.name == n.layers[1].weight).macs_emitted
    assert macs == (2 * 3 + 2 * 1) * 9 * 36


def test_unbalanced_filters_of_groups_are_removed() -> None:
    """Of the four groups the reader keeps 3, 1, 3 and 1 filters: two convolutions of two groups.

    Their batch norm, which comes after both, is folded into each.
    """
    n = Network()
    y = n.conv_bn_act(n.conv_bn_act("x", 8), 16, groups=4)
    n.head(n.conv(y, 4, 1))
    on = [1, 1, 1, 0, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 0, 1]
    removed = compile_with(n, (2, mask(on)))
    # All groups stay, so all eight filters of the stem do; each filter reads two of them.
    assert counts(removed)[:3] == [(8 * 27,) * 2, (8 * 2 * 9,) * 2, (4 * 8,) * 2]
    assert shapes(removed) == [(8, 3, 3, 3), (6, 2, 3, 3), (2, 2, 3, 3), (4, 8, 1, 1)]
    assert removed.held == ()
    assert all(node.op_type != "BatchNormalization" for node in removed.model.graph)


def test_unbalanced_both_sides_and_a_group_of_constants() -> None:
    """Group 0 keeps 2 channels and 2 filters, 1 keeps 1 and 1; group 2 reads nothing: constants."""
    n = Network(shape=(3, 5, 5))
    x = n.conv_bn_act("x", 12)
    y = n.conv_bn_act(x, 12, "Sigmoid", groups=3)
    n.head(n.conv(y, 4, 1))
    removed = compile_with(
        n,
        (1, mask([1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])),
        (2, mask([1, 0, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0])),
    )
    assert counts(removed)[:3] == [(3 * 27,) * 2, ((2 * 2 + 1) * 9,) * 2, (4 * 3,) * 2]
    assert removed.held == ()


def test_unbalanced_groups_of_a_transposed_convolution_are_removed() -> None:
    n = Network()
    n.head(n.conv(n.conv_transpose(stem(n), 8, groups=2), 4, 1))
    removed = compile_with(
        n, (1, mask([1, 0, 0, 0, 1, 1, 1, 0])), (2, mask([1, 0, 0, 0, 1, 0, 0, 1]))
    )
    # The first group makes one filter of one channel, the second two of three.
    assert counts(removed)[:3] == [(4 * 27,) * 2, ((1 * 1 + 2 * 3) * 9,) * 2, (4 * 3,) * 2]
    assert shapes(removed, "ConvTranspose") == [(1, 1, 3, 3), (3, 2, 3, 3)]
    assert removed.held == ()


def test_padding_of_small_groups_keeps_no_other_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """One convolution takes less time than two: widths 3 and 1 are padded, their neighbours not."""
    monkeypatch.setattr(groups, "RUN", 10**9)
    n = Network()
    y = n.conv_bn_act(stem(n), 8, groups=2)
    n.head(n.conv(y, 4, 1))
    removed = compile_with(
        n, (1, mask([1, 1, 1, 0, 0, 1, 0, 0])), (2, mask([1, 0, 0, 0, 1, 0, 1, 1]))
    )
    # Filters: 1 of group 0 and 3 of group 1, each group padded to 3 filters of 3 channels.
    assert counts(removed)[:3] == [(4 * 27,) * 2, ((3 + 3) * 9, 2 * 9 * 9), (4 * 4,) * 2]
    assert shapes(removed) == [(4, 3, 3, 3), (6, 3, 3, 3), (4, 4, 1, 1)]
    assert removed.held == ()
    assert all(node.op_type != "BatchNormalization" for node in removed.model.graph)


def test_constants_of_unbalanced_groups_cross_a_border() -> None:
    """One constant channel of each group that has any carries the others of its group."""
    n = Network()
    x = n.act(n.bn(n.conv("x", 8)), "Sigmoid")
    n.head(n.conv(x, 4, groups=2))
    removed = compile_with(n, (0, mask([1, 0, 0, 0, 1, 1, 1, 1], "out")))
    # Group 0: one live channel and one constant of three; group 1: four live ones.
    assert counts(removed)[:2] == [(5 * 27, 6 * 27), ((2 * 1 + 2 * 4) * 9, (2 * 2 + 2 * 4) * 9)]


@pytest.mark.parametrize("kernel", [1, 3])
def test_product_after_a_norm_over_channels_selects_its_own(kernel: int) -> None:
    """Softmax keeps all channels; its grouped and plain readers still read only theirs."""
    for count in (1, 8):
        n = Network()
        n.head(n.conv(n.softmax(stem(n)), 8, kernel, groups=count))
        removed = compile_with(n, (1, mask([0, 1, 1, 1, 0, 0, 0, 0])))
        used = 3 * kernel**2 * (8 if count == 1 else 1)
        assert counts(removed)[:2] == [(8 * 27,) * 2, (used, used)]


def test_weight_that_is_read_twice_counts_once() -> None:
    n = Network()
    first = n.act(n.conv(stem(n), 8))
    n.head(n.conv(first, 8, shared=n.layers[-1].weight))
    removed = compile_with(n, (1, mask([1, 1, 0, 0, 0, 0, 0, 0])))
    # Both reads use channels 0 and 1; the first makes only those two filters.
    assert used_params(removed)[n.layers[1].weight] == 8 * 2 * 9
    assert counts(removed)[0] == (2 * 27,) * 2


def test_filter_that_reads_nothing_live_is_not_computed() -> None:
    """A killed branch is a constant, also behind padded convolutions with a bias."""
    n = Network()
    x = stem(n)
    y = n.conv(n.conv_bn_act(n.conv_bn_act(x, 8), 8), 8)
    n.head(n.add(x, y))
    removed = compile_with(n, (1, mask([0] * 8)))
    assert counts(removed) == [(8 * 27,) * 2, (0, 0), (0, 0), (0, 0), (24, 24)]


def test_flatten_and_linear() -> None:
    n = Network(shape=(3, 2, 2))
    n.outputs.append(n.linear(n.flatten(stem(n)), 3))
    columns = np.zeros((8, 4), dtype=bool)
    columns[2] = columns[5] = True
    columns[6, 3] = True  # one position of channel 6: its filter is made, one column is read
    removed = compile_with(n, (1, mask(columns.reshape(-1))))
    assert counts(removed) == [(3 * 27,) * 2, (3 * 9,) * 2]


def product(
    n: Network,
    op: str,
    stored: np.ndarray,
    function: Callable[..., torch.Tensor],
    bias: np.ndarray | None = None,
    first: bool = False,
    **attributes: object,
) -> tuple[str, str]:
    """A stem whose pooled channels go into one `Gemm` or `MatMul`; returns weight and output."""
    x = n.mean(stem(n), keep=False)
    weight = n.parameter("product.weight", stored)
    if attributes.pop("turned", False):
        x = n.transpose(x, [1, 0])
    inputs = [weight, x] if first else [x, weight]
    if bias is not None:
        inputs.append(n.constant(bias, "float32"))
    name = n.fresh("product")
    n.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))

    def masked(run: Run, x: torch.Tensor) -> torch.Tensor:
        masks = masks_of(run.domain, weight)
        on = masks[0].on.double() if masks else torch.ones(8, dtype=torch.float64)
        return function(x, n.value(run, weight), on)

    n.add_step(masked, [x], name)
    n.outputs.append(name)
    return weight, name


UNUSUAL = {
    "transposed data": lambda n: product(
        n, "Gemm", n.rng.standard_normal((8, 5)), lambda x, w, on: 0.5 * x.T @ (w.T * on).T,
        turned=True, transA=1, alpha=0.5,
    ),
    "weight first": lambda n: product(
        n, "Gemm", n.rng.standard_normal((8, 5)), lambda x, w, on: (w.T * on) @ x.T + 2 * SHIFT,
        SHIFT.numpy(), first=True, transA=1, transB=1, beta=2.0,
    ),
}  # fmt: skip
SHIFT = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("case", UNUSUAL)
def test_matrix_products_in_unusual_forms(case: str) -> None:
    n = Network()
    weight, _ = UNUSUAL[case](n)
    checkpoint = n.checkpoint(d=Domain({weight: mask([1, 1, 1, 0, 0, 0, 0, 0])}))
    checkpoint.sites[weight] = weight
    removed = compile_exactly(n, checkpoint.domains["d"], checkpoint=checkpoint)
    assert counts(removed) == [(3 * 27,) * 2, (5 * 3,) * 2]
    assert removed.held == ()
    check_shared(removed)


def check_shared(removed: Removed) -> None:
    """The product takes its three columns from the weight that all domains share."""
    *_, stored = (n.meta["stored"] for n in removed.model.graph if "stored" in n.meta)
    assert stored.weight.shape == (5, 8) and stored.channels.tolist() == [0, 1, 2]
    assert stored.shared.all() and stored.used.all()


@pytest.mark.parametrize("stack", [1, 2])
def test_a_stack_of_weights(stack: int) -> None:
    """One matrix is a matrix; of several the masked channels stay, and that is said."""
    n = Network()
    x = n.reshape(stem(n), [0, 1, 8, 36])
    weight = n.parameter("stack.weight", n.rng.standard_normal((stack, 5, 8)))
    on = mask([1, 1, 1, 0, 0, 0, 0, 0])
    name = n.fresh("stacked")
    n.nodes.append(helper.make_node("MatMul", [weight, x], [name], name=name))
    n.add_step(lambda run, x: (n.value(run, weight) * on.on) @ x, [x], name)
    n.outputs.append(name)
    checkpoint = n.checkpoint(d=Domain({weight: on}))
    checkpoint.sites[weight] = weight
    removed = compile_exactly(n, checkpoint.domains["d"], checkpoint=checkpoint)
    if stack == 1:
        assert counts(removed) == [(3 * 27,) * 2, (5 * 3,) * 2]
        assert removed.held == ()
        check_shared(removed)
        return
    assert emitted_params(removed)[n.layers[0].weight] == 8 * 27
    (held,) = removed.held
    assert (held.operator, held.axis, held.channels) == ("MatMul", 2, 5)
    assert held.reason == "it reads the whole tensor"


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank: int) -> None:
    n = Network(shape=(3, *[5] * rank))
    y = n.conv(n.act(n.conv("x", 8)), 4)
    n.outputs.append(n.linear(n.mean(y, range(2, 2 + rank)), 3))
    removed = compile_with(n, (1, mask([1, 0, 0, 1, 0, 0, 0, 0])))
    assert counts(removed)[:2] == [(2 * 3 * 3**rank,) * 2, (4 * 2 * 3**rank,) * 2]

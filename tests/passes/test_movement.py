"""Operators that move elements: the removal of each, counted by hand."""

from collections.abc import Callable

import pytest
from checks import compile_exactly, emitted_params, used_params
from graphs import Network, mask

from mdprune_deploy import Domain
from mdprune_deploy.passes.remove import Removed

pytestmark = pytest.mark.usefixtures("narrowest")


def read_by(build: Callable[[Network, str], str], on: str, size: int = 6) -> tuple[Removed, int]:
    """Compiles stem, `build`, masked 1x1 convolution; returns the emitted filters of the stem."""
    n = Network(shape=(3, size, size))
    x = build(n, n.conv_bn_act("x", 8))
    assert n.channels(x) == len(on)
    n.head(n.conv(x, 4, 1))
    weight = n.layers[-2].weight
    removed = compile_exactly(n, Domain({weight: mask([int(c) for c in on])}))
    assert used_params(removed)[weight] == emitted_params(removed)[weight] == 4 * on.count("1")
    return removed, emitted_params(removed)[n.layers[0].weight] // 27


CASES: dict[str, tuple[Callable[[Network, str], str], str, int]] = {
    "split": (lambda n, x: n.concat(n.split(x, [3, 1, 4])[::-1]), "10001101", 4),
    "concat with itself": (lambda n, x: n.concat([x, x]), "1000000010000000", 1),
    "concat of two": (lambda n, x: n.concat([x, n.conv(x, 4, 1)]), "110000000000", 2),
    "overlapping slices": (
        lambda n, x: n.concat([n.slice(x, 0, 5), n.slice(x, 3, 8)]), "0001001000", 2,
    ),
    "strided slice": (lambda n, x: n.slice(x, 1, 8, 3), "101", 2),
    "reversed slice": (lambda n, x: n.slice(x, -1, -9, -1), "11000000", 2),
    "gather": (lambda n, x: n.gather(x, [7, 7, 0, 3]), "1101", 2),
    "tile": (lambda n, x: n.tile(x, 2), "1000000011000000", 2),
    "transpose there and back": (
        lambda n, x: n.transpose(n.transpose(x, [0, 2, 3, 1]), [0, 3, 1, 2]), "01100000", 2,
    ),
    "reshape of space": (
        lambda n, x: n.reshape(n.reshape(x, [0, 8, -1]), [0, 8, 6, 6]), "01100000", 2,
    ),
    "stack": (
        lambda n, x: n.reshape(n.concat([n.reshape(p, [0, 4, 1, 6, 6]) for p in n.split(x, [4, 4])],
                                        2), [0, 8, 6, 6]), "10000001", 2,
    ),
    "shuffle": (lambda n, x: n.shuffle(x, 2), "11110000", 4),
    "unaligned shuffle": (lambda n, x: n.shuffle(x, 2), "10010010", 3),
    "shuffle in four": (lambda n, x: n.shuffle(x, 4), "01000010", 2),
    "two shuffles": (lambda n, x: n.shuffle(n.shuffle(x, 2), 4), "10000001", 2),
    "depth to space": (lambda n, x: n.depth_to_space(x), "01", 4),
    "space to depth": (lambda n, x: n.space_to_depth(x), "1" + "0" * 31, 1),
    "space to depth, two phases of one channel": (
        lambda n, x: n.space_to_depth(x), "10000000" * 2 + "0" * 16, 1,
    ),
    "padded channels": (lambda n, x: n.pad(x, [0, 2, 0, 0, 0, 2, 0, 0]), "001100000000", 2),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_reader_keeps_only_its_channels(case: str) -> None:
    build, on, filters = CASES[case]
    removed, found = read_by(build, on)
    assert found == filters
    assert removed.held == ()


def test_concatenated_zeros_cost_nothing() -> None:
    """The zeros' shape is computed from the batch at run time; no channel is kept for it."""
    n = Network()
    x = n.conv_bn_act("x", 8)
    n.head(n.conv(n.concat([x, n.zeros_like(x, 4)]), 4, 1))
    weight = n.layers[1].weight
    on = mask([1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    removed = compile_exactly(n, Domain({weight: on}))
    assert emitted_params(removed)[n.layers[0].weight] == 27
    assert emitted_params(removed)[weight] == 4
    assert removed.held == ()


@pytest.mark.parametrize("zeros", ["padded", "concatenated"])
def test_zero_extended_shortcut(zeros: str) -> None:
    """Half of the sum's channels have a shortcut; only those that are read are made."""
    n = Network()
    x = n.conv_bn_act("x", 4)
    y = n.bn(n.conv(x, 8, bias=False))
    wide = (
        n.pad(x, [0, 2, 0, 0, 0, 2, 0, 0]) if zeros == "padded"
        else n.concat([x, n.zeros_like(x, 4)])
    )  # fmt: skip
    n.head(n.conv(n.act(n.add(y, wide)), 4, 1))
    on = mask([1, 0, 1, 0, 0, 0, 0, 1])
    removed = compile_exactly(n, Domain({n.layers[2].weight: on}))
    assert emitted_params(removed)[n.layers[1].weight] == 3 * 4 * 9
    assert emitted_params(removed)[n.layers[2].weight] == 4 * 3
    assert removed.held == ()


@pytest.mark.parametrize("post", [True, False])
def test_identity_chain_narrows(post: bool) -> None:
    """Three residual blocks and a reader of two channels: every sum makes what is read after it."""
    n = Network()
    x = n.conv_bn_act("x", 8)
    for _ in range(3):
        y = n.act(n.bn(x)) if not post else x
        y = n.bn(n.conv(y, 8, bias=False))
        x = n.act(n.add(x, y)) if post else n.add(x, y)
    n.head(n.conv(x, 4, 1))
    first, last = mask([1, 1, 1, 1, 0, 0, 0, 0]), mask([0, 1, 0, 0, 0, 0, 0, 1])
    masks = {n.layers[i].weight: first for i in (1, 2, 3)}
    removed = compile_exactly(n, Domain({**masks, n.layers[4].weight: last}))
    emitted = [emitted_params(removed)[layer.weight] for layer in n.layers]
    # The last sum makes channels 1 and 7; those before it 0 to 3 and 7.
    assert emitted == [5 * 27, 5 * 4 * 9, 5 * 4 * 9, 2 * 4 * 9, 4 * 2, 12]
    assert removed.held == ()


def test_maxout_loses_whole_units_and_holds_the_rest() -> None:
    n = Network()
    x = n.reshape(n.conv_bn_act("x", 8, "Sigmoid"), [0, 4, 2, 6, 6])
    n.head(n.conv(n.maximum(x, 2), 4, 1))
    masks = {n.layers[1].weight: mask([1, 0, 1, 0])}
    removed = compile_exactly(n, Domain(masks))
    assert emitted_params(removed)[n.layers[0].weight] == 4 * 27
    assert removed.held == ()


def test_maxout_of_a_constant_holds_it() -> None:
    n = Network()
    x = n.reshape(n.conv_bn_act("x", 8, "Sigmoid"), [0, 4, 2, 6, 6])
    n.head(n.conv(n.maximum(x, 2), 4, 1))
    masks = {n.layers[0].weight: mask([1, 0, 1, 1, 1, 1, 0, 0], "out")}
    removed = compile_exactly(n, Domain(masks))
    assert used_params(removed)[n.layers[0].weight] == 5 * 27
    # Channel 1 meets channel 0, so it stays; 6 and 7 are a constant unit.
    assert [(h.value, h.channels) for h in removed.held] == [(n.nodes[0].output[0], 1)]


def test_groups_of_a_depth_to_space_stay_whole() -> None:
    n = Network()
    x = n.depth_to_space(n.conv_bn_act("x", 8, "Sigmoid"))
    n.head(n.conv(x, 4, 1))
    masks = {n.layers[0].weight: mask([1, 0, 1, 1, 0, 0, 0, 0], "out")}
    removed = compile_exactly(n, Domain(masks))
    # Channels 4 to 7 make a constant image with a pattern; channel 1 fills one position of four.
    assert used_params(removed)[n.layers[0].weight] == 3 * 27
    assert removed.held

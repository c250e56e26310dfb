"""Constants that are not zero, through everything that lies between two convolutions.

A filter of the stem is masked behind a live batch norm, so it carries a constant. What follows
must be exact at every position, and the constant must cost nothing where it can.
"""

from collections.abc import Callable

import pytest
from checks import compile_exactly, emitted_params, used_params
from graphs import Network, mask

from mdprune_deploy import Domain

pytestmark = pytest.mark.usefixtures("narrowest")
OFF = mask([1, 0, 1, 0, 0, 1, 1, 0], "out")  # four filters stay
ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "Elu", "Softplus", "SiLU", "OneMinus")


def masked(build: Callable[[Network, str], str], act: str = "Sigmoid") -> tuple[int, int, int, int]:
    """(used, emitted) of the stem and of the reader in stem, conv-bn-act, `build`."""
    n = Network()
    n.head(build(n, n.conv_bn_act("x", 8, act)))
    first, second = n.layers[0].weight, n.layers[1].weight
    removed = compile_exactly(n, Domain({first: OFF}))
    used, emitted = used_params(removed), emitted_params(removed)
    return used[first], emitted[first], used[second], emitted[second]


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activation_then_unpadded_convolution(act: str) -> None:
    """The constants become a bias; nothing of the four filters is left."""
    counts = masked(lambda n, x: n.conv(x, 4, pad=0), act)
    assert counts == (4 * 27, 4 * 27, 4 * 4 * 9, 4 * 4 * 9)


@pytest.mark.parametrize("act", ["Sigmoid", "SiLU", "OneMinus"])
def test_activation_then_padded_convolution(act: str) -> None:
    """One of the four constant channels carries the pattern at the border."""
    counts = masked(lambda n, x: n.conv(x, 4), act)
    assert counts == (4 * 27, 5 * 27, 4 * 4 * 9, 4 * 5 * 9)


UNIFORM = {
    "max pool": lambda n, x: n.max_pool(x, 3, 2, 1),
    "average pool without the padding": lambda n, x: n.avg_pool(x, 3, 2, 1, include_pad=False),
    "average pool": lambda n, x: n.avg_pool(x),
    "reflected border": lambda n, x: n.pad(x, [0, 0, 1, 1, 0, 0, 1, 1], "reflect"),
    "repeated border": lambda n, x: n.pad(x, [0, 0, 1, 1, 0, 0, 1, 1], "edge"),
    "nearest upsampling": lambda n, x: n.upsample(x),
    "linear upsampling": lambda n, x: n.upsample(x, mode="linear"),
    "instance norm": lambda n, x: n.instance_norm(x),
    "batch norm": lambda n, x: n.bn(x),
    "reversed channels": lambda n, x: n.slice(x, -1, -9, -1),
    "shuffle": lambda n, x: n.shuffle(x, 2),
}


@pytest.mark.parametrize("between", UNIFORM)
def test_constant_stays_a_constant(between: str) -> None:
    counts = masked(lambda n, x: n.conv(UNIFORM[between](n, x), 4, 1))
    assert counts == (4 * 27, 4 * 27, 4 * 4, 4 * 4)


PATTERNED = {
    "average pool over the padding": lambda n, x: n.avg_pool(x, 3, 2, 1, include_pad=True),
    "zero padding": lambda n, x: n.pad(x, [0, 0, 1, 1, 0, 0, 1, 1]),
}


@pytest.mark.parametrize("between", PATTERNED)
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}], ids=str)
def test_pattern_of_constants_is_exact(between: str, options: dict[str, int]) -> None:
    used, emitted, reader_used, _ = masked(
        lambda n, x: n.conv(PATTERNED[between](n, x), 4, **options)
    )
    assert used == 4 * 27 <= emitted
    assert reader_used == 4 * 4 * 9


@pytest.mark.xfail(strict=True, reason="proportional patterns are not merged into one channel yet")
@pytest.mark.parametrize("between", PATTERNED)
def test_one_channel_carries_all_patterns(between: str) -> None:
    """The patterns of constants are multiples of one another."""
    counts = masked(lambda n, x: n.conv(PATTERNED[between](n, x), 4, 1))
    assert counts == (4 * 27, 5 * 27, 4 * 4, 4 * 5)


def test_constants_of_a_masked_output_are_zero_behind_the_mask_only() -> None:
    """`site="output"` zeroes the convolution, not the batch norm behind it."""
    n = Network()
    n.head(n.conv(n.conv_bn_act("x", 8, "Sigmoid"), 4, pad=0))
    off = mask([1, 0, 1, 0, 0, 1, 1, 0], "out", "output")
    removed = compile_exactly(n, Domain({n.layers[0].weight: off}))
    assert emitted_params(removed)[n.layers[1].weight] == 4 * 4 * 9


def test_constant_meets_a_live_channel_in_a_sum() -> None:
    n = Network()
    x = n.conv_bn_act("x", 8, "Sigmoid")
    y = n.bn(n.conv(x, 8))
    n.head(n.act(n.add(x, y), "Sigmoid"))
    dead = mask([1, 1, 1, 1, 1, 1, 1, 0], "out")
    compile_exactly(n, Domain({n.layers[1].weight: dead}))


def test_constant_branch_meets_a_gate() -> None:
    """A wholly constant operand keeps its space although the live one has none."""
    n = Network()
    x = n.conv_bn_act("x", 8, "Sigmoid")
    gate = n.act(n.conv(n.mean(x, keep=True), 8, 1), "Sigmoid")
    branch = n.bn(n.conv(x, 8))
    n.head(n.conv(n.mul(branch, gate), 4))
    weight = n.layers[2].weight
    removed = compile_exactly(n, Domain({weight: mask([0] * 8, "out")}))
    assert emitted_params(removed)[weight] == 0


def test_mask_of_all_filters_leaves_the_rest_of_a_sum() -> None:
    n = Network()
    x = n.conv_bn_act("x", 8)
    n.head(n.add(x, n.bn(n.conv(x, 8))))
    weight = n.layers[1].weight
    removed = compile_exactly(n, Domain({weight: mask([0] * 8, "out", "output")}))
    assert emitted_params(removed)[weight] == 0


def test_zero_gate_kills_what_it_multiplies() -> None:
    n = Network()
    x = n.conv_bn_act("x", 8)
    gate = n.conv(n.mean(x, keep=True), 8, 1)
    n.head(n.mul(n.conv(x, 8), gate))
    off = mask([1, 1, 0, 0, 0, 0, 0, 0], "out", "output")
    removed = compile_exactly(n, Domain({n.layers[1].weight: off}))
    assert used_params(removed)[n.layers[2].weight] == 2 * 8 * 9

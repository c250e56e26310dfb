"""The order of channels: whole blocks for readers, one order for values that meet, exact always."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from narrowing import Net, count, emitted_shape, exact, keeping, kept, placed, some

from mdprune_deploy.errors import CheckpointError
from mdprune_deploy.evaluate import constant_array
from mdprune_deploy.passes import place as placing
from mdprune_deploy.passes.operators import product
from mdprune_deploy.passes.operators.product import BLOCK
from mdprune_deploy.passes.order import _touched, gray_order
from mdprune_deploy.passes.remove import analyzed

ODD = range(1, 32, 2)


@st.composite
def selections(draw):
    """Sorted channels, a whole number of blocks of them, and what readers select of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = BLOCK * draw(st.integers(1, 6))
    channels = some(rng, 2 * size, size)
    readers = draw(st.lists(st.integers(1, size), min_size=1, max_size=7))
    return channels, [np.sort(rng.choice(channels, n, replace=False)) for n in readers]


def runs(flags):
    return int(flags[0]) + int((np.diff(flags.astype(int)) == 1).sum())


@settings(max_examples=200, deadline=None)
@given(selections())
def test_the_order_keeps_every_channel_and_the_first_readers_together(problem):
    channels, readers = problem
    ordered = gray_order(channels, readers)
    assert np.array_equal(np.sort(ordered), channels)
    for number, selected in enumerate(readers):
        # Reader k meets at most 2**k parts, cuts each in two, and neighbouring halves agree.
        assert runs(np.isin(ordered, selected)) <= 2**number // 2 + 1


@settings(max_examples=200, deadline=None)
@given(selections())
def test_touched_blocks_are_whole_and_hold_the_selection(problem):
    channels, readers = problem
    ordered = gray_order(channels, readers)
    blocks = ordered.reshape(-1, BLOCK)
    for selected in readers:
        touched = _touched(ordered, selected)
        rows = touched.reshape(-1, BLOCK)
        assert np.isin(selected, touched).all()
        assert all(np.isin(row, selected).any() for row in rows)
        where = [np.flatnonzero((blocks == row).all(axis=1)) for row in rows]
        assert np.array_equal(np.concatenate(where), np.sort(np.concatenate(where)))
    first = _touched(ordered, readers[0])
    assert len(first) - len(readers[0]) < BLOCK, "the first reader touches no block in vain"


@pytest.fixture(autouse=True)
def _small_layers_count(monkeypatch):
    """Lets rounding and whole blocks happen in networks of a few thousand MACs."""
    monkeypatch.setattr(placing, "WORTH_ROUNDING", 0)
    monkeypatch.setattr(product, "WORTH_ROUNDING", 0)


class Stream:
    """A stem of 32 channels; a 1x1 reader of the odd ones asks for an order, the head reads all."""

    def __init__(self, width=32, size=4):
        self.net = Net((1, 3, size, size))
        self.width = width
        self.x = self.net.relu("relu", self.net.conv("stem", self.net.input, width))
        self.masks = {}
        self.outputs = []

    def read(self, x, on=ODD, name="reader", filters=4, kernel=1):
        size = self.net.channels[x]
        y = self.net.conv(name, x, filters, kernel=kernel)
        self.masks[f"{name}.weight"] = keeping(size, on)
        self.outputs.append(self.net.head(f"{name}_head", y))

    def checkpoint(self, x=None, *more):
        """Adds a head on all channels of `x`."""
        x = self.x if x is None else x
        return self.net.checkpoint([self.net.head("head", x), *self.outputs, *more], self.masks)


def order_of(checkpoint, *names):
    """Checks exactness; returns the one channel order of these nodes' outputs."""
    exact(checkpoint)
    graph, facts = placed(checkpoint, ordered=True)
    orders = [kept(graph, facts, name).tolist() for name in names]
    assert all(order == orders[0] for order in orders)
    return orders[0]


ODD_FIRST = [*range(1, 32, 2), *range(0, 32, 2)]
NATURAL = list(range(32))


def test_what_a_reader_selects_comes_first_and_is_one_slice():
    stream = Stream()
    stream.read(stream.x)
    checkpoint = stream.checkpoint()
    assert order_of(checkpoint, "stem", "relu") == ODD_FIRST
    removed = exact(checkpoint)
    assert (count(removed, "Slice"), count(removed, "Gather")) == (1, 0)
    assert emitted_shape(removed, "reader.weight") == (4, 16, 1, 1)
    # The head's columns follow: it reads all 32 channels without a selection.
    assert emitted_shape(removed, "head.weight") == (5, 32)
    dense = constant_array(checkpoint.model.graph.initializers["head.weight"])
    emitted = constant_array(removed.model.graph.initializers["head.weight"])
    assert np.array_equal(emitted, dense[:, ODD_FIRST].astype(np.float64))


def test_the_reader_that_moves_most_comes_first():
    stream = Stream(64)
    many, few = range(8, 56), range(0, 32)
    stream.read(stream.x, few, "few")
    stream.read(stream.x, many, "many")
    order = order_of(stream.checkpoint(), "stem")
    assert sorted(order[:48]) == list(many)
    assert sorted(order[24:56]) != list(few) and sorted(order[:24]) == list(range(8, 32))


def test_a_block_of_idle_channels_meets_zero_weights():
    stream = Stream()
    stream.read(stream.x, [3, 8, 20, 21], filters=2)
    removed = exact(stream.checkpoint())
    weight = constant_array(removed.model.graph.initializers["reader.weight"])
    assert weight.shape == (2, 16, 1, 1)
    assert np.flatnonzero(weight.any(axis=(0, 2, 3))).tolist() == [0, 1, 2, 3]
    layer = next(layer for layer in removed.layers if layer.name == "reader.weight")
    assert (layer.params_used, layer.params_emitted) == (8, 32)


@pytest.mark.parametrize(("filters", "kernel", "read"), [(2, 1, 32), (32, 3, 16)])
def test_a_selection_stays_exact_where_another_block_costs_more(filters, kernel, read):
    # The order serves `first`; the 16 channels of `second` lie at both ends, in two blocks.
    # Per position, 16 idle channels cost 16 * 2 or 16 * 9 * 32 MACs; whole blocks save
    # 16 * (64 + 16).
    stream = Stream(64)
    stream.read(stream.x, range(32), "first")
    stream.read(stream.x, range(24, 40), "second", filters, kernel)
    removed = exact(stream.checkpoint())
    assert emitted_shape(removed, "first.weight")[1] == 32
    assert emitted_shape(removed, "second.weight") == (filters, read, kernel, kernel)


def test_a_width_that_is_no_multiple_of_a_block_keeps_its_order():
    stream = Stream(24)
    stream.read(stream.x, range(1, 24, 2))
    assert order_of(stream.checkpoint(), "stem", "relu") == list(range(24))


def test_residual_sums_norms_and_activations_have_one_order():
    stream = Stream()
    net = stream.net
    y = net.norm("norm", net.conv("conv", stream.x, 32))
    s = net.relu("out", net.add("sum", y, stream.x))
    stream.read(s)
    names = ("stem", "relu", "conv", "norm", "sum", "out")
    assert order_of(stream.checkpoint(s), *names) == ODD_FIRST


def test_a_norm_that_selects_is_followed_in_its_order():
    # Pre-activation: norm and ReLU read the odd channels of the stream; a branch reads all.
    stream = Stream()
    net = stream.net
    active = net.relu("active", net.norm("norm", stream.x))
    y = net.conv("conv", active, 32)
    stream.masks["conv.weight"] = keeping(32, ODD)
    checkpoint = stream.checkpoint(net.add("sum", stream.x, y))
    assert order_of(checkpoint, "norm", "active") == list(ODD)
    assert order_of(checkpoint, "stem", "sum", "conv") == ODD_FIRST
    assert count(exact(checkpoint), "Gather") == 0


def test_a_norm_that_cuts_a_block_keeps_its_selection(monkeypatch):
    stream = Stream()
    net = stream.net
    active = net.relu("active", net.norm("norm", stream.x))
    y = net.conv("conv", active, 32)
    stream.masks["conv.weight"] = keeping(32, range(1, 25, 2))
    for module in (product, placing):
        monkeypatch.setattr(module, "WORTH_ROUNDING", 1 << 60)
    checkpoint = stream.checkpoint(net.add("sum", stream.x, y))
    assert order_of(checkpoint, "norm", "active") == list(range(1, 25, 2))
    assert count(exact(checkpoint), "Slice") == 1


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_over_space_keeps_the_order(keepdims):
    stream = Stream()
    net = stream.net
    axes = net.constant("axes", np.asarray([2, 3]))
    mean = net.op("ReduceMean", "mean", stream.x, axes, keepdims=keepdims)
    y = net.conv("last", mean, 6, kernel=1) if keepdims else net.linear("last", mean, 6)
    stream.read(stream.x)
    checkpoint = stream.checkpoint(None, y)
    assert order_of(checkpoint, "stem", "relu", "mean") == ODD_FIRST


def test_a_mean_over_channels_needs_no_order():
    stream = Stream()
    axes = stream.net.constant("axes", np.asarray([1]))
    mean = stream.net.op("ReduceMean", "mean", stream.x, axes, keepdims=1)
    stream.net.channels[mean] = 1
    stream.read(stream.x)
    assert order_of(stream.checkpoint(None, mean), "stem") == NATURAL


def test_a_gate_of_one_value_per_channel_has_the_order_of_the_stream():
    stream = Stream()
    net = stream.net
    gate = net.op("GlobalAveragePool", "squeeze", stream.x)
    gate = net.relu("small", net.conv("down", gate, 8, kernel=1, bias=True))
    gate = net.op("Sigmoid", "gate", net.conv("up", gate, 32, kernel=1, bias=True))
    y = net.op("Mul", "gated", stream.x, gate)
    stream.read(y)
    names = ("stem", "squeeze", "up", "gate", "gated")
    assert order_of(stream.checkpoint(y), *names) == ODD_FIRST


def test_parameters_per_channel_follow_the_order():
    stream = Stream()
    net = stream.net
    y = net.op("PRelu", "prelu", stream.x, net.constant("slope", net.draw(32, 1, 1)))
    y = net.op("Mul", "scale", y, net.constant("factor", net.draw(1, 32, 1, 1)))
    y = net.op("Add", "shift", net.constant("offset", net.draw(32, 1, 1)), y)
    net.channels[y] = 32
    scale, bias = net.constant("scales", net.draw(32)), net.constant("biases", net.draw(32))
    y = net.op("InstanceNormalization", "instance", y, scale, bias)
    stream.read(y)
    names = ("stem", "prelu", "scale", "shift", "instance")
    assert order_of(stream.checkpoint(y), *names) == ODD_FIRST


def test_a_factor_per_position_has_no_order():
    stream = Stream()
    net = stream.net
    gate = net.op("Sigmoid", "gate", net.conv("attend", stream.x, 1, kernel=1))
    y = net.op("Mul", "gated", gate, stream.x)
    net.channels[y] = 32
    stream.read(y)
    assert order_of(stream.checkpoint(y), "stem", "gated") == ODD_FIRST


def pin_concat(net, x):
    y = net.op("Concat", "pin", x, net.conv("side", net.input, 4), axis=1)
    net.channels[y] = 36
    return net.head("pin_head", y)


def pin_reshape(net, x):
    return net.linear("pin", net.reshape("flat", x, -1, 32 * 16), 3)


def pin_grouped(net, x):
    return net.head("pin_head", net.conv("pin", x, 8, groups=4))


def pin_depthwise(net, x):
    return net.head("pin_head", net.conv("pin", x, 32, groups=32))


def pin_split(net, x):
    halves = ir.node("Split", [x], {"axis": 1, "num_outputs": 2}, num_outputs=2, name="pin")
    net.nodes.append(halves)
    for index, half in enumerate(halves.outputs):
        half.name, net.channels[half] = f"half{index}", 16
    return net.head("pin_head", halves.outputs[1])  # of the first nothing is kept


def pin_expand(net, x):
    shape = net.constant("shape", np.asarray([1, 32, 4, 4]))
    return net.head("pin_head", net.op("Expand", "pin", x, shape))


def pin_norm_over_channels(net, x):
    return net.head("pin_head", net.op("LpNormalization", "pin", x, axis=1))


def pin_softmax(net, x):
    return net.head("pin_head", net.op("Softmax", "pin", x, axis=1))


def pin_output(net, x):
    return x


PINS = [pin_concat, pin_reshape, pin_grouped, pin_depthwise, pin_split, pin_expand,
        pin_norm_over_channels, pin_softmax, pin_output]  # fmt: skip


@pytest.mark.parametrize("pin", PINS)
def test_an_operator_that_knows_the_order_of_channels_pins_it(pin):
    stream = Stream()
    stream.read(stream.x)
    checkpoint = stream.checkpoint(None, pin(stream.net, stream.x))
    assert order_of(checkpoint, "stem", "relu") == NATURAL


def test_a_pinned_value_pins_all_that_meet_it():
    stream = Stream()
    net = stream.net
    s = net.add("sum", stream.x, net.norm("norm", net.conv("conv", stream.x, 32)))
    stream.read(s)
    checkpoint = stream.checkpoint(s, net.linear("flat_head", net.reshape("flat", s, -1, 512), 2))
    assert order_of(checkpoint, "stem", "conv", "norm", "sum") == NATURAL


def test_a_sum_that_selects_from_one_operand_and_is_tied_to_the_other():
    # The sum needs half of the stream, so that its own class has an order of its own.
    rng = np.random.default_rng(3)
    stream = Stream(64)
    net = stream.net
    need = some(rng, 64, 32)
    y = net.conv("conv", stream.x, 64)
    s = net.relu("out", net.add("sum", stream.x, y))
    stream.read(s, need[1::2], filters=2)
    stream.masks["narrow.weight"] = keeping(64, need)
    narrow = net.head("narrow_head", net.conv("narrow", s, 4))
    stream.read(stream.x, range(1, 64, 2), "other")
    checkpoint = stream.checkpoint(None, narrow)
    own = order_of(checkpoint, "conv", "sum", "out")
    assert sorted(own) == need.tolist() and own[:16] == need[1::2].tolist()
    assert order_of(checkpoint, "stem", "relu") == [*range(1, 64, 2), *range(0, 64, 2)]


def random_net(seed):
    """A stream of blocks of many kinds with random masks, on either axis and site."""
    rng = np.random.default_rng(seed)
    width = int(rng.choice([32, 48, 64, 128]))
    net, masks = Net((1, 3, 5, 5), seed=seed), {}

    def conv(name, x, filters, **options):
        size = net.channels[x]
        found = masks.setdefault(f"{name}.weight", [])
        if size > 3 and "groups" not in options and rng.random() < 0.9:
            found.append(keeping(size, some(rng, size, int(rng.integers(1, size + 1)))))
        if rng.random() < 0.25:  # often none of them
            on = some(rng, filters, int(rng.integers(filters + 1))) if rng.random() < 0.8 else []
            found.append(keeping(filters, on, "out", rng.choice(["weight", "output"])))
        return net.conv(name, x, filters, **options)

    def block(kind, n, x):
        if kind == "post":
            return net.relu(f"{n}r", net.add(f"{n}a", net.norm(f"{n}n", conv(n, x, width)), x))
        if kind == "pre":
            active = net.relu(f"{n}r", net.norm(f"{n}n", x))
            return net.add(f"{n}a", x, conv(n, active, width))
        if kind == "gate":
            y = conv(f"{n}d", net.op("GlobalAveragePool", f"{n}g", x), 16, kernel=1, bias=True)
            y = conv(f"{n}u", net.relu(f"{n}r", y), width, kernel=1, bias=True)
            return net.op("Mul", f"{n}m", x, net.op("Sigmoid", f"{n}s", y))
        if kind == "depthwise":
            y = conv(n, x, width, groups=width, bias=True)
            return net.add(f"{n}a", net.relu(f"{n}r", y), x)
        if kind == "pool":
            options = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1]}
            return net.op("Max", f"{n}x", net.op("MaxPool", f"{n}p", x, **options), x)
        if kind == "concat":
            y = net.op("Concat", f"{n}k", conv(f"{n}c", x, 16), x, axis=1)
            net.channels[y] = width + 16
            return net.relu(f"{n}r", conv(n, y, width))
        y = net.op("Sigmoid", f"{n}s", conv(n, x, 1, kernel=1))  # one factor per position
        return net.op("Mul", f"{n}m", x, y)

    kinds = ["post", "pre", "gate", "depthwise", "pool", "concat", "position"]
    x = conv("stem", net.input, width, bias=bool(rng.random() < 0.5))
    for index in range(int(rng.integers(2, 6))):
        x = block(rng.choice(kinds, p=[0.3, 0.3, 0.1, 0.05, 0.1, 0.05, 0.1]), f"b{index}", x)
    if rng.random() < 0.7:
        masks["head.weight"] = keeping(width, some(rng, width, int(rng.integers(1, width + 1))))
    return net.checkpoint(net.head("head", x), {key: m for key, m in masks.items() if m})


def is_reordered(checkpoint):
    _, facts = placed(checkpoint, ordered=True)
    indices = [i for sets in facts.kept.values() for i in sets if i is not None]
    return any((np.diff(i) < 0).any() for i in indices)


def depends_on_input(checkpoint):
    try:
        analyzed(checkpoint, "d")
    except CheckpointError as error:
        assert "its masks cut every path" in str(error)
        return False
    return True


@pytest.mark.parametrize("first", range(0, 80, 20))
def test_random_networks_stay_exact(first):
    checkpoints = [random_net(seed) for seed in range(first, first + 20)]
    checkpoints = [checkpoint for checkpoint in checkpoints if depends_on_input(checkpoint)]
    for checkpoint in checkpoints:
        exact(checkpoint)
    assert sum(map(is_reordered, checkpoints)) >= 5, "too few of them exercise the order"

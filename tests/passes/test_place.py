"""Which channels stay for speed: sums that would select, and blocks that would be half empty."""

import numpy as np
import pytest
from narrowing import Net, count, emitted_shape, exact, keeping, kept, kept_sizes, placed, some

from mdprune_deploy.passes import place as placing
from mdprune_deploy.passes.elements import elements
from mdprune_deploy.passes.operators import product
from mdprune_deploy.passes.place import place


def residual_chain(width, keeps, kernel=1, spatial=4, stem=1):
    """A stem and one block per keep: `x + conv(x)`, each conv with its own inputs; then the head.

    The last sum is read through the head's mask alone, so the need shrinks along the chain.
    """
    net = Net((1, 3, spatial, spatial))
    x = net.conv("stem", net.input, width, kernel=stem)
    masks = {}
    for index, on in enumerate(keeps[:-1]):
        y = net.relu(f"relu{index}", net.conv(f"conv{index}", x, width, kernel=kernel))
        x = net.add(f"sum{index}", x, y)
        masks[f"conv{index}.weight"] = keeping(width, on)
    masks["head.weight"] = keeping(width, keeps[-1])
    return net.checkpoint(net.head("head", x), masks)


def test_a_chain_is_widened_where_selecting_costs_more_than_computing():
    # conv0 reads 4 channels that the head does not; a 1x1 filter of 4 channels costs 4 MACs per
    # element, a selection 16.
    keeps = [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
    checkpoint = residual_chain(16, keeps)
    removed = exact(checkpoint)
    graph, facts = placed(checkpoint)
    assert kept(graph, facts, "sum0").tolist() == list(range(10))
    assert emitted_shape(removed, "stem.weight") == (10, 3, 1, 1)
    assert emitted_shape(removed, "conv0.weight") == (10, 4, 1, 1)
    addition = next(node for node in removed.model.graph if node.op_type == "Add")
    producers = {value.producer().op_type for value in addition.inputs}
    assert producers == {"Conv", "Relu"}, "nothing is selected on the identity path"


def test_a_chain_narrows_where_the_saving_is_large():
    # The same chain with 3x3 filters over 16 channels and only one block of 16 in the end:
    # 16 blocks' worth of filters, 144 MACs each, against one selection.
    rng = np.random.default_rng(0)
    keeps = [range(0, 48), some(rng, 64, 10)]
    checkpoint = residual_chain(64, keeps, kernel=3)
    removed = exact(checkpoint)
    assert emitted_shape(removed, "conv0.weight") == (10, 48, 3, 3)
    addition = next(node for node in removed.model.graph if node.op_type == "Add")
    assert sorted(value.producer().op_type for value in addition.inputs) == ["Gather", "Relu"]


def test_the_end_of_the_chain_is_the_operator_that_selects():
    # Norm and activation between the sum and its reader are widened with it.
    net = Net((1, 3, 4, 4))
    x = net.conv("stem", net.input, 16, kernel=1)
    s = net.add("sum", x, net.conv("conv", x, 16, kernel=1))
    y = net.relu("relu", net.norm("norm", s))
    masks = {"conv.weight": keeping(16, range(4)), "head.weight": keeping(16, range(4, 10))}
    checkpoint = net.checkpoint(net.head("head", y), masks)
    removed = exact(checkpoint)
    graph, facts = placed(checkpoint)
    for name in ("sum", "norm", "relu"):
        assert kept(graph, facts, name).tolist() == list(range(10))
    assert count(removed, "Gather", "Slice") == 2  # of the conv and of the head


def test_a_toy_network_is_not_rounded():
    net = Net((1, 3, 8, 8))
    x = net.relu("relu0", net.conv("conv0", net.input, 8))
    x = net.relu("relu1", net.conv("conv1", x, 8))
    masks = {"conv1.weight": keeping(8, [0, 2, 5, 7]), "head.weight": keeping(8, [1, 3, 4, 6])}
    removed = exact(net.checkpoint(net.head("head", x), masks))
    assert emitted_shape(removed, "conv0.weight") == (4, 3, 3, 3)
    assert emitted_shape(removed, "conv1.weight") == (4, 4, 3, 3)
    assert emitted_shape(removed, "head.weight") == (5, 4)
    used = [layer.params_used for layer in removed.layers]
    assert used == [layer.params_emitted for layer in removed.layers] == [108, 144, 20]


@pytest.mark.parametrize(("live", "emitted"), [(10, 10), (11, 16), (16, 16), (20, 20), (24, 32)])
def test_filters_fill_the_last_block_where_few_are_missing(monkeypatch, live, emitted):
    monkeypatch.setattr(placing, "WORTH_ROUNDING", 0)
    net = Net((1, 3, 4, 4))
    x = net.relu("relu", net.conv("conv0", net.input, 40))
    rng = np.random.default_rng(live)
    masks = {"conv1.weight": keeping(40, some(rng, 40, live))}
    removed = exact(net.checkpoint(net.head("head", net.conv("conv1", x, 8)), masks))
    # Without a limit, `place` fills blocks wherever they grow by at most a half.
    assert emitted_shape(removed, "conv0.weight")[0] == emitted
    # The reader is free to take what fills its own block, but nothing that it did not read
    # may act: the figures of used weights do not change.
    assert removed.layers[1].params_used == 8 * live * 9


def test_only_layers_with_much_work_are_rounded(monkeypatch):
    def filters(limit):
        monkeypatch.setattr(placing, "WORTH_ROUNDING", limit)
        net = Net((1, 3, 4, 4))
        x = net.conv("conv0", net.input, 40)
        masks = {"conv1.weight": keeping(40, range(12))}
        removed = exact(net.checkpoint(net.head("head", net.conv("conv1", x, 8)), masks))
        return emitted_shape(removed, "conv0.weight")[0]

    work = 3 * 9 * 40 * 4 * 4
    assert (filters(work), filters(work + 1)) == (16, 12)


def test_live_channels_fill_a_block_before_constant_ones(monkeypatch):
    monkeypatch.setattr(placing, "WORTH_ROUNDING", 0)
    net = Net((1, 3, 4, 4))
    x = net.norm("norm", net.conv("conv0", net.input, 40))
    masks = {
        "conv0.weight": keeping(40, [*range(13), *range(30, 40)], "out"),
        "conv1.weight": keeping(40, range(13)),
    }
    checkpoint = net.checkpoint(net.head("head", net.conv("conv1", x, 8)), masks)
    exact(checkpoint)
    graph, facts = placed(checkpoint)
    assert kept(graph, facts, "norm").tolist() == [*range(13), 30, 31, 32]


def test_a_channel_count_below_a_block_stays_whole(monkeypatch):
    monkeypatch.setattr(placing, "WORTH_ROUNDING", 0)
    monkeypatch.setattr(product, "WORTH_ROUNDING", 0)
    net = Net((1, 3, 4, 4))
    x = net.conv("conv0", net.input, 12)
    masks = {"conv1.weight": keeping(12, range(11))}
    removed = exact(net.checkpoint(net.head("head", net.conv("conv1", x, 8)), masks))
    assert emitted_shape(removed, "conv0.weight")[0] == 12  # not 16: there are only 12


def test_a_sum_with_a_constant_branch_compiles(monkeypatch):
    # All filters of the branch are off: no product behind the sum's second operand is emitted.
    monkeypatch.setattr(placing, "WORTH_ROUNDING", 0)
    net = Net((1, 3, 4, 4))
    x = net.conv("stem", net.input, 40)
    s = net.add("sum", x, net.norm("norm", net.conv("dead", x, 40)))
    y = net.conv("conv", s, 8)
    masks = {"dead.weight": keeping(40, [], "out"), "conv.weight": keeping(40, range(11))}
    removed = exact(net.checkpoint(net.head("head", y), masks))
    assert "dead.weight" not in removed.model.graph.initializers
    assert emitted_shape(removed, "stem.weight")[0] == 16


def test_an_operand_of_one_channel_does_not_widen_a_product():
    net = Net((1, 3, 4, 4))
    x = net.conv("stem", net.input, 16, kernel=1)
    gate = net.op("Sigmoid", "gate", net.conv("attend", x, 1, kernel=1))
    y = net.op("Mul", "gated", x, gate)
    masks = {"attend.weight": keeping(16, [0, 1]), "head.weight": keeping(16, [2, 3, 4])}
    checkpoint = net.checkpoint(net.head("head", y), masks)
    exact(checkpoint)
    graph, facts = placed(checkpoint)
    assert kept(graph, facts, "stem").tolist() == [0, 1, 2, 3, 4]
    assert kept(graph, facts, "attend").tolist() == [0]


def random_chain(seed, blocks=6):
    rng = np.random.default_rng(seed)
    width = int(rng.choice([24, 40, 64]))
    keeps = [some(rng, width, int(rng.integers(1, width + 1))) for _ in range(blocks + 1)]
    return residual_chain(width, keeps, kernel=int(rng.choice([1, 3])))


@pytest.mark.parametrize("seed", range(12))
def test_placing_settles(monkeypatch, seed):
    monkeypatch.setattr(placing, "WORTH_ROUNDING", 2000)
    checkpoint = random_chain(seed)
    graph, facts = placed(checkpoint)
    first = kept_sizes(facts)
    # Placing again gives the same, and another round would widen nothing.
    place(graph, facts)
    assert kept_sizes(facts) == first
    for widen in (placing._cheaper_sums, placing._fill_blocks):
        for value, need in widen(graph, facts).items():
            now = elements(facts.kept[value], facts.shape(value))
            assert np.array_equal(now | need, now | np.zeros_like(need)), value.name


@pytest.mark.parametrize("seed", range(12))
def test_widening_never_costs_accuracy_nor_the_narrowest_need(monkeypatch, seed):
    monkeypatch.setattr(placing, "WORTH_ROUNDING", 2000)
    checkpoint = random_chain(100 + seed)
    removed = exact(checkpoint)
    graph, facts = placed(checkpoint)
    wide = {
        v.name: set(map(int, kept(graph, facts, v.producer().name)))
        for v in facts.kept
        if v.producer() is not None and len(facts.shape(v)) == 4
    }
    monkeypatch.setattr(placing, "_fill_blocks", lambda graph, facts: {})
    monkeypatch.setattr(placing, "_cheaper_sums", lambda graph, facts: {})
    graph, facts = placed(checkpoint)
    for value in facts.kept:
        if value.name in wide and value.producer() is not None:
            assert set(map(int, kept(graph, facts, value.producer().name))) <= wide[value.name]
    assert all(layer.params_used <= layer.params_emitted for layer in removed.layers)

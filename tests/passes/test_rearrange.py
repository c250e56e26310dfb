"""Chains that shuffle, stack or fold channels, and chains that only look like it."""

import numpy as np
import onnx_ir as ir
import pytest
from narrowing import Net, count, emitted_shape, exact, keeping, kept, placed, some

from mdprune_deploy.passes.remove import analyzed

SHAPING = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten"}


def transpose(net, name, x, *perm):
    return net.op("Transpose", name, x, perm=list(perm))


def shuffle(net, name, x, groups, size=4):
    """Channel shuffle as it is exported: channel g * n + i goes to i * groups + g."""
    channels = net.channels[x]
    y = net.reshape(f"{name}_split", x, -1, groups, channels // groups, size, size)
    y = transpose(net, f"{name}_swap", y, 0, 2, 1, 3, 4)
    return net.reshape(f"{name}_join", y, -1, channels, size, size)


def stack(net, name, parts):
    """`torch.stack(parts, 2).flatten(1, 2)`: the channels of the parts take turns."""
    axis = net.constant(f"{name}.axis", np.asarray([2]))
    lifted = [net.op("Unsqueeze", f"{name}_{i}", x, axis) for i, x in enumerate(parts)]
    y = net.op("Concat", f"{name}_concat", *lifted, axis=2)
    return net.reshape(f"{name}_flat", y, -1, len(parts) * net.channels[parts[0]], 4, 4)


def fold(net, name, x, size, mode):
    """Channels into space by view and permute: `(c, s, s)` or `(s, s, c)` channels per place."""
    channels = net.channels[x] // size**2
    split = (channels, size, size) if mode == "CRD" else (size, size, channels)
    perm = (0, 1, 4, 2, 5, 3) if mode == "CRD" else (0, 3, 4, 1, 5, 2)
    y = transpose(net, f"{name}_move", net.reshape(f"{name}_split", x, -1, *split, 4, 4), *perm)
    return net.reshape(f"{name}_join", y, -1, channels, 4 * size, 4 * size)


def unfold(net, name, x, size, mode):
    """Space into channels, the inverse order of axes."""
    channels = net.channels[x]
    y = net.reshape(f"{name}_split", x, -1, channels, 4 // size, size, 4 // size, size)
    perm = (0, 1, 3, 5, 2, 4) if mode == "CRD" else (0, 3, 5, 1, 2, 4)
    y = transpose(net, f"{name}_move", y, *perm)
    return net.reshape(f"{name}_join", y, -1, channels * size**2, 4 // size, 4 // size)


def read_by(net, x, on, channels, outputs=()):
    """A convolution that reads these channels, and a head."""
    net.channels[x] = channels
    y = net.conv("reader", x, 6)
    masks = {"reader.weight": keeping(channels, on)}
    return net.checkpoint([net.head("head", y), *outputs], masks)


def operators(checkpoint):
    model, _ = analyzed(checkpoint, "d")
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("groups", [2, 3, 4, 6])
def test_a_channel_shuffle_becomes_a_selection(groups):
    net = Net((1, 3, 4, 4))
    x = shuffle(net, "shuffle", net.conv("maker", net.input, 12), groups)
    on = some(np.random.default_rng(groups), 12, 5)
    checkpoint = read_by(net, x, on, 12)
    assert operators(checkpoint)[:3] == ["Conv", "Gather", "Conv"]
    removed = exact(checkpoint)
    # Output channel i * groups + g is input channel g * (12 / groups) + i.
    read = sorted((o % groups) * (12 // groups) + o // groups for o in on)
    graph, facts = placed(checkpoint)
    assert kept(graph, facts, "maker").tolist() == read
    assert emitted_shape(removed, "maker.weight") == (5, 3, 3, 3)
    assert not SHAPING & {node.op_type for node in removed.model.graph}


def test_two_shuffles_that_cancel_leave_nothing():
    net = Net((1, 3, 4, 4))
    x = shuffle(net, "there", net.conv("maker", net.input, 12), 3)
    checkpoint = read_by(net, shuffle(net, "back", x, 4), range(12), 12)
    assert operators(checkpoint) == ["Conv", "Conv", "ReduceMean", "Gemm"]
    exact(checkpoint)


def test_a_shuffle_of_rank_three():
    net = Net((1, 3, 4, 4))
    x = net.reshape("rows", net.conv("maker", net.input, 8), -1, 8, 16)
    y = net.reshape("split", x, -1, 2, 4, 16)
    y = net.reshape("join", transpose(net, "swap", y, 0, 2, 1, 3), -1, 8, 16)
    checkpoint = read_by(net, net.reshape("plane", y, -1, 8, 4, 4), [0, 1, 3], 8)
    assert not SHAPING & set(operators(checkpoint))
    assert emitted_shape(exact(checkpoint), "maker.weight")[0] == 3


def test_a_stack_that_is_flattened_becomes_a_concatenation_and_a_selection():
    net = Net((1, 3, 4, 4))
    parts = [net.conv(name, net.input, 4) for name in "abc"]
    on = [0, 1, 4, 5, 9]  # 3 i + j is channel i of part j: a0 b0 b1 c1 a3
    checkpoint = read_by(net, stack(net, "stack", parts), on, 12)
    assert operators(checkpoint)[3:5] == ["Concat", "Gather"]
    graph, facts = placed(checkpoint)
    assert [kept(graph, facts, name).tolist() for name in "abc"] == [[0, 3], [0, 1], [1]]
    exact(checkpoint)


def test_a_part_that_is_stacked_twice_is_concatenated_once():
    net = Net((1, 3, 4, 4))
    a, b = (net.conv(name, net.input, 4) for name in "ab")
    checkpoint = read_by(net, stack(net, "stack", [a, b, a]), [0, 2, 5, 7], 12)
    model, facts = analyzed(checkpoint, "d")
    concat = next(node for node in model.graph if node.op_type == "Concat")
    assert len(concat.inputs) == 2 and facts.shape(concat.outputs[0])[1] == 8
    exact(checkpoint)
    graph, facts = placed(checkpoint)
    # 3 i + j: a0 (0, and again 2), a1 (5); b2 (7).
    assert kept(graph, facts, "a").tolist() == [0, 1]
    assert kept(graph, facts, "b").tolist() == [2]


@pytest.mark.parametrize("mode", ["CRD", "DCR"])
@pytest.mark.parametrize("size", [2, 3])
def test_channels_that_move_into_space(mode, size):
    net = Net((1, 3, 4, 4))
    x = net.conv("maker", net.input, 3 * size**2)
    checkpoint = read_by(net, fold(net, "fold", x, size, mode), [0, 2], 3)
    model, _ = analyzed(checkpoint, "d")
    node = next(node for node in model.graph if node.op_type == "DepthToSpace")
    assert node.attributes["blocksize"].as_int() == size
    assert node.attributes["mode"].as_string() == mode
    assert not SHAPING & {n.op_type for n in model.graph}
    exact(checkpoint)


@pytest.mark.parametrize("mode", ["CRD", "DCR"])
def test_space_that_moves_into_channels(mode):
    net = Net((1, 3, 4, 4))
    x = unfold(net, "unfold", net.conv("maker", net.input, 5), 2, mode)
    checkpoint = read_by(net, x, range(8), 20)
    found = operators(checkpoint)
    assert found[1:3] == (["SpaceToDepth", "Gather"] if mode == "CRD" else ["SpaceToDepth", "Conv"])
    exact(checkpoint)


def test_one_channel_that_moves_into_space_has_either_mode():
    net = Net((1, 3, 4, 4))
    x = fold(net, "fold", net.conv("maker", net.input, 4), 2, "DCR")
    checkpoint = read_by(net, x, [0], 1)
    assert "DepthToSpace" in operators(checkpoint)
    exact(checkpoint)


def test_blocks_that_are_not_square_are_left():
    net = Net((1, 3, 4, 4))
    x = net.reshape("split", net.conv("maker", net.input, 8), -1, 4, 2, 4, 4)
    x = net.reshape("join", transpose(net, "move", x, 0, 1, 3, 2, 4), -1, 4, 8, 4)
    checkpoint = read_by(net, x, [0, 1], 4)
    assert operators(checkpoint)[:4] == ["Conv", "Reshape", "Transpose", "Reshape"]
    # Not recognised, yet the labels find that channels 2 c and 2 c + 1 make row pairs of c.
    assert emitted_shape(exact(checkpoint), "maker.weight")[0] == 4


def lookalikes():
    def turned(net, x):  # space is transposed
        y = transpose(net, "turn", x, 0, 1, 3, 2)
        return net.reshape("same", y, -1, 8, 4, 4)

    def folded_rows(net, x):  # half of a shuffle: the swap reaches into space
        y = net.reshape("split", x, -1, 4, 2, 4, 4)
        return net.reshape("join", transpose(net, "swap", y, 0, 1, 3, 2, 4), -1, 8, 4, 4)

    def flat(net, x):  # another rank
        y = net.reshape("rows", x, -1, 8, 16)
        return net.reshape("flat", transpose(net, "swap", y, 0, 2, 1), -1, 128)

    def heads(net, x):  # attention: tokens, heads, width of a head
        y = net.reshape("tokens", transpose(net, "last", x, 0, 2, 3, 1), -1, 16, 8)
        return transpose(net, "heads", net.reshape("split", y, -1, 16, 2, 4), 0, 2, 1, 3)

    def batch(net, x):  # items of the batch become channels: the same numbers for one item only
        return net.reshape("join", transpose(net, "swap", x, 1, 0, 2, 3), -1, 8, 4, 4)

    return {f.__name__: f for f in (turned, folded_rows, flat, heads, batch)}


@pytest.mark.parametrize("name", lookalikes())
def test_other_chains_stay(name):
    net = Net((1, 3, 4, 4))
    x = net.relu("relu", lookalikes()[name](net, net.conv("maker", net.input, 8)))
    checkpoint = net.checkpoint(x, {})
    found = operators(checkpoint)
    assert "Transpose" in found and not {"Gather", "DepthToSpace", "SpaceToDepth"} & set(found)
    exact(checkpoint)


def test_a_chain_that_turns_what_lies_behind_merged_axes_becomes_a_transposition():
    # The keys of an attention: batch and heads are merged, tokens and width swapped, and parted.
    net = Net((1, 3, 4, 4))
    x = net.reshape("split", net.conv("maker", net.input, 8), -1, 2, 4, 16)
    merged = transpose(net, "swap", net.reshape("merge", x, -1, 4, 16), 0, 2, 1)
    y = net.reshape("part", merged, -1, 2, 16, 4)
    back = net.reshape("join", transpose(net, "back", y, 0, 1, 3, 2), -1, 8, 4, 4)
    checkpoint = read_by(net, net.op("Relu", "relu", back), [0, 1, 5], 8)
    assert not SHAPING & set(operators(checkpoint))
    net = Net((1, 3, 4, 4))
    x = net.reshape("split", net.conv("maker", net.input, 8), -1, 2, 4, 16)
    merged = transpose(net, "swap", net.reshape("merge", x, -1, 4, 16), 0, 2, 1)
    y = net.relu("relu", net.reshape("part", merged, -1, 2, 16, 4))
    back = net.reshape("join", transpose(net, "back", y, 0, 1, 3, 2), -1, 8, 4, 4)
    checkpoint = read_by(net, back, [0, 1], 8)
    found = operators(checkpoint)
    assert found[:5] == ["Conv", "Reshape", "Transpose", "Relu", "Transpose"]
    # Two channels of the first head: the other head is gone, and two of its own.
    assert emitted_shape(exact(checkpoint), "maker.weight")[0] == 2


def test_a_transposition_that_makes_an_output_keeps_its_name():
    net = Net((1, 3, 4, 4))
    x = net.reshape("split", net.conv("maker", net.input, 8), -1, 2, 4, 16)
    merged = transpose(net, "swap", net.reshape("merge", x, -1, 4, 16), 0, 2, 1)
    y = net.reshape("part", merged, -1, 2, 16, 4)
    back = net.reshape("same", net.reshape("flat", x, -1, 8, 16), -1, 2, 4, 16)
    removed = exact(net.checkpoint([y, back], {}))
    assert [value.name for value in removed.model.graph.outputs] == ["part_out", "same_out"]


def test_merged_batch_and_channels_that_part_again():
    net = Net((1, 3, 4, 4))
    x = net.reshape("merge", net.conv("maker", net.input, 8), -1, 4, 4, 4)
    checkpoint = read_by(net, net.reshape("part", x, -1, 8, 4, 4), [1, 5, 6], 8)
    assert not SHAPING & set(operators(checkpoint))
    assert emitted_shape(exact(checkpoint), "maker.weight")[0] == 3


def test_a_chain_is_recognised_at_a_fixed_batch():
    net = Net((2, 3, 4, 4), dynamic=False)
    x = net.conv("maker", net.input, 8)
    y = net.reshape("split", x, 2, 2, 4, 4, 4)
    y = net.reshape("join", transpose(net, "swap", y, 0, 2, 1, 3, 4), 2, 8, 4, 4)
    checkpoint = read_by(net, y, [0, 2, 4, 6], 8)
    assert operators(checkpoint)[:3] == ["Conv", "Gather", "Conv"]
    exact(checkpoint)


def test_a_chain_that_is_read_in_the_middle_serves_both():
    net = Net((1, 3, 4, 4))
    x = net.conv("maker", net.input, 8)
    swapped = transpose(net, "swap", net.reshape("split", x, -1, 2, 4, 4, 4), 0, 2, 1, 3, 4)
    middle = net.reshape("middle", swapped, -1, 128)
    x = net.reshape("join", swapped, -1, 8, 4, 4)
    net.channels[middle] = 128
    checkpoint = read_by(net, x, [0, 2], 8, [net.linear("side", middle, 3)])
    removed = exact(checkpoint)
    model, _ = analyzed(checkpoint, "d")
    reader = next(n for n in model.graph if n.name == "reader")
    assert reader.inputs[0].producer().op_type == "Gather"
    assert count(removed, "Transpose") == 1


def test_an_output_in_the_middle_of_a_chain_stays_and_the_chain_goes():
    net = Net((1, 3, 4, 4))
    x = net.conv("maker", net.input, 8)
    swapped = transpose(net, "swap", net.reshape("split", x, -1, 2, 4, 4, 4), 0, 2, 1, 3, 4)
    x = net.reshape("join", swapped, -1, 8, 4, 4)
    checkpoint = read_by(net, x, [0, 2], 8, [swapped])
    exact(checkpoint)
    model, _ = analyzed(checkpoint, "d")
    reader = next(n for n in model.graph if n.name == "reader")
    assert reader.inputs[0].producer().op_type == "Gather"


@pytest.mark.parametrize("groups", [1, 2])
def test_a_chain_that_makes_an_output_keeps_its_name_and_type(groups):
    # With one group the chain does nothing, and the output is another name of the layer's.
    net = Net((1, 3, 4, 4))
    x = net.conv("maker", net.input, 8)
    y = shuffle(net, "shuffle", x, groups)
    checkpoint = read_by(net, y, [0, 1], 8, [x, y])
    removed = exact(checkpoint)
    names = [value.name for value in removed.model.graph.outputs]
    assert names == ["head_out", "maker_out", "shuffle_join_out"]
    assert [value.dtype for value in removed.model.graph.outputs] == [ir.DataType.FLOAT] * 3
    assert "Transpose" not in operators(checkpoint)


def test_an_output_that_is_the_input_again():
    net = Net((1, 8, 4, 4))
    y = shuffle(net, "idle", net.input, 1)
    removed = exact(read_by(net, y, [0, 1], 8, [y]))
    assert [value.name for value in removed.model.graph.outputs] == ["head_out", "idle_join_out"]

"""Operators element by element: broadcasting, constants that meet live values, expansion."""

import numpy as np
import pytest
import torch
from checks import compile_exactly, emitted_params, used_params
from graphs import Network, mask
from onnx import helper

from mdprune_deploy import Domain

pytestmark = pytest.mark.usefixtures("narrowest")
READ = mask([0, 1, 0, 0, 0, 1, 0, 0])


def read(n: Network, x: str) -> tuple[int, int]:
    """Adds a masked reader; returns the stem's used and emitted filters."""
    n.head(n.conv(x, 4, 1))
    removed = compile_exactly(n, Domain({n.layers[-2].weight: READ}))
    stem = n.layers[0].weight
    return used_params(removed)[stem] // 27, emitted_params(removed)[stem] // 27


@pytest.mark.parametrize("shape", [(), (1,), (8, 1, 1), (1, 8, 1, 1), (1, 1, 6, 6), (6,)], ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_constant_operand_broadcasts(shape: tuple[int, ...], first: bool) -> None:
    n = Network()
    x = n.conv_bn_act("x", 8)
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    constant = n.constant(array, "float32")
    name = n.fresh("div")
    inputs = [constant, n.act(x, "Softplus")] if first else [x, constant]
    n.nodes.append(helper.make_node("Div", inputs, [name], name=name))
    other = torch.from_numpy(array).double()
    n.add_step(
        (lambda run, v: other / v) if first else (lambda run, v: v / other),
        [i for i in inputs if i != constant],
        name,
    )
    assert read(n, name) == (2, 2)


def test_operand_without_space_broadcasts() -> None:
    n = Network()
    x = n.conv_bn_act("x", 8)
    assert read(n, n.add(x, n.mean(x, keep=True))) == (2, 2)


def test_operand_without_channels_broadcasts() -> None:
    n = Network()
    x = n.conv_bn_act("x", 8)
    gate = n.conv(x, 1, 1)
    assert read(n, n.mul(x, gate)) == (8, 8)


def test_prelu_follows_its_channel() -> None:
    n = Network()
    x = n.bn(n.conv("x", 8))
    slope = n.parameter("slope", n.rng.uniform(0.1, 0.5, (8, 1, 1)))

    def function(run: object, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, x * n.value(run, slope))  # type: ignore[arg-type]

    assert read(n, n.node("PRelu", [x, slope], function)) == (2, 2)


def test_where_and_clip() -> None:
    n = Network()
    x = n.conv_bn_act("x", 8, "Tanh")
    bounds = [n.constant(v, "float32") for v in (-0.5, 0.25)]
    x = n.node("Clip", [x, *bounds], lambda run, x: x.clamp(-0.5, 0.25))
    zero = n.constant(0.0, "float32")
    above = n.fresh("greater")
    n.nodes.append(helper.make_node("Greater", [x, zero], [above], name=above))
    chosen = n.fresh("where")
    n.nodes.append(helper.make_node("Where", [above, x, zero], [chosen], name=chosen))
    n.add_step(lambda run, x: torch.relu(x), [x], chosen)
    assert read(n, chosen) == (2, 2)


def test_expand_follows_the_kept_channels() -> None:
    """The shape is computed from the batch; of the channels it names only what is kept."""
    n = Network()
    x = n.mean(n.conv_bn_act("x", 8), keep=True)
    batch, shape, wide = n.fresh("batch"), n.fresh("shape"), n.fresh("expand")
    n.nodes.append(helper.make_node("Shape", [x], [batch], name=batch, start=0, end=1))
    sizes = n.constant([8, 5, 5])
    n.nodes.append(helper.make_node("Concat", [batch, sizes], [shape], name=shape, axis=0))
    n.nodes.append(helper.make_node("Expand", [x, shape], [wide], name=wide))
    n.add_step(lambda run, x: x.expand(-1, -1, 5, 5), [x], wide)
    assert read(n, wide) == (2, 2)


def test_all_constant_operands_keep_one_to_tell_the_batch() -> None:
    """Both branches are dead, and the second output still has the batch of the input."""
    n = Network()
    x = n.conv_bn_act("x", 8)
    n.head(x)
    a, b = n.bn(n.conv(x, 8)), n.bn(n.conv(x, 8, 1))
    n.outputs.append(n.add(a, b))
    dead = mask([0] * 8)
    compile_exactly(n, Domain({n.layers[2].weight: dead, n.layers[3].weight: dead}))


def test_dead_branch_with_space_meets_a_live_one_without() -> None:
    n = Network()
    x = n.conv_bn_act("x", 8)
    dead = n.bn(n.conv(x, 8, 1))
    n.head(n.conv(n.add(n.mean(x, keep=True), dead), 4))
    removed = compile_exactly(n, Domain({n.layers[1].weight: mask([0] * 8)}))
    assert emitted_params(removed)[n.layers[1].weight] == 0


def test_costly_constant_channels_are_filled_in() -> None:
    """Six of eight filters of a wide layer are constants in a sum: cheaper to move than to make."""
    n = Network()
    x = n.conv_bn_act("x", 32)
    y = n.conv_bn_act(x, 8, "Sigmoid")
    n.head(n.act(n.add(n.conv(x, 8, 1), y), "Sigmoid"))
    off = mask([1, 0, 0, 0, 0, 0, 0, 1], "out")
    removed = compile_exactly(n, Domain({n.layers[1].weight: off}))
    assert emitted_params(removed)[n.layers[1].weight] == 2 * 32 * 9
    assert removed.held == ()

"""Activations that live at the same time lie apart, and the arena is near the lower bound."""

from __future__ import annotations

import numpy as np
import pytest
from plans import Graph, written

from mdprune_deploy.emit.native.arena import place_activations
from mdprune_deploy.emit.native.draft import Draft
from mdprune_deploy.emit.native.lower import lower
from mdprune_deploy.emit.native.operators import Activation, Binary, BinaryKind, Function, Unary
from mdprune_deploy.emit.native.plan import Place, Plan

CLOSE = 1.25
"""Largest arena over the bytes that live at one time: fragments of greedy placement."""


def unary(draft: Draft, x: int) -> int:
    y = draft.activation(draft.shape(x))
    draft.operators.append(Unary(x=x, y=y, activation=Activation(Function.RELU)))
    return y


def binary(draft: Draft, a: int, b: int) -> int:
    shape = np.broadcast_shapes(draft.shape(a), draft.shape(b))
    y = draft.activation(shape)
    draft.operators.append(Binary(a=a, b=b, y=y, kind=BinaryKind.ADD))
    return y


def test_a_chain_of_functions_works_in_place() -> None:
    draft = Draft()
    x = unary(draft, draft.input("x", (1, 40)))
    for _ in range(3):
        x = unary(draft, x)
    arena = place_activations(draft)
    assert arena.size == arena.live == 192  # 160 bytes, aligned to 64


def test_an_operand_that_others_read_later_stays() -> None:
    draft = Draft()
    x = unary(draft, draft.input("x", (1, 16)))
    y = unary(draft, x)
    binary(draft, x, y)
    arena = place_activations(draft)
    assert arena.size == 128
    assert len(set(arena.offsets.values())) == 2


def test_a_broadcast_operand_is_not_replaced() -> None:
    draft = Draft()
    x = unary(draft, draft.input("x", (1, 16)))
    y = unary(draft, draft.input("y", (4, 1)))
    binary(draft, x, y)
    assert place_activations(draft).size == 64 + 64 + 256


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    draft = Draft()
    values = [draft.input("x", (1, 16))]
    for _ in range(40):
        wide = draft.activation((1, 16 * int(rng.integers(1, 9))))
        source = values[int(rng.integers(max(0, len(values) - 5), len(values)))]
        draft.operators.append(Unary(x=source, y=wide))  # of any size: only memory matters here
        values.append(wide)
    arena = place_activations(draft)
    assert arena.live <= arena.size <= CLOSE * arena.live
    assert_apart(draft, arena.offsets)


def assert_apart(draft: Draft, offsets: dict[int, int]) -> None:
    """No operator writes to what is read later, unless it may."""
    owner: dict[int, int] = {}  # byte to storage
    for operator in draft.operators:
        for tensor in operator.reads():
            own = draft.tensors[tensor]
            if own.place is Place.ARENA:
                begin = offsets[own.storage]
                held = {owner[b] for b in range(begin, begin + 4 * own.elements, 4)}
                assert held == {own.storage}, f"{operator} reads what another has overwritten"
        for tensor in operator.writes():
            own = draft.tensors[tensor]
            if own.place is not Place.ARENA:
                continue
            begin = offsets[own.storage]
            assert begin % 64 == 0
            owner.update(dict.fromkeys(range(begin, begin + 4 * own.elements, 4), own.storage))


def test_a_network_is_near_the_lower_bound() -> None:
    g = Graph((1, 8, 16, 16))
    x = g.op("Conv", g.inputs[0], g.weight(32, 8, 3, 3), pads=[1] * 4)
    for _ in range(4):
        y = g.op("Relu", g.op("Conv", x, g.weight(8, 32, 1, 1)))
        y = g.op("Conv", y, g.weight(32, 8, 3, 3), pads=[1] * 4)
        x = g.op("Relu", g.op("Add", x, y))
    draft = lower(g.model(x).graph, g.feeds)
    arena = place_activations(draft)
    assert arena.live <= arena.size <= CLOSE * arena.live
    assert_apart(draft, arena.offsets)


def test_the_plan_holds_the_arena(tmp_path) -> None:
    g = Graph((1, 8, 4, 4))
    x = g.op("Conv", g.inputs[0], g.weight(8, 8, 1, 1))
    plan: Plan = written(g.model(g.op("Softmax", x, axis=1)), g.feeds, tmp_path)
    ends = [t.offset + 4 * t.elements for t in plan.tensors if t.place is Place.ARENA]
    assert max(ends) <= plan.arena < max(ends) + 64

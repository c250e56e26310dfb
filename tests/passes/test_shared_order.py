"""One order of channels for all domains: the same for what any domain adds, and exact."""

import numpy as np
from checks import GRAPH, error, inputs_for, run_graph
from graphs import Drawn, Network, mask, networks
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mdprune_deploy import CheckpointError, Domain
from mdprune_deploy.passes.emit_graph import emit_graph
from mdprune_deploy.passes.place import place
from mdprune_deploy.passes.remove import analyzed
from mdprune_deploy.passes.shared_order import (
    KeptFilters,
    TiedValues,
    apply_order,
    global_order,
    tied_values,
)
from mdprune_deploy.passes.widening import GATHERED


def placed(n: Network, domain: Domain):  # type: ignore[no-untyped-def]
    model, facts = analyzed(n.checkpoint(d=domain), "d")
    facts.widening = GATHERED
    place(model.graph, facts)
    return model, facts


def assert_exact(n: Network, domain: Domain, model, facts) -> None:  # type: ignore[no-untyped-def]
    x = inputs_for(n.example.shape)
    outputs = run_graph(emit_graph(model, facts)[0], x)
    for want, have in zip(n.expected(domain, x), outputs, strict=True):
        assert error(want, have) <= GRAPH


def residual() -> tuple[Network, list[int]]:
    """Two sums in a row; returns the layers whose outputs are added."""
    n = Network()
    x = n.conv_bn_act("x", 16)
    y = n.add(x, n.bn(n.conv(n.conv_bn_act(x, 8), 16)))
    z = n.act(n.add(n.act(y), n.conv(y, 16, 1)))
    n.head(n.conv(z, 4, 1))
    return n, [0, 2, 3]


def switches(seed: int, size: int = 16) -> list[bool]:
    return list(np.random.default_rng(seed).random(size) < 0.5)


def test_what_is_added_has_one_order_in_every_domain() -> None:
    n, added = residual()
    readers = [n.layers[index].weight for index in (1, 3, 4)]
    domains = [Domain(dict.fromkeys(readers, mask(switches(seed)))) for seed in range(3)]
    first = [placed(n, domain) for domain in domains]
    orders = global_order([tied_values(model.graph, facts) for model, facts in first])
    names = [[node.name for node in n.nodes if node.op_type == "Conv"][index] for index in added]
    ordered = orders[names[0]]
    assert sorted(ordered.tolist()) == list(range(16)) and ordered.tolist() != list(range(16))
    for name in names:
        np.testing.assert_array_equal(orders[name], ordered)
    for domain, (model, facts) in zip(domains, first, strict=True):
        before = {v.name: facts.kept[v][1] for node in model.graph for v in node.outputs
                  if v in facts.kept}  # fmt: skip
        apply_order(model.graph, facts, orders)
        for value in (v for node in model.graph for v in node.outputs if v in facts.kept):
            kept = facts.kept[value][1]
            if value.name in names and kept is not None:
                unordered = before[value.name]
                whole = np.arange(16) if unordered is None else unordered
                assert kept.tolist() == ordered[np.isin(ordered, whole)].tolist()
        assert_exact(n, domain, model, facts)


@settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),
)
@given(networks(), st.integers(0, 2**32))
def test_any_order_of_the_free_values_is_exact(drawn: Drawn, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for domain in drawn.domains.values():
        try:
            model, facts = placed(drawn.network, domain)
        except CheckpointError:
            continue  # its masks cut every path
        orders = {
            name: order
            for group in tied_values(model.graph, facts)
            for order in [rng.permutation(group.size)]
            for name in group.names
        }
        apply_order(model.graph, facts, orders)
        assert_exact(drawn.network, domain, model, facts)


def group(
    names: str,
    *kept: list[int],
    size: int = 8,
    pinned: bool = False,
    weights: str = "",
    near: str = "",
) -> TiedValues:
    return TiedValues(
        tuple(names),
        frozenset(weights),
        frozenset(near),
        size,
        pinned,
        tuple(KeptFilters(np.array(k), 1) for k in kept),
    )


def test_the_common_core_lies_first_and_sets_are_few_runs() -> None:
    a, b = [0, 2, 4, 6, 7], [1, 2, 3, 6]
    order = global_order([[group("v", a)], [group("v", b)]])["v"].tolist()
    assert set(order[:2]) == {2, 6}
    assert set(order[:5]) == set(a)  # one run
    assert set(order[-2:]) == {1, 3}  # the other two of b lie together, one word apart from none


def test_ties_of_any_domain_hold_for_all() -> None:
    orders = global_order(
        [
            [group("ab", [1, 2]), group("c", [0])],
            [group("a", [5]), group("bc", [6])],
            [group("d", [3], pinned=True)],
            [group("e", list(range(8)))],
        ]
    )
    assert set(orders) == {"a", "b", "c"}
    assert orders["a"].tolist() == orders["b"].tolist() == orders["c"].tolist()
    assert global_order([[group("ab", [1])], [group("bc", [2], pinned=True)]]) == {}


def test_a_weight_has_one_order() -> None:
    orders = global_order([[group("a", [1], weights="w"), group("b", [5], weights="wv")]])
    assert orders["a"].tolist() == orders["b"].tolist()
    pinned = [group("a", [1], weights="w"), group("b", [5], weights="w", pinned=True)]
    assert global_order([pinned]) == {}
    square = [group("a", [1], weights="w"), group("b", [5], weights="w", size=9)]
    assert global_order([square]) == {}  # one reads it transposed


def test_channels_keep_their_order_in_a_flattening() -> None:
    n = Network()
    pooled = n.mean(n.conv_bn_act("x", 8), keep=True)
    n.outputs.append(n.linear(n.flatten(pooled), 3))
    domain = Domain({n.layers[1].weight: mask([1, 0, 1, 1, 0, 0, 1, 0])})
    model, facts = placed(n, domain)
    conv = n.nodes[0].name
    orders = global_order([tied_values(model.graph, facts)])
    assert orders[conv][:4].tolist() == [0, 2, 3, 6]
    apply_order(model.graph, facts, {name: np.arange(8)[::-1] for name in orders})
    emitted = emit_graph(model, facts)[0]
    first, second = (node.meta["stored"] for node in emitted.graph if "stored" in node.meta)
    assert first.filters.tolist() == [6, 3, 2, 0] and first.order.tolist() == list(range(8))[::-1]
    assert second.order is None
    assert_exact(n, domain, model, facts)


def test_a_part_of_a_value_lies_at_rising_positions() -> None:
    n, _ = residual()
    first, second = (mask(switches(seed)) for seed in (3, 4))
    domain = Domain({n.layers[3].weight: first, n.layers[4].weight: second})
    model, facts = placed(n, domain)
    orders = global_order([tied_values(model.graph, facts)])
    apply_order(model.graph, facts, orders)
    selections = [
        value.const_value.numpy()
        for node in emit_graph(model, facts)[0].graph
        if node.op_type == "Gather"
        and not any(u.op_type == "Conv" for u, _ in node.outputs[0].uses())
        if (value := node.inputs[1]) is not None and value.const_value is not None
    ]
    assert all((np.diff(positions) > 0).all() for positions in selections)
    assert_exact(n, domain, model, facts)


def test_what_meets_has_one_order_where_it_may() -> None:
    orders = global_order([[group("a", [1, 3]), group("b", [1], near="a")]])
    assert orders["a"].tolist() == orders["b"].tolist()
    orders = global_order([[group("a", [1, 3]), group("b", [1], near="a", pinned=True)]])
    assert set(orders) == {"a"}
    orders = global_order([[group("a", [1, 3]), group("b", [1], near="ax", size=9)]])
    assert set(orders) == {"a", "b"} and len(orders["b"]) == 9

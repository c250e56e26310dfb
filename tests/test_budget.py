from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdprune_deploy.budget import SwitchGroup, mask_share, project, select
from mdprune_deploy.errors import BudgetError, CheckpointError, UsageError

INPUTS = {"a": 6, "b": 4, "c": 5}
OUTPUTS = {"a": 4, "b": 5, "c": 3}


def group(weight, axis, rng, *, score=True, on=None, unit=1.0):
    """One mask of `weight`, of INPUTS x OUTPUTS channels of `unit` parameters a pair."""
    channels, others = INPUTS[weight], OUTPUTS[weight]
    if axis == "out":
        channels, others = others, channels
    scores = rng.normal(0.4, 1.0, channels)
    on = scores > 0 if on is None else on
    return SwitchGroup(
        weight,
        axis,
        np.full(channels, others * unit),
        on,
        scores if score else None,
        np.abs(rng.normal(1, 0.3, channels)),
    )


@st.composite
def problems(draw, max_domains=4, score=True):
    """Domains that mask some of three weights on one axis or on both."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sites = [(w, a) for w in INPUTS for a in ("in", "out")]
    domains = {}
    for index in range(draw(st.integers(1, max_domains))):
        chosen = draw(st.lists(st.sampled_from(sites), min_size=1, max_size=5, unique=True))
        domains[f"d{index}"] = [group(w, a, rng, score=score) for w, a in chosen]
    budget = draw(st.floats(0.02, 1.0))
    return domains, budget


def product_share(groups, kept):
    """The used share counted naively: pairs of every weight, one at a time."""
    used = total = 0
    for weight in {g.weight for g in groups}:
        inputs, outputs = np.ones(INPUTS[weight], bool), np.ones(OUTPUTS[weight], bool)
        for g, k in zip(groups, kept, strict=True):
            if g.weight == weight:
                (inputs if g.axis == "in" else outputs).__iand__(k)
        used += sum(1 for _ in product(np.flatnonzero(inputs), np.flatnonzero(outputs)))
        total += INPUTS[weight] * OUTPUTS[weight]
    return used / total


def with_costs_of(metric, domains):
    if metric != "switches":
        return domains
    return {n: [replace(g, cost=np.ones(len(g.on))) for g in gs] for n, gs in domains.items()}


metrics = st.sampled_from(["params", "macs", "switches"])
sharings = st.sampled_from([0.0, 0.3, 1.0, 5.0])


@settings(max_examples=150, deadline=None)
@given(problems(), metrics, sharings)
def test_every_domain_fits_and_keeps_only_what_is_on(problem, metric, sharing):
    domains, budget = problem
    domains = with_costs_of(metric, domains)
    kept = select(domains, budget, metric=metric, sharing=sharing)
    for name, groups in domains.items():
        assert all((k <= g.on).all() for g, k in zip(groups, kept[name], strict=True))
        if metric == "switches":
            switches = np.concatenate(kept[name])
            assert switches.sum() / switches.size <= budget
        else:
            # 1e-12: a product of whole numbers over a whole number, counted in another order.
            assert product_share(groups, kept[name]) <= budget + 1e-12


@settings(max_examples=60, deadline=None)
@given(problems(), metrics)
def test_mask_share_is_the_naive_count(problem, metric):
    domains, _ = problem
    domains = with_costs_of(metric, domains)
    for groups in domains.values():
        kept = [g.on for g in groups]
        if metric == "switches":
            expected = np.concatenate(kept).mean()
        else:
            expected = product_share(groups, kept)
        assert mask_share(groups, kept, metric) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=80, deadline=None)
@given(problems(), sharings)
def test_a_domain_that_fits_is_kept_as_it_is(problem, sharing):
    domains, budget = problem
    kept = select(domains, budget, sharing=sharing)
    for name, groups in domains.items():
        if product_share(groups, [g.on for g in groups]) <= budget:
            assert all((k == g.on).all() for g, k in zip(groups, kept[name], strict=True))


@settings(max_examples=60, deadline=None)
@given(problems(), sharings, st.randoms(use_true_random=False))
def test_names_and_order_do_not_matter(problem, sharing, random):
    domains, budget = problem
    expected = select(domains, budget, sharing=sharing)
    names = list(domains)
    random.shuffle(names)
    again = select({f"x-{n}": domains[n] for n in names}, budget, sharing=sharing)
    for name in names:
        pairs = zip(expected[name], again[f"x-{name}"], strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


@settings(max_examples=80, deadline=None)
@given(problems(), sharings)
def test_never_below_independent_selection_nor_above_the_bound(problem, sharing):
    domains, budget = problem
    selection = project(domains, budget, sharing=sharing)
    # 1e-9: sums of the same numbers in another order.
    assert selection.objective >= selection.independent - 1e-9
    assert selection.objective <= selection.bound + 1e-9


def naive_objective(groups, kept, sharing):
    """F of the module's text for domains that all have the same masks, from its definition."""
    worth = {
        name: [np.where(g.on, g.scores, 0) * g.cost for g in masks]
        for name, masks in groups.items()
    }
    value = 0.0
    for name, masks in groups.items():
        total = sum(w.sum() for w in worth[name]) or 1.0
        for index in range(len(masks)):
            others = sum(kept[e][index].astype(float) for e in groups if e != name)
            bonus = sharing / max(1, len(groups) - 1) * others
            value += (worth[name][index] * kept[name][index] * (1 + bonus)).sum() / total
    return value


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("sites", [[("c", "in")], [("b", "in"), ("c", "out")]])
def test_against_every_choice_there_is(seed, sites):
    """Two small domains: the reported F is F, the bound holds, and F is close to the best."""
    rng = np.random.default_rng(seed)
    domains = {n: [group(w, a, rng) for w, a in sites] for n in "pq"}
    budget, sharing = 0.4, 1.0
    selection = project(domains, budget, sharing=sharing)
    assert selection.objective == pytest.approx(
        naive_objective(domains, selection.kept, sharing), rel=1e-9
    )
    best = max(
        naive_objective(domains, dict(zip("pq", pair, strict=True)), sharing)
        for pair in product(*(list(choices(domains[n], budget)) for n in "pq"))
    )
    assert best <= selection.bound + 1e-9
    # Greedy with so few channels may miss one of them; a quarter of F is more than one channel.
    assert selection.objective >= 0.75 * best


def choices(groups, budget):
    """Every way to keep a subset of the on-sets within the budget."""
    for bits in product(*(product(*([(False, True)] * int(g.on.sum()))) for g in groups)):
        kept = []
        for g, chosen in zip(groups, bits, strict=True):
            k = g.on.copy()
            k[g.on] = chosen
            kept.append(k)
        if product_share(groups, kept) <= budget:
            yield kept


@pytest.mark.parametrize("seed", range(8))
def test_the_bound_holds_for_two_masks_on_one_weight(seed):
    rng = np.random.default_rng(seed)
    domains = {"p": [group("b", "in", rng), group("b", "out", rng)]}
    selection = project(domains, 0.3)
    best = max(naive_objective(domains, {"p": k}, 1.0) for k in choices(domains["p"], 0.3))
    assert selection.objective - 1e-9 <= best <= selection.bound + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_alone_the_gap_to_the_bound_is_less_than_one_channel_each(seed):
    rng = np.random.default_rng(seed)
    weights = [f"w{i}" for i in range(8)]
    domains = {}
    for name in "pqr":
        domains[name] = []
        for index, weight in enumerate(weights):
            scores = rng.normal(0.8, 1.0, 32)
            cost = np.full(32, 9.0 * 2 ** (index % 4))
            domains[name].append(SwitchGroup(weight, "in", cost, scores > 0, scores))
    selection = project(domains, 0.4, sharing=0)
    largest = 0.0
    for groups in domains.values():
        worth = [np.where(g.on, g.scores, 0) * g.cost for g in groups]
        largest += max(w.max() for w in worth) / sum(w.sum() for w in worth)
    assert 0 <= selection.bound - selection.objective < largest


def learned_scores(domains=4, weights=6, channels=64, seed=0):
    rng = np.random.default_rng(seed)
    popularity = rng.normal(0, 1, (weights, channels))
    result = {}
    for name in range(domains):
        scores = 0.8 + 0.5 * popularity + rng.normal(0, 1, (weights, channels))
        result[f"d{name}"] = [
            SwitchGroup(f"w{i}", "in", np.full(channels, 10.0 + i), s > 0, s)
            for i, s in enumerate(scores)
        ]
    return result


def union(kept):
    return sum(np.any(masks, axis=0).sum() for masks in zip(*kept.values(), strict=True))


def test_sharing_shrinks_what_must_be_stored_and_costs_little_importance():
    domains = learned_scores()
    alone = project(domains, 0.4, sharing=0)
    shared = project(domains, 0.4, sharing=1)
    assert shared.objective > shared.independent
    assert union(shared.kept) < 0.9 * union(alone.kept)
    worth = [naive_objective(domains, s.kept, 0) for s in (alone, shared)]
    assert 0.9 * worth[0] < worth[1] < worth[0]


def test_without_sharing_the_least_important_goes_first():
    cost = np.full(4, 1.0)
    scores = np.array([0.4, 0.1, 0.3, 0.2])
    groups = {"d": [SwitchGroup("w", "in", cost, scores > 0, scores)]}
    (kept,) = select(groups, 0.5)["d"]
    assert kept.tolist() == [True, False, True, False]


def test_the_threshold_is_where_importance_starts():
    cost = np.full(4, 1.0)
    low, high = np.array([0.1, 0.2, 0.3, 0.4]), np.array([5.01, 5.02, 5.35, 5.36])
    groups = {
        "d": [
            SwitchGroup("a", "in", cost, low > 0, low),
            SwitchGroup("b", "in", cost, high > 5, high, threshold=5.0),
        ]
    }
    kept = select(groups, 0.5)["d"]
    assert [k.tolist() for k in kept] == [[False, False, True, True]] * 2


def test_a_channel_that_the_others_keep_wins_over_a_slightly_better_one():
    cost = np.full(4, 1.0)
    fixed = np.array([True, False, True, False])
    scores = np.array([1.0, 1.1, 1.0, 1.1])
    groups = {
        "fits": [SwitchGroup("w", "in", cost, fixed, np.where(fixed, 1.0, -1.0))],
        "over": [SwitchGroup("w", "in", cost, scores > 0, scores)],
    }
    assert select(groups, 0.5, sharing=1)["over"][0].tolist() == fixed.tolist()
    assert select(groups, 0.5, sharing=0)["over"][0].tolist() == (~fixed).tolist()


def test_a_domain_without_the_mask_keeps_the_channel():
    """An unmasked weight is fully on, so its domain pulls no channel before another."""
    cost = np.full(4, 1.0)
    scores = np.array([1.0, 1.1, 1.0, 1.1])
    groups = {"over": [SwitchGroup("w", "in", cost, scores > 0, scores)], "dense": []}
    assert select(groups, 0.5)["over"][0].tolist() == [False, True, False, True]
    assert select(groups, 0.5)["dense"] == []


def test_no_mask_is_emptied_while_one_channel_of_each_fits():
    cost = np.full(8, 1.0)
    weak, strong = np.linspace(0.01, 0.02, 8), np.linspace(1, 2, 8)
    groups = {"d": [SwitchGroup(w, "in", cost, s > 0, s) for w, s in [("a", weak), ("b", strong)]]}
    kept = select(groups, 0.125)["d"]
    assert [int(k.sum()) for k in kept] == [1, 1]
    kept = select(groups, 0.0625)["d"]
    assert [int(k.sum()) for k in kept] == [0, 1]


def test_equal_channels_go_from_the_end():
    groups = {"d": [SwitchGroup("w", "in", np.ones(6), np.ones(6, bool), np.ones(6))]}
    assert select(groups, 0.5)["d"][0].tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("kept", range(1, 101))
def test_a_budget_that_is_a_whole_number_of_channels_is_used_up(kept):
    """0.29 * 100 is below 29 in floating point; the share 29 / 100 is 0.29."""
    groups = {"d": [SwitchGroup("w", "in", np.ones(100), np.ones(100, bool), np.ones(100))]}
    assert select(groups, float(f"0.{kept:02}") if kept < 100 else 1.0)["d"][0].sum() == kept


def test_masks_on_one_axis_of_a_weight_count_once():
    cost = np.full(4, 1.0)
    first, second = np.array([1.0, 2.0, -1.0, 3.0]), np.array([4.0, -1.0, 3.0, 2.0])
    masks = [SwitchGroup("w", "out", cost, s > 0, s) for s in (first, second)]
    assert mask_share(masks, [m.on for m in masks], "params") == 0.5
    a, b = select({"d": masks}, 0.25)["d"]
    assert (a & b).tolist() == [False, False, False, True]


# Boolean masks


def booleans(**on):
    cost = np.full(4, 10.0)
    norms = np.array([4.0, 1.0, 3.0, 2.0])
    return {
        name: [SwitchGroup("w", "in", cost, np.array(switches, bool), None, norms)]
        for name, switches in on.items()
    }


def test_boolean_masks_over_the_budget_stop_with_the_figures():
    groups = booleans(small=[1, 0, 0, 0], large=[1, 1, 1, 0], all=[1, 1, 1, 1])
    with pytest.raises(BudgetError) as caught:
        select(groups, 0.5)
    assert caught.value.exit_code == 4
    assert str(caught.value) == (
        "2 of 3 domains do not fit the budget 0.5 of params:\n"
        "  large: uses 0.7500 (30 of 40), allowed 20\n"
        "  all: uses 1.0000 (40 of 40), allowed 20\n"
        "boolean masks are kept as they are: raise the budget, "
        "or let channels be dropped by weight norm with --fit magnitude"
    )


def test_boolean_masks_inside_the_budget_are_kept_with_fit_too():
    groups = booleans(a=[1, 0, 0, 1], b=[0, 0, 1, 1])
    for fit in (None, "magnitude"):
        kept = select(groups, 0.5, fit=fit)
        assert {n: k[0].tolist() for n, k in kept.items()} == {
            "a": [True, False, False, True],
            "b": [False, False, True, True],
        }


def test_fit_magnitude_drops_the_smallest_norms():
    kept = select(booleans(d=[1, 1, 1, 1]), 0.5, fit="magnitude")
    assert kept["d"][0].tolist() == [True, False, True, False]


@settings(max_examples=60, deadline=None)
@given(problems(score=False), sharings)
def test_fit_magnitude_always_meets_the_budget(problem, sharing):
    domains, budget = problem
    kept = select(domains, budget, sharing=sharing, fit="magnitude")
    for name, groups in domains.items():
        assert product_share(groups, kept[name]) <= budget + 1e-12


def test_boolean_masks_may_fit_through_dead_code():
    groups = booleans(d=[1, 1, 1, 0])
    seen = []

    def used_share(name, on):
        seen.append((name, [o.tolist() for o in on]))
        return 0.4

    assert select(groups, 0.5, used_share=used_share)["d"][0].sum() == 3
    assert seen == [("d", [[True, True, True, False]])]


def test_a_used_share_that_stays_over_the_budget_stops():
    with pytest.raises(BudgetError, match=r"d: uses 0\.6000 \(24 of 40\), allowed 20"):
        select(booleans(d=[1, 1, 1, 0]), 0.5, fit="magnitude", used_share=lambda name, on: 0.6)


def test_scores_are_projected_by_their_masks():
    groups = {"d": [SwitchGroup("w", "in", np.ones(4), np.ones(4, bool), np.ones(4))]}
    assert select(groups, 0.5, used_share=lambda name, on: 0.1)["d"][0].sum() == 2


def test_scores_make_room_beside_boolean_masks():
    cost = np.full(4, 1.0)
    boolean = SwitchGroup("a", "in", cost, np.array([True, True, True, False]))
    score = SwitchGroup("b", "in", cost, np.ones(4, bool), np.array([0.1, 0.2, 0.3, 0.4]))
    kept = select({"d": [boolean, score]}, 0.5)["d"]
    assert [k.tolist() for k in kept] == [
        [True, True, True, False],
        [False, False, False, True],
    ]
    with pytest.raises(BudgetError, match=r"d: uses 0\.8750 \(7 of 8\), allowed 2"):
        select({"d": [boolean, score]}, 0.25)


def test_fit_without_norms_says_that_nothing_can_be_dropped():
    groups = {"d": [replace(booleans(d=[1, 1, 1, 1])["d"][0], magnitude=None)]}
    with pytest.raises(BudgetError, match="what is left cannot be dropped: raise the budget"):
        select(groups, 0.5, fit="magnitude")


# Bad input


@pytest.mark.parametrize("budget", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_a_budget_out_of_range_is_refused(budget):
    with pytest.raises(UsageError) as caught:
        select({}, budget)
    assert str(caught.value) == f"the budget is {budget}: it must be above 0 and at most 1"


def test_other_arguments_out_of_range_are_refused():
    with pytest.raises(UsageError, match="the metric is 'flops': it must be one of params, macs"):
        select({}, 0.5, metric="flops")
    with pytest.raises(UsageError, match="the fit is 'random': the only one is 'magnitude'"):
        select({}, 0.5, fit="random")
    with pytest.raises(UsageError, match="the sharing weight is -1: it must be finite"):
        select({}, 0.5, sharing=-1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused(value):
    scores = np.array([1.0, value, 1.0])
    groups = {"d": [SwitchGroup("conv.weight", "in", np.ones(3), np.ones(3, bool), scores)]}
    message = r"domain 'd': the score of channel 1 of 'conv.weight', axis \"in\", is not finite"
    with pytest.raises(CheckpointError, match=message):
        select(groups, 0.5)


def test_a_score_of_minus_infinity_is_off():
    scores = np.array([1.0, -np.inf, 1.0])
    groups = {"d": [SwitchGroup("w", "in", np.ones(3), scores > 0, scores)]}
    assert select(groups, 0.5)["d"][0].tolist() == [True, False, False]

"""The budget on a checkpoint: what counts, what is chosen, what is refused."""

import dataclasses
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from mdprune_deploy.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdprune_deploy.domain import Domain, Mask
from mdprune_deploy.errors import BudgetError, UnsupportedGraphError
from mdprune_deploy.masks import fit_budget, flat_masks, used_share
from mdprune_deploy.pipeline import compile

METRICS = ("params", "macs", "switches")


class Network(nn.Module):
    """Every kind of layer that takes a mask; `twice` is read at two resolutions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2, bias=False)
        self.plain = nn.Conv2d(12, 6, 1, bias=False)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 3, padding=1))
        self.twice = nn.Conv2d(6, 6, 1, bias=False)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = F.leaky_relu(self.grouped(F.leaky_relu(self.first(x))))
        x = F.leaky_relu(self.normed(F.leaky_relu(self.plain(x))))
        return self.fc(self.twice(F.avg_pool2d(self.twice(x), 2)).mean((2, 3)))


PARAMETER = "normed.parametrizations.weight.original1"
SIZES = {"first": (3, 8), "grouped": (8, 12), "plain": (12, 6), "normed": (6, 6),
         PARAMETER: (6, 6), "twice": (6, 6), "fc": (6, 4)}  # fmt: skip
"""Input and output channels by the key of a mask."""
PARAMS = {"first": 216, "grouped": 432, "plain": 72, "normed": 324, PARAMETER: 324, "twice": 36,
          "fc": 24}  # fmt: skip
MACS = {"first": 216 * 64, "grouped": 432 * 64, "plain": 72 * 64, "normed": 324 * 64,
        PARAMETER: 324 * 64, "twice": 36 * (64 + 16), "fc": 24}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    return Network().eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """One export whose sites know every key."""
    masks = {
        key: Mask(torch.ones(size, dtype=torch.bool), "in") for key, (size, _) in SIZES.items()
    }
    path = tmp_path_factory.mktemp("masks") / "model.pt"
    save_checkpoint(path, network, torch.randn(1, 3, 8, 8), {"all": Domain(masks)})
    return load_checkpoint(path)


def with_masks(checkpoint: Checkpoint, **domains) -> Checkpoint:
    return dataclasses.replace(checkpoint, domains={n: Domain(m) for n, m in domains.items()})


def switches(key, on, axis="in", site="weight"):
    values = torch.zeros(SIZES[key][axis == "out"], dtype=torch.bool)
    values[list(on)] = True
    return Mask(values, axis, site)


def scores(key, seed, axis="in", threshold=0.0):
    """Scores of which about two of three are above the threshold."""
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.normal(threshold + 0.4, 1.0, SIZES[key][axis == "out"]))
    values[int(rng.integers(len(values)))] = threshold + 2.0
    return Mask(values, axis, threshold=threshold)


def kept(checkpoint, domain):
    """The switches of a domain, by key, axis and place."""
    return {
        (key, mask.axis, place): mask.on.numpy()
        for key, place, mask in flat_masks(checkpoint.domains[domain])
    }


def weight_factor(name, masks, groups=1):
    """What the masks multiply a weight of (filters, channels per group, ...) by."""
    channels, filters = SIZES[name]
    factor = torch.ones(filters, channels // groups)
    for mask in masks:
        on = mask.on.double()
        if mask.axis == "out":
            factor = factor * on[:, None]
        else:
            factor = factor * on.reshape(groups, -1).repeat_interleave(filters // groups, dim=0)
    return factor


def gradient_pairs(network, masks):
    """The pairs whose weight the output depends on, by differentiation; float64."""
    model = Network().double()
    model.load_state_dict(network.state_dict())
    torch.nn.utils.parametrize.remove_parametrizations(model.normed, "weight")
    leaves, state = {}, dict(model.named_parameters())
    for name in ("first", "grouped", "plain", "normed", "twice", "fc"):
        weight = state[f"{name}.weight"].detach()
        own = [
            m for key in (name, PARAMETER if name == "normed" else "") for m in masks.get(key, [])
        ]
        factor = weight_factor(name, own, 2 if name == "grouped" else 1).double()
        factor = factor.reshape(*factor.shape, *[1] * (weight.ndim - 2))
        leaves[name] = (weight * factor).requires_grad_()
        state[f"{name}.weight"] = leaves[name]
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    y = torch.func.functional_call(model, state, x)
    (y * torch.randn_like(y)).sum().backward()
    found = {}
    for name, leaf in leaves.items():
        acts = (leaf.grad * leaf.detach()).abs().reshape(*leaf.shape[:2], -1).sum(2) > 0
        found[name] = acts.numpy()
    return found


def counted(network, masks, metric):
    """The used share from first principles: pairs that act, over all pairs of masked weights."""
    pairs = gradient_pairs(network, masks)
    if metric == "switches":
        on = total = 0
        for key, own in masks.items():
            name = "normed" if key == PARAMETER else key
            for mask in own:
                used = pairs[name].any(1 if mask.axis == "out" else 0)
                if name == "grouped" and mask.axis == "in":
                    used = pairs[name].reshape(2, 6, 4).any(1).reshape(-1)
                on += int((mask.on.numpy() & used).sum())
                total += len(used)
        return on / total
    cost = PARAMS if metric == "params" else MACS
    used = total = 0.0
    for key in masks:
        acting = pairs["normed" if key == PARAMETER else key]
        used, total = used + cost[key] * acting.mean(), total + cost[key]
    return used / total


IN = {
    "grouped": [switches("grouped", [0, 1, 5, 6, 7])],
    "plain": [switches("plain", range(0, 12, 2))],
    "twice": [switches("twice", [1, 2, 4])],
}
BOTH = {
    "first": [switches("first", [0, 1, 2, 5, 7], "out"), switches("first", [0, 2])],
    "normed": [switches("normed", [0, 1, 5]), switches("normed", [2, 3, 4, 5], "out")],
    "fc": [switches("fc", [0, 2, 3, 5])],
}
MIXED = {
    PARAMETER: [switches(PARAMETER, [0, 1, 5])],
    "grouped": [switches("grouped", range(3, 9), "out", "output")],
    "plain": [switches("plain", range(4, 12))],
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("masks", [IN, BOTH, MIXED], ids=["in", "both", "mixed"])
def test_the_used_share_counts_what_the_output_depends_on(network, exported, masks, metric):
    checkpoint = with_masks(exported, d=masks)
    expected = counted(network, masks, metric)
    assert 0.1 < expected < 0.7
    assert used_share(checkpoint, "d", metric) == pytest.approx(expected, abs=1e-12)


def test_a_parameter_and_its_module_are_the_same_weight(exported):
    on = [0, 1, 5]
    by_module = with_masks(exported, d={"normed": switches("normed", on)})
    by_parameter = with_masks(exported, d={PARAMETER: switches(PARAMETER, on)})
    for metric in METRICS:
        share = used_share(by_module, "d", metric)
        assert used_share(by_parameter, "d", metric) == share == 0.5
    message = r"d: uses 0\.5000 \(162 of 324\), allowed 130"
    for checkpoint in (by_module, by_parameter):
        with pytest.raises(BudgetError, match=message):
            fit_budget(checkpoint, 0.4)


def test_a_weight_that_is_read_twice_counts_all_its_work(exported):
    # 2880 MACs of `twice` and 4608 of `plain`; the gradient reaches all of both.
    checkpoint = with_masks(exported, d={
        "twice": scores("twice", 0), "plain": scores("plain", 1)
    })  # fmt: skip
    for budget in (0.3, 0.5):
        fitted = fit_budget(checkpoint, budget, "macs")
        on = kept(fitted, "d")
        masked = 2880 * on["twice", "in", 0].mean() + 4608 * on["plain", "in", 0].mean()
        assert masked / 7488 <= budget
        assert used_share(fitted, "d", "macs") <= budget


@pytest.mark.parametrize("metric", METRICS)
def test_boolean_masks_inside_the_budget_are_kept_as_they_are(exported, metric):
    checkpoint = with_masks(exported, a=IN, b=MIXED)
    share = max(used_share(checkpoint, name, metric) for name in "ab")
    fitted = fit_budget(checkpoint, share, metric)
    for name in "ab":
        for before, after in zip(
            flat_masks(checkpoint.domains[name]), flat_masks(fitted.domains[name]), strict=True
        ):
            assert before[:2] == after[:2]
            assert torch.equal(before[2].values, after[2].values)
            assert (before[2].axis, before[2].site) == (after[2].axis, after[2].site)


def test_dead_code_lets_boolean_masks_into_the_budget(exported):
    # By the masks alone: all of `grouped` and half of `plain`. But what `plain` does not read of
    # `grouped` is dead, so half of both is used.
    masks = {
        "grouped": switches("grouped", range(8)),
        "plain": switches("plain", range(0, 12, 2)),
    }
    checkpoint = with_masks(exported, d=masks)
    assert used_share(checkpoint, "d", "params") == 0.5
    fitted = fit_budget(checkpoint, 0.5)
    assert kept(fitted, "d")["grouped", "in", 0].all()
    with pytest.raises(BudgetError):
        fit_budget(checkpoint, 0.499)


def test_the_refusal_names_every_domain_with_its_figures(exported):
    checkpoint = with_masks(
        exported,
        half={"plain": switches("plain", range(6))},
        third={"plain": switches("plain", range(4))},
        most={"plain": switches("plain", range(10))},
    )
    with pytest.raises(BudgetError) as refusal:
        fit_budget(checkpoint, 0.4)
    assert str(refusal.value).splitlines() == [
        "2 of 3 domains do not fit the budget 0.4 of params:",
        "  half: uses 0.5000 (36 of 72), allowed 29",
        "  most: uses 0.8333 (60 of 72), allowed 29",
        "boolean masks are kept as they are: raise the budget, or let channels be dropped by "
        "weight norm with --fit magnitude",
    ]


def test_magnitude_keeps_the_channels_of_the_largest_weights(network, exported):
    checkpoint = with_masks(exported, d={"plain": switches("plain", range(12))})
    fitted = fit_budget(checkpoint, 0.5, fit="magnitude")
    norms = network.plain.weight.detach().double().flatten(2).norm(dim=(0, 2))
    best = torch.topk(norms, 6).indices.sort().values
    assert np.flatnonzero(kept(fitted, "d")["plain", "in", 0]).tolist() == best.tolist()


def test_magnitude_of_grouped_filters_and_channels(network, exported):
    weight = network.grouped.weight.detach().double()
    by_channel = weight.reshape(2, 6, 4, 9).pow(2).sum((1, 3)).reshape(-1)
    by_filter = weight.flatten(1).pow(2).sum(1)
    for axis, norms, size in (("in", by_channel, 8), ("out", by_filter, 12)):
        checkpoint = with_masks(exported, d={"grouped": switches("grouped", range(size), axis)})
        fitted = fit_budget(checkpoint, 0.5, fit="magnitude")
        best = torch.topk(norms, size // 2).indices.sort().values
        assert np.flatnonzero(kept(fitted, "d")["grouped", axis, 0]).tolist() == best.tolist()


def test_magnitude_leaves_domains_that_fit(exported):
    inside = {"plain": switches("plain", range(4))}
    checkpoint = with_masks(exported, a=inside, b={"plain": switches("plain", range(12))})
    fitted = fit_budget(checkpoint, 0.5, fit="magnitude")
    assert np.flatnonzero(kept(fitted, "a")["plain", "in", 0]).tolist() == [0, 1, 2, 3]
    assert kept(fitted, "b")["plain", "in", 0].sum() == 6


def test_scores_above_the_threshold_are_kept_best_first(exported):
    checkpoint = with_masks(exported, d={"plain": scores("plain", 4, threshold=0.7)})
    values = checkpoint.domains["d"].masks["plain"].values.numpy()
    fitted = fit_budget(checkpoint, 0.25)
    on = kept(fitted, "d")["plain", "in", 0]
    assert np.flatnonzero(on).tolist() == sorted(np.argsort(-values)[:3].tolist())
    assert fitted.domains["d"].masks["plain"][0].values.dtype == torch.bool


def test_scores_inside_the_budget_become_switches(exported):
    checkpoint = with_masks(exported, d={"plain": scores("plain", 4)})
    before = checkpoint.domains["d"].masks["plain"].on.numpy()
    assert np.array_equal(kept(fit_budget(checkpoint, 1.0), "d")["plain", "in", 0], before)


def test_scores_and_switches_in_one_domain(exported):
    fixed = switches("plain", range(6))
    checkpoint = with_masks(exported, d={"plain": fixed, "normed": scores("normed", 5)})
    fitted = fit_budget(checkpoint, 0.3)
    on = kept(fitted, "d")
    assert np.array_equal(on["plain", "in", 0], fixed.on.numpy())
    # (36 + 54 n) / 396 <= 0.3
    assert on["normed", "in", 0].sum() == 1
    # Where no channel of it fits, the score mask is emptied; the switches stay.
    on = kept(fit_budget(checkpoint, 0.2), "d")
    assert (on["plain", "in", 0].sum(), on["normed", "in", 0].sum()) == (6, 0)
    with pytest.raises(BudgetError, match=r"d: uses .* of 396\), allowed 36"):
        fit_budget(checkpoint, 0.0908)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("budget", [0.2, 0.3, 0.4, 0.5, 0.6])
def test_channels_and_filters_of_a_grouped_layer_are_no_product(network, exported, metric, budget):
    # The best channels and the best filters are those of group 0: half of each is half of all.
    def falling(axis, key="grouped"):
        return Mask(torch.arange(SIZES[key][axis == "out"], 0.0, -1.0), axis)

    masks = {"grouped": [falling("in"), falling("out")], "normed": [falling("in", "normed")]}
    masks["normed"][0].values.add_(100.0)  # kept before anything of `grouped`
    fitted = fit_budget(with_masks(exported, d=masks), budget, metric)
    shown = {key: list(own) for key, own in fitted.domains["d"].masks.items()}
    assert counted(network, shown, metric) <= budget


DOMAINS = {
    "scores": {
        k: scores(k, i) for i, k in enumerate(("grouped", "plain", "normed", "twice", "fc"))
    },
    "filters": {
        "first": scores("first", 11, "out"),
        "plain": [scores("plain", 12), scores("plain", 13, "out")],
        PARAMETER: scores(PARAMETER, 14, "out"),
    },
    "mixed": {
        "normed": scores("normed", 15),
        "twice": switches("twice", [0, 3]),
        "fc": switches("fc", [0, 2], "in"),
        "grouped": scores("grouped", 16),
    },
    "switches": {"plain": switches("plain", [0, 1, 2]), "twice": switches("twice", [4])},
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("budget", [0.45, 0.6])
def test_every_domain_fits_whatever_its_masks(network, exported, metric, budget):
    checkpoint = with_masks(exported, **DOMAINS)
    fitted = fit_budget(checkpoint, budget, metric)
    for name in DOMAINS:
        before, after = kept(checkpoint, name), kept(fitted, name)
        assert all((after[key] <= before[key]).all() for key in before)
        assert all(on.any() for on in after.values())
        assert used_share(fitted, name, metric) <= budget
        shown = {
            key: m if isinstance(m, list) else [m] for key, m in fitted.domains[name].masks.items()
        }
        if metric == "params" and name in ("scores", "switches"):
            assert counted(network, shown, metric) <= budget


def test_a_smaller_budget_keeps_no_more(exported):
    checkpoint = with_masks(exported, d=DOMAINS["scores"])
    shares = [used_share(fit_budget(checkpoint, b), "d", "params") for b in (0.2, 0.3, 0.45, 0.6)]
    assert all(a <= b for a, b in pairwise(shares))


def test_the_report_of_a_compile_is_inside_the_budget(exported, tmp_path):
    budget = 0.5
    checkpoint = with_masks(exported, **DOMAINS)
    report = compile(checkpoint, tmp_path / "out", budget=budget)
    layers = {"first.weight", "grouped.weight", "plain.weight", "twice.weight", "fc.weight"}
    for name, masks in DOMAINS.items():
        figures = {layer.name if layer.name in layers else "normed.weight": layer
                   for layer in report.domains[name].layers if layer.params_dense}  # fmt: skip
        masked = [figures[("normed" if k == PARAMETER else k) + ".weight"] for k in masks]
        used = sum(layer.params_used for layer in masked)
        dense = sum(layer.params_dense for layer in masked)
        assert dense == sum(PARAMS[key] for key in masks)
        assert 0 < used <= budget * dense
        assert report.domains[name].max_rel_error <= 1e-5  # the contract's bound in float32


def test_a_product_that_cannot_be_counted_is_refused():
    rng = np.random.default_rng(0)

    def value(name, array):
        return ir.val(name, const_value=ir.tensor(array.astype(np.float32), name=name),
                      dtype=ir.DataType.FLOAT, shape=ir.Shape(array.shape))  # fmt: skip

    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[1, 1, 4])
    weight = value("w", rng.standard_normal((2, 4, 4)))  # a stack: one matrix per item
    node = ir.node("MatMul", [x, weight], name="stacked")
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[weight],
                     opset_imports={"": 20}, name="g")  # fmt: skip
    checkpoint = Checkpoint(
        model=ir.Model(graph, ir_version=10),
        examples={"x": np.ones((1, 1, 4), np.float32)},
        domains={"d": Domain({"w": Mask(torch.ones(4, dtype=torch.bool), "in")})},
        parameters=("w",),
        sites={"w": "w"},
    )
    with pytest.raises(UnsupportedGraphError) as refusal:
        fit_budget(checkpoint, 0.5)
    assert str(refusal.value) == (
        "domain 'd': the mask on 'w' cannot be held to a budget: no layer that reads 'w' has "
        "channels that can be counted"
    )

"""Training end to end on small images whose classes are easy to tell apart."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from mdprune_deploy.errors import UsageError
from mdprune_deploy.training import (
    MultiDomainNetwork,
    Settings,
    Step,
    accuracy,
    intersection_over_union,
    train,
)

DOMAINS = ("stripes", "corners", "noise")
STEPS = 150


class ResidualNetwork(nn.Module):
    """A convolution, one residual block and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv1 = nn.Conv2d(24, 32, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 24, 3, 1, 1, bias=False)
        self.fc = nn.Linear(24, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.conv1(torch.relu(self.bn1(x)))
        return self.fc((x + self.conv2(torch.relu(self.bn2(y)))).mean((2, 3)))


@functools.cache
def data() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Three domains of four classes: each class has a pattern, each image its noise."""
    generator = torch.Generator().manual_seed(5)
    result = {}
    for name in DOMAINS:
        patterns = torch.randn(4, 3, 8, 8, generator=generator)
        classes = torch.randint(4, (128,), generator=generator)
        noise = torch.randn(128, 3, 8, 8, generator=generator)
        result[name] = (patterns[classes] + 0.5 * noise, classes)
    return result


@functools.cache
def trained(budget: float = 0.5, sharing: str = "none", run: int = 0) -> MultiDomainNetwork:
    """Trains from one seed; `run` only tells repeated calls apart."""
    torch.manual_seed(3)
    network = MultiDomainNetwork(ResidualNetwork(), dict.fromkeys(DOMAINS, 4))
    settings = Settings(steps=STEPS, batch=16, budget=budget, sharing=sharing, sharing_rate=0.3)
    train(network, data(), settings)
    return network


def counted_share(network: MultiDomainNetwork, domain: int) -> float:
    """Counts the weights behind open switches from the layers, not from `sizes`."""
    used = total = 0
    for name, part in network.layers.items():
        weight = network.backbone.get_submodule(name).weight
        used += weight[:, network.scores[domain, part] > 0].numel()
        total += weight.numel()
    return used / total


@pytest.mark.parametrize("budget", [1.0, 0.75, 0.5, 0.25])
def test_budget_is_met_exactly_and_the_domains_are_learned(budget: float):
    network = trained(budget)
    for domain in range(len(DOMAINS)):
        assert 0.2 * budget < counted_share(network, domain) <= budget
    assert min(accuracy(network, data()).values()) > 0.9


@pytest.mark.parametrize("sharing", ["intersection", "union", "jaccard"])
def test_sharing_raises_the_overlap_on_the_same_seed(sharing: str):
    without = intersection_over_union(trained())
    with_loss = trained(sharing=sharing)
    assert intersection_over_union(with_loss) > without + 0.1
    assert max(counted_share(with_loss, d) for d in range(len(DOMAINS))) <= 0.5
    assert min(accuracy(with_loss, data()).values()) > 0.9


def test_same_seed_gives_the_same_network():
    first, second = trained(), trained(run=1)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_training_pulls_the_complexity_to_the_budget_before_the_fit():
    torch.manual_seed(3)
    network = MultiDomainNetwork(ResidualNetwork(), dict.fromkeys(DOMAINS, 4))
    steps: list[Step] = []
    train(network, data(), Settings(steps=STEPS, batch=16, budget=0.5), watch=steps.append)
    searched = round(0.6 * STEPS)
    assert all(share < 0.65 for share in steps[searched - 1].complexity.values())
    assert min(min(step.multipliers.values()) for step in steps) >= 0
    assert max(max(step.multipliers.values()) for step in steps) > 0
    # The switches stand still afterwards.
    assert len({tuple(step.complexity.values()) for step in steps[searched:]}) == 1
    assert not network.training


def test_dense_training_leaves_the_switches_on():
    torch.manual_seed(3)
    network = MultiDomainNetwork(ResidualNetwork(), dict.fromkeys(DOMAINS, 4))
    before = network.backbone.get_submodule("conv1").weight.detach().clone()
    train(network, data(), Settings(steps=3, batch=16, search=0))
    assert network.complexity().tolist() == [1.0] * len(DOMAINS)
    assert not torch.equal(network.backbone.get_submodule("conv1").weight, before)


@pytest.mark.parametrize(
    ("settings", "domains", "message"),
    [
        (Settings(budget=0), DOMAINS, "the budget is 0: it must be above 0 and at most 1"),
        (Settings(search=2), DOMAINS, "search is 2: it must be a share of the steps, 0 to 1"),
        (
            Settings(),
            DOMAINS[:2],
            "data has the domains ['corners', 'stripes'], "
            "the network ['corners', 'noise', 'stripes']",
        ),
    ],
)
def test_refusals(settings: Settings, domains: tuple[str, ...], message: str):
    network = MultiDomainNetwork(ResidualNetwork(), dict.fromkeys(DOMAINS, 4))
    with pytest.raises(UsageError) as caught:
        train(network, {name: data()[name] for name in domains}, settings)
    assert str(caught.value) == message

"""Trains all domains together: one mini-batch of each domain makes one step.

A run has two phases. In the first, weights and switches move under the budget and the sharing
constraint. Then the switches are fitted to the budget exactly and stand still, while weights,
batch norms and heads go on, so that the masks that are exported are the ones that were trained for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mdprune_deploy.errors import UsageError
from mdprune_deploy.training.budget import Constraint, fit
from mdprune_deploy.training.network import LIMIT, MultiDomainNetwork
from mdprune_deploy.training.sharing import Sharing, intersection_over_union, sharing_loss

Data = Mapping[str, tuple[Tensor, Tensor]]
"""By domain: images (count, channels, height, width) and classes int64 (count,)."""
Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Changes a batch of images at random; draws from the generator only."""


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults suit a small network and some hundred steps.

    Attributes:
        steps: Steps; each takes one mini-batch of every domain.
        batch: Images of one mini-batch.
        rate: Peak learning rate of weights, batch norms and heads (SGD, one cycle).
        decay: Their weight decay.
        budget: Largest size-weighted share of switches that are on in a domain, in (0, 1].
        search: Share of the steps in which switches move; 0 trains the network as it is.
        score_rate: Learning rate of the scores (Adam).
        multiplier_rate: Step of the budget's dual ascent.
        penalty: Weight of the budget's augmenting term.
        sharing: Which sharing loss.
        sharing_rate: Step of the dual ascent of its weight.
        sharing_penalty: Weight of its augmenting term.
        sharing_target: The weight grows while the loss is above this.
        sharing_most: Largest weight.
        seed: Seed of the order of the images and of the augmentation.
    """

    steps: int = 500
    batch: int = 32
    rate: float = 0.05
    decay: float = 5e-4
    budget: float = 1.0
    search: float = 0.6
    score_rate: float = 0.01
    multiplier_rate: float = 0.05
    penalty: float = 2.0
    sharing: Sharing = "none"
    sharing_rate: float = 0.1
    sharing_penalty: float = 10.0
    sharing_target: float = 0.0
    sharing_most: float = 20.0
    seed: int = 0

    def check(self) -> None:
        """Refuses a budget or a share out of range with `UsageError`."""
        if not 0 < self.budget <= 1:
            raise UsageError(f"the budget is {self.budget}: it must be above 0 and at most 1")
        if not 0 <= self.search <= 1:
            raise UsageError(f"search is {self.search}: it must be a share of the steps, 0 to 1")


@dataclass(frozen=True)
class Step:
    """What one step measured.

    Attributes:
        index: The step, from 0.
        losses: Cross-entropy by domain.
        complexity: Size-weighted share of switches that are on, by domain.
        multipliers: The budget's multipliers, by domain.
        sharing_weight: The sharing loss's learned weight.
        overlap: Intersection over union of the domains' switches.
    """

    index: int
    losses: dict[str, float]
    complexity: dict[str, float]
    multipliers: dict[str, float]
    sharing_weight: float
    overlap: float


def train(
    network: MultiDomainNetwork,
    data: Data,
    settings: Settings,
    *,
    augment: Augment | None = None,
    watch: Callable[[Step], None] | None = None,
) -> None:
    """Trains all domains together and leaves the network in eval mode, the budget met.

    Args:
        network: Trained in place. A second run goes on from the first.
        data: The training images of every domain.
        settings: How.
        augment: Changes a batch of images before it is used.
        watch: Called after every step.

    Raises:
        UsageError: A setting is out of range, or `data` has not the network's domains.
        BudgetError: One channel of every convolution is more than the budget.
    """
    settings.check()
    if set(data) != set(network.domains):
        raise UsageError(
            f"data has the domains {sorted(data)}, the network {sorted(network.domains)}"
        )
    run = Run(network, data, settings, augment)
    network.train()
    for index in range(settings.steps):
        if index == run.search_steps:
            run.settle()
        step = run.step(index)
        if watch is not None:
            watch(step)
    if settings.steps == run.search_steps:
        run.settle()
    network.eval()


class Run:
    """The state of one training run."""

    def __init__(
        self,
        network: MultiDomainNetwork,
        data: Data,
        settings: Settings,
        augment: Augment | None,
    ) -> None:
        self.network, self.settings = network, settings
        self.search_steps = round(settings.search * settings.steps)
        generator = torch.Generator().manual_seed(settings.seed)
        self.batches = {
            domain: batches(*data[domain], settings.batch, generator, augment)
            for domain in network.domains
        }
        network.scores.requires_grad_(self.search_steps > 0)
        weights = [p for p in network.parameters() if p.requires_grad and p is not network.scores]
        self.weights = torch.optim.SGD(
            weights, settings.rate, momentum=0.9, weight_decay=settings.decay, nesterov=True
        )
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(
            self.weights, settings.rate, max(2, settings.steps), cycle_momentum=False
        )
        self.scores = torch.optim.Adam([network.scores], settings.score_rate)
        zeros = torch.zeros(len(network.domains))
        self.budget = Constraint(zeros, settings.multiplier_rate, settings.penalty)
        self.sharing = Constraint(
            torch.zeros(1), settings.sharing_rate, settings.sharing_penalty, settings.sharing_most
        )

    def step(self, index: int) -> Step:
        """Takes one step with one mini-batch of every domain."""
        self.weights.zero_grad()
        self.scores.zero_grad()
        losses = {}
        for domain, images in self.batches.items():
            x, y = next(images)
            loss = nn.functional.cross_entropy(self.network(x, domain), y)
            loss.backward()  # type: ignore[no-untyped-call]
            losses[domain] = loss.item()
        searching = self.network.scores.requires_grad
        if searching:
            self.constrain()
        self.weights.step()
        self.cycle.step()
        if searching:
            self.scores.step()
            with torch.no_grad():
                self.network.scores.clamp_(-LIMIT, LIMIT)
        return self.measure(index, losses)

    def constrain(self) -> None:
        """Adds the gradients of both constraints and moves their multipliers."""
        settings = self.settings
        excess = self.network.complexity() - settings.budget
        loss = sharing_loss(self.network, settings.sharing, settings.budget)
        apart = (loss - settings.sharing_target).reshape(1)
        term = self.budget.term(excess) + self.sharing.term(apart)
        term.backward()  # type: ignore[no-untyped-call]
        self.budget.ascend(excess)
        self.sharing.ascend(apart)

    def settle(self) -> None:
        """Fits the switches to the budget and lets them stand still."""
        fit(self.network, self.settings.budget)
        self.network.scores.requires_grad_(False)

    def measure(self, index: int, losses: dict[str, float]) -> Step:
        """Returns what there is to say about a step."""
        names = self.network.domains
        return Step(
            index,
            losses,
            dict(zip(names, self.network.complexity().tolist(), strict=True)),
            dict(zip(names, self.budget.multipliers.tolist(), strict=True)),
            self.sharing.multipliers.item(),
            intersection_over_union(self.network),
        )


def batches(
    x: Tensor, y: Tensor, size: int, generator: torch.Generator, augment: Augment | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches for ever, every image once per round; the rest of a round is left out."""
    size = min(size, len(x))
    while True:
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x) - size + 1, size):
            chosen = order[start : start + size]
            images = x[chosen]
            yield (images if augment is None else augment(images, generator)), y[chosen]


@torch.no_grad()
def accuracy(network: MultiDomainNetwork, data: Data, batch: int = 250) -> dict[str, float]:
    """Returns by domain the share of images whose largest logit is the right class.

    Args:
        network: Used in eval mode and left in it.
        data: Images and classes by domain.
        batch: Images at a time.
    """
    network.eval()
    result = {}
    for domain, (x, y) in data.items():
        logits = torch.cat([network(part, domain) for part in torch.split(x, batch)])
        result[domain] = (logits.argmax(1) == y).double().mean().item()
    return result

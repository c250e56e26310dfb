"""What sharing between domains costs and saves when a budget chooses the channels.

For every sharing weight: the weights that must be stored (union), those that all domains use
(intersection), and the importance that the domains keep, beside every domain choosing alone.
Run `python -m benchmarks.budget_tradeoff [--checkpoint MODEL.pt]`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import mdprune_deploy as mdp
from mdprune_deploy.budget import SwitchGroup, project
from mdprune_deploy.domain import Domain, Mask
from mdprune_deploy.knapsack import Switches

from .harness import make_case, save, show
from .networks import NETWORKS

SHARING = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
Groups = dict[str, list[SwitchGroup]]


def groups_of(domains: Mapping[str, Domain], sizes: Mapping[str, Sequence[int]]) -> Groups:
    """Returns the masks of all domains with their costs in parameters.

    Args:
        domains: The domains.
        sizes: Shape of each masked weight: outputs, inputs, kernel.
    """
    result: Groups = {}
    for name, domain in domains.items():
        result[name] = []
        for weight, masks in domain.masks.items():
            for mask in [masks] if isinstance(masks, Mask) else masks:
                shape = sizes[weight]
                channels = shape[1] if mask.axis == "in" else shape[0]
                cost = np.full(channels, np.prod(shape) / channels)
                scores = mask.values.numpy() if mask.is_score else None
                result[name].append(
                    SwitchGroup(
                        weight, mask.axis, cost, mask.on.numpy(), scores, threshold=mask.threshold
                    )
                )
    return result


def figures(groups: Groups, budget: float, sharing: float) -> dict[str, float]:
    """Returns the figures of one choice; `groups` have masks on input channels only.

    Union and intersection are shares of the maskable weights, importance is the mean over domains
    of the share that is kept of what the masks leave on.
    """
    selection = project(groups, budget, sharing=sharing)
    stacks = [np.stack(masks) for masks in zip(*selection.kept.values(), strict=True)]
    costs = [group.cost for group in next(iter(groups.values()))]
    total = sum(cost.sum() for cost in costs)
    union = sum(cost[s.any(axis=0)].sum() for cost, s in zip(costs, stacks, strict=True))
    common = sum(cost[s.all(axis=0)].sum() for cost, s in zip(costs, stacks, strict=True))
    kept = [importance_kept(masks, selection.kept[name]) for name, masks in groups.items()]
    return {
        "sharing": sharing,
        "union": float(union / total),
        "intersection": float(common / total),
        "intersection / union": float(common / union),
        "importance kept": float(np.mean(kept)),
        "objective": selection.objective,
        "independent": selection.independent,
        "bound": selection.bound,
    }


def importance_kept(masks: Sequence[SwitchGroup], kept: Sequence[Switches]) -> float:
    """Returns the share of a domain's importance (cost times margin) that `kept` keeps."""
    worth = []
    for group in masks:
        assert group.scores is not None
        worth.append(group.cost * np.where(group.on, group.scores - group.threshold, 0.0))
    return float(
        sum(w[k].sum() for w, k in zip(worth, kept, strict=True)) / sum(w.sum() for w in worth)
    )


def checkpoint_groups(path: Path) -> Groups:
    """Returns the masks of a checkpoint, sizes taken from its parameters."""
    checkpoint = mdp.load_checkpoint(path)
    initializers = checkpoint.model.graph.initializers
    sizes = {}
    for key in {key for domain in checkpoint.domains.values() for key in domain.masks}:
        value = initializers[checkpoint.sites[key]]
        assert value.shape is not None
        sizes[key] = value.shape.numpy()
    return groups_of(checkpoint.domains, sizes)


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, default="r50")
    parser.add_argument("--on", type=float, default=0.8, help="share that is on before the budget")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint with scores instead")
    arguments = parser.parse_args()
    if arguments.checkpoint:
        groups, title = checkpoint_groups(arguments.checkpoint), arguments.checkpoint.name
    else:
        torch.set_num_threads(1)
        case = make_case(arguments.network, "learned", keep=arguments.on, scores=True)
        sizes = {name: tuple(p.shape) for name, p in case.model.named_parameters()}
        groups, title = groups_of(case.domains, sizes), case.name
    rows = [figures(groups, arguments.budget, sharing) for sharing in SHARING]
    show(f"{title}, {len(groups)} domains, budget {arguments.budget}", rows)
    settings = {"source": title, "budget": arguments.budget, "on": arguments.on}
    print(save(f"budget_tradeoff-{Path(title).stem}", settings, rows))


if __name__ == "__main__":
    main()

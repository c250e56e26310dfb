"""What the union of all domains' weights takes, and what a domain reads of it.

Per case: what is stored over the dense weights, exactly the union of the used pairs (the lower
bound) and with classes grouped; what private copies of all domains would take; the cache lines that
a domain touches over those that its weights fill (1 is best), with filters in their natural order
and in the one that is chosen; slabs that a domain reads per layer, and their bytes in its plan.

Run `python -m benchmarks.layout [--networks r50 wrn] [--counts 6 20]`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mdprune_deploy as mdp
from mdprune_deploy.layout.union import LINE, Indices, Selection, union
from mdprune_deploy.passes.bind import WeightUse
from mdprune_deploy.passes.elements import indices_of
from mdprune_deploy.passes.figures import products
from mdprune_deploy.passes.place import place
from mdprune_deploy.passes.remove import analyzed
from mdprune_deploy.passes.shared_order import global_order, tied_values
from mdprune_deploy.passes.widening import GATHERED

from .harness import make_case, save, show
from .masks import STYLES
from .networks import NETWORKS


@dataclass(frozen=True, eq=False)
class Weight:
    """One backbone weight and what the domains read of it.

    Attributes:
        size: Elements.
        taps: Elements per channel pair.
        output: The value whose channels its filters are.
        filters: How many filters.
        selections: What every domain reads.
    """

    size: int
    taps: int
    output: str
    filters: int
    selections: dict[str, Selection]


def read_weights(checkpoint: mdp.Checkpoint) -> tuple[list[Weight], dict[str, Indices]]:
    """Returns the weights that are read with one group, and the chosen order of channels."""
    weights: dict[WeightUse, Weight] = {}
    classes = []
    for domain in checkpoint.domains:
        model, facts = analyzed(checkpoint, domain)
        facts.widening = GATHERED
        place(model.graph, facts)
        classes.append(tied_values(model.graph, facts))
        for node, entry, layer in products(model.graph, facts):
            use, output = node.meta["weight"], node.outputs[0]
            if output not in facts.kept or layer.groups > 1 or use.version:
                continue
            read = facts.required[node, entry.data(node)].sets
            found = weights.setdefault(
                use,
                Weight(layer.weight.size, layer.kernel, str(output.name), layer.filters, {}),
            )
            found.selections[domain] = Selection(
                indices_of(facts.kept[output], layer.out_axis, layer.filters),
                indices_of(read, layer.in_axis, layer.channels),
            )
    return list(weights.values()), global_order(classes)


def measure(network: str, style: str, count: int) -> dict[str, object]:
    """Returns the row of one case."""
    case = make_case(network, style, count)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        mdp.save_checkpoint(path, case.model, case.example, case.domains)
        weights, orders = read_weights(mdp.load_checkpoint(path))
    dense = sum(weight.size for weight in weights)
    row: dict[str, object] = {"case": case.name, "domains": count}
    private = sum(
        weight.taps * len(s.filters) * len(s.channels)
        for weight in weights
        for s in weight.selections.values()
    )
    row["private"] = private / dense
    for name, grouped in (("union", False), ("grouped", True)):
        stored = touched = used = plan = 0
        slabs = []
        for weight in weights:
            natural = np.arange(weight.filters)
            order = orders.get(weight.output, natural) if grouped else natural
            layout = union(weight.selections, order, taps=weight.taps, grouped=grouped)
            stored += layout.pairs * weight.taps
            for domain in weight.selections:
                lines, pairs = layout.lines(domain)
                touched += lines * weight.taps
                used += pairs * weight.taps
                plan += layout.plan_bytes(domain)
                slabs.append(len(layout.readers[domain].readings))
        row[name] = stored / dense
        row[f"{name}: lines"] = touched * LINE / used
        row[f"{name}: slabs"] = float(np.mean(slabs))
        row[f"{name}: plan KiB"] = plan / count / 1024
    return row


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", choices=NETWORKS, nargs="+", default=["r50", "wrn"])
    parser.add_argument("--styles", choices=STYLES, nargs="+", default=list(STYLES))
    parser.add_argument("--counts", type=int, nargs="+", default=[6, 20])
    arguments = parser.parse_args()
    rows = [
        measure(network, style, count)
        for network in arguments.networks
        for style in arguments.styles
        for count in arguments.counts
    ]
    show("Stored weights over dense weights, and what a domain touches", rows)
    print(save("layout", vars(arguments), rows))


if __name__ == "__main__":
    main()

"""The order of the passes: from one domain's masked dense model to its narrowed graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..report import Held, LayerFigures
from .bind import WeightUse, bind
from .elements import Indices
from .emit_graph import Origin, emit_graph
from .facts import Facts
from .figures import UsedPairs, held_channels, layer_figures, used_sets
from .liveness import analyze
from .lower import fold_batch_norms, norms_to_convolutions
from .normalize import normalize
from .order import order
from .place import place
from .rearrange import rearrange
from .shared_order import apply_order, global_order, tied_values
from .trace import resolve_shapes
from .widening import BLOCKED, GATHERED


@dataclass(frozen=True, eq=False)
class Removed:
    """One domain after exact removal.

    Attributes:
        model: The narrowed graph in float64; for `onnx` its batch norms are folded.
        origins: By emitted value, the part of the masked dense graph's value that it is.
        layers: Figures per convolution and matrix product.
        used: The used set of every weight.
        held: Where masked channels could not be removed.
    """

    model: ir.Model
    origins: Mapping[str, Origin]
    layers: tuple[LayerFigures, ...]
    used: Mapping[WeightUse, UsedPairs]
    held: tuple[Held, ...]


def analyzed(checkpoint: Checkpoint, domain: str) -> tuple[ir.Model, Facts]:
    """Returns a domain's masked dense model and what the passes know about it.

    Raises:
        CheckpointError: The domain's output does not depend on its input.
    """
    model = bind(checkpoint, domain)
    trace = resolve_shapes(model, checkpoint)
    normalize(model, trace)
    rearrange(model, trace)
    facts = analyze(model.graph, trace)
    if not any(facts.needed.get(value) is not None for value in model.graph.inputs):
        raise CheckpointError(
            f"domain {domain!r}: its masks cut every path: no output depends on the input"
        )
    return model, facts


def remove(checkpoint: Checkpoint, domain: str, target: str = "onnx") -> Removed:
    """Removes from one domain all that its outputs do not depend on, for one target."""
    return remove_for(checkpoint, domain, [target])[target]


def shared_orders(checkpoint: Checkpoint) -> dict[str, Indices]:
    """Returns the order of channels that serves all domains of a target with shared weights.

    Returns:
        By value, all of its channels; values without an entry have the natural order.
    """
    found = []
    for domain in checkpoint.domains:
        model, facts = analyzed(checkpoint, domain)
        facts.widening = GATHERED
        place(model.graph, facts)
        found.append(tied_values(model.graph, facts))
    return global_order(found)


def remove_for(
    checkpoint: Checkpoint,
    domain: str,
    targets: Sequence[str],
    orders: Mapping[str, Indices] | None = None,
) -> dict[str, Removed]:
    """Removes from one domain all that its outputs do not depend on.

    Args:
        checkpoint: A checkpoint.
        domain: One of its domains.
        targets: What the graphs are for: `onnx`, `native`. What is used and held is the same for
            all; what is emitted besides is not.
        orders: What `shared_orders` gave, for the native target.
    """
    model, facts = analyzed(checkpoint, domain)
    found: dict[str, Removed] = {}
    for target in targets:
        facts.widening = GATHERED if target == "native" else BLOCKED
        place(model.graph, facts)
        if facts.widening.ordered:
            order(model.graph, facts)
        elif orders:
            apply_order(model.graph, facts, orders)
        emitted, origins = emit_graph(model, facts)
        if target != "native":
            fold_batch_norms(emitted)
            ranks = {name: len(part.sets) for name, part in origins.items()}
            norms_to_convolutions(emitted, ranks)
        found[target] = Removed(
            model=emitted,
            origins=origins,
            layers=layer_figures(model.graph, facts),
            used=used_sets(model.graph, facts),
            held=tuple(held_channels(domain, model.graph, facts)),
        )
    return found

"""The order of the passes: from one domain's masked dense model to its narrowed graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..report import Held, LayerFigures
from .bind import WeightUse, bind
from .emit_graph import Origin, emit_graph
from .facts import Facts
from .figures import UsedPairs, held_channels, layer_figures, used_sets
from .liveness import analyze
from .lower import fold_batch_norms, norms_to_convolutions
from .normalize import normalize
from .order import order
from .place import place
from .rearrange import rearrange
from .trace import resolve_shapes


@dataclass(frozen=True, eq=False)
class Removed:
    """One domain after exact removal.

    Attributes:
        model: The narrowed graph in float64, batch norms folded.
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


def remove(checkpoint: Checkpoint, domain: str) -> Removed:
    """Removes from one domain all that its outputs do not depend on."""
    model, facts = analyzed(checkpoint, domain)
    place(model.graph, facts)
    order(model.graph, facts)
    emitted, origins = emit_graph(model, facts)
    fold_batch_norms(emitted)
    norms_to_convolutions(emitted, {name: len(part.sets) for name, part in origins.items()})
    return Removed(
        model=emitted,
        origins=origins,
        layers=layer_figures(model.graph, facts),
        used=used_sets(model.graph, facts),
        held=tuple(held_channels(domain, model.graph, facts)),
    )

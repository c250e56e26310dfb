"""The multi-domain checkpoint: one graph, its parameters, and what every domain changes.

The file is specified in `docs/checkpoint-format.md`. It holds the exported graph, so compiling
needs none of the user's code, and reading it runs none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from . import checkpoint_file
from .checkpoint_checks import check_against_graph, check_domains
from .checkpoint_document import Checkpoint, masks_of
from .domain import Domain
from .errors import CheckpointError
from .export import Exported, export
from .weights import find_site, readers

__all__ = [
    "Checkpoint",
    "join",
    "load_checkpoint",
    "make_checkpoint",
    "masks_of",
    "save_checkpoint",
    "write_checkpoint",
]


def save_checkpoint(
    path: str | os.PathLike[str],
    model: torch.nn.Module,
    example_inputs: torch.Tensor | Sequence[torch.Tensor],
    domains: Mapping[str, Domain],
) -> None:
    """Exports a network once and writes it with its domains.

    Args:
        path: The file to write; it appears whole or not at all.
        model: Any float32 module that `torch.export` takes. A copy is exported in eval mode.
        example_inputs: The forward call's positional arguments, one tensor or a tuple.
        domains: The domains by name; their order is kept.

    Raises:
        CheckpointError: The domains do not fit the network: a name, length, shape or dtype.
        UnsupportedGraphError: The network cannot be exported.
        UsageError: The file cannot be written.
    """
    write_checkpoint(path, make_checkpoint(model, example_inputs, domains))


def make_checkpoint(
    model: torch.nn.Module,
    example_inputs: torch.Tensor | Sequence[torch.Tensor],
    domains: Mapping[str, Domain],
) -> Checkpoint:
    """Exports a network once and joins it with its domains, as `save_checkpoint` stores them.

    Raises:
        CheckpointError: A domain is malformed, or names a weight that the network lacks.
        UnsupportedGraphError: The network cannot be exported.
    """
    check_domains(domains)
    if not isinstance(model, torch.nn.Module):
        raise CheckpointError(f"model is a {type(model).__name__}, not a torch.nn.Module")
    return join(export(model, example_inputs, _reshaped(model, domains)), domains)


def join(
    exported: Exported, domains: Mapping[str, Domain], *, node_names: bool = False
) -> Checkpoint:
    """Joins a graph with its domains.

    Args:
        exported: The graph.
        domains: The domains by name; their order is kept.
        node_names: Whether masks may name a weight by the node that reads it.

    Raises:
        CheckpointError: A mask names no weight.
    """
    candidates = readers(exported.model.graph)
    return Checkpoint(
        model=exported.model,
        examples=exported.examples,
        domains=dict(domains),
        parameters=exported.parameters,
        aliases=exported.aliases,
        sites={
            key: find_site(
                key, candidates, exported.parameters, exported.aliases, node_names=node_names
            )
            for domain in domains.values()
            for key in domain.masks
        },
        dynamic_batch=exported.dynamic_batch,
    )


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Checks a checkpoint and writes it; the same checkpoint gives the same bytes.

    Raises:
        CheckpointError: The checkpoint contradicts itself.
        UsageError: The file cannot be written.
    """
    check_domains(checkpoint.domains)
    check_against_graph(checkpoint)
    checkpoint_file.write(path, checkpoint)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint without running any code from it, and checks all of it.

    Raises:
        CheckpointError: The file is unreadable, corrupt, of another version, or contradicts
            itself.
    """
    checkpoint = checkpoint_file.read(path)
    try:
        check_domains(checkpoint.domains)
        check_against_graph(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {os.fspath(path)!r}: {error}") from error.__cause__
    return checkpoint


def _reshaped(model: torch.nn.Module, domains: Mapping[str, Domain]) -> set[str]:
    """Returns the parameters that some domain gives another shape, under all their names."""
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    changed = {
        id(named[name])
        for domain in domains.values()
        for name, tensor in domain.state.items()
        if name in named and tensor.shape != named[name].shape
    }
    return {name for name, tensor in named.items() if id(tensor) in changed}

"""A researcher's network and plain state dict as a checkpoint.

The network comes from the researcher's own factory, the tensors from files that are read without
running code. Every tensor must find its place: as a switch, as a domain's own parameter, as a
parameter of the network, or on the list of what to ignore.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import make_checkpoint, write_checkpoint
from ..domain import Domain
from ..errors import Error, UsageError
from .options import PackOptions, PackReport, pairs, read_labels, report, shapes
from .sorter import Sorter
from .state_dict import read_state_dict


def pack(options: PackOptions) -> PackReport:
    """Reads a researcher's files and writes a checkpoint.

    Raises:
        UsageError: An option is wrong: a factory that cannot be imported, a pattern that matches
            nothing.
        CheckpointError: A file cannot be read, or its tensors do not fit the network.
        UnsupportedGraphError: The network cannot be exported.
    """
    if not options.inputs:
        raise UsageError("inputs is empty: give one shape per input, such as 1,3,32,32")
    generator = torch.Generator().manual_seed(0)  # zeros would hide what a network does
    examples = [torch.randn(size, generator=generator) for size in shapes(options.inputs)]
    model = build(options.factory)
    sorter = Sorter(options, {name: t.detach() for name, t in model.state_dict().items()})
    sorter.add_shared(read_state_dict(options.weights, options.key, options.prefix))
    for name, path in pairs(options.domain_weights, "domain_weights"):
        sorter.add_own(name, read_state_dict(Path(path), options.key, options.prefix), path)
    sorter.finish()
    model.load_state_dict(sorter.for_model(), strict=False)
    labels = read_labels(options.labels, sorter.names)
    domains = {
        name: Domain(sorter.masks[name], sorter.state[name], labels.get(name))
        for name in sorter.names
    }
    checkpoint = make_checkpoint(model, examples, domains)
    write_checkpoint(options.output, checkpoint)
    return report(checkpoint, len(sorter.shared), sorter.ignored)


def build(factory: str) -> torch.nn.Module:
    """Imports `package.module:factory`, from the working directory too, and calls it.

    Raises:
        UsageError: It cannot be imported, fails, or returns no module.
    """
    place, colon, name = factory.partition(":")
    if not (place and colon and name):
        raise UsageError(f"factory {factory!r} is not of the form package.module:factory")
    here = os.getcwd()  # noqa: PTH109 - a string for sys.path
    sys.path.insert(0, here)
    try:
        target: Any = importlib.import_module(place)
        for part in name.split("."):
            target = getattr(target, part)
        model = target()
    except Error:
        raise
    except Exception as error:
        raise UsageError(f"factory {factory!r} fails: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"factory {factory!r} returns a {type(model).__name__}, not a Module")
    return model

"""A dense ONNX file and a mask file as a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import join, write_checkpoint
from ..checkpoint_checks import check_domains
from ..domain import Domain
from ..errors import UsageError
from ..import_onnx import Shape, import_onnx
from .mask_file import read_mask_file
from .options import PackReport, read_labels, report, shapes


@dataclass(frozen=True)
class OnnxOptions:
    """What `pack_onnx` needs to know; one field per option of the command line.

    Attributes:
        model: The dense network.
        masks: The mask file; see `mask_file`.
        output: The checkpoint to write; by default the model's name, in the working directory,
            which must be free.
        inputs: Example shapes, one per input; by default the model's, with batch 1.
        threshold: The score above which a channel is on, where the mask file gives none.
        domains: Domains that come first, in this order; one without entries is dense.
        labels: `NAME=PATH` per domain: a text file with one class name per line.
    """

    model: Path
    masks: Path
    output: Path | None = None
    inputs: tuple[str, ...] = ()
    threshold: float = 0.0
    domains: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def target(self) -> Path:
        """The checkpoint that is written."""
        return self.output or Path(f"{self.model.stem}.pt")


def pack_onnx(options: OnnxOptions) -> PackReport:
    """Reads a dense network and its masks and writes a checkpoint.

    Raises:
        UsageError: An option is wrong, or the checkpoint cannot be written.
        CheckpointError: A file is unreadable, or its masks do not fit the network.
        UnsupportedGraphError: The network holds something that cannot be compiled exactly.
    """
    if options.output is None and options.target.exists():
        raise UsageError(f"{str(options.target)!r} exists; name the checkpoint with -o")
    if len(set(options.domains)) < len(options.domains):
        raise UsageError(f"domains {list(options.domains)} repeat a name")
    domains = read_mask_file(options.masks, options.domains, options.threshold)
    for name, labels in read_labels(options.labels, list(domains)).items():
        domains[name] = dataclasses.replace(domains[name], labels=labels)
    check_domains(domains)
    exported = import_onnx(options.model, shapes(options.inputs), _own_shapes(domains))
    checkpoint = join(exported, domains, node_names=True)
    write_checkpoint(options.target, checkpoint)
    return report(checkpoint, len(exported.parameters))


def _own_shapes(domains: Mapping[str, Domain]) -> dict[str, set[Shape]]:
    found: dict[str, set[Shape]] = {}
    for domain in domains.values():
        for name, tensor in domain.state.items():
            found.setdefault(name, set()).add(tuple(tensor.shape))
    return found

"""What the kernels of a target gain from more channels than a domain needs.

Whatever is added is exact: the channels have the values that they have in the masked dense model,
and meet zero weights where nothing needs them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Widening:
    """Which channels are put back, and in which order channels lie.

    Attributes:
        inputs: Convolutions read a multiple of 4 channels.
        blocks: Layers are filled up to whole blocks of filters.
        sums: Residual sums keep their width where narrowing them costs a copy.
        ordered: Channels are ordered so that selections are whole blocks.
    """

    inputs: bool
    blocks: bool
    sums: bool
    ordered: bool


BLOCKED = Widening(inputs=True, blocks=True, sums=True, ordered=True)
"""For ONNX Runtime: activations in blocks of channels, a selection is an operator of its own."""
GATHERED = Widening(inputs=False, blocks=False, sums=False, ordered=False)
"""For the native kernels: a convolution selects channels while it reads, in any order."""

"""Which layers read the shared weights through the plug-in, and which are stock layers.

A stock layer has a copy of its weights per domain; plug-in nodes read the native target's weight
files, which are on the device once. So the plug-in saves

    copies - stored

bytes of a weight over all domains. It costs activations: TensorRT fuses nothing across a plug-in
but what the plug-in computes itself, and may change the layout before and behind it, so a layer's
input and output pass through memory once more. A layer is taken where it saves at least the bytes
of its activations, which is true of late layers: many weights, few positions. Both in float16. The
rule is an estimate until it is measured on a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...report import PluginChoice, WeightLayout

MINIMUM = 64 << 10
"""Bytes that a plug-in must save: below, its launch costs more than the memory is worth."""
_HALF = 2
_STORED = 4


def choose(
    layout: Sequence[WeightLayout], activations: Mapping[str, int]
) -> dict[str, PluginChoice]:
    """Chooses for every weight that a plug-in could read.

    Args:
        layout: How the native target stores weights.
        activations: Per weight the input and output elements of its layer at batch 1, the largest
            of any domain; weights of layers that the plug-in cannot compute are not there.

    Returns:
        By weight what was chosen and why.
    """
    found = {}
    for weight in layout:
        if weight.name not in activations:
            continue
        copies, stored = (
            size * _HALF // _STORED for size in (weight.bytes_copies, weight.bytes_stored)
        )
        moved = activations[weight.name] * _HALF
        plugin, reason = _decide(weight, copies - stored, moved)
        found[weight.name] = PluginChoice(weight.name, plugin, copies, stored, moved, reason)
    return found


def _decide(weight: WeightLayout, saved: int, moved: int) -> tuple[bool, str]:
    if set(weight.private) == set(weight.readers):
        return False, "every domain has a copy of its own"
    if saved < MINIMUM:
        return False, f"the union saves less than {MINIMUM >> 10} KiB"
    if saved < moved:
        return False, "the union saves less than the activations that a plug-in moves"
    return True, "the union saves more than the activations that a plug-in moves"

"""What the user says about one domain: its masks, its own parameters and its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

Axis = Literal["in", "out"]
Site = Literal["weight", "output"]


@dataclass(frozen=True, eq=False)
class Mask:
    """One switch per channel of one weight.

    Args:
        values: 1-D tensor with one entry per channel. `bool`: the switch itself. Floating point:
            a score, and the channel is on where `score > threshold`.
        axis: `"in"` removes input channels from this weight's sum; other readers of the same
            tensor are untouched. `"out"` removes filters.
        site: For `axis="out"`: `"weight"` zeroes the filter's weights and leaves its bias and all
            that follows live; `"output"` multiplies the output channel, bias included, by zero.
        threshold: The score above which a channel is on; unused for `bool` values.
    """

    values: torch.Tensor
    axis: Axis
    site: Site = "weight"
    threshold: float = 0.0

    @property
    def on(self) -> torch.Tensor:
        """The switches as a 1-D bool tensor."""
        if self.values.dtype == torch.bool:
            return self.values
        return self.values > self.threshold

    @property
    def is_score(self) -> bool:
        """Whether the values are scores that a budget may choose from."""
        return self.values.dtype != torch.bool


@dataclass(frozen=True, eq=False)
class Domain:
    """One task: the masks on the shared weights and the parameters that it overrides.

    Args:
        masks: Masks by weight name (`"layer1.0.conv1.weight"`) or module name
            (`"layer1.0.conv1"`). A weight without a mask is fully on.
        state: Parameters and buffers that replace the backbone's, by name. A head may change its
            number of classes.
        labels: Class names, in the order of the output's classes.
    """

    masks: Mapping[str, Mask | Sequence[Mask]] = field(default_factory=dict)
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    labels: Sequence[str] | None = None

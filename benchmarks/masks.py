"""Domains for a network that has none: masks, own batch norms and own heads, from a seed.

Two styles, both with `axis="in"` on every convolution that does not read the image:

* `regular`: every convolution keeps the same share of its input channels in every domain; of
  the kept ones a share is common to all domains, the rest is drawn for each domain alone.
* `learned`: what training leaves. A layer's keep rate varies with the layer and the domain; a
  channel has a popularity with a heavy tail that all domains see, each through its own noise;
  some domains keep the whole of a few layers.

A channel's score is above zero exactly where its switch is on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mdprune_deploy.domain import Domain, Mask

Floats = NDArray[np.float64]
Scores = dict[str, Floats]
RATES = (0.2, 0.9)
"""Lowest and highest keep rate of a layer in the learned style, layers kept whole aside."""
WHOLE_LAYERS = 0.04
"""Share of the layers that every second domain of the learned style keeps whole."""


def make_domains(
    model: nn.Module,
    count: int = 6,
    keep: float = 0.5,
    common: float = 0.35,
    style: str = "regular",
    seed: int = 0,
    *,
    scores: bool = False,
) -> dict[str, Domain]:
    """Makes domains with masks on the input channels of `model`'s convolutions.

    Args:
        model: A network of `nn.Conv2d`, `nn.BatchNorm2d` and one last `nn.Linear`.
        count: How many domains.
        keep: Share of the maskable weights that a domain keeps: exact up to rounding per layer in
            the regular style, the size-weighted mean in the learned one.
        common: Of the kept channels, the share that all domains keep.
        style: A key of `STYLES`.
        seed: Same seed, same domains.
        scores: Give float scores with threshold 0 instead of bool switches.

    Returns:
        Domains by name: `domain0` and so on.
    """
    rng = np.random.default_rng(seed)
    layers = masked_convolutions(model)
    classes = np.geomspace(10, 1000, count).round().astype(int)
    domains = {}
    for index, values in enumerate(STYLES[style](layers, count, keep, common, rng)):
        tensors = {weight: torch.from_numpy(v.astype(np.float32)) for weight, v in values.items()}
        domains[f"domain{index}"] = Domain(
            {weight: Mask(v if scores else v > 0, "in") for weight, v in tensors.items()},
            own_parameters(model, int(classes[index]), keep, rng),
        )
    return domains


def masked_convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Returns the convolutions that carry a mask, by weight name: all that read no image."""
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels > 3
    }


def regular_scores(
    layers: dict[str, nn.Conv2d], count: int, keep: float, common: float, rng: np.random.Generator
) -> list[Scores]:
    """Returns scores per domain where every layer keeps the same share."""
    domains: list[Scores] = [{} for _ in range(count)]
    for weight, layer in layers.items():
        kept = max(1, round(keep * layer.in_channels))
        order = rng.permutation(layer.in_channels)
        core, rest = np.split(order, [round(common * kept)])
        for domain in domains:
            on = np.concatenate([core, rng.permutation(rest)[: kept - len(core)]])
            values = -rng.uniform(0.05, 1.0, layer.in_channels)
            values[on] *= -1
            domain[weight] = values
    return domains


def learned_scores(
    layers: dict[str, nn.Conv2d], count: int, keep: float, common: float, rng: np.random.Generator
) -> list[Scores]:
    """Returns scores per domain as training leaves them; see the module's text."""
    rates = learned_rates(layers, count, keep, rng)
    popularity = {w: rng.standard_t(3, m.in_channels) for w, m in layers.items()}
    noise = [
        {w: rng.standard_normal(m.in_channels) for w, m in layers.items()} for _ in range(count)
    ]

    def draw(mix: float) -> list[Scores]:
        return [
            {
                w: above_zero(mix * popularity[w] + (1 - mix) * own[w], rates[index][column])
                for column, w in enumerate(layers)
            }
            for index, own in enumerate(noise)
        ]

    return draw(bisect(lambda mix: common_share(draw(mix)) - common, 0.0, 1.0, steps=12))


def learned_rates(
    layers: dict[str, nn.Conv2d], count: int, keep: float, rng: np.random.Generator
) -> Floats:
    """Returns keep rates (domain, layer) whose size-weighted mean per domain is `keep`."""
    sizes = np.array([m.weight.numel() for m in layers.values()], dtype=np.float64)
    small = np.argsort(sizes, kind="stable")[: len(layers) * 3 // 4]
    shared = rng.normal(0.0, 0.8, len(layers))
    rates = np.empty((count, len(layers)))
    for index in range(count):
        logits = shared + rng.normal(0.0, 0.4, len(layers))
        whole = np.zeros(len(layers), dtype=bool)
        if index % 2 == 1:
            share = max(1, round(WHOLE_LAYERS * len(layers)))
            whole[rng.choice(small, share, replace=False)] = True
        rates[index] = rates_of_mean(keep, logits, whole, sizes)
    return rates


def rates_of_mean(keep: float, logits: Floats, whole: NDArray[np.bool_], sizes: Floats) -> Floats:
    """Returns the rates of `logits`, shifted until their size-weighted mean is `keep`."""

    def rates(shift: float) -> Floats:
        return np.where(whole, 1.0, np.clip(1 / (1 + np.exp(-logits - shift)), *RATES))

    return rates(bisect(lambda s: float(np.average(rates(s), weights=sizes)) - keep, -10.0, 10.0))


def above_zero(values: Floats, rate: float) -> Floats:
    """Shifts `values` so that a share `rate` of them, at least one, is above zero."""
    kept = min(len(values), max(1, round(rate * len(values))))
    ordered = np.sort(values)[::-1]
    below = ordered[kept] if kept < len(values) else ordered[-1] - 0.2
    middle: float = (ordered[kept - 1] + below) / 2
    return values - middle


def common_share(domains: list[Scores]) -> float:
    """Returns the channels that all domains keep over the channels that a domain keeps."""
    shared = sum(np.all([d[w] > 0 for d in domains], axis=0).sum() for w in domains[0])
    return float(shared / np.mean([sum((v > 0).sum() for v in d.values()) for d in domains]))


def bisect(f: Callable[[float], float], low: float, high: float, steps: int = 50) -> float:
    """Returns where the rising function `f` crosses zero, or the nearer end if it does not."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return (low + high) / 2


def own_parameters(
    model: nn.Module, classes: int, keep: float, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Returns a domain's batch norms and head, float32.

    The running variance shrinks with the kept share, as it does in training: a sum over fewer
    channels varies less.
    """
    state: dict[str, torch.Tensor] = {}
    head = ""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            weight = module.weight.detach().numpy()
            size = module.num_features
            values = {
                "weight": weight * rng.uniform(0.8, 1.25, size),
                "bias": rng.normal(0.0, 0.1, size),
                "running_mean": rng.normal(0.0, 0.1, size),
                "running_var": keep * rng.uniform(0.8, 1.25, size),
            }
            state |= {f"{name}.{k}": to_tensor(v) for k, v in values.items()}
        elif isinstance(module, nn.Linear):
            head = name
    inputs = model.get_submodule(head).in_features
    assert isinstance(inputs, int)
    state[f"{head}.weight"] = to_tensor(rng.normal(0.0, inputs**-0.5, (classes, inputs)))
    state[f"{head}.bias"] = to_tensor(rng.normal(0.0, 0.1, classes))
    return state


def to_tensor(values: Floats) -> torch.Tensor:
    """Returns `values` as a float32 tensor."""
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


STYLES = {"regular": regular_scores, "learned": learned_scores}
"""The styles of masks by name: `f(layers, count, keep, common, rng) -> scores per domain`."""

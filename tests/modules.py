"""Whole compiles of PyTorch modules, held to the module itself, masked by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from checks import masked_module
from torch import Tensor, nn

import mdprune_deploy as mdp
from mdprune_deploy import CompileReport, Domain

ATTRIBUTES = 1e-7
"""Exporters write a network's numbers, such as 1/6, as float32."""


class Call(nn.Module):
    """A function of the input and of submodules."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def randomise(model: nn.Module) -> nn.Module:
    """Gives every norm statistics and biases that are not the identity's."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if getattr(module, "bias", None) is not None and hasattr(module, "eps"):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.5)
    return model.eval()


def compile_exactly(
    folder: Path,
    model: nn.Module,
    domains: dict[str, Domain],
    shape: tuple[int, ...] = (3, 8, 8),
    plain: nn.Module | None = None,
) -> CompileReport:
    """Compiles a module and runs the bundle and the reference at batch 1 and 3.

    `plain` is the module with plain weights, where those of `model` are computed.
    """
    example = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    mdp.save_checkpoint(folder / "model.pt", model, example, domains)
    report = mdp.compile(folder / "model.pt", folder / "out", targets=("onnx",))
    checkpoint = mdp.load_checkpoint(folder / "model.pt")
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    for name, domain in domains.items():
        module = masked_module(plain or model, domain)
        engine = mdp.load(folder / "out", name, engine="onnxruntime")
        defined = mdp.reference(checkpoint, name)
        for batch in (x, x[:1]):
            with torch.no_grad():
                expected = module(batch.double())
            every = expected if isinstance(expected, tuple) else (expected,)
            for run, bound in ((engine, 1e-5), (defined, ATTRIBUTES)):
                outputs = run(batch.numpy())
                found = outputs if isinstance(outputs, list) else [outputs]
                for want, have in zip(every, found, strict=True):
                    assert relative(want.numpy(), have) <= bound
    return report


def relative(expected: np.ndarray, actual: np.ndarray) -> float:
    assert expected.shape == actual.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())

"""What every compiled domain is held to, against references that the compiler does not share."""

from __future__ import annotations

import copy

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from graphs import Network, masks_of
from torch import nn

from mdprune_deploy import Checkpoint, Domain
from mdprune_deploy.evaluate import evaluate
from mdprune_deploy.passes.bind import bind
from mdprune_deploy.passes.lower import to_float32
from mdprune_deploy.passes.remove import Removed, remove

GRAPH = 1e-9
"""Bound in float64, relative to the largest output: rounding is near 1e-13."""
ARTIFACT = 1e-5
"""The contract's bound in float32."""


def error(expected: np.ndarray, actual: np.ndarray) -> float:
    """max |y - r| / max |r|."""
    assert expected.shape == actual.shape, f"shape {actual.shape}, not {expected.shape}"
    difference = np.abs(actual.astype(np.float64) - expected).max(initial=0.0)
    return float(difference / max(np.abs(expected).max(initial=0.0), 1e-30))


def run_graph(model: ir.Model, *inputs: np.ndarray) -> list[np.ndarray]:
    """Evaluates a float64 graph."""
    names = [str(value.name) for value in model.graph.inputs]
    return evaluate(model.graph, dict(zip(names, inputs, strict=True)))


def run_onnxruntime(model: ir.Model, *inputs: np.ndarray) -> list[np.ndarray]:
    """Runs a float64 graph as it is emitted: lowered to float32, in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = ir.to_proto(to_float32(model)).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = {name: x.astype(np.float32) for name, x in zip(names, inputs, strict=True)}
    return list(session.run(None, feeds))


def inputs_for(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A batch of three in float32 accuracy: random, large and constant."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, *shape[1:]))
    x[1] *= 100.0
    x[2] = 1.0
    return x.astype(np.float32).astype(np.float64)


def compile_exactly(
    network: Network, domain: Domain, *, artifact: bool = True, checkpoint: Checkpoint | None = None
) -> Removed:
    """Removes what a domain's masks allow and holds the result to PyTorch, at batch 1 and 3."""
    checkpoint = checkpoint or network.checkpoint(d=domain)
    name = next(name for name, d in checkpoint.domains.items() if d is domain)
    removed = remove(checkpoint, name)
    x = inputs_for(network.example.shape)
    for batch in (x, x[:1]):
        expected = network.expected(domain, batch)
        for want, have in zip(expected, run_graph(removed.model, batch), strict=True):
            found = error(want, have)
            assert found <= GRAPH, f"graph in float64, batch {len(batch)}: {found:.1e}"
    if artifact:
        outputs = run_onnxruntime(removed.model, x)
        for want, have in zip(network.expected(domain, x), outputs, strict=True):
            found = error(want, have)
            assert found <= ARTIFACT, f"ONNX Runtime in float32: {found:.1e}"
    return removed


def rounding(
    checkpoint: Checkpoint, domain: str, expected: list[np.ndarray], x: np.ndarray
) -> float:
    """The error that float32 makes in the masked dense model: sums that cancel magnify it."""
    outputs = run_onnxruntime(bind(checkpoint, domain), x)
    return max(error(want, have) for want, have in zip(expected, outputs, strict=True))


def used_params(removed: Removed) -> dict[str, int]:
    """Used weight elements by weight."""
    return {use.name: pairs.params for use, pairs in removed.used.items()}


def emitted_params(removed: Removed) -> dict[str, int]:
    """Emitted weight elements by weight, over all of its readers."""
    found: dict[str, int] = {}
    for layer in removed.layers:
        found[layer.name] = found.get(layer.name, 0) + layer.params_emitted
    return found


def masked_module(module: nn.Module, domain: Domain) -> nn.Module:
    """The masked dense model by the contract's definition: a float64 copy, masked by hand."""
    network = copy.deepcopy(module).double().eval()
    own = {name: tensor.double() for name, tensor in domain.state.items()}
    for name, tensor in own.items():
        parent, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(tensor, requires_grad=False)
        setattr(network.get_submodule(parent), leaf, parameter)
    for key in domain.masks:
        layer = network.get_submodule(key.removesuffix(".weight"))
        for m in masks_of(domain, key):
            on = m.on.double()
            if m.site == "output":
                layer.register_forward_hook(_output_hook(on, isinstance(layer, nn.Linear)))
            else:
                layer.weight.data.mul_(_factor(layer, m.axis, on))
    return network


def _output_hook(on: torch.Tensor, last: bool):
    def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output * (on if last else on.reshape(-1, *[1] * (output.ndim - 2)))

    return hook


def _factor(layer: nn.Module, axis: str, on: torch.Tensor) -> torch.Tensor:
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    tail = [1] * (weight.ndim - 2)
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    if (axis == "in") == transposed:
        return on.reshape(-1, 1, *tail)
    per_group = on.reshape(groups, 1, -1, *tail)
    rows = weight.shape[0] // groups
    return per_group.expand(groups, rows, *per_group.shape[2:]).reshape(weight.shape[0], -1, *tail)

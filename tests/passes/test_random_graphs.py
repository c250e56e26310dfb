"""Any network of the building blocks, any masks: exact, or refused by name.

The same hundred networks in every `make test`; 2,000 others in `make random-graphs`.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from any_network import any_network, some_groups_are_split
from checks import (
    ARTIFACT,
    compile_exactly,
    emitted_params,
    error,
    inputs_for,
    rounding,
    run_onnxruntime,
    used_params,
)
from graphs import Drawn, Network

from mdprune_deploy import Checkpoint, CheckpointError, Domain, VerificationError
from mdprune_deploy.passes import order, place
from mdprune_deploy.passes.operators import product
from mdprune_deploy.passes.remove import Removed
from mdprune_deploy.verify import Error, check_rounding


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    """Rounds to blocks that small networks have, so that rounding and reordering happen."""
    with some_groups_are_split() as patch:
        for module in (order, place, product):
            for name, number in (("BLOCK", 4), ("ALIGNMENT", 2), ("WORTH_ROUNDING", 2000)):
                if hasattr(module, name):
                    patch.setattr(module, name, number)
        torch.set_num_threads(1)
        yield


@any_network(examples=100, nightly=2000)
def test_exact_or_refused(drawn: Drawn) -> None:
    checkpoint = drawn.network.checkpoint(**drawn.domains)
    for name, domain in drawn.domains.items():
        try:
            removed = compile_exactly(drawn.network, domain, checkpoint=checkpoint, artifact=False)
        except CheckpointError as error:
            assert str(error) == (
                f"domain {name!r}: its masks cut every path: no output depends on the input"
            )
            assert is_cut(drawn.network, domain)
            continue
        check_figures(drawn.network, domain, removed)
        check_float32(drawn.network, checkpoint, domain, removed)


def check_float32(
    network: Network, checkpoint: Checkpoint, domain: Domain, removed: Removed
) -> None:
    """Holds the artifact to the contract: exact, or refused by the name of the node that rounds.

    A refusal is the network's own rounding, not the compiler's.
    """
    x = inputs_for(network.example.shape)
    expected = network.expected(domain, x)
    outputs = run_onnxruntime(removed.model, x)
    found = max(error(want, have) for want, have in zip(expected, outputs, strict=True))
    try:
        check_rounding("d", "the file", Error(found, found, "random"), removed.model, {"x": x})
    except VerificationError as refusal:
        named = str(refusal).rpartition("float32 rounding, of ")[2]
        assert named in [f"{node.op_type} {node.name!r}" for node in removed.model.graph]
        assert magnifies_rounding(network, checkpoint, domain), f"{found:.1e} is our own rounding"
    else:
        assert found <= ARTIFACT


def magnifies_rounding(network: Network, checkpoint: Checkpoint, domain: Domain) -> bool:
    """Tells whether the masked dense network itself is beyond float32.

    Either float32 rounds it by a quarter of the bound, or changing its input by a millionth, which
    is what sixteen roundings may add up to, changes its output by the bound: a softmax of scores
    in the ten thousands does so where two of them are near each other.
    """
    x = inputs_for(network.example.shape)
    expected = network.expected(domain, x)
    name = next(name for name, d in checkpoint.domains.items() if d is domain)
    if rounding(checkpoint, name, expected, x) > ARTIFACT / 4:
        return True
    rng = np.random.default_rng(0)
    changed = [
        network.expected(domain, x * (1 + 1e-6 * rng.choice([-1, 1], x.shape))) for _ in range(4)
    ]
    return any(
        error(want, have) > ARTIFACT
        for outputs in changed
        for want, have in zip(expected, outputs, strict=True)
    )


def is_cut(network: Network, domain: Domain) -> bool:
    """Tells whether two inputs give the same outputs."""
    a, b = (inputs_for(network.example.shape, seed) for seed in (1, 2))
    pairs = zip(network.expected(domain, a), network.expected(domain, b), strict=True)
    return all(np.abs(y[:2] - z[:2]).max() <= 1e-12 * max(1.0, np.abs(y).max()) for y, z in pairs)


def check_figures(network: Network, domain: Domain, removed: Removed) -> None:
    """Holds the counts to what the gradients say and to what was emitted."""
    used = {use.name: pairs.pairs for use, pairs in removed.used.items()}
    for name, pairs in independent_pairs(network, domain).items():
        assert not (pairs & ~used[name]).any(), f"{name}: a used pair is not counted"
        if network.tight:
            assert not (used[name] & ~pairs).any(), f"{name}: an unused pair is counted"
    emitted = emitted_params(removed)
    for name, params in used_params(removed).items():
        assert params <= emitted[name]
        readers = [layer for layer in network.layers if layer.name == name]
        assert emitted[name] <= len(readers) * network.parameters[readers[0].weight].size


def independent_pairs(network: Network, domain: Domain) -> dict[str, np.ndarray]:
    """Finds the pairs (filter, channel) that outputs depend on, by gradients of random sums.

    A pair whose channel is the same for every input is a constant, not used.
    """
    run = network.run(domain, inputs_for(network.example.shape, 3))
    generator = torch.Generator().manual_seed(0)
    total = sum(
        (run.values[name] * torch.randn(run.values[name].shape, generator=generator).double()).sum()
        for name in network.outputs
    )
    if isinstance(total, torch.Tensor) and total.requires_grad:
        total.backward()
    found: dict[str, np.ndarray] = {}
    for layer, weight in run.weights.items():
        if weight.grad is None:
            continue
        pairs = layer.pairs(((weight.grad != 0) & (weight != 0)).numpy())
        source = run.values[layer.source].detach()
        source = source.movedim(-1, 1) if layer.kind == "MatMul" else source
        channels = source.reshape(*source.shape[:2], -1).transpose(0, 1)
        varies = ((channels - channels[:, :1]).abs() > 1e-12).any(2).any(1).numpy()
        rows = np.repeat(varies.reshape(layer.groups, -1), layer.filters // layer.groups, axis=0)
        found[layer.name] = found.get(layer.name, False) | (pairs & rows)
    return found

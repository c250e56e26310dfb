"""Any network of the building blocks, any masks, all domains in one bundle: each plan is exact."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from any_network import any_network, some_groups_are_split
from checks import inputs_for, rounding
from graphs import Drawn, Network, mask
from native_interpreter import Interpreter
from plans import RUNTIME, devices, run_plan

from mdprune_deploy import CheckpointError, Domain
from mdprune_deploy.emit.native.operators import Convolution, Depthwise
from mdprune_deploy.emit.native.plan import Place, Plan, read_plan
from mdprune_deploy.emit.native.target import FOLDER, NativeTarget
from mdprune_deploy.passes.operators import groups
from mdprune_deploy.passes.remove import remove_for, shared_orders
from mdprune_deploy.passes.trace import example_feeds

STORED = 2e-5
"""Relative to the largest output: constants are rounded to float32, and sums may cancel."""


@pytest.fixture(autouse=True, scope="module")
def _some_groups_are_split() -> Iterator[None]:
    with some_groups_are_split():
        yield


@any_network(examples=60, nightly=1000)
def test_every_domain_is_exact(drawn: Drawn) -> None:
    exact_plans(drawn)


@pytest.mark.parametrize(("run", "convolutions"), [(0, 3), (10**9, 1)])
def test_groups_of_different_widths(
    monkeypatch: pytest.MonkeyPatch, run: int, convolutions: int
) -> None:
    """As several convolutions, whose outputs are put in order, and padded as one."""
    monkeypatch.setattr(groups, "RUN", run)
    n = Network()
    x = n.act(n.bn(n.conv(n.conv_bn_act("x", 16), 12, groups=4)))
    n.head(n.conv_bn_act(x, 5))
    grouped = n.layers[1].weight
    domains = {
        "a": Domain({grouped: mask([1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 0, 0])}),
        "b": Domain({grouped: mask([1, 0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1])}),
    }
    for plan in exact_plans(Drawn(n, domains)):
        products = [o for o in plan.operators if isinstance(o, Convolution | Depthwise)]
        assert len(products) == 3 + convolutions


def exact_plans(drawn: Drawn) -> list[Plan]:
    """Holds the plans of all domains in one bundle to the network, and returns them."""
    checkpoint = drawn.network.checkpoint(**drawn.domains)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        try:
            orders = shared_orders(checkpoint)
        except CheckpointError:
            return []  # a domain is cut: refused, which is tested with the passes
        with NativeTarget(root, {domain: domain for domain in drawn.domains}) as target:
            for domain in drawn.domains:
                removed = remove_for(checkpoint, domain, ["native"], orders)["native"]
                feeds = example_feeds(checkpoint)
                target.add(domain, removed.model, feeds, dynamic_batch=True)
            files = target.finish()
        plans = []
        x = inputs_for(drawn.network.example.shape)
        for domain, own in drawn.domains.items():
            plan = read_plan(root / files[domain].plan)
            plans.append(plan)
            expected = drawn.network.expected(own, x)
            found = Interpreter(plan, root / FOLDER, np.float64)(x)
            allowed = max(STORED, 4 * rounding(checkpoint, domain, expected, x))
            compare(expected, found, allowed, f"{domain}, the interpreter")
            for device in devices():
                images = [
                    run_plan(root, plan, [x[i : i + 1]], None, domain, device) for i in range(3)
                ]
                batch = [np.concatenate(parts) for parts in zip(*images, strict=True)]
                allowed = max(RUNTIME, 4 * rounding(checkpoint, domain, expected, x))
                compare(expected, batch, allowed, f"{domain}, the runtime on {device}")
            assert all(t.offset % 64 == 0 for t in plan.tensors if t.place is Place.WEIGHTS)
        return plans


def compare(expected: list[np.ndarray], found: list[np.ndarray], bound: float, who: str) -> None:
    for want, have in zip(expected, found, strict=True):
        scale = max(float(np.abs(want).max(initial=0.0)), 1e-30)
        error = float(np.abs(have - want).max(initial=0.0)) / scale
        assert error <= bound, f"{who}: relative error {error:.1e}"

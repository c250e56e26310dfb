"""Operators' work, counted by hand and against the manifest, and their floors."""

from __future__ import annotations

import pytest
from plans import Graph, expect, has_runtime
from tiny_checkpoints import DOMAINS, bundle

from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.emit.native.operators import Convolution, Depthwise, MatMul
from mdprune_deploy.emit.native.plan import Plan
from mdprune_deploy.measure import operators, switch
from mdprune_deploy.measure.operators import Rate, Work, profile, work_of
from mdprune_deploy.measure.runner import Runner

needs_runtime = pytest.mark.skipif(not has_runtime(), reason="the native runtime is not built")


def works(plan: Plan, kind: type) -> list[Work]:
    return [work_of(operator, plan) for operator in plan.operators if isinstance(operator, kind)]


def test_a_convolution_by_hand() -> None:
    graph = Graph((1, 4, 9, 9))
    y = graph.op("Conv", graph.inputs[0], graph.weight(6, 4, 3, 3), strides=[2, 2])
    (found,) = works(expect(graph, y), Convolution)
    # 16 positions of 6 filters over 4 channels and 9 taps; x, the weights and y are moved.
    assert found == Work(16 * 6 * 4 * 9, 4 * (81 * 4 + 6 * 4 * 9 + 16 * 6))


def test_channels_that_fill_a_cache_line_are_no_work() -> None:
    graph = Graph((1, 4, 9, 9))
    x = graph.op("Conv", graph.inputs[0], graph.weight(60, 4, 1, 1))
    y = graph.op("Conv", x, graph.weight(6, 60, 1, 1))
    plan = expect(graph, y)
    first, second = works(plan, Convolution)
    assert max(tensor.shape[-1] for tensor in plan.tensors if len(tensor.shape) == 4) == 64
    assert first == Work(81 * 60 * 4, 4 * (81 * 4 + 60 * 4 + 81 * 60))
    assert second == Work(81 * 6 * 60, 4 * (81 * 60 + 6 * 60 + 81 * 6))


def test_groups_divide_the_work() -> None:
    graph = Graph((1, 4, 8, 8))
    y = graph.op("Conv", graph.inputs[0], graph.weight(6, 2, 1, 1), group=2)
    (found,) = works(expect(graph, y), Convolution)
    assert found == Work(64 * 6 * 2, 4 * (64 * 4 + 6 * 2 + 64 * 6))


def test_a_transposed_convolution_works_per_input_position() -> None:
    graph = Graph((1, 4, 3, 3))
    y = graph.op("ConvTranspose", graph.inputs[0], graph.weight(4, 6, 2, 2), strides=[2, 2])
    (found,) = works(expect(graph, y), Convolution)
    assert found == Work(9 * 4 * 6 * 4, 4 * (9 * 4 + 4 * 6 * 4 + 36 * 6))


def test_depthwise_and_products_by_hand() -> None:
    graph = Graph((1, 4, 8, 8))
    y = graph.op("Conv", graph.inputs[0], graph.weight(4, 1, 3, 3), group=4)
    (found,) = works(expect(graph, y), Depthwise)
    assert found == Work(36 * 4 * 9, 4 * (64 * 4 + 4 * 9 + 36 * 4))
    graph = Graph((2, 3, 5), (2, 5, 7))
    (found,) = works(expect(graph, graph.op("MatMul", *graph.inputs)), MatMul)
    assert found == Work(2 * 3 * 7 * 5, 4 * (2 * 3 * 5 + 2 * 5 * 7 + 2 * 3 * 7))


@needs_runtime
@pytest.mark.parametrize("domain", DOMAINS)
def test_the_operators_of_a_domain(domain: str) -> None:
    found = profile(read_bundle(bundle()), domain, Runner("native"), 1)
    native = read_bundle(bundle()).manifest.models[domain].native
    assert native is not None
    assert sum(operator.macs for operator in found.operators) == native.macs_emitted
    for operator in found.operators:
        # Peak and bandwidth are at least those of the best operator.
        assert 0 < operator.floor_us <= operator.us * (1 + 1e-9)
        assert operator.bound in ("compute", "memory")


@needs_runtime
def test_floors_of_stated_rates() -> None:
    rates = Rate(1e9, "stated"), Rate(2e9, "stated")
    found = profile(read_bundle(bundle()), "first", Runner("native"), 1, *rates)
    assert (found.peak, found.bandwidth) == rates
    for operator in found.operators:
        compute, memory = operator.macs / 1e3, operator.bytes / 2e3
        assert operator.floor_us == pytest.approx(max(compute, memory))
        assert operator.bound == ("compute" if compute >= memory else "memory")


def test_probes_say_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "PROBE_ORDER", 64)
    monkeypatch.setattr(operators, "PROBE_BYTES", 1 << 20)
    assert operators.probe_peak(1).source == "a matrix product of order 64, float32"
    assert operators.probe_bandwidth(1).source == "a copy of 1 MiB"
    assert operators.probe_peak(1).per_second > 0


@needs_runtime
def test_a_switch_takes_microseconds() -> None:
    found = switch.measure(read_bundle(bundle()), list(DOMAINS), Runner("native"), 1)
    assert found.engine == "native"
    assert 0 < found.loop_p50_us <= found.loop_p99_us
    assert 0 < found.after_run_p50_us <= found.after_run_p99_us
    assert found.loop_p50_us < 1000

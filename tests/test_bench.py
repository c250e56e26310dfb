"""Timing: who takes which turn, what the dense network is, and the figures that come out."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import DOMAINS, bundle, checkpoint

import mdprune_deploy as mdp
from mdprune_deploy import bench as module
from mdprune_deploy.bench import (
    DENSE,
    Samples,
    bench,
    dense_engine,
    make_inputs,
    to_json,
    unmasked,
)
from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.errors import BackendUnavailableError, UsageError
from mdprune_deploy.manifest import TensorSpec
from mdprune_deploy.measure.runner import Runner


def test_all_take_turns_and_the_order_shifts() -> None:
    order: list[str] = []
    calls = [lambda name=name: order.append(name) for name in "abc"]  # type: ignore[misc]
    samples = module.time_in_turn(calls, 200, seconds=1e-9)
    assert [len(taken.second) for taken in samples] == [module.MIN_ROUNDS] * 3
    counted = order[module.WARM_UP * 6 :]
    assert "".join(counted[:18]) == "aabbcc" + "bbccaa" + "ccaabb"
    assert len(counted) == module.MIN_ROUNDS * 6


class Clock:
    """A clock that calls move on, by the costs given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *costs: float) -> None:
        self.now, self.costs = 0.0, itertools.cycle(costs)
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)

    def call(self) -> None:
        self.now += next(self.costs)


def test_the_timed_call_is_the_second_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    (taken,) = module.time_in_turn([Clock(monkeypatch, 5.0, 1.0).call], 30, seconds=1e-9)
    assert taken.second == [1.0] * module.MIN_ROUNDS
    assert taken.first == [5.0] * module.MIN_ROUNDS


@pytest.mark.parametrize(
    ("runs", "seconds", "rounds"), [(200, 1e9, 200), (200, 300.0, 50), (200, 1.0, 20), (5, 1.0, 5)]
)
def test_runs_end_it_or_time_does(
    monkeypatch: pytest.MonkeyPatch, runs: int, seconds: float, rounds: int
) -> None:
    clock = Clock(monkeypatch, 5.0, 1.0)
    for taken in module.time_in_turn([clock.call, clock.call], runs, seconds):
        assert len(taken.second) == rounds


def test_statistics_are_those_of_the_samples() -> None:
    manifest = read_bundle(bundle()).manifest
    seconds = [0.001] * 50 + [0.003] * 50
    engine = mdp.load(bundle(), "first", "onnxruntime")
    found = module.timing_of(engine, manifest, Samples([0.004] * 100, seconds, [{}] * 100))
    assert (found.min_ms, found.max_ms, found.mean_ms) == (1.0, 3.0, pytest.approx(2.0))
    assert found.cv == pytest.approx(0.5) and found.drift == 3.0
    assert found.per_second == pytest.approx(500.0) and found.first_p50_ms == 4.0
    assert len(found.percentiles_ms) == 101 and found.percentiles_ms[90] == found.p90_ms == 3.0
    assert (found.device, found.precision) == ("cpu", "float32")
    assert found.host_to_device_p50_ms is None


class OnDevice:
    """An engine that says it computes on a device."""

    name, domain, variant, note, threads = "native", "first", "sm_87", None, 1
    device, precision, labels, inputs, outputs = "cuda", "float16", None, (), ()

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        return []

    def phases(self) -> dict[str, float]:
        return {"host_to_device": 0.001, "compute": 0.004, "device_to_host": 0.002}


def test_copies_to_the_device_are_apart() -> None:
    (samples,) = module.time_in_turn([module._Call(OnDevice(), 0)], 20, 1.0)
    found = module.timing_of(OnDevice(), read_bundle(bundle()).manifest, samples)
    assert (found.device, found.precision) == ("cuda", "float16")
    assert (found.host_to_device_p50_ms, found.compute_p50_ms) == (1.0, 4.0)
    assert found.device_to_host_p50_ms == 2.0


def test_figures_of_every_domain() -> None:
    found = bench(bundle(), engine="onnxruntime", seconds=0.01)
    figures = read_bundle(bundle()).manifest.report.domains
    assert [timing.domain for timing in found] == list(DOMAINS)
    for timing in found:
        assert 0 < timing.min_ms <= timing.p50_ms <= timing.p90_ms <= timing.p99_ms
        assert timing.p99_ms <= timing.max_ms
        assert (timing.engine, timing.threads) == ("onnxruntime", 1)
        assert timing.variant.endswith("-mapped") and timing.note is None
        assert timing.macs == figures[timing.domain].macs_emitted < timing.macs_dense
        assert timing.rounds >= module.MIN_ROUNDS and timing.ratio is None
    tree = to_json(found)
    assert isinstance(tree["domains"], dict) and list(tree["domains"]) == list(DOMAINS)


def test_engines_take_turns_in_one_run() -> None:
    runners = [Runner("onnxruntime"), Runner("native")]
    source = mdp.load_checkpoint(checkpoint())
    found = bench(bundle(), ["second"], runners, against=source, seconds=0.01)
    assert [timing.engine for timing in found] == ["onnxruntime", "native"]
    assert len({timing.dense_p50_ms for timing in found}) == 1
    tree = to_json(found)
    assert tree["domains"]["second"]["engine"] == "onnxruntime"  # type: ignore[index]
    assert [run["engine"] for run in tree["runs"]] == ["onnxruntime", "native"]  # type: ignore[attr-defined]


def test_the_ratio_is_to_the_dense_network_of_the_same_run() -> None:
    (timing,) = bench(bundle(), ["second"], against=mdp.load_checkpoint(checkpoint()), seconds=0.01)
    assert timing.dense_p50_ms is not None and timing.dense_p50_ms > 0
    assert timing.ratio == timing.p50_ms / timing.dense_p50_ms


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_dense_network_has_the_domains_parameters_and_no_masks(
    tmp_path: Path, domain: str
) -> None:
    source = mdp.load_checkpoint(checkpoint())
    engine = dense_engine(unmasked(source, domain), tmp_path / "dense", 1)
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    actual = engine(x)
    dense = mdp.reference(unmasked(source, domain), DENSE)(x)
    masked = mdp.reference(source, domain)(x)
    assert isinstance(actual, np.ndarray) and isinstance(dense, np.ndarray)
    # 1e-5 is the contract's bound in float32; masks change the output by far more.
    assert np.abs(actual - dense).max() <= 1e-5 * np.abs(dense).max()
    assert np.abs(actual - masked).max() > 1e-2 * np.abs(dense).max()


def test_inputs_have_batch_one_and_the_right_types() -> None:
    specs = [TensorSpec("x", (None, 3, 4), "float32"), TensorSpec("ids", (2,), "int64")]
    x, ids = make_inputs(specs, seed=0)
    assert (x.shape, x.dtype, ids.dtype) == ((1, 3, 4), np.float32, np.int64)
    assert x.std() > 0 and ids.tolist() == [0, 0]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_none(seconds: float) -> None:
    with pytest.raises(UsageError, match="a number above 0 is needed"):
        bench(bundle(), seconds=seconds)


def test_no_runs() -> None:
    with pytest.raises(UsageError, match="runs is 0, at least 1 is needed"):
        bench(bundle(), runs=0)


def test_what_is_not_there() -> None:
    with pytest.raises(UsageError, match="unknown domain 'third'"):
        bench(bundle(), ["third"])
    with pytest.raises(BackendUnavailableError, match="no tensorrt target"):
        bench(bundle(), engine="tensorrt")


def test_a_checkpoint_of_other_domains() -> None:
    source = mdp.load_checkpoint(checkpoint())
    del source.domains["second"]
    with pytest.raises(UsageError, match="no domain 'second': the bundle is not made from it"):
        bench(bundle(), against=source, seconds=0.01)

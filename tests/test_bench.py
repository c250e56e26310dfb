"""Timing: who takes which turn, what the dense network is, and the figures that come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import DOMAINS, bundle, checkpoint

import mdprune_deploy as mdp
from mdprune_deploy import bench as module
from mdprune_deploy.bench import DENSE, bench, dense_engine, make_inputs, to_json, unmasked
from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.errors import BackendUnavailableError, UsageError
from mdprune_deploy.manifest import TensorSpec


def test_all_take_turns_and_the_order_shifts() -> None:
    order: list[str] = []
    calls = [lambda name=name: order.append(name) for name in "abc"]  # type: ignore[misc]
    times = module._time_in_turn(calls, seconds=1e-9, progress=None)
    assert [len(taken) for taken in times] == [module.MIN_ROUNDS] * 3
    counted = order[module.WARM_UP * 6 :]
    assert "".join(counted[:18]) == "aabbcc" + "bbccaa" + "ccaabb"
    assert len(counted) == module.MIN_ROUNDS * 6


def test_the_timed_call_is_the_second_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    cost = iter([5.0, 1.0] * 100)

    def call() -> None:
        now[0] += next(cost)

    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    (taken,) = module._time_in_turn([call], seconds=1e-9, progress=None)
    assert taken == [1.0] * module.MIN_ROUNDS


def test_figures_of_every_domain() -> None:
    found = bench(bundle(), engine="onnxruntime", seconds=0.01)
    figures = read_bundle(bundle()).manifest.report.domains
    assert [timing.domain for timing in found] == list(DOMAINS)
    for timing in found:
        assert 0 < timing.min_ms <= timing.p50_ms <= timing.p90_ms
        assert (timing.engine, timing.threads) == ("onnxruntime", 1)
        assert timing.variant.endswith("-mapped") and timing.note is None
        assert timing.macs == figures[timing.domain].macs_emitted < timing.macs_dense
        assert timing.rounds >= module.MIN_ROUNDS and timing.ratio is None
    tree = to_json(found)
    assert isinstance(tree["domains"], dict) and list(tree["domains"]) == list(DOMAINS)


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


def test_what_is_not_there() -> None:
    with pytest.raises(UsageError, match="unknown domain 'third'"):
        bench(bundle(), ["third"])
    with pytest.raises(BackendUnavailableError, match="no tensorrt engine"):
        bench(bundle(), engine="tensorrt")


def test_a_checkpoint_of_other_domains() -> None:
    source = mdp.load_checkpoint(checkpoint())
    del source.domains["second"]
    with pytest.raises(UsageError, match="no domain 'second': the bundle is not made from it"):
        bench(bundle(), against=source, seconds=0.01)

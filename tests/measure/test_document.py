"""The document: what is in it with a meter, without one, and for bundles of any targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plans import CUDA_LIBRARY, CUDA_VARIABLE, has_runtime
from test_power import Fake
from tiny_checkpoints import DOMAINS, bundle, checkpoint

import mdprune_deploy as mdp
from mdprune_deploy.errors import BackendUnavailableError
from mdprune_deploy.measure import power
from mdprune_deploy.measure.document import Settings, measure
from mdprune_deploy.measure.runner import Runner
from mdprune_deploy.page import render

pytestmark = pytest.mark.skipif(not has_runtime(), reason="the native runtime is not built")
BOTH = (Runner("native"), Runner("onnxruntime"))
QUICK = {"runs": 2, "seconds": 0.01}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(power, "LOOP_SECONDS", 0.01)


def test_all_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "find_meter", lambda on_device: (Fake(), ""))
    timings, found = measure(bundle(), Settings(BOTH, **QUICK))
    assert len(timings) == 4
    assert [entry["engine"] for entry in found["energy"]] == ["native", "onnxruntime"]
    for entry in found["energy"]:
        assert list(entry["domains"]) == list(DOMAINS) and entry["note"] is None
        assert all(spent["mj"] > 0 for spent in entry["domains"].values())
    setups = [series["setup"] for series in found["memory"]["series"]]
    assert setups == ["native", "onnxruntime", "one context"]
    assert [profile["domain"] for profile in found["operators"]] == list(DOMAINS)
    assert [figures["engine"] for figures in found["switch"]] == ["native"]
    assert {profile["engine"] for profile in found["operators"]} == {"native"}
    assert found["settings"]["engines"] == ["native", "onnxruntime"]
    again = json.loads(json.dumps(found, allow_nan=False))
    assert render(again) == render(found)


def test_progress_tells_every_part() -> None:
    told: list[str] = []
    settings = Settings((Runner("native"),), domains=("second",), peak_gmacs=50.0, **QUICK)
    _, found = measure(bundle(), settings, progress=lambda what, done, total: told.append(what))
    assert list(dict.fromkeys(told)) == ["memory", "calls", "operators"]
    assert found["switch"] == [], "there is no other domain to switch to"
    assert found["operators"][0]["peak"] == {"per_second": 5e10, "source": "stated"}


@pytest.mark.skipif(not CUDA_LIBRARY.exists(), reason="no device is there, not even emulated")
def test_a_gpu_tells_its_memory_copies_and_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUDA_VARIABLE, str(CUDA_LIBRARY))
    gpu = Runner("native", "cuda", "float16")
    _, found = measure(bundle(), Settings((gpu,), **QUICK))
    for run in found["runs"]:
        assert (run["device"], run["precision"]) == ("cuda", "float16")
        assert None not in (run["host_to_device_p50_ms"], run["compute_p50_ms"])
    (series,) = found["memory"]["series"]
    (first, second) = (step["device"] for step in series["steps"])
    assert 0 < first < second < 2 * first, "weights of both domains are there from the first on"
    assert [figures["engine"] for figures in found["switch"]] == ["native:cuda:float16"]
    for profile in found["operators"]:
        assert profile["isa"].endswith("float16")
        assert profile["peak"]["source"] == "the best operator of the network"
        assert all(o["floor_us"] <= o["us"] * (1 + 1e-9) for o in profile["operators"])
    assert "native:cuda:float16" in render(found)


@pytest.mark.parametrize("targets", [("native",), ("onnx",), ("onnx", "native")])
def test_bundles_of_any_targets(tmp_path: Path, targets: tuple[str, ...]) -> None:
    mdp.compile(checkpoint(), tmp_path / "out", targets=targets)
    engines = {"native": "native", "onnx": "onnxruntime"}
    for target, engine in engines.items():
        settings = Settings((Runner(engine),), **QUICK)
        if target in targets:
            _, found = measure(tmp_path / "out", settings)
            assert {run["engine"] for run in found["runs"]} == {engine}
            assert bool(found["operators"]) == (engine == "native")
            assert all(series["steps"] for series in found["memory"]["series"])
        else:
            with pytest.raises(BackendUnavailableError, match=f"no {target} target"):
                measure(tmp_path / "out", settings)

"""The document: what is in it with a meter, without one, and for bundles of any targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plans import has_runtime
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
    assert found["switch"]["loop_p50_us"] > 0
    assert found["settings"]["engines"] == ["native", "onnxruntime"]
    again = json.loads(json.dumps(found, allow_nan=False))
    assert render(again) == render(found)


def test_progress_tells_every_part() -> None:
    told: list[str] = []
    settings = Settings((Runner("native"),), domains=("second",), peak_gmacs=50.0, **QUICK)
    _, found = measure(bundle(), settings, progress=lambda what, done, total: told.append(what))
    assert list(dict.fromkeys(told)) == ["memory", "calls", "operators"]
    assert found["switch"] is None, "there is no other domain to switch to"
    assert found["operators"][0]["peak"] == {"per_second": 5e10, "source": "stated"}


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

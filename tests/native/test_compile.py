"""The compile with a native target: what a bundle holds, what it lacks and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints
import torch
from interpreted import InterpretedEngine
from torch import Tensor, nn

import mdprune_deploy as mdp
from mdprune_deploy import pipeline
from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.emit.native.operators import Convolution
from mdprune_deploy.emit.native.plan import read_plan
from mdprune_deploy.engines import native


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks plans without the C++ library."""
    monkeypatch.setattr(pipeline, "NativeEngine", InterpretedEngine)
    monkeypatch.setattr(pipeline, "load_library", lambda: None)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library_path", lambda: None)


def checkpoint(folder: Path, op: Callable[[Tensor], Tensor]) -> Path:
    path = folder / "model.pt"
    example = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mdp.save_checkpoint(path, tiny_checkpoints.network(op), example, tiny_checkpoints.domains())
    return path


@pytest.mark.usefixtures("interpreted")
def test_a_bundle_has_both_targets(tmp_path: Path) -> None:
    report = mdp.compile(tiny_checkpoints.checkpoint(), tmp_path / "out")
    assert report.missing == ()
    bundle = read_bundle(tmp_path / "out")
    assert {
        "native/index.bin",
        "native/first.plan",
        "native/second.plan",
        "native/weights.bin",
    } <= (set(bundle.manifest.files))
    for name, model in bundle.manifest.models.items():
        assert model.onnx is not None and model.native is not None
        assert model.native.plan == f"native/{name}.plan"
        assert model.native.weights == ("native/weights.bin",)
        plan = read_plan(tmp_path / "out" / model.native.plan)
        assert plan.arena == model.native.arena > 0
        assert plan.labels == tuple(tiny_checkpoints.LABELS)
        assert plan.dynamic_batch
        onnx = report.domains[name]
        assert onnx.params_used <= model.native.params_emitted <= onnx.params_emitted
        assert 0 < model.native.macs_emitted <= onnx.macs_emitted


@pytest.mark.usefixtures("interpreted")
def test_domains_name_the_same_weights(tmp_path: Path) -> None:
    """The first convolution's packed weight is one tensor; the heads are of each domain."""
    mdp.compile(tiny_checkpoints.checkpoint(), tmp_path / "out", targets=["native"])
    assert not (tmp_path / "out" / "onnx").exists()
    found = []
    for name in tiny_checkpoints.DOMAINS:
        plan = read_plan(tmp_path / "out" / "native" / f"{name}.plan")
        products = [o for o in plan.operators if isinstance(o, Convolution)]
        found.append([{plan.tensors[w].offset for w, *_ in o.weights} for o in products])
    first, second = found
    assert first[1] & second[1], "the masked convolution shares slabs"
    assert not first[2] & second[2], "heads are the domains' own"


@pytest.mark.usefixtures("interpreted")
def test_the_native_target_alone_is_exact_and_repeatable(tmp_path: Path) -> None:
    path = tiny_checkpoints.checkpoint()
    for name in ("a", "b"):
        report = mdp.compile(path, tmp_path / name, targets=["native"])
        assert all(0 < d.max_rel_error <= 1e-5 for d in report.domains.values())
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("a", "b")]
    assert manifests[0] == manifests[1]  # which holds the hashes of all other files


@pytest.mark.usefixtures("interpreted")
def test_what_native_lacks_is_said_and_onnx_stands(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, lambda y: y + torch.acos(torch.tanh(y)))
    report = mdp.compile(path, tmp_path / "out")
    (missing,) = report.missing
    assert missing.target == "native"
    assert missing.reason.startswith("domain 'first': Acos (node 'node_acos'): the native target")
    bundle = read_bundle(tmp_path / "out")
    assert bundle.manifest.report.missing == report.missing
    assert all(name.startswith("onnx/") for name in bundle.manifest.files)
    assert mdp.load(bundle.root, "first", engine="onnxruntime")
    with pytest.raises(
        mdp.BackendUnavailableError, match=r"no native target: domain 'first': Acos"
    ):
        mdp.load(bundle.root, "first", engine="native")


@pytest.mark.usefixtures("interpreted")
def test_who_insists_on_native_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, lambda y: y + torch.acos(torch.tanh(y)))
    with pytest.raises(
        mdp.UnsupportedGraphError, match=r"Acos .*the native target lacks it"
    ) as caught:
        mdp.compile(path, tmp_path / "out", targets=("onnx", "native"))
    assert caught.value.exit_code == 6
    assert not (tmp_path / "out").exists()


class Mixed(nn.Module):
    """Divides by the sum over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.conv(x), 0)


@pytest.mark.usefixtures("interpreted")
def test_images_that_meet_cannot_be_run_one_by_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mdp.save_checkpoint(tmp_path / "m.pt", Mixed(), torch.randn(1, 3, 6, 6), {"d": mdp.Domain()})
    report = mdp.compile(tmp_path / "m.pt", tmp_path / "out")
    assert [m.reason for m in report.missing] == [
        "domain 'd': the images of a batch depend on each other; the native target runs a batch "
        "image by image"
    ]
    assert not (tmp_path / "out" / "native").exists()
    assert json.loads((tmp_path / "out/manifest.json").read_text())["models"]["d"][
        "targets"
    ].keys() == {"onnx"}


@pytest.mark.usefixtures("no_library")
def test_without_the_library_plans_cannot_be_checked(tmp_path: Path) -> None:
    report = mdp.compile(tiny_checkpoints.checkpoint(), tmp_path / "out")
    assert report.missing[0].reason.startswith("the native runtime is not built: install mdprune")
    assert not (tmp_path / "out" / "native").exists()
    with pytest.raises(mdp.BackendUnavailableError, match=r"not built.*MDPRUNE_LIBRARY"):
        mdp.compile(tiny_checkpoints.checkpoint(), tmp_path / "no", targets=["native"])


def test_a_plan_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(InterpretedEngine):
        def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
            return [y + 1.0 for y in super().__call__(*inputs)]

    monkeypatch.setattr(pipeline, "NativeEngine", Wrong)
    monkeypatch.setattr(pipeline, "load_library", lambda: None)
    with pytest.raises(mdp.VerificationError, match="the native plan differs from the reference"):
        mdp.compile(tiny_checkpoints.checkpoint(), tmp_path / "out")
    assert not (tmp_path / "out").exists()

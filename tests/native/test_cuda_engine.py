"""The native engine on a GPU: the emulated one that `make test-cpp` builds, or the machine's.

`make test-gpu` names the library of the machine's in `MDPRUNE_CUDA_LIBRARY`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints
from plans import CUDA_LIBRARY, CUDA_VARIABLE, RUNTIME, has_runtime
from typer.testing import CliRunner

import mdprune_deploy as mdp
from mdprune_deploy.check import verify_bundle
from mdprune_deploy.cli import app
from mdprune_deploy.engines.base import DeviceEngine
from mdprune_deploy.engines.cuda import CudaEngine
from mdprune_deploy.errors import BackendUnavailableError, UsageError
from mdprune_deploy.verify import HALF_TOLERANCE

pytestmark = pytest.mark.skipif(not has_runtime(), reason="the native runtime is not built")
needs_device = pytest.mark.skipif(
    not CUDA_LIBRARY.exists(), reason="no device is there, not even emulated"
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "out"
    mdp.compile(tiny_checkpoints.checkpoint(), path, targets=("native",))
    return path


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUDA_VARIABLE, str(CUDA_LIBRARY))


def images(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)


def test_a_missing_library_is_told_by_name(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CUDA_VARIABLE, str(tmp_path / "none.so"))
    if CUDA_LIBRARY.exists():
        pytest.skip("a library that was found stays loaded")
    with pytest.raises(BackendUnavailableError, match=r"the CUDA kernels is not there: .*none\.so"):
        mdp.load(bundle, "first", device="cuda")


def test_other_devices_and_precisions_are_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match='there is no device "tpu"'):
        mdp.load(bundle, "first", device="tpu")
    with pytest.raises(BackendUnavailableError, match="device cpu: there is no precision float16"):
        mdp.load(bundle, "first", precision="float16")


@needs_device
@pytest.mark.parametrize(
    ("precision", "limit"), [("float32", RUNTIME), ("float16", HALF_TOLERANCE)]
)
def test_outputs_are_those_of_the_processor(
    bundle: Path, device: None, precision: str, limit: float
) -> None:
    for domain in tiny_checkpoints.DOMAINS:
        expected = mdp.load(bundle, domain)(images())
        engine = mdp.load(bundle, domain, device="cuda", precision=precision)
        assert isinstance(engine, CudaEngine) and isinstance(engine, DeviceEngine)
        assert (engine.device, engine.precision) == ("cuda", precision)
        assert re.fullmatch(rf"cuda:0 sm_\d+ {precision}", engine.variant)
        y = engine(images())
        assert np.abs(y - expected).max() <= limit * np.abs(expected).max()
        assert all(seconds > 0 for seconds in engine.phases().values())


@needs_device
def test_engines_of_one_precision_share_weights(bundle: Path, device: None) -> None:
    first = mdp.load(bundle, "first", device="cuda", precision="float16")
    second = mdp.load(bundle, "second", device="cuda:0", precision="float16")
    assert isinstance(first, CudaEngine) and isinstance(second, CudaEngine)
    assert first.memory().weights == second.memory().weights > 0
    whole = mdp.load(bundle, "first", device="cuda")
    assert isinstance(whole, CudaEngine)
    assert whole.memory().weights > first.memory().weights


@needs_device
def test_a_bundle_with_measured_tilings_is_whole_and_may_be_replaced(
    tmp_path: Path, device: None
) -> None:
    path = tmp_path / "out"
    mdp.compile(tiny_checkpoints.checkpoint(), path, targets=("native",))
    mdp.load(path, "first", device="cuda", precision="float16", tune=True)
    assert len(list((path / "native").glob("*.tilings"))) == 1
    found = verify_bundle(path, tiny_checkpoints.checkpoint(), device="cuda")
    for check in found.values():
        on_device = [name for name in check.engines if name.startswith("native cuda:0 ")]
        assert sorted(name.split()[-1] for name in on_device) == ["float16", "float32"]
    mdp.compile(tiny_checkpoints.checkpoint(), path, targets=("native",), overwrite=True)
    assert not list((path / "native").glob("*.tilings"))


@needs_device
def test_the_command_line_names_what_ran(bundle: Path, device: None, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(1))
    where = ["--domain", "first", str(tmp_path / "x.npy")]
    on_gpu = ["--device", "cuda", "--precision", "float16"]
    result = CliRunner().invoke(app, ["run", str(bundle), *where, *on_gpu, "--json"])
    assert result.exit_code == 0, result.stderr
    assert re.fullmatch(r"cuda:0 sm_\d+ float16", json.loads(result.stdout)["variant"])
    result = CliRunner().invoke(app, ["run", str(bundle), *where, "--device", "cuda:99"])
    assert result.exit_code == 7
    assert "device cuda:99: there are " in result.stderr

"""The native engine: what a call takes and gives, who shares what, and what is refused."""

from __future__ import annotations

import ctypes
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints
from plans import RUNTIME, has_runtime

import mdprune_deploy as mdp
from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.check import verify_bundle
from mdprune_deploy.emit.native.plan import read_plan
from mdprune_deploy.engines import native
from mdprune_deploy.engines.native import NativeEngine
from mdprune_deploy.errors import BackendUnavailableError, BundleError, UsageError

pytestmark = pytest.mark.skipif(not has_runtime(), reason="the native runtime is not built")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "out"
    mdp.compile(tiny_checkpoints.checkpoint(), path, targets=("onnx", "native"))
    return path


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)


def engine(path: Path, domain: str = "first", **more: object) -> NativeEngine:
    found = mdp.load(path, domain, engine="native", **more)  # type: ignore[arg-type]
    assert isinstance(found, NativeEngine)
    return found


@pytest.mark.parametrize("domain", tiny_checkpoints.DOMAINS)
def test_outputs_are_those_of_the_other_engine(bundle: Path, domain: str) -> None:
    own, other = engine(bundle, domain), mdp.load(bundle, domain, engine="onnxruntime")
    assert (own.name, own.domain, own.threads, own.note) == ("native", domain, 1, None)
    assert own.labels == other.labels and own.inputs == other.inputs
    for x in (images(3), images(1), images(8)[::2]):
        y, expected = own(x), other(x)
        assert isinstance(y, np.ndarray)
        assert y.dtype == np.float32 and y.shape == expected.shape
        assert np.abs(y - expected).max() <= RUNTIME * np.abs(expected).max()


def test_two_runs_give_the_same_bits_whatever_the_threads(bundle: Path) -> None:
    first = engine(bundle)(images())
    assert np.array_equal(first, engine(bundle)(images()))
    assert np.array_equal(first, engine(bundle, threads=2)(images()))


def test_the_instruction_set_can_be_chosen(bundle: Path) -> None:
    plain = engine(bundle, variant="portable")
    assert plain.variant == "portable"
    assert np.allclose(plain(images()), engine(bundle)(images()), atol=1e-4)
    with pytest.raises(BackendUnavailableError, match="mmx"):
        engine(bundle, variant="mmx")


def test_all_domains_share_one_model_that_goes_with_them(bundle: Path) -> None:
    first, second = engine(bundle, "first"), engine(bundle, "second")
    assert first._model is second._model
    (key,) = (key for key, model in native._models.items() if model is first._model)
    expected = second(images())
    del first
    assert np.array_equal(second(images()), expected)
    del second
    assert key not in native._models


def test_a_replaced_bundle_is_opened_anew(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    old = engine(copy)
    expected = old(images())
    shutil.rmtree(copy)
    assert np.array_equal(old(images()), expected), "a bundle that is gone stays open"
    shutil.copytree(bundle, copy)
    new = engine(copy)
    assert new._model is not old._model
    assert np.array_equal(new(images()), expected)


def test_threads_take_turns(bundle: Path) -> None:
    own = engine(bundle)
    inputs = [np.roll(images(), shift) for shift in range(4)]
    expected = [own(x) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        if any(not np.array_equal(own(inputs[index]), expected[index]) for _ in range(50)):
            wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_wrong_calls(bundle: Path) -> None:
    own = engine(bundle)
    with pytest.raises(UsageError, match="takes 1 inputs"):
        own()
    with pytest.raises(UsageError, match="dtype is float64, it takes float32"):
        own(images().astype(np.float64))
    with pytest.raises(UsageError, match=r"shape is \(3, 3, 8, 9\)"):
        own(np.zeros((3, 3, 8, 9), np.float32))
    with pytest.raises(UsageError, match="all inputs need one batch size of at least 1, given 0"):
        own(images()[:0])
    with pytest.raises(UsageError, match="threads is 0"):
        engine(bundle, threads=0)


def test_a_damaged_plan_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    plan = copy / "native" / "first.plan"
    plan.write_bytes(b"MDPPLAN\0" + b"\xff" * (plan.stat().st_size - 8))
    with pytest.raises(BundleError, match=r"first\.plan"):
        NativeEngine(copy, "first", read_bundle(bundle).manifest.models["first"])
    (copy / "native" / "index.bin").unlink()
    with pytest.raises(BundleError, match=r"index\.bin: No such file"):
        NativeEngine(copy, "first", read_bundle(bundle).manifest.models["first"])


def test_a_library_that_is_none(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "libmdprune.so"
    path.write_bytes(b"text")
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(path))
    with pytest.raises(BackendUnavailableError, match="the native runtime cannot be loaded"):
        engine(bundle)


def test_verify_runs_the_plans(bundle: Path) -> None:
    found = verify_bundle(bundle, tiny_checkpoints.checkpoint())
    for check in found.values():
        (name,) = (name for name in check.engines if name.startswith("native "))
        assert 0 < check.engines[name] <= RUNTIME
        assert check.stored_rel_error is not None


def test_verify_of_the_native_target_alone(tmp_path: Path) -> None:
    mdp.compile(tiny_checkpoints.checkpoint(), tmp_path / "out", targets=["native"])
    found = verify_bundle(tmp_path / "out", tiny_checkpoints.checkpoint())
    assert {check.stored_rel_error for check in found.values()} == {None}
    assert {len(check.engines) for check in found.values()} == {1}


def test_the_structures_are_those_of_the_header() -> None:
    pointer = ctypes.sizeof(ctypes.c_void_p)
    assert ctypes.sizeof(native.Options) == 10 * pointer + 8
    assert ctypes.sizeof(native.TensorInfo) == (2 + native.MAX_RANK + 2) * pointer
    assert ctypes.sizeof(native.Memory) == 3 * pointer
    assert ctypes.sizeof(native.ProfileEntry) == 2 * pointer + 8
    assert ctypes.sizeof(native.DeviceMemory) == 4 * pointer
    assert ctypes.sizeof(native.DeviceTimes) == pointer + 24


def test_a_context_measures_the_operators_of_the_domain_it_was_switched_to(bundle: Path) -> None:
    model = native.open_model(bundle)
    context = native.Context(model, "first", 1, None, profile=True)
    assert context.profile() == []
    second = model.find("second")
    (shape,) = model.shapes(second, "input")
    y = np.empty(model.shapes(second, "output")[0], np.float32)
    context.select(second)
    context.run(1, [images()[:1]], [y])
    assert shape == (1, 3, 8, 8) and np.array_equal(y, engine(bundle, "second")(images()[:1]))
    plan = read_plan(bundle / "native" / "second.plan")
    times = context.profile()
    assert [time.name for time in times] == [operator.name for operator in plan.operators]
    assert [time.kind for time in times] == [type(o).__name__ for o in plan.operators]
    assert all(time.nanoseconds > 0 for time in times)


def test_the_memory_is_that_of_the_files(bundle: Path) -> None:
    memory = native.open_model(bundle).memory()
    files = {path.name: path.stat().st_size for path in (bundle / "native").iterdir()}
    assert memory.weights == sum(n for name, n in files.items() if name.startswith("weights"))
    assert memory.plans == sum(n for name, n in files.items() if name.endswith(".plan"))
    models = read_bundle(bundle).manifest.models.values()
    assert memory.arena == max(m.native.arena for m in models if m.native is not None)

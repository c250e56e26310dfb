"""Loading and running: the right variant, said aloud; errors by name; weights really mapped."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_models import conv_net, image, write_bundle

from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.engines import Engine, load
from mdprune_deploy.errors import (
    BackendUnavailableError,
    BundleError,
    UnsupportedGraphError,
    UsageError,
)
from mdprune_deploy.layout.nchwc import BlockedLayout, host_layout
from mdprune_deploy.report import Missing

SAME = 2e-6
"""Of the largest output: float32 sums of under 300 products, in another order."""


def models() -> dict[str, ir.Model]:
    return {
        "first": conv_net(seed=1),
        "any batch": conv_net(seed=2, width=37, batch="N"),
        "two outputs": conv_net(seed=3, outputs=2),
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines") / "out"
    write_bundle(path, models())
    return path


def layout() -> BlockedLayout:
    found = host_layout()
    assert found is not None
    return found


def outputs(engine: Engine, *arrays: np.ndarray) -> list[np.ndarray]:
    result = engine(*arrays)
    return result if isinstance(result, list) else [result]


@pytest.mark.parametrize("variant", ["portable", "mapped"])
@pytest.mark.parametrize("domain", list(models()))
def test_every_variant_equals_the_model(bundle: Path, domain: str, variant: str) -> None:
    engine = load(bundle, domain, "onnxruntime", variant=variant)  # type: ignore[arg-type]
    expected_variant = "portable" if variant == "portable" else f"{layout().isa}-mapped"
    assert (engine.variant, engine.note) == (expected_variant, None)
    x = image(3 if domain == "any batch" else 1)
    expected = ReferenceEvaluator(ir.to_proto(models()[domain])).run(None, {"image": x})
    found = outputs(engine, x)
    assert len(found) == len(expected) == len(engine.outputs)
    for y, r in zip(found, expected, strict=True):
        assert y.dtype == np.float32
        assert np.abs(y - r).max() <= SAME * np.abs(r).max()


def test_engine_tells_what_it_is(bundle: Path) -> None:
    engine = load(str(bundle), "first", engine="onnxruntime", threads=2)
    assert isinstance(engine, Engine)
    assert (engine.name, engine.domain, engine.threads) == ("onnxruntime", "first", 2)
    assert engine.labels == ("ant", "bee", "cat", "dog", "elk")
    assert load(bundle, "two outputs", "onnxruntime").labels is None
    assert [spec.name for spec in engine.inputs] == ["image"]
    assert isinstance(engine(image()), np.ndarray)


@pytest.mark.parametrize(
    "change",
    [
        {"isa": "avx9000"},
        {"block": 1},
        {"onnxruntime": "1.0.0"},
    ],
)
def test_variant_of_another_host_is_not_run_and_that_is_said(
    bundle: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    elsewhere = dataclasses.replace(layout(), **change)  # type: ignore[arg-type]
    tree = json.loads((bundle / "manifest.json").read_text())
    for model in tree["models"].values():
        model["targets"]["onnx"]["mapped"][0].update(change)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "manifest.json").write_text(json.dumps(tree))
    (copy / "onnx").mkdir()
    for path in (bundle / "onnx").iterdir():
        os.link(path, copy / "onnx" / path.name)
    engine = load(copy, "any batch", "onnxruntime")
    assert engine.variant == "portable"
    assert engine.note == (
        f"ready-optimised variants are for {elsewhere.isa} with ONNX Runtime "
        f"{elsewhere.onnxruntime}; this host has {layout().isa} with ONNX Runtime "
        f"{layout().onnxruntime}"
    )
    with pytest.raises(BackendUnavailableError, match=r"domain 'any batch': ready-optimised"):
        load(copy, "any batch", "onnxruntime", variant="mapped")


def test_bundle_made_where_there_is_no_blocked_layout(tmp_path: Path) -> None:
    write_bundle(tmp_path / "out", {"first": conv_net()}, layout=lambda: None)
    assert sorted(p.name for p in (tmp_path / "out/onnx").iterdir()) == [
        "first.onnx",
        "weights.bin",
    ]
    engine = load(tmp_path / "out", "first", "onnxruntime")
    assert engine.variant == "portable"
    assert engine.note is not None and "variants are for nothing" in engine.note


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e(), r"domain 'first' takes 1 inputs \(image\), 0 given"),
        (lambda e: e(image(), image()), r"takes 1 inputs \(image\), 2 given"),
        (lambda e: e([[1.0]]), "domain 'first', input 'image': a NumPy array is needed, not list"),
        (lambda e: e(image().astype(np.float64)), "dtype is float64, it takes float32"),
        (lambda e: e(image(2)), r"shape is \(2, 3, 16, 16\), it takes \(1, 3, 16, 16\)"),
        (lambda e: e(image()[0]), r"shape is \(3, 16, 16\), it takes \(1, 3, 16, 16\)"),
    ],
)
def test_wrong_inputs_are_refused(
    bundle: Path, call: Callable[[Engine], object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        call(load(bundle, "first", "onnxruntime"))


def test_any_batch_is_named_so_in_the_message(bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"it takes \(any, 3, 16, 16\)"):
        load(bundle, "any batch", "onnxruntime")(image()[..., :8])


def test_non_contiguous_input_is_taken(bundle: Path) -> None:
    engine = load(bundle, "first", "onnxruntime")
    x = image()
    flipped = np.asfortranarray(x)
    np.testing.assert_array_equal(outputs(engine, flipped)[0], outputs(engine, x)[0])


def test_unknown_names_are_refused_with_what_there_is(bundle: Path) -> None:
    with pytest.raises(
        UsageError, match=r"unknown domain 'x'; .*out has first, any batch, two out"
    ):
        load(bundle, "x", "onnxruntime")
    with pytest.raises(UsageError, match="unknown engine 'x'; there are native, onnxruntime, ten"):
        load(bundle, "first", "x")
    with pytest.raises(UsageError, match="unknown variant 'x'; there are portable, mapped"):
        load(bundle, "first", "onnxruntime", variant="x")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="threads is 0, at least 1 is needed"):
        load(bundle, "first", "onnxruntime", threads=0)


def test_bundle_without_the_native_target_is_refused(bundle: Path) -> None:
    with pytest.raises(
        BackendUnavailableError,
        match="no native target for domain 'first'; compile it with --target native",
    ):
        load(bundle, "first", "native")


def test_bundle_says_why_it_has_no_native_target(bundle: Path) -> None:
    found = read_bundle(bundle)
    missing = (Missing("native", "LSTM (node 'l'): the native target lacks it"),)
    report = dataclasses.replace(found.manifest.report, missing=missing)
    changed = dataclasses.replace(
        found, manifest=dataclasses.replace(found.manifest, report=report)
    )
    with pytest.raises(
        BackendUnavailableError, match=r"has no native target: LSTM .node 'l'.*use the onnxruntime"
    ):
        load(changed, "first", "native")


def test_bundle_without_the_onnx_target_is_refused(bundle: Path) -> None:
    found = read_bundle(bundle)
    found.manifest.models["first"] = dataclasses.replace(found.manifest.models["first"], onnx=None)
    with pytest.raises(
        BackendUnavailableError, match=r"no onnx target for domain 'first'; compile"
    ):
        load(found, "first", "onnxruntime")


@pytest.mark.parametrize("damage", [b"", b"not a model"])
def test_damaged_model_is_refused_by_file(tmp_path: Path, damage: bytes) -> None:
    write_bundle(tmp_path / "out", {"first": conv_net()})
    found = read_bundle(tmp_path / "out")
    (tmp_path / "out/onnx/first.onnx").write_bytes(damage)
    with pytest.raises(BundleError, match=r"onnx/first.onnx: ONNX Runtime cannot open the model"):
        load(found, "first", "onnxruntime", variant="portable")


@pytest.mark.parametrize(("key", "value"), [("offset", str(1 << 40)), ("location", "../secret")])
def test_model_that_points_out_of_the_weight_file_is_refused(
    tmp_path: Path, key: str, value: str
) -> None:
    write_bundle(tmp_path / "out", {"first": conv_net()})
    (tmp_path / "out/secret").write_bytes(bytes(1 << 20))
    found = read_bundle(tmp_path / "out")
    path = tmp_path / "out/onnx/first.onnx"
    model = onnx.load(path, load_external_data=False)
    for entry in (e for tensor in model.graph.initializer for e in tensor.external_data):
        entry.value = value if entry.key == key else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="ONNX Runtime cannot open the model"):
        load(found, "first", "onnxruntime", variant="portable")


MEMORY = """
import json, sys
from pathlib import Path
import numpy as np
from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.engines import load

def smaps():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}

bundle = read_bundle(sys.argv[1])
x = np.ones((1, 3, 16, 16), np.float32)
load(bundle, "warm", "onnxruntime", variant=sys.argv[2])(x)
before = smaps()
engines = [load(bundle, d, "onnxruntime", variant=sys.argv[2]) for d in ("a", "b", "c")]
for engine in engines:
    engine(x)
after = smaps()
mapped = Path("/proc/self/maps").read_text().count("weights.bin")
print(json.dumps([after["Anonymous"] - before["Anonymous"], mapped]))
"""


def test_mapped_weights_are_not_copied(tmp_path: Path) -> None:
    nets = {name: conv_net(seed=i, width=2048) for i, name in enumerate("abc")}
    write_bundle(tmp_path / "out", {**nets, "warm": conv_net(seed=9)})
    weights = 3 * 2 * 2048 * 32 * 9 * 4
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    grown = {}
    for variant in ("mapped", "portable"):
        command = [sys.executable, "-c", MEMORY, str(tmp_path / "out"), variant]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
        grown[variant], maps = json.loads(done.stdout)
        if variant == "mapped":
            assert maps >= 6, "two large weights in each of three domains"
    # Activations of 2048 x 16 x 16 floats (2 MiB) in two buffers come from the one arena.
    assert grown["mapped"] < weights * 0.4, "14 MiB of weights stay in the file"
    assert grown["portable"] > weights, "the measurement sees a copy"


def test_an_operator_that_cannot_run_is_refused_by_name(bundle: Path) -> None:
    """ONNX Runtime opens some models that it cannot run: LRN of another rank than four."""
    folder = bundle.with_name("rank")
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 2, 3]) for n in "xy")
    node = onnx.helper.make_node("LRN", ["x"], ["y"], name="norm", size=3)
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 20)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10))
    write_bundle(folder, {"d": model})
    engine = load(folder, "d", "onnxruntime", variant="portable")
    with pytest.raises(
        UnsupportedGraphError, match=r"domain 'd': ONNX Runtime cannot run .*'norm'"
    ):
        engine(np.zeros((1, 2, 3), np.float32))

"""The plug-in's numbers: real nodes through TensorRT's registry, its kernels on the host.

`run_node` and the library are of `make test-tensorrt`, which names its build folder in
MDPRUNE_TENSORRT_BUILD; TensorRT's headers and a library with its registry are needed for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_tensorrt_build import bundle, needs_rtx
from test_tensorrt_target import example, nodes, residual_checkpoint

import mdprune_deploy as mdp
from mdprune_deploy.emit.tensorrt import choose as choosing
from mdprune_deploy.emit.tensorrt.node import GatherConv, WeightName

BUILD = os.environ.get("MDPRUNE_TENSORRT_BUILD")
pytestmark = pytest.mark.skipif(BUILD is None, reason="the plug-in's tests are not built")

FLOAT32 = 1e-5
"""Of the largest output: sums of some hundred products in another order."""
HALF = 5e-3
"""Of the largest output: inputs, weights and outputs are rounded."""
CHAR, FLOAT, INT = 6, 1, 5
"""TensorRT's numbers of field types."""


def packed(x: np.ndarray, half: bool) -> np.ndarray:
    """Returns an image as the plug-in takes it: channels last, in half padded to 8 by garbage."""
    last = x.transpose(0, 2, 3, 1).astype(np.float16 if half else np.float32)
    missing = -last.shape[-1] % 8 if half else 0
    return np.pad(last, [(0, 0)] * 3 + [(0, missing)], constant_values=np.nan)


def unpacked(data: np.ndarray, shape: tuple[int, ...], half: bool) -> np.ndarray:
    channels = -(-shape[1] // 8) * 8 if half else shape[1]
    last = data.reshape(shape[0], *shape[2:], channels)
    assert np.isfinite(last).all(), "what pads the channels is finite too"
    return last[..., : shape[1]].transpose(0, 3, 1, 2)


def field(name: str, value: object) -> bytes:
    if isinstance(value, str):
        kind, data, count = CHAR, value.encode(), len(value)
    else:
        array = np.atleast_1d(np.asarray(value))
        kind = FLOAT if array.dtype.kind == "f" else INT
        data, count = array.astype("<f4" if kind == FLOAT else "<i4").tobytes(), array.size
    return b"".join(
        [struct.pack("<I", len(name)), name.encode(), struct.pack("<II", kind, count), data]
    )


def run_node(
    folder: Path,
    root: Path,
    node: GatherConv,
    x: np.ndarray,
    shape: tuple[int, ...],
    residual: np.ndarray | None,
    half: bool,
) -> np.ndarray:
    """Runs a node in the plug-in with every tactic and returns the outputs, one after the other.

    The plug-in and what is made of its serialised form give the same.
    """
    attributes = node.attributes()
    case = struct.pack("<I", len(attributes))
    case += b"".join(field(name, value) for name, value in attributes.items())
    case += struct.pack("<I4I4II", half, *x.shape, *shape, residual is not None)
    case += packed(x, half).tobytes()
    if residual is not None:
        case += packed(residual, half).tobytes()
    (folder / "case").write_bytes(case)
    assert BUILD is not None
    library = Path(BUILD) / "tensorrt/libmdprune_tensorrt.so"
    done = subprocess.run(
        [Path(BUILD) / "tensorrt/tests/run_node", library, folder / "case", folder / "y"],
        env={**os.environ, "MDPRUNE_BUNDLE": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kind = np.float16 if half else np.float32
    channels = -(-shape[1] // 8) * 8 if half else shape[1]
    runs = np.frombuffer((folder / "y").read_bytes(), kind)
    runs = runs.reshape(2, -1, shape[0] * shape[2] * shape[3] * channels)
    assert np.array_equal(runs[0], runs[1])
    return np.stack([unpacked(run, shape, half) for run in runs[0]])


def check(folder: Path, root: Path, node: GatherConv, with_residual: bool, half: bool) -> None:
    rng = np.random.default_rng(0)
    kind = np.float16 if half else np.float32
    x = rng.standard_normal((2, node.channels, 9, 7)).astype(kind)
    wide = x.astype(np.float64)
    residual = None
    expected = node.run(root / "native", wide)
    if with_residual:
        residual = rng.standard_normal(expected.shape).astype(kind)
        expected = node.run(root / "native", wide, residual.astype(np.float64))
    found = run_node(folder, root, node, x, expected.shape, residual, half)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= (HALF if half else FLOAT32), f"{error:.1e}"


@pytest.mark.parametrize("half", [False, True])
def test_nodes_of_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    monkeypatch.setattr(choosing, "_decide", lambda weight, saved, moved: (True, "test"))
    out = tmp_path / "out"
    mdp.compile(residual_checkpoint(tmp_path), out, targets=["tensorrt"])
    for name in ("one", "two"):
        for position, node in enumerate(nodes(out / f"tensorrt/{name}.fp32.onnx")):
            check(tmp_path, out, node, position == 2, half)


@pytest.mark.parametrize("half", [False, True])
def test_rows_filters_and_padding(tmp_path: Path, half: bool) -> None:
    """Bit sets of rows and of filters, a leaky ReLU, an odd window: the node of the other tests."""
    (tmp_path / "native").mkdir()
    node = example(tmp_path / "native")
    data = (tmp_path / "native/w.bin").read_bytes()
    node = dataclasses.replace(
        node, files=(WeightName(hashlib.sha256(data).hexdigest(), 0, len(data), "w.bin"),)
    )
    for with_residual in (False, True):
        check(tmp_path, tmp_path, node, with_residual, half)


def test_a_bundle_with_other_weights_is_refused(tmp_path: Path) -> None:
    root = bundle()
    node = nodes(root / "tensorrt/first.fp32.onnx")[0]
    wrong = dataclasses.replace(
        node, files=tuple(dataclasses.replace(f, sha256="0" * 64) for f in node.files)
    )
    x = np.zeros((1, node.channels, 8, 8), np.float32)
    shape = node.run(root / "native", x).shape
    with pytest.raises(AssertionError, match="no bundle has the weight file"):
        run_node(tmp_path, root, wrong, x, shape, None, False)


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_rtx_builds_engines_with_the_plugin(precision: str) -> None:
    """TensorRT's parser and builder, of the edition that needs no GPU, take the library's nodes."""
    import tensorrt_rtx as trt

    assert BUILD is not None
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    library = Path(BUILD) / "tensorrt/libmdprune_tensorrt.so"
    handle = builder.get_plugin_registry().load_library(str(library))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    path = bundle() / f"tensorrt/first.{precision}.onnx"
    assert parser.parse_from_file(str(path)), parser.get_error(0)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    plugins = [layer for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    assert [tuple(layer.get_output(0).shape) for layer in plugins] == [
        (-1, node.filters, 8, 8) for node in nodes(path)
    ]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", *[(1, 3, 8, 8)] * 3)
    config.add_optimization_profile(profile)
    data = bytes(builder.build_serialized_network(network, config))
    assert data.count(b"GatherConv") >= len(plugins)
    for file in nodes(path)[0].files:
        assert file.sha256.encode() in data, "the engine names the weights"
    del parser, network, builder, handle

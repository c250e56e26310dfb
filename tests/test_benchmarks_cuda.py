"""The script of a GPU's figures: what it says without one, and all of it on an emulated one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from plans import CUDA_LIBRARY, CUDA_VARIABLE, devices

from benchmarks import cuda
from benchmarks.torch_graph import TorchGraph
from mdprune_deploy.bundle import read_bundle

PROGRAM = Path(__file__).parents[1] / "build/test/tests/cuda_convolution_bench"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cuda"])
    with pytest.raises(SystemExit, match="no GPU: PyTorch finds none"):
        cuda.main()


@pytest.mark.skipif("cuda" not in devices() or not PROGRAM.exists(), reason="nothing is built")
def test_all_of_it_runs_emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUDA_VARIABLE, str(CUDA_LIBRARY))
    arguments = f"cuda --emulate --program {PROGRAM} --batches 1 --rounds 1 --domains 2"
    monkeypatch.setattr(sys, "argv", [*arguments.split(), "--output", str(tmp_path)])
    cuda.main()
    found = json.loads((tmp_path / "cuda.json").read_text())
    assert found["settings"]["runs on"].startswith("cuda:0 sm_")
    rows = {row["figure"]: row for row in found["rows"] if "figure" in row}
    assert rows["error of float32"]["holds"] == rows["error of float16"]["holds"] == "true"
    assert [row["batch"] for row in found["rows"] if "batch" in row] == [1, 1]


def test_pytorch_computes_what_the_onnx_model_does(tmp_path: Path) -> None:
    case = cuda.toy_case(1)
    bundle, _ = cuda.compile_case(case, tmp_path, ["onnx"])
    files = read_bundle(bundle).manifest.models["domain0"].onnx
    assert files is not None
    graph = TorchGraph(bundle / files.portable, "cpu", torch.float32)
    expected = cuda.reference(
        cuda.masked_dense(case.model, case.domains["domain0"]), case.example.numpy()
    )
    with torch.no_grad():
        y = graph(case.example).numpy()
    assert cuda.relative_error(y, expected) <= cuda.LIMITS["float32"]

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from kernels.tools import legacy, nvrtc, resources

NVCC_TABLE = Path("build/kernels/resources.csv")


def compiler() -> nvrtc.Nvrtc:
    try:
        return nvrtc.Nvrtc()
    except nvrtc.NvrtcError as error:
        pytest.skip(str(error))


def test_says_what_to_install() -> None:
    message = r"nvidia.no_such_wheel 12.9 is not installed: pip install 'mdprune-deploy\[kernels\]'"
    with pytest.raises(nvrtc.NvrtcError, match=message):
        nvrtc.package_folder("no_such_wheel")


def test_names_every_instance_once() -> None:
    names = legacy.instances()
    assert len(set(names)) == len(names)
    assert "pool_kernel<__half, 8>" in names


@pytest.mark.skipif(not NVCC_TABLE.exists(), reason="make kernels has not run")
def test_has_every_instance_that_nvcc_compiles() -> None:
    with NVCC_TABLE.open(newline="") as file:
        compiled = {row["kernel"] for row in csv.DictReader(file)}
    spelling = {"unsigned int": "std::uint32_t", "unsigned short": "std::uint16_t"}
    pattern = re.compile("|".join(spelling))
    compiled = {pattern.sub(lambda found: spelling[found[0]], name) for name in compiled}
    on_tensor_cores = {name for name in compiled if "MmaTile" in name}
    assert on_tensor_cores
    assert compiled - on_tensor_cores == set(legacy.instances())


def test_compiles_for_a_gpu_that_nvcc_has_dropped() -> None:
    source = "template <typename T> __global__ void twice(T* x) { x[threadIdx.x] *= T(2); }"
    options = ["--gpu-architecture=sm_53", "--ptxas-options=-v"]
    cubin, log = compiler().compile(source, ["twice<float>"], options, {})
    assert cubin.startswith(b"\x7fELF")
    assert [each.architecture for each in resources.parse(log)] == ["sm_53"]


def test_shows_the_log_of_what_does_not_compile() -> None:
    with pytest.raises(nvrtc.NvrtcError, match='identifier "nothing" is undefined'):
        compiler().compile('#include "a.h"', [], [], {"a.h": "int x = nothing;"})


def test_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> Path:
        raise nvrtc.NvrtcError(f"{name} is not installed")

    monkeypatch.setattr(nvrtc, "package_folder", missing)
    assert legacy.main([str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "cuda_nvrtc is not installed\n"
    assert not (tmp_path / "out").exists()

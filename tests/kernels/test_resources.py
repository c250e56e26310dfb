from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from kernels.tools import resources

# As ptxas 13.0 writes it: a kernel that calls a function, and one that spills.
LOG = """\
ptxas info    : 24 bytes gmem, 8 bytes cmem[4]
ptxas info    : Compiling entry function '_ZN7mdprune4cuda4poolIfLi4EEEvPKf' for 'sm_75'
ptxas info    : Function properties for _ZN7mdprune4cuda4poolIfLi4EEEvPKf
    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 19 registers, used 1 barriers, 1024 bytes smem, 388 bytes cmem[0]
ptxas info    : Compile time = 29.994 ms
ptxas info    : Function properties for _ZN7mdprune4cuda15activate_rarelyEfjff
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Compiling entry function '_Z4mainv' for 'sm_75'
ptxas info    : Function properties for _ZN7mdprune4cuda15activate_rarelyEfjff
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Function properties for _Z4mainv
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 16 bytes cumulative stack size
"""


def kernel(name: str, architecture: str, registers: int, spills: int = 0) -> resources.Resources:
    return resources.Resources(name, architecture, registers, 0, 0, spills, 0)


def test_reads_kernels_and_leaves_functions_out() -> None:
    assert list(resources.parse(LOG)) == [
        resources.Resources("_ZN7mdprune4cuda4poolIfLi4EEEvPKf", "sm_75", 19, 1024, 32, 0, 0),
        resources.Resources("_Z4mainv", "sm_75", 255, 0, 16, 12, 20),
    ]


def test_refuses_an_entry_without_figures() -> None:
    cut = "\n".join(LOG.splitlines()[:2])
    with pytest.raises(ValueError, match=r"no figures for .*pool.* on sm_75"):
        list(resources.parse(cut))
    with pytest.raises(ValueError, match=r"no figures for .*pool.* on sm_75"):
        list(resources.parse(cut + "\n" + LOG))
    with pytest.raises(ValueError, match="figures of an unknown kernel"):
        list(resources.parse(LOG.splitlines()[4]))


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("void mdprune::cuda::pool<float, 4>(mdprune::cuda::Pool)", "pool<float, 4>"),
        ("void mdprune::cuda::fold<mdprune::cuda::Sum>(int (*)(int))", "fold<Sum>"),
        ("mdprune::cuda::(anonymous namespace)::main(float const*)", "main"),
        ("main()", "main"),
    ],
)
def test_shortens_names(signature: str, name: str) -> None:
    assert resources.short_name(signature) == name


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="binutils are not installed")
def test_demangles() -> None:
    names = [each.kernel for each in resources.demangle(list(resources.parse(LOG)))]
    assert names == ["pool<float, 4>", "main"]


def test_shows_a_range_where_architectures_differ() -> None:
    kernels = [
        kernel("b", "sm_75", 40),
        kernel("b", "sm_110", 30, spills=8),
        kernel("a", "sm_75", 9),
    ]
    assert resources.table(kernels).splitlines() == [
        "kernel  architectures  registers  shared  stack  spills",
        "a                   1          9       0      0       0",
        "b                   2      30-40       0      0     0-8",
    ]


def test_finds_spills_only_where_they_are_forbidden() -> None:
    kernels = [kernel("main<half>", "sm_87", 255, spills=8), kernel("other", "sm_87", 9, spills=4)]
    assert resources.spilling(kernels, ["^main<"]) == ["main<half> spills 8 bytes on sm_87"]
    assert resources.spilling(kernels, ["float"]) == ["no kernel is named like 'float'"]
    assert resources.spilling(kernels, []) == []


def test_command_writes_the_table_and_fails_on_spills(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.o.ptxas").write_text(LOG)
    path = tmp_path / "table.csv"
    assert resources.main([str(tmp_path), "--csv", str(path), "--no-spills", "pool"]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["registers"] for row in rows] == ["255", "19"]
    assert rows[0]["spill_loads"] == "20"
    assert resources.main([str(tmp_path), "--no-spills", "main"]) == 1
    assert "main" in (error := capsys.readouterr().err) and "spills 32 bytes on sm_75" in error


def test_command_fails_where_nothing_was_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resources.main([str(tmp_path)]) == 1
    assert "no kernels in" in capsys.readouterr().err

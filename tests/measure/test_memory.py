"""What the kernel says of a process's memory, and what of it is told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from plans import has_runtime
from tiny_checkpoints import DOMAINS, bundle

from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.measure import memory
from mdprune_deploy.measure.memory import ONE_CONTEXT, Series, copies, mapped, measure

MAPS = """\
55d0a0000000-55d0a0001000 r--p 00000000 00:1f 100 /b/native/weights.bin
Rss:                 900 kB
Pss:                 100 kB
Pss_Dirty:             7 kB
55d0a0001000-55d0a0002000 r--p 00000000 00:1f 101 /b/native/first.plan
Pss:                  20 kB
55d0a0002000-55d0a0003000 r--p 00000000 00:1f 102 /b/native/index.bin
Pss:                   4 kB
55d0a0003000-55d0a0004000 r--p 00000000 00:1f 103 /b/onnx/weights-1.bin (deleted)
Pss:                  30 kB
55d0a0004000-55d0a0005000 r--p 00000000 00:1f 104 /bin/weights.bin
Pss:                   8 kB
7ffd00000000-7ffd00001000 rw-p 00000000 00:00 0
Pss:                  16 kB
7ffd00001000-7ffd00002000 rw-p 00000000 00:00 0 [heap]
Pss:                   5 kB
"""


def test_pages_are_told_apart_by_their_files() -> None:
    kib = {key: size // 1024 for key, size in mapped(MAPS, Path("/b")).items()}
    assert kib == {"weights": 130, "plans": 24, "other": 21}


needs_smaps = pytest.mark.skipif(not memory.SMAPS.exists(), reason="Linux only")


@needs_smaps
@pytest.mark.skipif(not has_runtime(), reason="the native runtime is not built")
@pytest.mark.parametrize("setup", ["native", ONE_CONTEXT])
def test_domains_are_added_one_by_one(setup: str) -> None:
    series = measure(bundle(), setup, 1, DOMAINS)
    assert (series.setup, series.note) == (setup, None)
    assert [step.domains for step in series.steps] == [1, 2]
    for step in series.steps:
        assert step.pss == step.weights + step.plans + step.other and step.device is None
        assert step.weights > 0 and step.plans > 0
    first, second = series.steps
    assert second.weights >= first.weights
    files = (bundle() / "native").glob("weights*.bin")
    pages = sum(-(-path.stat().st_size // 4096) for path in files)
    assert second.weights <= 4096 * pages, "all domains' weights are mapped once"


@needs_smaps
def test_what_fails_in_the_process_is_said(tmp_path: Path) -> None:
    found = measure(tmp_path, "onnxruntime", 1, ["first"])
    assert found.steps == ()
    assert found.note is not None and "is not a bundle" in found.note


def test_without_linux_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SMAPS", Path("/nowhere"))
    note = "no /proc/self/smaps here: PSS is counted on Linux only"
    assert measure(bundle(), "native", 1, DOMAINS) == Series("native", (), note)


def test_copies_add_up_without_sharing() -> None:
    manifest = read_bundle(bundle()).manifest
    found = copies(manifest, DOMAINS)
    dense = [manifest.report.domains[name].params_dense * 4 for name in DOMAINS]
    assert found.dense == (dense[0], sum(dense))
    assert 0 < found.private[0] < found.dense[0] and found.private[0] < found.private[1]

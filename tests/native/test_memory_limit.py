"""`--memory-limit`: the weight file keeps it, the bundle says what was chosen, nothing differs."""

from pathlib import Path

import pytest
import torch
from interpreted import InterpretedEngine
from torch import nn

import mdprune_deploy as mdp
from mdprune_deploy import pipeline
from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.inspect import inspect


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "NativeEngine", InterpretedEngine)
    monkeypatch.setattr(pipeline, "load_library", lambda: None)


class Net(nn.Module):
    """Three convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 48, 3, padding=1)
        self.second = nn.Conv2d(48, 64, 3, padding=1)
        self.third = nn.Conv2d(64, 32, 3, padding=1)
        self.head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(torch.relu(self.third(y)).mean((2, 3)))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> mdp.Checkpoint:
    torch.manual_seed(0)
    keep = [torch.tensor([(c * (d + 3)) % 5 < 3 for c in range(48)]) for d in range(3)]
    domains = {f"d{d}": mdp.Domain({"second": mdp.Mask(keep[d], "in")}) for d in range(3)}
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    mdp.save_checkpoint(path, Net().eval(), torch.randn(1, 3, 6, 6), domains)
    return mdp.load_checkpoint(path)


def weight_file(bundle: Path) -> int:
    return (bundle / "native" / "weights.bin").stat().st_size


def test_room_makes_copies_and_the_limit_is_kept(given: mdp.Checkpoint, tmp_path: Path) -> None:
    free = mdp.compile(given, tmp_path / "free", targets=["native"])
    least = weight_file(tmp_path / "free")
    by_name = {weight.name: weight for weight in free.layout}
    assert len(by_name) == 4 and free.memory_limit is None
    masked = by_name["second.weight"]
    assert masked.private == () and masked.readers == ("d0", "d1", "d2")
    assert masked.bytes_union <= masked.bytes_stored < masked.bytes_copies
    copies = sum(max(weight.bytes_copies, weight.bytes_stored) for weight in free.layout)
    for limit in (least, (least + copies) // 2, 2 * copies):
        bundle = tmp_path / str(limit)
        report = mdp.compile(given, bundle, targets=["native"], memory_limit=limit)
        assert weight_file(bundle) <= limit and report.memory_limit == limit
        assert read_bundle(bundle).manifest.report.layout == report.layout
        found = inspect(bundle)
        assert (found.layout, found.memory_limit) == (report.layout, limit)
    assert all(weight.private == weight.readers or weight.bytes_stored == weight.bytes_copies
               for weight in report.layout)  # fmt: skip


def test_a_limit_below_the_union_is_refused(given: mdp.Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(mdp.BudgetError, match=r"^the memory limit leaves "):
        mdp.compile(given, tmp_path / "out", targets=["native"], memory_limit=1000)
    assert not list(tmp_path.iterdir())


def test_a_limit_needs_the_native_target(given: mdp.Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(mdp.UsageError) as caught:
        mdp.compile(given, tmp_path / "out", targets=["onnx"], memory_limit=1000)
    assert str(caught.value) == (
        "a memory limit is one of the native target, which was not asked for"
    )


def test_domains_share_one_order_of_filters(given: mdp.Checkpoint, tmp_path: Path) -> None:
    report = mdp.compile(given, tmp_path / "out", targets=["native"])
    assert report.bytes_shared > 4 * report.bytes_private

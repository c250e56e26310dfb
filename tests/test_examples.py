"""The trained example, in its quick size: what it writes and that it writes the same twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mdprune_deploy.checkpoint import load_checkpoint

EXAMPLES = Path(__file__).parent.parent / "examples"
DOMAINS = ["digits", "glyphs", "textures", "shapes"]


def run(output: Path, *arguments: str) -> str:
    """Runs the example and returns what it printed."""
    command = [sys.executable, str(EXAMPLES / "train.py"), "--output", str(output), "--quick"]
    environment = os.environ | {"COLUMNS": "100"}
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    (folder / "printed.txt").write_text(run(folder))
    return folder


def test_the_table_names_every_domain(output: Path):
    printed = (output / "printed.txt").read_text()
    assert "Accuracy on the test split" in printed
    assert all(name in printed for name in DOMAINS)


def test_the_accuracies_are_recorded_beside_their_baseline(output: Path):
    figures = json.loads((output / "accuracy.json").read_text())
    assert list(figures["domains"]) == DOMAINS
    for row in figures["domains"].values():
        assert row["test_images"] == 100
        assert 0 <= row["masked"] <= 1
        assert 0 < row["switches_on"] <= 0.5
    # The quick run is too short for the harder domains; these two must be learned.
    assert figures["domains"]["digits"]["baseline"] > 0.8
    assert figures["domains"]["textures"]["masked"] > 0.4


def test_the_checkpoint_keeps_the_budget(output: Path):
    checkpoint = load_checkpoint(output / "model.pt")
    assert list(checkpoint.domains) == DOMAINS
    split = np.load(output / "test-split.npz")
    for name, domain in checkpoint.domains.items():
        assert len(domain.labels) == len(domain.state["fc.weight"]) == len(domain.state["fc.bias"])
        assert split[f"{name}/y"].max() < len(domain.labels)
        used = total = 0
        for mask in domain.masks.values():
            assert mask.axis == "in"
            used += int(mask.on.sum())
            total += len(mask.on)
        assert 0 < used < total


def test_the_test_split_is_written(output: Path):
    with np.load(output / "test-split.npz") as split:
        assert sorted(split) == sorted(f"{name}/{key}" for name in DOMAINS for key in "xy")
        for name in DOMAINS:
            assert split[f"{name}/x"].shape == (100, 3, 32, 32)
            assert split[f"{name}/x"].dtype == np.float32
            assert split[f"{name}/y"].dtype == np.int64


def test_the_same_arguments_give_the_same_bytes(output: Path, tmp_path: Path):
    run(tmp_path)
    for name in ("model.pt", "accuracy.json", "test-split.npz"):
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes(), name


def test_training_and_test_images_do_not_come_from_the_same_places(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import data

    assert not set(data.TRAIN_FONTS) & set(data.TEST_FONTS)
    domains = data.load_domains(300, 100, seed=0)
    assert list(domains) == DOMAINS
    for name, domain in domains.items():
        train = {image.tobytes() for image in domain.train.x}
        assert not any(image.tobytes() in train for image in domain.test.x), name
        assert set(domain.test.y.tolist()) <= set(range(len(domain.labels)))


def test_the_network_of_the_example_is_a_residual_one_with_16_layers(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from model import WideResNet

    network = WideResNet().eval()
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) == 13
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)

"""Figures per layer against counts made by hand, and the picture."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import DOMAINS, bundle, checkpoint, scores

import mdprune_deploy as mdp
from mdprune_deploy.errors import BackendUnavailableError, UsageError
from mdprune_deploy.inspect import Layer, channels, inspect, plot, sharing
from mdprune_deploy.report import LayerFigures


def layer(path: Path, name: str) -> Layer:
    (found,) = (entry for entry in inspect(path).layers if entry.name == name)
    return found


def test_a_masked_layer_is_counted_by_its_switches() -> None:
    on = torch.stack([scores(0) > 0, scores(1) > 0])
    found = layer(checkpoint(), "conv2.weight")
    kernel = 16 * 9
    assert found.kind == "Conv"
    assert [c.params_used for c in found.domains.values()] == [12 * kernel, 12 * kernel]
    assert all(c.params_dense == 16 * kernel for c in found.domains.values())
    assert all(c.macs_dense == 16 * kernel * 64 for c in found.domains.values())
    assert found.params_union == int(on.any(0).sum()) * kernel
    assert found.params_intersection == int(on.all(0).sum()) * kernel


def test_a_layer_before_the_masked_one_loses_its_filters() -> None:
    found = layer(checkpoint(), "conv1.weight")
    assert [c.params_used for c in found.domains.values()] == [12 * 27, 12 * 27]


def test_own_weights_are_not_shared() -> None:
    found = layer(checkpoint(), "head.weight")
    assert (found.params_union, found.params_intersection) == (2 * 80, 0)


def test_a_checkpoint_and_its_bundle_agree() -> None:
    before, after = inspect(checkpoint()), inspect(bundle())
    assert (before.source, after.source) == ("checkpoint", "bundle")
    assert before.domains == after.domains and list(before.domains) == list(DOMAINS)
    assert before.params_union == after.params_union == sum(
        entry.params_union or 0 for entry in before.layers
    )  # fmt: skip
    assert before.params_intersection == after.params_intersection
    assert [e.domains for e in before.layers] == [e.domains for e in after.layers]
    assert all(e.params_union is None for e in after.layers)
    assert before.bytes_private is None and after.bytes_private is not None


def test_totals_are_sums_over_layers() -> None:
    found = inspect(checkpoint())
    for name, total in found.domains.items():
        for figure in ("params_dense", "params_used", "params_emitted", "macs_emitted"):
            parts = [getattr(entry.domains[name], figure) for entry in found.layers]
            assert getattr(total, figure) == sum(parts)


def test_a_weight_that_is_read_twice_is_two_rows() -> None:
    from mdprune_deploy.inspect import _layers

    twice = (LayerFigures("w", "Conv", 9, 9, 9, 18, 18), LayerFigures("w", "Conv", 0, 0, 9, 18, 18))
    rows = _layers({"a": twice})
    assert [(row.name, row.domains["a"].params_dense) for row in rows] == [("w", 9), ("w", 0)]


def test_channels_are_those_that_the_masks_leave() -> None:
    found = channels(mdp.load_checkpoint(checkpoint()))
    for index, name in enumerate(DOMAINS):
        np.testing.assert_array_equal(found["conv2.weight"][name], scores(index) > 0)
        assert found["conv1.weight"][name].all() and len(found["conv1.weight"][name]) == 3


def test_the_picture_sorts_by_how_many_use_a_channel() -> None:
    masks = {
        "a": np.array([0, 1, 1, 0, 1, 0], dtype=np.bool_),
        "b": np.array([0, 1, 0, 1, 1, 0], dtype=np.bool_),
        "c": np.array([1, 1, 0, 0, 1, 0], dtype=np.bool_),
    }
    expected = [[3, 3, 1, 0, 0, 0], [3, 3, 0, 1, 0, 0], [3, 3, 0, 0, 1, 0]]
    np.testing.assert_array_equal(sharing(masks, ["a", "b", "c"]), expected)
    np.testing.assert_array_equal(sharing({"b": masks["b"]}, ["a", "b"])[0], [0] * 6)


def test_the_picture_shows_used_and_unused_channels(tmp_path: Path) -> None:
    plot(mdp.load_checkpoint(checkpoint()), tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    # White is unused; the darkest shade is what all domains use, the lightest what one does.
    assert {(255, 255, 255), (68, 1, 84)} <= colours and len(colours) > 3


def test_a_picture_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'mdprune-deploy\[plot\]'"):
        plot(mdp.load_checkpoint(checkpoint()), tmp_path / "p.png")


def test_a_picture_needs_a_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none is not a directory"):
        plot(mdp.load_checkpoint(checkpoint()), tmp_path / "none" / "p.png")
    assert list(tmp_path.iterdir()) == []

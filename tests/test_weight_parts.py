"""Masks on a whole weight of which layers read parts: slices, concatenations, flips.

Spatial size is 8 x 8, kernels of `middle` are 3 x 3: 64 * 9 multiply-accumulates per pair.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from graphs import mask
from test_pipeline import Call, Net, compile_exactly, randomise
from torch import Tensor, nn

import mdprune_deploy as mdp
from mdprune_deploy import CheckpointError, CompileReport, Domain, UnsupportedGraphError
from mdprune_deploy.masks import fit_budget


class Octave(nn.Conv2d):
    """Three of the four quarters of one weight, as octave convolutions read it."""

    def __init__(self) -> None:
        super().__init__(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        w, high, low = self.weight, x[:, :4], x[:, 4:]
        y = F.conv2d(high, w[:4, :4], self.bias[:4], padding=1)
        y = y + F.conv2d(low, w[:4, 4:], padding=1)
        return torch.cat([y, F.conv2d(high, w[4:, :4], self.bias[4:], padding=1)], 1)


class HalfTransposed(nn.ConvTranspose2d):
    """Reads the rows of four of its eight input channels."""

    def __init__(self) -> None:
        super().__init__(8, 6, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x[:, 4:], self.weight[4:], self.bias[3:])


def compiled(folder: Path, middle: nn.Module, masks: object, channels: int = 8) -> CompileReport:
    torch.manual_seed(0)
    model = randomise(Net(middle, channels))
    return compile_exactly(folder, model, {"d": Domain({"middle.weight": masks})})


def totals(report: CompileReport) -> tuple[int, int, int, int]:
    """Parameters used and emitted, and MACs emitted, of the layers in the middle; the stem's."""
    layers = [f for f in report.domains["d"].layers if not f.name.startswith(("last", "fc"))]
    middle = [layer for layer in layers if layer.name != "stem.weight"]
    (stem,) = (layer for layer in layers if layer.name == "stem.weight")
    return (
        sum(layer.params_used for layer in middle),
        sum(layer.params_emitted for layer in middle),
        sum(layer.macs_emitted for layer in middle),
        stem.params_emitted,
    )


def test_input_mask_on_a_weight_that_is_read_in_quarters(tmp_path: Path) -> None:
    """Of the high half 2 channels stay, of the low one 1; the low-to-low quarter is not read."""
    report = compiled(tmp_path, Octave(), mask([1, 1, 0, 0, 0, 1, 0, 0]))
    pairs = 4 * 2 + 4 * 1 + 4 * 2
    assert totals(report) == (pairs * 9, pairs * 9, pairs * 9 * 64, 3 * 27)


def test_output_masks_on_a_weight_that_is_read_in_quarters(tmp_path: Path) -> None:
    """Off filters leave biases, which the next layer takes: 1 high and 3 low ones stay."""
    on = [0, 0, 1, 0, 1, 1, 0, 1]
    pairs = 1 * 4 + 1 * 4 + 3 * 4
    for site in ("weight", "output"):
        (tmp_path / site).mkdir()
        report = compiled(tmp_path / site, Octave(), mask(on, "out", site))
        assert totals(report) == (pairs * 9, pairs * 9, pairs * 9 * 64, 8 * 27)


def test_masks_on_both_sides_of_slices(tmp_path: Path) -> None:
    masks = [mask([1, 1, 0, 0, 0, 1, 0, 0]), mask([0, 0, 1, 0, 1, 1, 0, 1], "out")]
    report = compiled(tmp_path, Octave(), masks)
    pairs = 1 * 2 + 1 * 1 + 3 * 2
    assert totals(report) == (pairs * 9, pairs * 9, pairs * 9 * 64, 3 * 27)


def parts(function: object, *shape: int, **attributes: object) -> nn.Module:
    """A module of one raw parameter, called `weight`."""
    module = Call(function, weight=nn.Parameter(torch.randn(*shape) / 5))  # type: ignore[arg-type]
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


ON = [1, 0, 0, 1, 0, 1, 1, 0]
"""Four of eight channels: 0, 3, 5 and 6."""

CASES = {
    # name: (module, mask, channels out, pairs, kernel elements, filters of the stem)
    "every second input channel": (
        lambda: parts(lambda s, x: F.conv2d(x[:, ::2], s.weight[:, ::2], None, 1, 1), 8, 8, 3, 3),
        mask(ON), 8, 8 * 2, 9, 2,
    ),
    "input channels in reverse": (
        lambda: parts(lambda s, x: F.conv2d(x, s.weight.flip(1), None, 1, 1), 8, 8, 3, 3),
        mask(ON), 8, 8 * 4, 9, 4,
    ),
    "the first filters of a depthwise weight": (
        lambda: parts(lambda s, x: F.conv2d(x[:, :4], s.weight[:4], None, 1, 1, 1, 4),
                      8, 1, 3, 3, groups=8),
        mask(ON), 4, 2, 9, 2,
    ),
    "the last filters of a depthwise weight, masked by filter": (
        lambda: parts(lambda s, x: F.conv2d(x[:, 4:], s.weight[4:], None, 1, 1, 1, 4),
                      8, 1, 3, 3, groups=8),
        mask(ON, "out"), 4, 2, 9, 2,
    ),
    "a group of a grouped weight": (
        lambda: parts(lambda s, x: F.conv2d(x[:, 4:], s.weight[4:], None, 1, 1), 8, 4, 3, 3,
                      groups=2),
        mask(ON, "out"), 4, 2 * 4, 9, 4,
    ),
    "a weight beside its own mirror image": (
        lambda: parts(lambda s, x: F.conv2d(x, torch.cat([s.weight, s.weight.flip(0)]), None, 1, 1),
                      4, 8, 3, 3),
        mask(ON), 8, 8 * 4, 9, 4,
    ),
    "a linear weight with an axis added": (
        lambda: parts(lambda s, x: F.conv2d(x, s.weight[:, :, None, None]), 8, 8),
        mask(ON), 8, 8 * 4, 1, 4,
    ),
    "columns of a linear weight": (
        lambda: parts(lambda s, x: F.linear(x.permute(0, 2, 3, 1)[..., :6], s.weight[:, :6])
                      .permute(0, 3, 1, 2), 8, 8),
        mask(ON), 8, 8 * 3, 1, 3,
    ),
    "channels and kernel on one axis": (  # no axis of the weight holds the channels: the operand's
        lambda: parts(lambda s, x: F.conv2d(x, s.weight.reshape(8, 8, 3, 3), None, 1, 1), 8, 72),
        mask([1] * 8, "out"), 8, 8 * 8, 9, 8,
    ),
    "half of a transposed convolution": (HalfTransposed, mask(ON), 3, 3 * 2, 1, 2),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_parts_of_a_raw_parameter(case: str, tmp_path: Path) -> None:
    build, masks, channels, pairs, kernel, stem = CASES[case]
    report = compiled(tmp_path, build(), masks, channels)
    assert totals(report) == (pairs * kernel, pairs * kernel, pairs * kernel * 64, stem * 27)


def groups_apart() -> nn.Module:
    """Every second filter of a grouped weight: their groups are not the weight's."""
    return parts(lambda s, x: F.conv2d(x, s.weight[::2], None, 1, 1, 1, 2), 8, 4, 3, 3, groups=2)


@pytest.mark.parametrize(
    ("middle", "masks", "channels", "kind", "message"),
    [
        (
            groups_apart, mask([1] * 8), 4, UnsupportedGraphError,
            "Conv (node 'node_conv2d_1') reads parts of groups of 'middle.weight': which channels "
            "a mask on that means is not defined",
        ),
        (
            Octave, mask([1] * 4), 8, CheckpointError,
            "domain 'd': mask on 'middle.weight' has 4 entries; 'middle.weight', of which Conv "
            "'node_conv2d_1' reads, has 8 input channels",
        ),
    ],
)  # fmt: skip
def test_refused(
    middle: object, masks: object, channels: int, kind: type, message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as error:
        compiled(tmp_path, middle(), masks, channels)  # type: ignore[operator]
    assert str(error.value) == message


def test_a_budget_on_parts_is_refused(tmp_path: Path) -> None:
    """Its share of a weight would have to be counted over several layers."""
    torch.manual_seed(0)
    domain = Domain({"middle.weight": mask([1, 1, 0, 0, 0, 1, 0, 0])})
    mdp.save_checkpoint(tmp_path / "m.pt", Net(Octave()), torch.randn(1, 3, 8, 8), {"d": domain})
    with pytest.raises(UnsupportedGraphError) as error:
        fit_budget(mdp.load_checkpoint(tmp_path / "m.pt"), 0.5)
    assert str(error.value) == (
        "domain 'd': the mask on 'middle.weight' cannot be held to a budget: its layers read "
        "parts of that weight"
    )

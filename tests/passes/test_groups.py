"""Which groups of a pruned grouped convolution become one convolution."""

import numpy as np
import pytest

from mdprune_deploy.passes.operators import groups
from mdprune_deploy.passes.operators.groups import Run, runs

READ, MADE = np.asarray([4, 1, 4, 0, 2]), np.asarray([2, 2, 2, 1, 0])


def test_free_convolutions_pad_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last group makes nothing; the one before reads nothing, and takes any channel."""
    monkeypatch.setattr(groups, "RUN", 0)
    found = runs(READ, MADE, 9)
    assert found == [Run((0, 2), 4, 2), Run((1,), 1, 2), Run((3,), 1, 1)]
    assert [run.pairs for run in found] == [16, 2, 1]


@pytest.mark.parametrize(
    ("macs", "expected"),
    [
        # (1, 1) into (1, 2) adds one pair, both into (4, 2) add 12 more.
        (400_000, [Run((0, 2), 4, 2), Run((1,), 1, 2), Run((3,), 1, 1)]),
        (100_000, [Run((0, 2), 4, 2), Run((1, 3), 1, 2)]),
        (10_000, [Run((0, 1, 2, 3), 4, 2)]),
    ],
)
def test_padding_against_one_more_convolution(macs: int, expected: list[Run]) -> None:
    assert runs(READ, MADE, macs) == expected


def test_equal_groups_are_one_convolution() -> None:
    assert runs(np.full(8, 3), np.full(8, 2), 10**9) == [Run(tuple(range(8)), 3, 2)]

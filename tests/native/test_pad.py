from __future__ import annotations

import numpy as np
import pytest

from mdprune_deploy.emit.native.draft import Draft
from mdprune_deploy.emit.native.operators import Affine, Convolution, Pool, Reduce, ReduceKind
from mdprune_deploy.emit.native.pad import pad_channels


class Chain:
    """A convolution of 60 filters and what reads it."""

    def __init__(self, filters: int = 60) -> None:
        self.draft = Draft()
        self.x = self.draft.input("x", (1, 4, 4, 3))
        self.y = self.activation(filters)
        self.first = self.convolution(self.x, self.y, scale=self.draft.constant(np.ones(filters)))

    def activation(self, channels: int) -> int:
        return self.draft.activation((1, 4, 4, channels))

    def convolution(self, x: int, y: int, **options: int) -> Convolution:
        width = self.draft.shape(y)[-1]
        weight = self.draft.constant(np.ones((1, -(-width // 16), 1, 1, 16)), weight=True)
        weights = ((weight, None, None, None),)
        found = Convolution(x=x, y=y, spatial=2, filters=width, weights=weights, **options)
        self.draft.operators.append(found)
        return found

    def widths(self, *tensors: int) -> list[int]:
        pad_channels(self.draft)
        return [self.draft.shape(tensor)[-1] for tensor in tensors]


def test_fills_lines_that_convolutions_write_and_select_from() -> None:
    chain = Chain()
    chain.convolution(chain.y, chain.draft.output("z", (1, 4, 4, 7)))
    assert chain.widths(chain.y) == [64]
    first, second = chain.draft.operators
    assert isinstance(first, Convolution) and isinstance(second, Convolution)
    scale = chain.draft.array(first.scale)
    assert scale is not None and scale.shape == (64,)
    # What is added is not read.
    assert np.array_equal(chain.draft.array(second.index), np.arange(60))


@pytest.mark.parametrize("filters", [64, 17, 3])
def test_leaves_whole_lines_and_what_would_grow_much(filters: int) -> None:
    chain = Chain(filters)
    chain.convolution(chain.y, chain.draft.output("z", (1, 4, 4, 7)))
    assert chain.widths(chain.y) == [filters]


def test_leaves_what_others_read() -> None:
    chain = Chain()
    out = chain.draft.output("z", (1, 60))
    chain.draft.operators.append(
        Reduce(x=chain.y, y=out, kind=ReduceKind.MEAN, outer=1, n=16, inner=60)
    )
    assert chain.widths(chain.y) == [60]


def test_leaves_outputs_and_views() -> None:
    chain = Chain()
    chain.draft.view(chain.y, (16, 60))
    written = chain.draft.output("z", (1, 4, 4, 60))
    chain.convolution(chain.y, written)
    assert chain.widths(chain.y, written) == [60, 60]


def test_residuals_and_pools_grow_with_what_they_are_tied_to() -> None:
    chain = Chain()
    pooled, sum_ = chain.activation(60), chain.activation(60)
    chain.draft.operators.append(Pool(x=chain.y, y=pooled, kind=0, spatial=2))
    chain.convolution(chain.x, sum_, residual=pooled)
    chain.convolution(sum_, chain.draft.output("z", (1, 4, 4, 7)))
    assert chain.widths(chain.y, pooled, sum_) == [64, 64, 64]


def test_a_tie_to_what_stays_holds_all() -> None:
    chain = Chain()
    kept = chain.draft.output("z", (1, 4, 4, 60))
    chain.convolution(chain.x, kept, residual=chain.y)
    assert chain.widths(chain.y, kept) == [60, 60]


def test_a_selected_residual_selects_something_for_what_is_added() -> None:
    chain = Chain(100)
    sum_ = chain.activation(60)
    index = chain.draft.index(np.arange(40, 100))
    chain.convolution(chain.x, sum_, residual=chain.y, residual_index=index)
    chain.convolution(sum_, chain.draft.output("z", (1, 4, 4, 7)))
    assert chain.widths(chain.y, sum_) == [112, 64]
    joined = chain.draft.operators[1]
    assert isinstance(joined, Convolution)
    chosen = chain.draft.array(joined.residual_index)
    assert chosen is not None and len(chosen) == 64 and chosen.max() < 100


def test_norms_that_select_may_read_what_has_grown() -> None:
    chain = Chain()
    chosen = chain.activation(30)
    index = chain.draft.index(np.arange(30))
    chain.draft.operators.append(Affine(x=chain.y, y=chosen, index=index))
    assert chain.widths(chain.y, chosen) == [64, 30]

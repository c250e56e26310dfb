"""The algebra of known and needed elements and of product sets, on arrays written out."""

import numpy as np
import pytest

from mdprune_deploy.passes.elements import (
    along,
    any_along,
    any_over,
    closure,
    compress,
    elements,
    indices_of,
    live,
    same,
    sizes,
    take,
)

NAN = np.nan


def test_live_has_the_rank_and_one_element() -> None:
    assert live(3).shape == (1, 1, 1)
    assert np.isnan(live(3)).all()


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        ([[1.0, 1.0], [1.0, 1.0]], (1, 1)),
        ([[1.0, 2.0], [1.0, 2.0]], (1, 2)),
        ([[1.0, 1.0], [2.0, 2.0]], (2, 1)),
        ([[NAN, 1.0], [NAN, 1.0]], (1, 2)),
        ([[NAN, NAN], [NAN, NAN]], (1, 1)),
        ([[NAN, 1.0], [1.0, NAN]], (2, 2)),
    ],
)
def test_compress_collapses_equal_slices(array: list[list[float]], shape: tuple[int, ...]) -> None:
    packed = compress(np.array(array))
    assert packed.shape == shape
    np.testing.assert_array_equal(np.broadcast_to(packed, (2, 2)), array)


def test_compress_takes_booleans() -> None:
    assert compress(np.array([[True, True], [True, True]])).shape == (1, 1)


def test_any_along_keeps_the_rank() -> None:
    array = np.array([[True, False, False], [False, False, False]])
    assert any_along(array, [0]).tolist() == [[True, False, False]]
    assert any_along(array, []) is array


def test_any_over_reduces_to_a_broadcast_operand() -> None:
    need = np.zeros((2, 3, 4), dtype=bool)
    need[1, 2, 0] = True
    assert any_over(need, (3, 1)).tolist() == [[False], [False], [True]]
    assert any_over(need, ()).tolist() is True
    assert any_over(need, (2, 3, 4)).tolist() == need.tolist()


def test_along_spreads_a_collapsed_axis() -> None:
    need = np.array([[[True], [False]]])
    assert along(need, 1, 2).tolist() == [True, False]
    assert along(need, 2, 3).tolist() == [True, True, True]


def test_closure_is_the_smallest_product_set() -> None:
    need = np.zeros((4, 3), dtype=bool)
    need[1, 0] = need[3, 2] = True
    rows, columns = closure(need, (4, 3), {0, 1})
    assert rows is not None and columns is not None
    assert (rows.tolist(), columns.tolist()) == ([1, 3], [0, 2])
    assert closure(need, (4, 3), {0})[1] is None
    assert closure(np.ones((1, 1), dtype=bool), (4, 3), {0, 1}) == (None, None)


def test_elements_are_those_of_the_product() -> None:
    inside = elements((np.array([1, 3]), None), (4, 3))
    assert inside.tolist() == [[False], [True], [False], [True]]


def test_sizes_indices_and_sameness() -> None:
    sets = (np.array([0, 2]), None)
    assert sizes(sets, (4, 3)) == (2, 3)
    assert indices_of(sets, 1, 3).tolist() == [0, 1, 2]
    assert same(None, np.arange(3), 3)
    assert not same(None, np.array([0, 1]), 3)


def test_take_aligns_the_last_axes_and_keeps_broadcast_ones() -> None:
    sets = (None, np.array([0, 2]), None)
    assert take(np.arange(3.0)[:, None], sets).tolist() == [[0.0], [2.0]]
    assert take(np.array([[7.0]]), sets).tolist() == [[7.0]]
    assert take(np.float64(3.0).reshape(()), sets) == 3.0

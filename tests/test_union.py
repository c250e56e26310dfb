"""One weight stored once for many readers: what is stored, and that every reader gets its part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdprune_deploy.layout.union import Readings, Selection, Union, union

Case = tuple[np.ndarray, dict[str, Selection], np.ndarray, bool]


def indices(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def read(weight: np.ndarray, stored: Union[str], readings: Readings) -> np.ndarray:
    """The reader's weight `(filters, channels, taps)` as a kernel finds it in the slabs."""
    parts = []
    for reading in readings.readings:
        slab = stored.slabs[reading.slab].take(weight)
        slab = slab if reading.bits is None else slab[:, :, reading.bits]
        slab = slab if reading.rows is None else slab[:, reading.rows]
        parts.append(slab.transpose(2, 1, 0))
    return np.concatenate(parts, axis=1)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    filters, channels = draw(st.integers(1, 24)), draw(st.integers(1, 12))
    taps, readers = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = rng.standard_normal((filters, channels, taps)).astype(np.float32)
    share = draw(st.sampled_from([0.1, 0.5, 0.9, 1.0]))

    def chosen(size: int) -> np.ndarray:
        return np.flatnonzero((rng.random(size) < share) | (np.arange(size) == rng.integers(size)))

    selections = {f"d{i}": Selection(chosen(filters), chosen(channels)) for i in range(readers)}
    return weight, selections, rng.permutation(filters), draw(st.booleans())


@given(cases())
def test_a_reader_gets_exactly_its_rectangle(
    case: Case,
) -> None:
    weight, selections, order, grouped = case
    stored = union(selections, order, taps=weight.shape[2], grouped=grouped)
    for name, selection in selections.items():
        readings = stored.readers[name]
        assert set(readings.filters.tolist()) == set(selection.filters.tolist())
        assert sorted(readings.channels.tolist()) == selection.channels.tolist()
        ranks = np.argsort(order)[readings.filters]
        assert (np.diff(ranks) > 0).all()
        want = weight[np.ix_(readings.filters, readings.channels)]
        np.testing.assert_array_equal(read(weight, stored, readings), want)


@given(cases())
def test_exactly_the_used_pairs_are_stored(
    case: Case,
) -> None:
    weight, selections, order, grouped = case
    used = np.zeros(weight.shape[:2], dtype=bool)
    for selection in selections.values():
        used[np.ix_(selection.filters, selection.channels)] = True
    exact = union(selections, order, taps=weight.shape[2])
    assert exact.pairs == used.sum()
    assert all(reading.rows is None for r in exact.readers.values() for reading in r.readings)
    assert union(selections, order, taps=weight.shape[2], grouped=grouped).pairs >= used.sum()


def test_classes_are_slabs_the_most_shared_first() -> None:
    stored = union(
        {
            "a": Selection(indices(0, 1), indices(0, 1, 2)),
            "b": Selection(indices(1, 3), indices(1, 2, 4)),
        }
    )
    assert [slab.channels.tolist() for slab in stored.slabs] == [[1, 2], [0], [4]]
    assert [slab.filters.tolist() for slab in stored.slabs] == [[0, 1, 3], [0, 1], [1, 3]]
    a, b = stored.readers["a"], stored.readers["b"]
    assert [r.slab for r in a.readings] == [0, 1] and [r.slab for r in b.readings] == [0, 2]
    assert a.readings[0].bits is not None and a.readings[0].bits.tolist() == [True, True, False]
    assert b.readings[0].bits is not None and b.readings[0].bits.tolist() == [False, True, True]
    assert a.readings[1].bits is None and b.readings[1].bits is None
    assert a.channels.tolist() == [1, 2, 0] and b.channels.tolist() == [1, 2, 4]
    assert stored.pairs == 2 * 3 + 2 + 2


def test_the_order_of_the_filters_is_that_of_every_slab_and_output() -> None:
    selections = {
        "a": Selection(indices(0, 1, 2), indices(0)),
        "b": Selection(indices(2, 3), indices(0, 1)),
    }
    stored = union(selections, indices(2, 3, 1, 0))
    assert [slab.filters.tolist() for slab in stored.slabs] == [[2, 3, 1, 0], [2, 3]]
    assert stored.readers["a"].filters.tolist() == [2, 1, 0]
    assert stored.readers["b"].filters.tolist() == [2, 3]


def test_equal_readers_share_one_slab_without_bits() -> None:
    selection = Selection(indices(1, 2, 5), indices(0, 3))
    stored = union({"a": selection, "b": selection})
    assert len(stored.slabs) == 1 and stored.pairs == 6
    for readings in stored.readers.values():
        assert [(r.slab, r.bits, r.rows) for r in readings.readings] == [(0, None, None)]


def test_many_small_classes_are_grouped_and_large_different_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    half = [rng.permutation(64)[:60] for _ in range(20)]
    many = {f"d{i}": Selection(half[i], np.flatnonzero(rng.random(64) < 0.5)) for i in range(20)}
    assert len(union(many).slabs) > 50
    grouped = union(many, grouped=True)
    assert len(grouped.slabs) == 1
    assert grouped.pairs == 64 * 64  # all rows are as wide
    two = {
        "a": Selection(np.arange(512), np.arange(512)),
        "b": Selection(np.arange(512, 1024), np.arange(512, 1024)),
    }
    assert union(two, taps=9, grouped=True).pairs == 2 * 512 * 512


def test_rows_of_a_group_are_whole_cache_lines() -> None:
    selections = {
        "a": Selection(np.arange(40), np.arange(0, 90)),
        "b": Selection(np.arange(90, 100), np.arange(90, 180)),
    }
    stored = union(selections, np.arange(100), grouped=True)
    assert [len(slab.filters) for slab in stored.slabs] == [48, 16]
    assert set(range(40)) < set(stored.slabs[0].filters.tolist())
    few = union({"a": Selection(np.arange(20), np.arange(3))}, grouped=True)
    assert [len(slab.filters) for slab in few.slabs] == [20]  # there are no more


def test_bytes_of_a_plan() -> None:
    selections = {
        "a": Selection(np.arange(33), indices(0)),
        "b": Selection(np.arange(40), indices(0, 1)),
    }
    stored = union(selections)
    assert stored.plan_bytes("a") == 60 + 48 + 64  # 40 stored filters: two words of bits
    assert stored.plan_bytes("b") == 60 * 2  # all of both slabs
    joined = union(selections, grouped=True)
    assert len(joined.slabs) == 1
    assert joined.plan_bytes("a") == 60 + 2 * (48 + 64)  # and a set of one row
    assert joined.plan_bytes("b") == 60


def test_rows_that_the_same_readers_take_lie_side_by_side() -> None:
    readers = {
        name: Selection(np.arange(16), np.arange(size, 64, 2 * size))
        for name, size in (("a", 1), ("b", 2), ("c", 4))
    }
    stored = union(readers, grouped=True)
    assert len(stored.slabs) == 1
    runs = []
    for readings in stored.readers.values():
        rows = readings.readings[0].rows
        assert rows is not None
        runs.append(int((np.diff(rows.astype(int), prepend=0) == 1).sum()))
    assert runs == [1, 1, 1]


@pytest.mark.parametrize(
    ("filters", "lines"), [([0], 2), ([0, 15], 2), ([0, 16], 4), ([15, 16], 4)]
)
def test_lines(filters: list[int], lines: int) -> None:
    # Two rows of 32 stored filters: two lines each.
    stored = union(
        {
            "all": Selection(np.arange(32), indices(0, 1)),
            "some": Selection(np.array(filters), indices(0, 1)),
        }
    )
    assert stored.lines("some") == (lines, 2 * len(filters))
    assert stored.lines("all") == (4, 64)


def test_a_reader_of_nothing() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    for grouped in (False, True):
        stored = union({"a": Selection(nothing, nothing)}, grouped=grouped)
        assert stored.pairs == 0 and stored.readers["a"].readings == ()

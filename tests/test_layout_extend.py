"""What a reader that is added takes of stored slabs: every pair once, and what it lacks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mdprune_deploy.layout.extend import JOIN_COST, take
from mdprune_deploy.layout.union import Selection, Slab, union


@given(
    filters=st.integers(1, 24),
    channels=st.integers(1, 24),
    readers=st.integers(1, 5),
    taps=st.sampled_from([1, 9, 1000]),
    grouped=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_what_is_taken_and_what_is_missing_make_the_rectangle(
    filters: int, channels: int, readers: int, taps: int, grouped: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(filters)

    def drawn() -> Selection:
        rows, columns = rng.random(filters) < 0.6, rng.random(channels) < 0.6
        return Selection(order[rows[order]], np.flatnonzero(columns))

    stored = union({i: drawn() for i in range(readers)}, order, taps=taps, grouped=grouped)
    added = drawn()
    takings, missing = take(stored.slabs, added, taps)
    times = np.zeros((filters, channels), dtype=int)
    for taking in takings:
        slab = stored.slabs[taking.slab]
        rows, columns = slab.channels[taking.rows], slab.filters[taking.bits]
        np.testing.assert_array_equal(columns, added.filters[taking.outputs])
        times[np.ix_(columns, rows)] += 1
        times[np.ix_(added.filters[~taking.outputs], rows)] += 1  # what is stored beside it
    times[np.ix_(added.filters, missing)] += 1
    want = np.zeros_like(times)
    want[np.ix_(added.filters, added.channels)] = 1
    np.testing.assert_array_equal(times, want)


def test_a_slab_that_lacks_filters_is_completed_where_that_is_less_than_storing_its_rows() -> None:
    slab = Slab(np.arange(128), np.arange(0, 64, 2))
    added = Selection(np.array([0, 1, 2, 4, 6, 8]), np.arange(10, 180))
    (taking,), missing = take([slab], added, taps=9)
    assert taking.rows.tolist() == [channel >= 10 for channel in range(128)]
    assert np.flatnonzero(taking.bits).tolist() == [0, 1, 2, 3, 4]
    assert taking.outputs.tolist() == [True, False, True, True, True, True]
    assert missing.tolist() == list(range(128, 180))
    few = Selection(added.filters, np.array([3]))  # one row of 9 x 5 weights
    assert JOIN_COST > 4 * 9 * 5
    assert take([slab], few, taps=9)[0] == ()


def test_the_slab_that_saves_most_comes_first() -> None:
    narrow, wide = Slab(np.arange(64), np.arange(32)), Slab(np.arange(48), np.arange(64))
    added = Selection(np.arange(64), np.arange(64))
    takings, missing = take([narrow, wide], added, taps=9)
    assert [(t.slab, int(t.rows.sum())) for t in takings] == [(1, 48), (0, 16)]
    assert not len(missing)


def test_filters_in_another_order_are_not_taken() -> None:
    slab = Slab(np.arange(64), np.arange(64)[::-1].copy())
    takings, missing = take([slab], Selection(np.arange(64), np.arange(64)), taps=9)
    assert takings == () and len(missing) == 64
    assert take([], Selection(np.arange(4), np.arange(2)), 1)[1].tolist() == [0, 1]

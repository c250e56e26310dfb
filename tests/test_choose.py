"""The union or a private copy, weight by weight: bytes counted by hand, limits kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdprune_deploy import BudgetError
from mdprune_deploy.layout.choose import Choice, Reader, SharedWeight, choose
from mdprune_deploy.layout.union import Selection


def selection(filters: range, channels: range) -> Selection:
    return Selection(np.array(filters), np.array(channels))


def weight(*selections: Selection, filters: int = 64, taps: int = 1) -> SharedWeight:
    readers = {(f"d{i}", 0): s for i, s in enumerate(selections)}
    return SharedWeight(taps, np.arange(filters), readers)


def all_private(choice: Choice, shared: SharedWeight) -> bool:
    return choice.private == frozenset(shared.selections) and choice.layout is None


OVERLAPPING = weight(
    selection(range(48), range(60)), selection(range(16, 64), range(20, 80)), taps=9
)
UNION = 4 * 9 * (20 * 48 + 40 * 64 + 20 * 48)
COPIES = 4 * 9 * 2 * 48 * 60


def test_without_a_limit_what_overlaps_is_stored_once() -> None:
    choice = choose({"w": OVERLAPPING})["w"]
    assert choice.private == frozenset() and choice.layout is not None
    assert (choice.union, choice.copies) == (UNION, COPIES)
    assert choice.stored == UNION  # groups are whole cache lines already
    assert choice.reason == "the union is smaller than copies"


def test_what_nobody_shares_is_private() -> None:
    apart = weight(selection(range(16), range(10)), selection(range(16, 32), range(10, 20)))
    alone = weight(selection(range(16), range(10)))
    found = choose({"apart": apart, "alone": alone})
    assert all_private(found["apart"], apart) and found["apart"].stored == 4 * 2 * 160
    assert found["apart"].reason == "copies take no more than slabs"
    assert all_private(found["alone"], alone)
    assert found["alone"].reason == "one domain reads it"


def test_equal_copies_are_stored_once() -> None:
    part = selection(range(32), range(10))
    same = weight(part, part, part)
    choice = choose({"w": same})["w"]
    assert all_private(choice, same) and choice.stored == choice.copies == 4 * 320
    own = SharedWeight(1, np.arange(64), same.selections, {("d0", 0): 2})
    choice = choose({"w": own})["w"]  # one copy has two columns of its own
    assert choice.copies == 4 * (320 + 320 + 64)
    assert choice.union == 4 * (320 + 64) and choice.stored == choice.union


def test_one_domain_that_reads_a_weight_twice_needs_no_slabs() -> None:
    readers: dict[Reader, Selection] = {
        ("d", 0): selection(range(48), range(60)),
        ("d", 1): selection(range(16, 64), range(20, 80)),
    }
    twice = SharedWeight(1, np.arange(64), readers)
    assert all_private(choose({"w": twice})["w"], twice)


def test_a_limit_with_room_makes_copies() -> None:
    assert all_private(choose({"w": OVERLAPPING}, COPIES)["w"], OVERLAPPING)
    assert choose({"w": OVERLAPPING}, COPIES - 4)["w"].private == frozenset()


def test_the_limit_cannot_be_below_the_union() -> None:
    assert choose({"w": OVERLAPPING}, UNION)["w"].stored == UNION
    with pytest.raises(BudgetError) as caught:
        choose({"w": OVERLAPPING}, UNION - 1)
    assert str(caught.value) == (
        f"the memory limit leaves {UNION - 1:,} bytes for weights; the union of what the domains "
        f"use takes {UNION:,}"
    )


def test_groups_are_given_up_to_meet_the_limit() -> None:
    rng = np.random.default_rng(0)
    parts = [
        Selection(np.flatnonzero(rng.random(160) < 0.4), np.flatnonzero(rng.random(80) < 0.5))
        for _ in range(5)
    ]
    shared = weight(*parts, filters=160)
    free = choose({"w": shared})["w"]
    assert free.stored > free.union and free.layout is not None
    exact = shared.union_bytes(shared.layout(list(shared.selections), grouped=False))
    tight = choose({"w": shared}, exact)["w"]
    assert free.union <= tight.stored < free.stored
    assert tight.reason == "the union, ungrouped to meet the limit"


def test_the_room_goes_where_a_byte_saves_most_time() -> None:
    # Both take the same bytes either way; of `sparse` two readers touch twice the lines.
    channels, halves = np.arange(100), (np.arange(32), np.arange(0, 64, 2))
    dense, sparse = (
        weight(
            Selection(half, channels[:90]),
            Selection(half, channels[10:]),
            Selection(np.arange(64), channels),
        )
        for half in halves
    )
    used = sum(choice.stored for choice in choose({"d": dense, "s": sparse}).values())
    limit = used + 4 * 2 * 32 * 90
    found = choose({"d": dense, "s": sparse}, limit)
    assert all_private(found["s"], sparse) and not found["d"].private
    assert found["s"].reason.startswith("the limit leaves room: ")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.0, 1.0))
def test_a_limit_is_kept_and_readers_are_covered(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    weights = {}
    for index in range(4):
        filters, channels = (int(n) for n in rng.integers(8, 80, 2))
        parts = [
            Selection(
                np.unique(rng.integers(0, filters, filters)),
                np.unique(rng.integers(0, channels, channels)),
            )
            for _ in range(int(rng.integers(1, 6)))
        ]
        weights[index] = weight(*parts, filters=filters, taps=int(rng.choice([1, 9])))
    free = choose(weights)
    low = sum(c.stored for c in free.values())
    high = sum(max(c.copies, c.stored) for c in free.values())
    limit = int(low + share * (high - low))
    found = choose(weights, limit)
    assert sum(c.stored for c in found.values()) <= limit
    for key, choice in found.items():
        shared = weights[key]
        rest = set() if choice.layout is None else set(choice.layout.readers)
        assert rest | choice.private == set(shared.selections) and not rest & choice.private
        slabs = 0 if choice.layout is None else shared.union_bytes(choice.layout)
        assert choice.stored == slabs + shared.copies_bytes(sorted(choice.private))
        assert choice.stored >= min(choice.union, choice.copies)

"""Scales, numbers and labels of the pictures."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

import pytest

from mdprune_deploy.page.svg import Picture, number, shorten, spread, tick_label, ticks


@pytest.mark.parametrize("most", [1e-4, 0.03, 0.99, 1.0, 7, 12, 99.9, 100, 12345])
def test_ticks_are_few_round_numbers_from_0_to_at_least_the_most(most: float) -> None:
    found = ticks(most)
    assert found[0] == 0 and found[-1] >= most * (1 - 1e-9) and found[-2] < most
    assert 3 <= len(found) <= 7
    assert len({round(b - a, 12) for a, b in itertools.pairwise(found)}) == 1


def test_ticks_of_nothing() -> None:
    assert ticks(0.0) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.01234, "0.0123"), (1.2345, "1.23"), (61.84, "61.8"), (1234.5, "1,234")],
)
def test_numbers_have_three_digits(value: float, words: str) -> None:
    assert number(value) == words


def test_tick_labels_end_where_the_number_does() -> None:
    assert [tick_label(v) for v in (0, 2.5, 1000, 0.05)] == ["0", "2.5", "1,000", "0.05"]


def test_long_words_are_cut_in_their_middle() -> None:
    assert shorten("short", 100) == "short"
    cut = shorten("a name that is far too long to fit 7", 100)
    assert len(cut) == 14 and cut.startswith("a name") and cut.endswith("fit 7") and "…" in cut


@pytest.mark.parametrize(
    "places", [[5.0, 5.0, 5.0], [0.0, 99.0, 100.0], [100.0, 100.0, 0.0], [50.0]]
)
def test_labels_keep_apart_and_in_order(places: list[float]) -> None:
    found = spread(places, 10, 0, 100)
    assert all(0 <= place <= 100 for place in found)
    order = sorted(range(len(places)), key=lambda index: places[index])
    ordered = [found[index] for index in order]
    assert all(b - a >= 10 for a, b in itertools.pairwise(ordered))


def test_a_picture_is_xml_whatever_the_words() -> None:
    picture = Picture(20, "<title> & more", 'a "description"')
    picture.text(0, 0, "a < b", full="a < b & c")
    picture.rect(0, 0, -5, 2, "bar", "<hover>")
    picture.dot(1, 1, "point", "&")
    picture.line(0, 0, 1, 1, "grid")
    picture.polyline([(0, 0), (1, 1)], "curve")
    svg = ET.fromstring(str(picture))[0]
    assert svg.get("role") == "img" and svg[0].text == "<title> & more"
    (bar,) = (part for part in svg if part.tag == "rect")
    assert bar.get("width") == "0.0", "no width is negative"

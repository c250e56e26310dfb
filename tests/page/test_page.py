"""The report: every section says its figures, nothing is loaded, words are escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from documents import ENERGY, OPERATORS, document, run

from mdprune_deploy.page import render
from mdprune_deploy.page.latency import groups_of
from mdprune_deploy.page.machine import warnings
from mdprune_deploy.page.memory import lines_of
from mdprune_deploy.page.operators import DOMAINS, MOST, labels_of

VOID = {"meta"}


class Page(HTMLParser):
    """A report's text, headings and tables; fails where tags are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def row(self, *start: str) -> list[str]:
        """Returns the only row that starts so."""
        (found,) = (row for row in self.rows if row[: len(start)] == list(start))
        return found


def page(tree: dict[str, Any]) -> Page:
    return Page(render(tree))


def test_sections_and_their_figures() -> None:
    found = page(document())
    assert found.headings == [
        "Benchmark of bundle", "Latency", "Memory against the number of domains",
        "Energy of a call", "Switching the domain", "Operators and their floors",
        "Machine and versions",
    ]  # fmt: skip
    row = ["first", "native", "avx512", "30.0%", "2.000", "2.200", "2.500", "9.000", "4.0%"]
    assert found.row("first", "native")[: len(row)] == row
    assert found.row("2", "2.0") == ["2", "2.0", "2.0", "4.0", "8.0"]
    assert found.row("native", "2.0") == ["native", "2.0", "1.0", "0.50", "0.50", "–"]
    assert found.row("native", "0.500") == ["native", "0.500", "0.700", "16.0", "30.0"]
    assert found.rows.count(
        ["conv1", "Convolution", "900", "600", "1.50", "compute", "200", "1,000"]
    )
    assert "No energy of native: no meter." in found.words
    assert "2 operators, 0.980 ms, 1.48 times the 0.660 ms of their floors" in "".join(found.words)


def test_nothing_is_loaded_or_run() -> None:
    html = render(document())
    assert re.findall(r"(?i)https?:|<script|<link|<img|@import|url\(", html) == []
    pictures = [attributes for tag, attributes in page(document()).tags if tag == "svg"]
    assert pictures and all(attributes["role"] == "img" for attributes in pictures)


def test_every_picture_has_a_title_a_description_and_a_table() -> None:
    found = page(document())
    count = sum(tag == "svg" for tag, _ in found.tags)
    assert sum(tag == "desc" for tag, _ in found.tags) == count
    assert sum(tag == "table" for tag, _ in found.tags) >= count
    assert all(
        attributes.get("scope") in ("col", "row") for tag, attributes in found.tags if tag == "th"
    )


def test_words_of_others_are_escaped() -> None:
    name = '<b title="x">&amp; a name that does not fit into the space there is</b>'
    tree = document(name)
    tree["bundle"] = "<i>"
    tree["operators"][0]["operators"][0]["name"] = "<u>"
    tree["energy"][0]["note"] = "<s>"
    found = page(tree)
    assert found.headings[0] == "Benchmark of <i>"
    assert name in found.words and {"b", "i", "u", "s"}.isdisjoint(tag for tag, _ in found.tags)


def test_one_domain_is_bars_without_a_curve() -> None:
    found = page(document("only"))
    assert "Memory" in found.headings
    assert not any(tag == "polyline" for tag, _ in found.tags)
    assert "What the domain takes" in found.words


def test_what_was_not_measured_has_no_section() -> None:
    tree = document()
    tree |= {"memory": None, "energy": None, "switch": [], "operators": []}
    assert page(tree).headings[1:] == ["Latency", "Machine and versions"]


def test_energy_per_domain_and_engine() -> None:
    tree = document()
    tree["energy"] = [
        {"engine": "native", "note": None, "domains": {"first": ENERGY, "second": ENERGY}},
        {"engine": "native:cuda", "note": "no NVML", "domains": {}},
    ]
    found = page(tree)
    row = ["first", "native", "30.0", "12.0", "13.5", "8.10", "900", "VDD_IN 30.0"]
    assert found.row("first", "native", "30.0") == row
    assert "No energy of native:cuda: no NVML." in found.words
    assert "30.0 mJ" in found.words


def test_memory_that_could_not_be_measured_is_said() -> None:
    tree = document()
    tree["memory"]["series"][0] |= {"steps": [], "note": "Linux only"}
    found = page(tree)
    assert "No memory of native: Linux only." in found.words
    tree["memory"]["series"][1] |= {"steps": [], "note": "Linux only"}
    assert [line.name for line in lines_of(tree["memory"])] == [
        "pruned copies, weights alone", "dense copies, weights alone",
    ]  # fmt: skip
    assert "2.00 ms" in page(tree).words, "the page is there"


def test_device_memory_is_a_line_of_its_own() -> None:
    tree = document()
    for step in tree["memory"]["series"][0]["steps"]:
        step["device"] = step["domains"] << 23
    device = lines_of(tree["memory"])[1]
    assert (device.name, device.sizes) == ("native, on the device", (1 << 23, 2 << 23))


def test_engines_of_another_speed_have_a_scale_of_their_own() -> None:
    cuda = {"engine": "native", "device": "cuda", "precision": "float16"}
    slow, near = run("first"), run("first", engine="onnxruntime", p50_ms=0.6)
    fast = run("first", **cuda, p50_ms=0.1, host_to_device_p50_ms=0.02, compute_p50_ms=0.07)
    assert groups_of([near, fast, slow]) == [[slow, near], [fast]]
    tree = document("first")
    tree["runs"] = [slow, fast]
    found = page(tree)
    assert found.row("first", "native:cuda:float16")[12:15] == ["0.020", "0.070", "–"]


def test_rare_slow_calls_do_not_hide_the_others() -> None:
    tree = document("first")
    tree["runs"] = [run("first", p90_ms=2.0, p99_ms=80.0, max_ms=90.0, dense_p50_ms=None)]
    marks = [word for word in page(tree).words if re.fullmatch(r"[\d.]+", word)]
    assert "5" in marks and "90" not in marks
    assert "▸" in page(tree).words


def test_operators_of_every_engine() -> None:
    tree = document("first")
    other = tree["operators"][0] | {"engine": "native:cuda:float16", "isa": "cuda:0 sm_87 float16"}
    tree["operators"].append(other)
    words = "".join(page(tree).words)
    for name in ("native (avx512)", "native:cuda:float16 (cuda:0 sm_87 float16)"):
        assert f"{name}. Peak: 50.0 GMAC/s (stated); bandwidth: 50.0 GB/s (stated)." in words


def test_a_beginning_that_all_operators_have_is_left_out() -> None:
    names = ["/backbone/stages.0/Conv", "/backbone/stages.1/Conv", "/backbone/pool"]
    rows = [OPERATORS[0] | {"name": name} for name in names]
    assert labels_of(rows) == ["…stages.0/Conv", "…stages.1/Conv", "…pool"]
    assert labels_of(rows[:1]) == names[:1]
    assert labels_of([*rows, OPERATORS[1] | {"name": ""}]) == [*names, "Pool"]


def test_many_operators_and_domains_are_cut_and_said() -> None:
    tree = document(*(f"domain {index}" for index in range(DOMAINS + 2)))
    rows = [OPERATORS[0] | {"name": f"op {n}", "us": 100.0 + n} for n in range(MOST + 5)]
    for profile in tree["operators"]:
        profile["operators"] = rows
    found = page(tree)
    assert f"Pictures are of the first {DOMAINS} domains." in found.words
    assert "5 faster operators, 510 us together, are in the table only." in found.words
    assert len(found.row("domain 7", "8.58")) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cv": 0.2}, "Calls vary by more than a tenth of their mean in 1 of 2 rows"),
        ({"drift": 1.3}, "Calls became slower or faster on the way in 1 of 2 rows"),
        ({"note": "made for avx2"}, "made for avx2."),
    ],
)
def test_doubts_are_named(changes: dict[str, Any], words: str) -> None:
    tree = document()
    assert warnings(tree) == []
    tree["runs"][1] |= changes
    (found,) = warnings(tree)
    assert found.startswith(words)
    assert found in page(tree).words


def test_settings_that_changed_are_a_doubt_and_a_table() -> None:
    tree = document()
    policy = {"policy0": {"max_mhz": 2000.0, "governor": "schedutil"}}
    tree["clocks"] = {
        "before": {"cpu": policy, "power_mode": "MAXN"},
        "after": {
            "cpu": {"policy0": policy["policy0"] | {"max_mhz": 1000.0}},
            "power_mode": "MAXN",
        },
        "changed": ["policy0: max_mhz was 2000.0, is 1000.0"],
    }
    found = page(tree)
    assert "While it ran, policy0: max_mhz was 2000.0, is 1000.0." in found.words
    assert found.row("cpu policy0 max mhz") == ["cpu policy0 max mhz", "2,000", "1,000"]
    assert {"MAXN", "schedutil"} <= set(found.words)

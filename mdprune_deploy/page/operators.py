"""Operators: the time of each beside the least that it could take."""

from __future__ import annotations

from typing import Any

from .svg import WIDTH, Picture, number, shorten, tick_label, ticks
from .tables import folded, legend, paragraph, section, table

LEFT, RIGHT, TOP, ROW, AXIS = 250.0, 120.0, 8.0, 17.0, 34.0
MOST = 60
"""Operators that a picture shows; more are the fastest ones together."""
COMMON = 8
"""Characters of a common beginning that are left out."""
DOMAINS = 6
"""Domains that have a picture."""


def operators(document: dict[str, Any]) -> str:
    """Returns the section."""
    profiles = document["operators"]
    if not profiles:
        return ""
    parts = [
        paragraph(
            "The native engine's operators in the order that they run. Dark: the floor, the longer "
            "of MACs over peak and bytes over bandwidth, where the bytes are the channels that are "
            "read, the weights and the outputs, each once. Light: what the operator takes beyond "
            "it. Activations still in a cache cost less than that, packing of weights costs more.",
            "how",
        ),
        legend([("compute", "the floor is arithmetic"), ("moved", "the floor is memory")]),
    ]
    by_engine: dict[str, list[dict[str, Any]]] = {}
    for profile in profiles:
        by_engine.setdefault(profile["engine"], []).append(profile)
    for own in by_engine.values():
        parts += _engine(own)
    return section("Operators and their floors", *parts)


def _engine(profiles: list[dict[str, Any]]) -> list[str]:
    first = profiles[0]
    rates = (
        f"{first['engine']} ({first['isa']}). Peak: {number(first['peak']['per_second'] / 1e9)} "
        f"GMAC/s ({first['peak']['source']}); bandwidth: "
        f"{number(first['bandwidth']['per_second'] / 1e9)} GB/s ({first['bandwidth']['source']})"
    )
    parts = [paragraph(rates + ("; other domains' differ." if len(profiles) > 1 else "."), "how")]
    for index, profile in enumerate(profiles[:DOMAINS]):
        content = _picture(profile) + folded("As a table", _table(profile))
        parts.append(folded(f"{profile['domain']}: {_sums(profile)}", content, opened=index == 0))
    if len(profiles) > DOMAINS:
        parts.append(paragraph(f"Pictures are of the first {DOMAINS} domains.", "how"))
        rows = [[profile["domain"], *_cells_of_sums(profile)] for profile in profiles]
        headings = ["domain", "operators ms", "floors ms", "over floor"]
        parts.append(folded("All domains as a table", table(headings, rows)))
    return parts


def _totals(profile: dict[str, Any]) -> tuple[float, float]:
    rows = profile["operators"]
    return sum(r["us"] for r in rows) / 1e3, sum(r["floor_us"] for r in rows) / 1e3


def _sums(profile: dict[str, Any]) -> str:
    time, floor = _totals(profile)
    count = len(profile["operators"])
    return (
        f"{count} operators, {number(time)} ms, {time / floor:.2f} times the {number(floor)} ms "
        f"of their floors"
    )


def _cells_of_sums(profile: dict[str, Any]) -> list[str]:
    time, floor = _totals(profile)
    return [number(time), number(floor), f"{time / floor:.2f}"]


def _picture(profile: dict[str, Any]) -> str:
    rows, rest = profile["operators"], []
    if len(rows) > MOST:
        bound = sorted((row["us"] for row in rows), reverse=True)[MOST - 1]
        rest = [row for row in rows if row["us"] < bound]
        rows = [row for row in rows if row["us"] >= bound]
    marks = ticks(max(row["us"] for row in rows))
    scale = (WIDTH - LEFT - RIGHT) / marks[-1]
    bottom = TOP + ROW * len(rows)
    picture = Picture(
        bottom + AXIS, f"Operators of {profile['domain']}", f"{_sums(profile)}; a table follows"
    )
    for mark in marks:
        x = LEFT + mark * scale
        picture.line(x, TOP, x, bottom, "grid")
        picture.text(x, bottom + 15, tick_label(mark), "tick", "middle")
    picture.text((LEFT + WIDTH - RIGHT) / 2, bottom + 31, "microseconds", "tick", "middle")
    picture.text(WIDTH, bottom + 15, "over floor", "tick", "end")
    for index, (row, label) in enumerate(zip(rows, labels_of(rows), strict=True)):
        _row(picture, row, label, TOP + index * ROW, scale)
    if not rest:
        return str(picture)
    time = sum(row["us"] for row in rest)
    words = f"{len(rest)} faster operators, {number(time)} us together, are in the table only."
    return str(picture) + paragraph(words, "how")


def labels_of(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the operators' names without a long beginning that all of them have."""
    names = [row["name"] or row["kind"] for row in rows]
    first, last = min(names), max(names)  # what these two share all share
    ends = (at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    same = next(ends, len(first))
    return [f"…{name[same:]}" for name in names] if same >= COMMON and len(names) > 1 else names


def _row(picture: Picture, row: dict[str, Any], label: str, y: float, scale: float) -> None:
    kind = "compute" if row["bound"] == "compute" else "moved"
    name = f"{row['name']} ({row['kind']})" if row["name"] else row["kind"]
    hover = (
        f"{name}: {number(row['us'])} us, floor {number(row['floor_us'])} us by {row['bound']}, "
        f"{row['macs']:,} MACs, {row['bytes']:,} bytes"
    )
    picture.text(LEFT - 8, y + 12, shorten(label, LEFT - 12), "label", "end", name)
    picture.rect(LEFT, y + 3, row["us"] * scale, 11, f"{kind} light", hover)
    picture.rect(LEFT, y + 3, row["floor_us"] * scale, 11, f"{kind} solid", hover)
    end = LEFT + row["us"] * scale
    picture.text(end + 6, y + 12, number(row["us"]), "value")
    picture.text(WIDTH, y + 12, f"{_ratio(row)} ×", "value", "end")


def _ratio(row: dict[str, Any]) -> str:
    return f"{row['us'] / row['floor_us']:.2f}" if row["floor_us"] > 0 else "–"


def _table(profile: dict[str, Any]) -> str:
    headings = ["operator", "kind", "us", "floor us", "over floor", "bound by", "MACs", "bytes"]
    rows = [
        [
            row["name"], row["kind"], number(row["us"]), number(row["floor_us"]), _ratio(row),
            row["bound"], f"{row['macs']:,}", f"{row['bytes']:,}",
        ]
        for row in profile["operators"]
    ]  # fmt: skip
    return table(headings, rows)

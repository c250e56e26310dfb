"""Latency: the distribution of every domain's calls, engine beside engine."""

from __future__ import annotations

from typing import Any

from .svg import WIDTH, Picture, number, shorten, tick_label, ticks
from .tables import folded, legend, paragraph, percent, section, table

LEFT, RIGHT, TOP = 190.0, 74.0, 20.0
ROW, GAP, AXIS = 16.0, 8.0, 34.0
SERIES = 6
"""Colours that the style sheet has for engines."""
TAIL = 2.5
"""Times the 90th percentile: where the scale ends at the latest, or rare calls hide the others."""
SAME_SCALE = 4
"""What is faster than another by this factor gets a picture with a scale of its own."""


def colour(index: int) -> str:
    """Returns the class of an engine's colour."""
    return f"c{index % SERIES}"


def label_of(run: dict[str, Any]) -> str:
    """Returns an engine as a user names it, without what is the default."""
    parts = [run["engine"]]
    if run["device"] != "cpu":
        parts.append(run["device"])
        parts += [run["precision"]] if run["precision"] != "float32" else []
    return ":".join(parts)


def engines_of(document: dict[str, Any]) -> list[str]:
    """Returns the engines in the order that they were asked for."""
    return list(dict.fromkeys(label_of(run) for run in document["runs"]))


def latency(document: dict[str, Any]) -> str:
    """Returns the section."""
    engines = engines_of(document)
    dense = any(run["dense_p50_ms"] is not None for run in document["runs"])
    parts = [
        paragraph(
            "One call at batch 1. Dark: the middle half of the calls, with the median marked; "
            "light: from the 10th to the 90th percentile; line: from the fastest to the 99th "
            "percentile; dot: the slowest call, or an arrow where that lies outside.",
            "how",
        )
    ]
    for group in groups_of(document["runs"]):
        shown = [name for name in engines if any(label_of(run) == name for run in group)]
        swatches = [(colour(engines.index(name)), name) for name in shown]
        swatches += [("dense", "the dense network's median")] if dense else []
        parts += [legend(swatches), _picture(group, shown, engines)]
    parts.append(folded("Latency as a table", _table(document, dense)))
    return section("Latency", *parts)


def groups_of(runs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Returns the runs in groups of engines that one scale can show, slowest first."""
    by_engine: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_engine.setdefault(label_of(run), []).append(run)
    groups: list[list[dict[str, Any]]] = []
    longest = 0.0
    for own in sorted(by_engine.values(), key=_longest, reverse=True):
        if not groups or _longest(own) * SAME_SCALE < longest:
            groups.append([])
            longest = _longest(own)
        groups[-1] += own
    return groups


def _longest(runs: list[dict[str, Any]]) -> float:
    return max(float(run["p50_ms"]) for run in runs)


def _picture(runs: list[dict[str, Any]], shown: list[str], engines: list[str]) -> str:
    names = list(dict.fromkeys(run["domain"] for run in runs))
    most = max(min(run["p99_ms"], TAIL * run["p90_ms"]) for run in runs)
    dense = [run["dense_p50_ms"] for run in runs if run["dense_p50_ms"] is not None]
    marks = ticks(max([most, *(value for value in dense if value < SAME_SCALE * most)]))
    scale = (WIDTH - LEFT - RIGHT) / marks[-1]
    block = ROW * len(shown) + GAP
    bottom = TOP + block * len(names)
    picture = Picture(
        bottom + AXIS,
        "Latency of every domain",
        "; ".join(f"{r['domain']}, {label_of(r)}: median {r['p50_ms']:.3f} ms" for r in runs),
    )
    for mark in marks:
        x = LEFT + mark * scale
        picture.line(x, TOP, x, bottom, "grid")
        picture.text(x, TOP - 5, tick_label(mark), "tick", "middle")
        picture.text(x, bottom + 15, tick_label(mark), "tick", "middle")
    picture.text((LEFT + WIDTH - RIGHT) / 2, bottom + 31, "milliseconds", "tick", "middle")
    picture.text(WIDTH, TOP - 5, "p50 ms", "tick", "end")
    for position, name in enumerate(names):
        top = TOP + position * block + GAP / 2
        words = shorten(name, LEFT - 12)
        picture.text(LEFT - 10, top + ROW * len(shown) / 2 + 4, words, "label", "end", name)
        own = {label_of(run): run for run in runs if run["domain"] == name}
        for row, engine in enumerate(shown):
            style = colour(engines.index(engine))
            _row(picture, own[engine], top + row * ROW + ROW / 2, scale, style)
    return str(picture)


def _row(picture: Picture, run: dict[str, Any], y: float, scale: float, style: str) -> None:
    end = WIDTH - RIGHT
    at = [min(LEFT + value * scale, end) for value in run["percentiles_ms"]]
    hover = (
        f"{run['domain']}, {label_of(run)}: p50 {run['p50_ms']:.3f}, p90 {run['p90_ms']:.3f}, "
        f"p99 {run['p99_ms']:.3f}, max {run['max_ms']:.3f} ms"
    )
    picture.line(at[0], y, at[99], y, f"{style} whisker")
    picture.rect(at[10], y - 4, at[90] - at[10], 8, f"{style} light", hover)
    picture.rect(at[25], y - 5, max(2.0, at[75] - at[25]), 10, f"{style} solid", hover)
    picture.line(at[50], y - 6.5, at[50], y + 6.5, "median")
    if run["dense_p50_ms"] is not None and LEFT + run["dense_p50_ms"] * scale <= end:
        x = LEFT + run["dense_p50_ms"] * scale
        picture.line(x, y - 6.5, x, y + 6.5, "densemark")
    if LEFT + run["max_ms"] * scale <= end:
        picture.dot(at[100], y, f"{style} solid", hover, radius=1.8)
    else:
        picture.text(end + 1, y + 4, "▸", f"{style} arrow", "start", hover)
    picture.text(WIDTH, y + 4, number(run["p50_ms"]), "value", "end")


def _table(document: dict[str, Any], dense: bool) -> str:
    runs = document["runs"]
    copied = any(run["host_to_device_p50_ms"] is not None for run in runs)
    headings = ["domain", "engine", "variant", "MACs left", "p50 ms", "p90 ms", "p99 ms", "max ms"]
    headings += ["CV", "drift", "first ms", "per second"]
    headings += ["to device ms", "compute ms", "from device ms"] if copied else []
    headings += ["dense p50 ms", "ratio"] if dense else []
    return table(headings, [_cells(run, copied, dense) for run in runs])


def _cells(run: dict[str, Any], copied: bool, dense: bool) -> list[str]:
    left = run["macs"] / run["macs_dense"] if run["macs_dense"] else 1.0
    cells = [run["domain"], label_of(run), run["variant"], percent(left)]
    cells += [f"{run[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms", "max_ms")]
    cells += [percent(run["cv"]), f"{run['drift']:.2f}", f"{run['first_p50_ms']:.3f}"]
    cells.append(f"{run['per_second']:,.0f}")
    more = ["host_to_device_p50_ms", "compute_p50_ms", "device_to_host_p50_ms"] if copied else []
    more += ["dense_p50_ms", "ratio"] if dense else []
    return cells + ["–" if run[key] is None else f"{run[key]:.3f}" for key in more]

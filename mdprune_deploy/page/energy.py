"""Energy of a call, where the machine has a meter, and the switching of domains."""

from __future__ import annotations

from typing import Any

from .latency import colour
from .svg import WIDTH, Picture, number, shorten
from .tables import folded, legend, paragraph, section, table

LEFT, RIGHT, TOP, ROW, GAP = 190.0, 90.0, 6.0, 15.0, 8.0


def energy(document: dict[str, Any]) -> str:
    """Returns the section; where there is no meter, a sentence that says so."""
    entries = document["energy"]
    if entries is None:
        return ""
    parts = [
        paragraph(f"No energy of {entry['engine']}: {entry['note']}.", "absent")
        for entry in entries
        if entry["note"]
    ]
    spent = [
        (name, entry["engine"], figures)
        for entry in entries
        for name, figures in entry["domains"].items()
    ]
    if spent:
        meters = sorted({f"{f['meter']} ({f['total']})" for _, _, f in spent})
        words = (
            f"Of a loop of calls, over their number, by {', '.join(meters)}. Dark: what it draws "
            "beyond the idle machine."
        )
        engines = list(dict.fromkeys(engine for _, engine, _ in spent))
        swatches = [(colour(index), engine) for index, engine in enumerate(engines)]
        shown = [paragraph(words, "how"), legend(swatches), _picture(spent)]
        parts = [*shown, folded("Energy as a table", _table(spent)), *parts]
    return section("Energy of a call", *parts)


def _picture(spent: list[tuple[str, str, dict[str, Any]]]) -> str:
    engines = list(dict.fromkeys(engine for _, engine, _ in spent))
    names = list(dict.fromkeys(name for name, _, _ in spent))
    by_row = {(name, engine): figures for name, engine, figures in spent}
    block = ROW * len(engines) + GAP
    picture = Picture(
        TOP + block * len(names),
        "Energy of a call",
        "; ".join(f"{name}, {engine}: {number(f['mj'])} mJ" for name, engine, f in spent),
    )
    scale = (WIDTH - LEFT - RIGHT) / max(figures["mj"] for _, _, figures in spent)
    for position, name in enumerate(names):
        top = TOP + position * block
        middle = top + ROW * len(engines) / 2 + 4
        picture.text(LEFT - 10, middle, shorten(name, LEFT - 14), "label", "end", name)
        for row, engine in enumerate(engines):
            if (name, engine) in by_row:
                figures = by_row[name, engine]
                _bar(picture, figures, top + row * ROW, scale, colour(row))
    return str(picture)


def _bar(picture: Picture, figures: dict[str, Any], y: float, scale: float, style: str) -> None:
    picture.rect(LEFT, y + 1, figures["mj"] * scale, ROW - 3, f"{style} light")
    above = min(figures["mj"], max(0.0, figures["above_idle_mj"]))
    picture.rect(LEFT, y + 1, above * scale, ROW - 3, f"{style} solid")
    words = f"{number(figures['mj'])} mJ"
    picture.text(LEFT + figures["mj"] * scale + 8, y + ROW - 4, words, "value")


def _table(spent: list[tuple[str, str, dict[str, Any]]]) -> str:
    headings = ["domain", "engine", "mJ", "above idle mJ", "W", "idle W", "calls", "rails mJ"]
    rows = []
    for name, engine, f in spent:
        rails = ", ".join(f"{rail} {number(mj)}" for rail, mj in f["rails_mj"].items())
        figures = (f[key] for key in ("mj", "above_idle_mj", "watts", "idle_watts"))
        rows.append([name, engine, *map(number, figures), f"{f['runs']:,}", rails])
    return table(headings, rows)


def switching(document: dict[str, Any]) -> str:
    """Returns the section."""
    if not document["switch"]:
        return ""
    keys = ("loop_p50_us", "loop_p99_us", "after_run_p50_us", "after_run_p99_us")
    rows = [[s["engine"], *(number(s[key]) for key in keys)] for s in document["switch"]]
    words = (
        "Selecting another domain in one native context; no weights move. After a run, what the "
        "switch reads has left the near caches."
    )
    headings = ["engine", "in a loop, p50 µs", "p99 µs", "after a run, p50 µs", "p99 µs"]
    return section("Switching the domain", paragraph(words, "how"), table(headings, rows))

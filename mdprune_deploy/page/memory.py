"""Memory against the number of domains: measured with shared weights, calculated for copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .latency import colour
from .svg import WIDTH, Picture, shorten, spread, tick_label, ticks
from .tables import MIB, folded, mib, paragraph, section, table

LEFT, RIGHT, TOP, HEIGHT, AXIS = 56.0, 290.0, 26.0, 270.0, 40.0
BAR = 26.0
ONE_CONTEXT = "native, one context for all"


@dataclass(frozen=True)
class Line:
    """Bytes for 1, 2, 3 ... domains."""

    name: str
    style: str
    sizes: tuple[float, ...]


def lines_of(memory: dict[str, Any]) -> list[Line]:
    """Returns what is drawn."""
    found = []
    for index, series in enumerate(memory["series"]):
        name, steps = _measured(series["setup"]), series["steps"]
        if steps:
            found.append(Line(name, colour(index), tuple(step["pss"] for step in steps)))
        if steps and steps[0]["device"] is not None:
            sizes = tuple(step["device"] for step in steps)
            found.append(Line(f"{name}, on the device", f"{colour(index)} device", sizes))
    copies = memory["copies"]
    found.append(Line("pruned copies, weights alone", "copy dashed", tuple(copies["private"])))
    found.append(Line("dense copies, weights alone", "copy dotted", tuple(copies["dense"])))
    return found


def _measured(setup: str) -> str:
    return ONE_CONTEXT if setup == "one context" else setup


def memory(document: dict[str, Any]) -> str:
    """Returns the section."""
    found = document["memory"]
    if found is None:
        return ""
    lines = lines_of(found)
    single = len(lines[-1].sizes) == 1
    parts = [
        paragraph(
            "In colour: proportional set size (PSS) that a process gains by loading and running "
            f"{'the domain' if single else 'this many domains'}, activations included. In grey: "
            "calculated, what copies of the weights alone would take, each domain's own pruned or "
            "its whole dense network.",
            "how",
        ),
        _bars(lines) if single else _chart(lines),
    ]
    parts += [
        paragraph(f"No memory of {s['setup']}: {s['note']}.", "absent")
        for s in found["series"]
        if s["note"]
    ]
    parts.append(folded("Memory as a table", _table(found, lines)))
    return section("Memory" if single else "Memory against the number of domains", *parts)


def _chart(lines: list[Line]) -> str:
    count = len(lines[-1].sizes)
    marks = ticks(max(max(line.sizes) for line in lines) / MIB)
    bottom, right = TOP + HEIGHT, WIDTH - RIGHT
    picture = Picture(
        bottom + AXIS,
        "Memory against the number of domains",
        "; ".join(f"{line.name}: {mib(line.sizes[-1])} MiB for {count} domains" for line in lines),
    )

    def place(domains: int, size: float) -> tuple[float, float]:
        x = LEFT + (domains - 1) / (count - 1) * (right - LEFT)
        return x, bottom - size / MIB / marks[-1] * HEIGHT

    for mark in marks:
        y = bottom - mark / marks[-1] * HEIGHT
        picture.line(LEFT, y, right, y, "grid")
        picture.text(LEFT - 8, y + 4, tick_label(mark), "tick", "end")
    for domains in _numbers(count):
        picture.text(place(domains, 0)[0], bottom + 17, str(domains), "tick", "middle")
    picture.text((LEFT + right) / 2, bottom + 35, "domains", "tick", "middle")
    picture.text(LEFT - 8, TOP - 14, "MiB", "tick", "end")
    for line in lines:
        points = [place(number, size) for number, size in enumerate(line.sizes, 1)]
        picture.polyline(points, f"{line.style} curve")
        if count <= 24:
            for number, (x, y) in enumerate(points, 1):
                hover = f"{line.name}, {number} domains: {mib(line.sizes[number - 1])} MiB"
                picture.dot(x, y, f"{line.style} point", hover)
    ends = [place(count, line.sizes[-1])[1] for line in lines]
    for line, y, own in zip(lines, spread(ends, 17, TOP + 4, bottom), ends, strict=True):
        picture.line(right + 5, own, right + 17, y, "leader")
        words = f"{mib(line.sizes[-1])} MiB  {line.name}"
        picture.text(
            right + 21, y + 4, shorten(words, RIGHT - 24), f"{line.style} name", full=words
        )
    return str(picture)


def _numbers(count: int) -> list[int]:
    """Returns the numbers of domains that are written below the picture: about ten."""
    step = max(1, round(ticks(count, 10)[1]))
    found = [1, *range(max(step, 2), count + 1, step)]
    if count - found[-1] >= step / 2:
        found.append(count)
    return found


def _bars(lines: list[Line]) -> str:
    """Draws one domain's memory, of which there is no curve."""
    picture = Picture(
        TOP + BAR * len(lines),
        "Memory of one domain",
        "; ".join(f"{line.name}: {mib(line.sizes[0])} MiB" for line in lines),
    )
    left = 260.0
    scale = (WIDTH - left - 90) / max(line.sizes[0] for line in lines)
    for index, line in enumerate(lines):
        y = TOP + index * BAR
        picture.text(left - 10, y + 12, shorten(line.name, left - 14), "label", "end", line.name)
        picture.rect(left, y, line.sizes[0] * scale, 16, f"{line.style} bar")
        words = f"{mib(line.sizes[0])} MiB"
        picture.text(left + line.sizes[0] * scale + 8, y + 12, words, "value")
    return str(picture)


def _table(found: dict[str, Any], lines: list[Line]) -> str:
    count = len(lines[-1].sizes)
    every = table(
        ["domains", *(f"{line.name}, MiB" for line in lines)],
        [[str(n + 1), *(mib(line.sizes[n]) for line in lines)] for n in range(count)],
    )
    keys = ("pss", "weights", "plans", "other", "device")
    rows = []
    for series in found["series"]:
        if series["steps"]:
            last = series["steps"][-1]
            cells = ["–" if last[key] is None else mib(last[key]) for key in keys]
            rows.append([_measured(series["setup"]), *cells])
    parts = table(
        ["set-up", "PSS MiB", "of it weights", "plans", "other", "on the device"],
        rows,
        f"What {count} domains take" if count > 1 else "What the domain takes",
    )
    return every + parts

"""The report of `mdprune bench`: one HTML file without scripts that needs nothing else.

It is made from the JSON document alone, so a document that another machine wrote will do.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from .energy import energy, switching
from .latency import engines_of, latency
from .machine import machine, warnings
from .memory import ONE_CONTEXT, lines_of, memory
from .operators import operators
from .svg import number
from .tables import mib, paragraph

STYLE = Path(__file__).with_name("style.css")


def render(document: dict[str, Any]) -> str:
    """Returns the report as HTML.

    Args:
        document: What `measure.document.measure` returns, or its JSON read back.
    """
    title = f"Benchmark of {document['bundle']}"
    doubts = "".join(f"<li>{escape(doubt)}</li>" for doubt in warnings(document))
    body = (
        f"<header><h1>{escape(title)}</h1>{paragraph(_subtitle(document), 'subtitle')}</header>",
        _tiles(document),
        f'<aside aria-label="Doubts"><ul>{doubts}</ul></aside>' if doubts else "",
        latency(document),
        memory(document),
        energy(document),
        switching(document),
        operators(document),
        machine(document),
        "<footer>Made by <code>mdprune bench</code>; docs/benchmarking.md says what every figure "
        "means and how to measure.</footer>",
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text()}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _subtitle(document: dict[str, Any]) -> str:
    domains, threads = len(document["domains"]), document["settings"]["threads"]
    return (
        f"{domains} domain{'s' if domains > 1 else ''}, {', '.join(engines_of(document))}, "
        f"{threads} thread{'s' if threads > 1 else ''}, batch 1, on "
        f"{document['machine']['processor']}"
    )


def _tiles(document: dict[str, Any]) -> str:
    """Returns the figures that come first."""
    figures = list(document["domains"].values())
    medians = [own["p50_ms"] for own in figures]
    span = number(min(medians))
    if number(max(medians)) != span:
        span += f" to {number(max(medians))}"
    found = [("p50 latency", f"{span} ms", str(document["settings"]["engines"][0]))]
    ratios = [own["ratio"] for own in figures if own["ratio"] is not None]
    if ratios:
        mean = sum(ratios) / len(ratios)
        found.append(("over the dense network", f"{mean:.2f}", "mean of the domains' ratios"))
    if document["memory"] and any(s["steps"] for s in document["memory"]["series"]):
        *measured, _, dense = lines_of(document["memory"])
        shown = next((line for line in measured if line.name == ONE_CONTEXT), measured[0])
        count = len(shown.sizes)
        what = f"memory of {count} domain{'s' if count > 1 else ''}"
        rest = f"{shown.name}; dense copies: {mib(dense.sizes[-1])} MiB"
        found.append((what, f"{mib(shown.sizes[-1])} MiB", rest))
    if document["switch"]:
        first = document["switch"][0]
        after = f"{number(first['after_run_p50_us'])} µs"
        found.append(("switching the domain", after, f"{first['engine']}, median, after a run"))
    spent = [f["mj"] for entry in document["energy"] or [] for f in entry["domains"].values()]
    if spent:
        found.append(("energy of a call", f"{number(min(spent))} mJ", "the least of all rows"))
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd>{escape(rest)}</dd></div>"
        for name, value, rest in found
    )
    return f'<dl class="tiles">{tiles}</dl>'

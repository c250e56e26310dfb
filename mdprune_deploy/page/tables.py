"""HTML tables and the numbers in them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

MIB = 1 << 20


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Returns a table; the first column holds names, the others numbers."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table>{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Returns a list of names and texts."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs)
    return f'<dl class="facts">{items}</dl>'


def folded(summary: str, content: str, *, opened: bool = False) -> str:
    """Returns what is shown when it is opened."""
    state = " open" if opened else ""
    return f"<details{state}><summary>{escape(summary)}</summary>{content}</details>"


def section(title: str, *parts: str) -> str:
    """Returns a part of the page."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def paragraph(text: str, style: str = "") -> str:
    """Returns a paragraph of plain text."""
    attribute = f' class="{style}"' if style else ""
    return f"<p{attribute}>{escape(text)}</p>"


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Returns a legend of (class of the swatch, words)."""
    items = "".join(
        f'<li><span class="swatch {style}" aria-hidden="true"></span>{escape(words)}</li>'
        for style, words in entries
    )
    return f'<ul class="legend">{items}</ul>'


def mib(size: float) -> str:
    """Returns bytes in MiB."""
    value = size / MIB
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def percent(share: float) -> str:
    """Returns a share as a percentage."""
    return f"{share:.1%}"

"""Drawing: an SVG picture as text, scales, and labels that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH = 920
CHARACTER = 7.0
"""Pixels that a character of a label takes, about."""


class Picture:
    """An SVG picture with a title and a description for those who do not see it.

    Args:
        height: Its height; the width is `WIDTH`, both scale with the page.
        title: What it shows.
        description: What is to be seen in it.
    """

    def __init__(self, height: float, title: str, description: str) -> None:
        self.height = height
        self._head = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
        self._parts: list[str] = []

    def text(
        self, x: float, y: float, words: str, style: str = "", anchor: str = "start", full: str = ""
    ) -> None:
        """Writes words; `full` is shown on hover where they are shortened."""
        title = f"<title>{escape(full)}</title>" if full and full != words else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">'
            f"{escape(words)}{title}</text>"
        )

    def rect(
        self, x: float, y: float, width: float, height: float, style: str, hover: str = ""
    ) -> None:
        """Draws a rectangle."""
        title = f"<title>{escape(hover)}</title>" if hover else ""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}" '
            f'class="{style}">{title}</rect>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """Draws a line."""
        self._parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'
        )

    def polyline(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Draws lines from point to point."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polyline points="{path}" class="{style}"/>')

    def dot(self, x: float, y: float, style: str, hover: str = "", radius: float = 3.5) -> None:
        """Draws a dot."""
        title = f"<title>{escape(hover)}</title>" if hover else ""
        self._parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{style}">{title}</circle>'
        )

    def __str__(self) -> str:
        return (
            '<div class="picture" tabindex="0">'
            f'<svg viewBox="0 0 {WIDTH} {self.height:.0f}" role="img">'
            f"{self._head}{''.join(self._parts)}</svg></div>"
        )


def ticks(most: float, count: int = 5) -> list[float]:
    """Returns round numbers from 0 to the first that is not below `most`, about `count` steps."""
    if not most > 0:
        return [0.0, 1.0]
    power = 10 ** math.floor(math.log10(most / count))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * count >= most)
    return [step * index for index in range(math.ceil(most / step - 1e-9) + 1)]


def number(value: float) -> str:
    """Returns a number with three digits that count, as a person reads it."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f}"


def tick_label(value: float) -> str:
    """Returns a round number without zeros behind it."""
    return f"{value:,.4f}".rstrip("0").rstrip(".")


def shorten(words: str, width: float) -> str:
    """Cuts words in their middle to what fits into `width` pixels."""
    room = max(3, int(width / CHARACTER))
    if len(words) <= room:
        return words
    tail = (room - 1) // 2
    return f"{words[: room - 1 - tail]}…{words[len(words) - tail :]}"


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves places apart to at least `gap`, between `low` and `high` if there is room, in order."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    found = [0.0] * len(places)
    last = low - gap
    for index in order:
        last = found[index] = max(places[index], last + gap)
    above = high + gap
    for index in reversed(order):
        above = found[index] = min(found[index], max(above - gap, low))
    return found

r"""Patterns of tensor names.

A pattern is a template such as `{module}.switches` or `{module}.bns.{domain}.{name}`, in which
`{module}` and `{weight}` match anything and `{domain}` and `{name}` anything without a dot, or a
regular expression with groups of these names, such as `(?P<weight>.*)\.mask`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from .options import listed

_PLACES = {"module": ".+?", "weight": ".+", "domain": r"[^.]+", "name": r"[^.]+"}


class Pattern:
    """A template or regular expression, and what it has matched."""

    def __init__(self, text: str, option: str, needs: Sequence[str]) -> None:
        self.text, self.option, self.used = text, option, False
        try:
            self.expression = re.compile(text if "(?P<" in text else self._translate(text))
        except re.error as error:
            raise UsageError(f"{option} {text!r} is no pattern: {error}") from error
        if not set(needs) & set(self.expression.groupindex):
            raise UsageError(f"{option} {text!r} has no {' or '.join(f'{{{n}}}' for n in needs)}")

    @staticmethod
    def _translate(template: str) -> str:
        parts = re.split(r"\{(\w+)\}", template)
        for index in range(1, len(parts), 2):
            if parts[index] not in _PLACES:
                raise UsageError(f"pattern {template!r} has unknown place {{{parts[index]}}}")
        return "".join(
            f"(?P<{part}>{_PLACES[part]})" if index % 2 else re.escape(part)
            for index, part in enumerate(parts)
        )

    def match(self, name: str) -> dict[str, str] | None:
        """Returns the text of every group, or None; remembers that something matched."""
        found = self.expression.fullmatch(name)
        if found is None:
            return None
        self.used = True
        return {key: text for key, text in found.groupdict().items() if text is not None}


@dataclass
class Rule:
    """Where the tensors that a pattern matches go: `target` is a template of its groups."""

    pattern: Pattern
    target: str


def read_rule(text: str) -> Rule:
    """Reads a rule of the form `PATTERN->TARGET`."""
    pattern, arrow, target = text.partition("->")
    if not (pattern and arrow and target):
        raise UsageError(f"state rule {text!r} is not of the form PATTERN->TARGET")
    found = Rule(Pattern(pattern.strip(), "state", ("domain",)), target.strip())
    unknown = set(re.findall(r"\{(\w*)\}", found.target)) - set(found.pattern.expression.groupindex)
    if unknown:
        raise UsageError(
            f"state rule {text!r} uses {listed(sorted(unknown))}, which it never matches"
        )
    return found

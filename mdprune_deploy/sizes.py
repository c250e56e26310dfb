"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import math
import re

from .errors import UsageError

_UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
}  # fmt: skip


def parse_size(text: str) -> int:
    """Returns a size in bytes.

    Args:
        text: A number and, where it is not bytes, a unit: `KB`, `MB`, `GB` (powers of 1000), `KiB`,
            `MiB` or `GiB` (powers of 1024).

    Raises:
        UsageError: The text is no such size, or is zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    size = math.floor(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise UsageError(f"{text!r} is no size; write bytes, or a number and KiB, MiB, GiB, MB, GB")
    return size

"""Sizes with units."""

import pytest

from mdprune_deploy import UsageError
from mdprune_deploy.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1), ("4096", 4096), ("120MiB", 120 * 2**20), ("1.5 GiB", 3 * 2**29), ("2kb", 2000),
        ("0.5MB", 500_000), ("7 B", 7), (" 1KiB ", 1024),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "MiB", "-1", "1 TiB", "1e3", "12 parsecs", "0.4", "1,5MB"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert str(caught.value) == (
        f"{text!r} is no size; write bytes, or a number and KiB, MiB, GiB, MB, GB"
    )

"""Fixtures of the pass tests."""

from collections.abc import Iterator

import pytest

from mdprune_deploy.passes import place
from mdprune_deploy.passes.operators import groups, product


@pytest.fixture
def narrowest() -> Iterator[None]:
    """Switches off what keeps more channels to save time, so that counts are those of the masks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, "_ROUNDS", 0)
        patch.setattr(groups, "RUN", 0)
        for module in (place, product):
            patch.setattr(module, "WORTH_ROUNDING", float("inf"))
        yield

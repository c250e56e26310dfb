"""What the property tests over random networks share: how many are drawn, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from graphs import Drawn, networks
from hypothesis import HealthCheck, Phase, given, settings

from mdprune_deploy.passes.operators import groups

NIGHTLY = settings.get_current_profile_name() == "nightly"


def any_network(examples: int, nightly: int) -> Callable[[Callable[[Drawn], None]], object]:
    """Calls a test with random networks, the same ones in every run unless that is a nightly one.

    Args:
        examples: How many networks.
        nightly: How many in a nightly run.
    """
    drawn = settings(
        max_examples=nightly if NIGHTLY else examples,
        derandomize=not NIGHTLY,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    return lambda test: drawn(given(networks())(test))


@contextmanager
def some_groups_are_split() -> Iterator[pytest.MonkeyPatch]:
    """Lowers the work from which a grouped convolution is split: others are still padded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "RUN", 2000)
        yield patch

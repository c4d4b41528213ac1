"""Set-up of all tests: how hard hypothesis tries, and what happens when a peer is missing.

``HYPOTHESIS_PROFILE`` chooses the profile: "dev" (the default; quick), "ci" (the default where
``CI`` is set; the same examples every time) or "thorough" (for a long look by hand).

Where it sees ``CI``, pytest explains a failed ``==`` by a line-by-line diff, which for the content
of two disks takes hours.  So that variable is passed on under another name.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings

from tests.tools import peers

if TYPE_CHECKING:
    import pytest

if os.environ.pop("CI", ""):
    os.environ[peers.IN_CI] = "true"

_SLOW_MACHINES = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile("dev", max_examples=30, deadline=None)
settings.register_profile(
    "ci",
    max_examples=60,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=_SLOW_MACHINES,
)
settings.register_profile(
    "thorough", max_examples=2000, deadline=None, suppress_health_check=_SLOW_MACHINES
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if peers.IN_CI in os.environ else "dev")
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """See :mod:`tests.tools.peers`."""
    for marker in item.iter_markers("requires_peer"):
        peers.check_required(marker.args)

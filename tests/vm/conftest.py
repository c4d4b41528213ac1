"""What tests of whole machines share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tools import small_guests as guests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=guests.accelerators())
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[guests.Make]:
    """Makes machines from the source of their firmware, on each accelerator that works here."""
    with guests.maker(tmp_path, request.param) as made:
        yield made

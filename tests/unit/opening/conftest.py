"""A disk to be opened, and nothing that stays open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tools.leftovers import no_new_descriptors
from tests.tools.named_images import SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    """Whatever a test opens and fails to open."""
    with no_new_descriptors():
        yield


@pytest.fixture
def raw(tmp_path: Path) -> str:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"0123456789" + bytes(SIZE - 10))
    return str(path)

"""What a check calls wrong in a single table entry, at the edges."""

from __future__ import annotations

import pytest

from tests.tools import images
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.entries import EntryRules
from vdisk.stores.memory import MemoryStore

CLUSTER = 1024
FILE = 28 * CLUSTER


@pytest.fixture
def rules() -> EntryRules:
    file = MemoryStore()
    images.create(file, 1 << 20, cluster_size=CLUSTER)
    with images.open_image(file) as image:
        return EntryRules(image.header, FILE)


@pytest.mark.parametrize(
    ("offset", "sectors", "inside"),
    [
        (FILE - 512, 1, True),
        (FILE - 1, 1, True),
        (FILE - 1, 2, True),  # its last sector is rounded up and need not be in the file
        (FILE - 1, 3, False),
        (FILE, 1, False),
        (FILE + CLUSTER, 1, False),
    ],
)
def test_where_compressed_clusters_may_end(
    rules: EntryRules, offset: int, sectors: int, inside: bool
) -> None:
    shift = 62 - (10 - 8)
    defect = rules.l2_defect(layout.COMPRESSED | (sectors - 1) << shift | offset, 0, 0)
    assert (defect is None) == inside

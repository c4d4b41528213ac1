"""Leaks that are freed until the power fails: a sound image stays sound.

What a cut leaves of the repair of a damaged image is tried in ``test_operation_cuts.py``.
"""

from __future__ import annotations

import random

import pytest

from tests.tools import damage
from vdisk.errors import CorruptImageError
from vdisk.filters.writelog import Cuts, WriteLog
from vdisk.formats import OpenContext
from vdisk.formats.qcow2 import DRIVER
from vdisk.stores.memory import MemoryStore

REPAIRING = OpenContext(readonly=False, repairing=True)


def disk_of(store: MemoryStore) -> bytes | None:
    """What the image's disk holds; None where the damage keeps it from being read."""
    image = DRIVER.open(MemoryStore(store.content()), OpenContext(repairing=True))
    with image:
        try:
            return image.read(0, image.size)
        except CorruptImageError:
            return None


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_leaks_whose_flags_change(compat: str) -> None:
    """A count that goes down to 1 wants a COPIED flag: a sound image stays sound."""
    metadata = damage.Metadata(damage.sample(compat=compat))
    metadata.set_refcount(metadata.host(0) // metadata.cluster_size, 2)
    metadata.set_word(metadata.entry(0), metadata.host(0))
    content = bytes(metadata.content)
    expected = disk_of(MemoryStore(content))
    log, rng = WriteLog(MemoryStore(content)), random.Random(1)
    with DRIVER.open(log, REPAIRING) as image:
        found = image.check()
        assert (found.leaks, found.corruptions) == (1, 0)
        assert image.check(repair={"leaks"}).clean
    cuts = Cuts(content, log.entries)
    for position in range(len(log.entries) + 1):
        cuts.advance(position)
        for disk in (cuts.whole(), cuts.torn(rng), cuts.torn(rng)):
            with DRIVER.open(disk, OpenContext(readonly=False)) as image:
                assert compat == "0.10" or not image.check().corruptions
            assert disk_of(disk) == expected

"""A repair that is cut short: the disk reads as before, and a second repair ends it.

The repair of a damaged image runs on a write log; each disk that a cut at any point can leave,
torn and reordered between flushes, is read, repaired again and read once more.
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
EVERYTHING = ("leaks", "errors")

MENDABLE = [
    "refcount too high",
    "refcount zero",
    "refcount of an L2 table zero",
    "a leaked cluster",
    "COPIED set on a shared cluster",
    "L1 entry with reserved bits",
    "L1 table as L2 table",
    "L2 entry past the end",
    "two L2 entries, one cluster",
    "L2 table as its own data",
    "L1 table as data",
    "refcount block as data",
    "refcount block missing",
    "two blocks in one cluster",
    "refcount table not aligned",
    "snapshot's L1 table is the active one",
    "snapshot's L2 table past the end",
]


def disk_of(store: MemoryStore) -> bytes | None:
    """What the image's disk holds; None where the damage keeps it from being read."""
    image = DRIVER.open(MemoryStore(store.content()), OpenContext(repairing=True))
    with image:
        try:
            return image.read(0, image.size)
        except CorruptImageError:
            return None


@pytest.mark.parametrize("name", MENDABLE)
def test_cuts_of_a_repair(name: str) -> None:
    rng = random.Random(name)
    content = damage.damaged(damage.sample(snapshot=True), name)
    log = WriteLog(MemoryStore(content))
    with DRIVER.open(log, REPAIRING) as image:
        assert image.check(repair=EVERYTHING).clean
        mended = image.read(0, image.size)
    before = disk_of(MemoryStore(content))
    assert before in (None, mended)
    cuts = Cuts(content, log.entries)
    for position in range(len(log.entries) + 1):
        cuts.advance(position)
        for disk in (cuts.whole(), cuts.torn(rng), cuts.torn(rng)):
            assert disk_of(disk) in (before, mended), position
            with DRIVER.open(disk, REPAIRING) as image:
                result = image.check(repair=EVERYTHING)
                assert result.clean, (position, result.remaining)
                assert image.read(0, image.size) == mended


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

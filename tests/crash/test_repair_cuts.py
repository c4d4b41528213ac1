"""Repairs that are cut short by the power or by a read that fails: the image is no worse.

What a cut leaves of the repair of a damaged image is tried in ``test_operation_cuts.py``.
"""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from tests.tools import damage
from tests.tools.cutting_jobs import MENDABLE, RepairStory
from tests.tools.scenes import IMAGE, open_files, stores
from vdisk.errors import CorruptImageError, VdiskError
from vdisk.filters.faults import Faults, InjectError, IoType, Where
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


def after_a_failed_read(content: bytes, repair: tuple[str, ...], number: int) -> bytes | None:
    """What a repair leaves of which that read fails, once; None if there is no such read."""
    files = stores({IMAGE: content})
    faults = Faults(files[IMAGE])
    where = Where(iotypes=frozenset({IoType.READ}), skip=number, once=True)
    with suppress(VdiskError), open_files({IMAGE: faults}, repairing=True) as image:
        faults.set_rules(InjectError(where=where))
        image.check(repair=repair)
    return None if faults._armed else files[IMAGE].content()


@pytest.mark.parametrize("name", MENDABLE)
def test_a_table_that_cannot_be_read_once_is_not_forgotten(name: str) -> None:
    story = RepairStory(name)
    content, number = story.initial[IMAGE], 0
    while (left := after_a_failed_read(content, ("leaks", "errors"), number)) is not None:
        story.check({IMAGE: left}, 0, None)
        number += 1
    assert number > 10


def test_counts_that_cannot_be_read_once_are_not_zero() -> None:
    content = damage.damaged(damage.sample(cluster_size=1024), "a leaked cluster")
    expected, number = disk_of(MemoryStore(content)), 0
    while (left := after_a_failed_read(content, ("leaks",), number)) is not None:
        with DRIVER.open(MemoryStore(left), OpenContext()) as image:
            assert not image.check().corruptions, number
        assert disk_of(MemoryStore(left)) == expected
        number += 1
    assert number > 5

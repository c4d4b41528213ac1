"""The table of a bus master: any cut of a transfer into regions leads to the same memory."""

from __future__ import annotations

import random
import struct

import pytest

from vdisk.vm.devices.ide_dma import END_OF_TABLE, BusMaster, DmaError
from vdisk.vm.memory import GuestMemory

TABLE, DATA = 0x1FF4, 0x10_0000  # the table goes over the end of a page
MEMORY = GuestMemory(4 << 20)
MEMORY.write(DATA, random.Random(1).randbytes(0x20_0000))


def master(*regions: tuple[int, int], end: bool = True) -> BusMaster:
    """A table of (gpa, bytes)."""
    made = BusMaster("test", MEMORY, lambda: True)
    made.table = TABLE
    for number, (gpa, length) in enumerate(regions):
        last = END_OF_TABLE if end and number == len(regions) - 1 else 0
        MEMORY.write(TABLE + 8 * number, struct.pack("<II", gpa, length & 0xFFFF | last))
    return made


def test_neighbours_are_one_range() -> None:
    regions = [(DATA, 0x1000), (DATA + 0x1000, 0x1_0000), (DATA + 0x4_0000, 512), (DATA, 512)]
    gathered = master(*regions).gather(0, 0x1_1400)
    assert [len(view) for view in gathered.views] == [0x1_1000, 512, 512]
    assert gathered.exact
    dirtied: list[tuple[int, int]] = []
    MEMORY.on_dirtied(dirtied.extend)
    gathered.dirtied(MEMORY)
    assert dirtied == [(DATA, 0x1_1000), (DATA + 0x4_0000, 512), (DATA, 512)]


@pytest.mark.parametrize("seed", range(50))
def test_a_transfer_that_is_cut_anywhere(seed: int) -> None:
    rng = random.Random(seed)
    regions, place = [], DATA
    for _ in range(rng.randrange(1, 9)):
        length = 2 * rng.randrange(1, 600)
        regions.append((place, length))
        place = place + length if rng.random() < 0.5 else DATA + 2 * rng.randrange(0x8_0000)
    whole = b"".join(MEMORY.read(*region) for region in regions)
    skip = rng.randrange(len(whole))
    length = rng.randrange(1, len(whole) - skip + 1)
    gathered = master(*regions).gather(skip, length)
    assert b"".join(gathered.views) == whole[skip : skip + length]
    assert gathered.exact == (skip + length == len(whole))
    with pytest.raises(DmaError) as caught:
        master(*regions).gather(skip, len(whole) - skip + 1)
    assert caught.value.short


def test_a_region_outside_of_memory() -> None:
    with pytest.raises(DmaError) as caught:
        master((DATA, 512), (0x800_0000, 512)).gather(0, 1024)
    assert not caught.value.short
    assert len(master((DATA, 512), (0x800_0000, 512)).gather(0, 512).views) == 1, "nobody asked"

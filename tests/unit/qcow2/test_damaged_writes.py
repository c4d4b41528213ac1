"""A damaged image that is written to anyway: an error at worst, and what it held stays there."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.tools import damage
from tests.tools.damage import DAMAGES, SNAPSHOT_DAMAGES, Metadata
from vdisk.errors import CorruptImageError, VdiskError
from vdisk.formats import OpenContext
from vdisk.formats._qcow2.overlap import check_unused
from vdisk.formats.qcow2 import DRIVER
from vdisk.stores.memory import MemoryStore

UNIT = 4096

HOPELESS = {
    "refcount zero": "a cluster of data counts as free: nothing but a check can tell",
    "two L1 entries, one L2 table": "what is written to one half of the disk shows in the other",
    **dict.fromkeys(
        [
            "L1 table as L2 table",
            "refcount table as L2 table",
            "L2 table as its own data",
            "L1 table as data",
            "refcount block as data",
        ],
        "the disk shows the image's own tables, which change",
    ),
}
"""Damages with which writing may change what is read elsewhere."""


def damaged_image(name: str) -> bytes:
    return damage.damaged(damage.sample(snapshot=name in SNAPSHOT_DAMAGES), name)


def readable(content: bytes) -> dict[int, bytes]:
    """The clusters of a disk that can be read, by their numbers."""
    found: dict[int, bytes] = {}
    with suppress(VdiskError), DRIVER.open(MemoryStore(content), OpenContext()) as image:
        for number in range(image.size // image.cluster_size):
            with suppress(VdiskError):
                found[number] = image.read(number * image.cluster_size, image.cluster_size)
    return found


@pytest.mark.parametrize("name", sorted({*DAMAGES, *SNAPSHOT_DAMAGES} - HOPELESS.keys()))
def test_nothing_that_could_be_read_is_written_over(name: str) -> None:
    content = damaged_image(name)
    before, file = readable(content), MemoryStore(content)
    with suppress(VdiskError), DRIVER.open(file, OpenContext(readonly=False)) as image:
        for number in range(24, 40):
            with suppress(VdiskError):
                image.write(number * image.cluster_size, b"\x44" * image.cluster_size)
                image.flush()
        with suppress(VdiskError):
            image.create_snapshot("of a damaged disk")
    after = readable(file.content())
    lost = [
        number
        for number, data in before.items()
        if number not in range(24, 40) and after.get(number) != data
    ]
    assert not lost, lost


def test_a_refcount_block_that_is_missing_does_not_become_the_header() -> None:
    content = damaged_image("refcount block missing")
    file = MemoryStore(content)
    image = DRIVER.open(file, OpenContext(readonly=False))
    with pytest.raises(CorruptImageError, match="overlaps the image's own metadata"):
        image.write(30 * UNIT, b"new")
    with suppress(VdiskError):
        image.close()
    assert file.content()[:4] == content[:4]


def test_a_new_refcount_block_is_not_put_over_a_table() -> None:
    """Where counts are wrong, the place that seems free may hold the L1 table."""
    metadata = Metadata(damage.sample(refcount_bits=64, cluster_size=4096))
    for cluster in range(1, metadata.clusters):
        metadata.set_refcount(cluster, 1)
    metadata.set_refcount(metadata.cluster_of(metadata.l1), 0)
    file = MemoryStore(metadata.content)
    image = DRIVER.open(file, OpenContext(readonly=False))
    with pytest.raises(CorruptImageError, match="overlaps the image's own metadata"):
        image.write(30 * UNIT, bytes(8 * UNIT) + b"new")
    with suppress(VdiskError):
        image.close()
    l1 = slice(metadata.l1, metadata.l1 + 8)
    assert file.content()[l1] == metadata.content[l1]


def test_however_long_a_range_its_last_cluster_counts() -> None:
    file = MemoryStore()
    DRIVER.create(file, 1 << 20, {"cluster_size": 512})
    image = DRIVER.open(file, OpenContext(readonly=False))
    block = 1 << 30  # far from everything else
    image._core.refcounts.places.add(block)
    check_unused(image._core, block - 100 * 512, 100 * 512)
    with pytest.raises(CorruptImageError, match="overlaps the image's own metadata"):
        check_unused(image._core, block - 100 * 512, 101 * 512)
    with suppress(VdiskError):
        image.close()


def test_a_guest_does_not_write_over_reference_counts_that_nobody_read() -> None:
    content = damaged_image("refcount block as data")
    block = Metadata(content).refcount_block
    file = MemoryStore(content)
    image = DRIVER.open(file, OpenContext(readonly=False))
    with pytest.raises(CorruptImageError, match="overlaps the image's own metadata"):
        image.write(2 * UNIT, b"\x44" * 512)
    with suppress(VdiskError):
        image.close()
    assert file.content()[block : block + 512] == content[block : block + 512]

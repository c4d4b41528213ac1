"""Creating an image where something was before: a block device does not become empty."""

from __future__ import annotations

from tests.tools import images
from vdisk.stores.memory import MemoryStore

MIB = 1 << 20


class FixedDevice(MemoryStore):
    """As a block device: cutting it short changes nothing."""

    def _truncate(self, size: int) -> None:
        assert size <= self.size


def test_a_device_full_of_junk_becomes_an_empty_disk() -> None:
    device = FixedDevice(b"junk" * MIB, growable=False)
    images.create(device, 2 * MIB)
    with images.open_image(device) as image:
        assert image.read(0, image.size) == bytes(2 * MIB)
        image.write(70_000, b"data")
        image.flush()
        expected = bytearray(2 * MIB)
        expected[70_000:70_004] = b"data"
        assert image.read(0, image.size) == expected

"""What drives tell about themselves: IDENTIFY DEVICE and IDENTIFY PACKET DEVICE.

256 words of 16 bits (ATA/ATAPI-6 8.15 and 8.16; words 69, 105, 106, 117, 169, 217 by ATA8-ACS).
Strings are padded with spaces, and the first letter of each pair is the upper byte.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final

from vdisk.vm.devices.base import Device

if TYPE_CHECKING:
    from vdisk.emu_blockdev import EmuBlockDevice, Geometry

FIRMWARE: Final = "1.0"
DISK_MODEL: Final = "VDISK HARDDISK"
CDROM_MODEL: Final = "VDISK CD-ROM"
MAX_MULTIPLE: Final = 16
MAX_TRIM_BLOCKS: Final = 8
"""Blocks of 64 ranges that one DATA SET MANAGEMENT may bring."""
LBA28_SECTORS: Final = 0x0FFF_FFFF

_CHECKSUM_SIGNATURE: Final = 0xA5


class Words:
    """The 256 words while they are filled in."""

    def __init__(self) -> None:
        self.words = [0] * 256

    def __setitem__(self, index: int, value: int) -> None:
        self.words[index] = value & 0xFFFF

    def text(self, first: int, count: int, value: str) -> None:
        """``count`` words of a string."""
        data = value.encode("ascii", "replace").ljust(2 * count)[: 2 * count]
        for index in range(count):
            self[first + index] = data[2 * index] << 8 | data[2 * index + 1]

    def number(self, first: int, count: int, value: int) -> None:
        """A number of several words, the low one first."""
        for index in range(count):
            self[first + index] = value >> 16 * index

    def finished(self) -> bytes:
        """512 bytes with the integrity word (8.15.61)."""
        data = bytearray(struct.pack("<256H", *self.words))
        data[510] = _CHECKSUM_SIGNATURE
        data[511] = -sum(data[:511]) & 0xFF
        return bytes(data)


class Modes(Device):
    """The transfer mode that SET FEATURES chose last: one multiword or ultra DMA mode."""

    SAVED: ClassVar[tuple[str, ...]] = ("multiword", "ultra")
    name = "transfer modes"

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.multiword, self.ultra = 1 << 2, 0

    def choose(self, value: int) -> bool:
        """The sector count of SET FEATURES 03h; False for a mode there is not."""
        kind, mode = value >> 3, value & 7
        if kind in (0, 1):  # PIO, default or by number
            return mode <= 4
        if kind == 4 and mode <= 2:
            self.multiword, self.ultra = 1 << mode, 0
        elif kind == 8 and mode <= 5:
            self.multiword, self.ultra = 0, 1 << mode
        else:
            return False
        return True

    def restored(self) -> None:
        self.require(0 <= self.multiword < 8 and 0 <= self.ultra < 64, "a mode")


def identify_disk(
    disk: EmuBlockDevice, current: Geometry, multiple: int, modes: Modes, *, smart: bool
) -> bytes:
    """IDENTIFY DEVICE.  ``current``: the geometry that INITIALIZE DEVICE PARAMETERS set."""
    words, sectors = Words(), disk.size // disk.sector_size
    words[0] = 0x0040  # fixed
    words[1], words[3], words[6] = disk.geometry.physical
    words.text(10, 10, disk.serial or "VD00001")
    words.text(23, 4, FIRMWARE)
    words.text(27, 20, DISK_MODEL)
    words[47] = 0x8000 | MAX_MULTIPLE
    words[48] = 0x4000  # no trusted computing; until ATA-7, its bit 0 said 32-bit PIO
    words[49] = 0x0B00  # IORDY, LBA, DMA
    words[50] = 0x4000
    words[51] = words[52] = 0x0200
    words[53] = 7  # words 54-58, 64-70 and 88 are valid
    words[54], words[55], words[56] = current
    words.number(57, 2, min(current.total, sectors))
    words[59] = 0x0100 | multiple if multiple else 0
    words.number(60, 2, min(sectors, LBA28_SECTORS))
    _transfer_modes(words, modes)
    words[80] = 0x00F0  # ATA/ATAPI-4 to 7: later ones have logs that drivers would look for
    words[82] = 0x4021  # NOP, write cache, SMART
    words[83] = 0x7400  # FLUSH CACHE (EXT), 48-bit addresses
    words[84] = 0x4040  # WRITE DMA FUA EXT
    words[85] = 0x4000 | disk.write_cache << 5 | smart
    words[86] = 0x3400
    words[87] = 0x4040
    words.number(100, 4, sectors)
    if disk.discard_enabled and not disk.readonly:
        words[105] = MAX_TRIM_BLOCKS
        words[169] = 1
    exponent = (disk.physical_sector_size // disk.sector_size).bit_length() - 1
    words[106] = 0x4000 | (0x2000 | exponent if exponent else 0)
    if disk.sector_size > 512:
        words[106] = words.words[106] | 0x1000
        words.number(117, 2, disk.sector_size // 2)
    words[217] = 1  # does not rotate
    return words.finished()


def identify_cdrom(disk: EmuBlockDevice, modes: Modes) -> bytes:
    """IDENTIFY PACKET DEVICE."""
    words = Words()
    words[0] = 0x85C0  # ATAPI, CD-ROM, removable, DRQ within 50 µs, 12-byte packets
    words.text(10, 10, disk.serial or "VD00002")
    words.text(23, 4, FIRMWARE)
    words.text(27, 20, CDROM_MODEL)
    words[48] = 1
    words[49] = 0x0B00
    words[53] = 7
    _transfer_modes(words, modes)
    words[80] = 0x00F0
    words[82] = 0x4010  # NOP, PACKET
    words[83] = words[84] = words[87] = 0x4000
    words[85] = 0x4010
    return words.finished()


def _transfer_modes(words: Words, modes: Modes) -> None:
    """PIO 0-4, multiword DMA 0-2, ultra DMA 0-5."""
    words[63] = 0x0007 | modes.multiword << 8
    words[64] = 3
    words[65] = words[66] = words[67] = words[68] = 120  # ns of a cycle
    words[88] = 0x003F | modes.ultra << 8
    words[93] = 0x6001  # 80-conductor cable

"""SMART: a drive's opinion of its own health (ATA/ATAPI-6 8.55; attributes as drives have them).

An emulated drive is healthy, so its data are few: power-on hours, power cycles, temperature, and
what there is nothing of.  512 bytes each, with a checksum in the last::

    data        0 revision   2 attributes, 12 bytes each: id, flags (16), value, worst, raw (48), 0
    thresholds  0 revision   2 attributes, 12 bytes each: id, threshold
"""

from __future__ import annotations

import struct
from typing import Final

SMART_LBA: Final = (0x4F, 0xC2)
"""LBA mid and high of every SMART command, and of a healthy RETURN STATUS."""

READ_DATA, READ_THRESHOLDS, AUTOSAVE, OFFLINE, READ_LOG = 0xD0, 0xD1, 0xD2, 0xD4, 0xD5
ENABLE, DISABLE, RETURN_STATUS = 0xD8, 0xD9, 0xDA

_ATTRIBUTES: Final = (
    # id, flags, value, worst, raw, threshold
    (0x01, 0x03, 100, 100, 0, 6),  # raw read errors
    (0x05, 0x03, 100, 100, 0, 36),  # reallocated sectors
    (0x09, 0x03, 100, 100, 1, 0),  # power-on hours
    (0x0C, 0x03, 100, 100, 1, 0),  # power cycles
    (0xBE, 0x03, 69, 69, 31, 50),  # temperature
)
_REVISION: Final = 0x10


def data() -> bytes:
    """SMART READ DATA."""
    page = bytearray(512)
    struct.pack_into("<H", page, 0, _REVISION)
    for index, (identifier, flags, value, worst, raw, _) in enumerate(_ATTRIBUTES):
        place = 2 + 12 * index
        struct.pack_into("<BHBB", page, place, identifier, flags, value, worst)
        page[place + 5 : place + 11] = raw.to_bytes(6, "little")
    page[362] = 0x00  # offline collection never started
    page[367] = 0x01  # it can be asked for
    page[368] = 0x03  # attributes are saved
    page[370] = 0x01  # there are logs
    return _checked(page)


def thresholds() -> bytes:
    """SMART READ ATTRIBUTE THRESHOLDS."""
    page = bytearray(512)
    struct.pack_into("<H", page, 0, _REVISION)
    for index, attribute in enumerate(_ATTRIBUTES):
        page[2 + 12 * index], page[3 + 12 * index] = attribute[0], attribute[5]
    return _checked(page)


def log(address: int) -> bytes | None:
    """SMART READ LOG: the directory (0), the error log (1), the self-test log (6)."""
    page = bytearray(512)
    if address == 0:
        page[0] = 1
        page[2], page[12] = 1, 1  # one sector each of logs 1 and 6
        return bytes(page)
    if address in (1, 6):
        page[0] = 1
        return _checked(page)
    return None


def _checked(page: bytearray) -> bytes:
    page[511] = -sum(page[:511]) & 0xFF
    return bytes(page)

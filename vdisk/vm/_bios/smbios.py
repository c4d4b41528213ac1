"""SMBIOS: what the machine is, for inventories and drivers (DMTF DSP0134, version 2.8).

::

    _SM_ entry point, 31 bytes, in F0000-FFFFF
      |
      '-> structures: type, length, handle, fields; then the strings that fields name by number,
          each ended by a zero, and one more zero

Types here: 0 firmware, 1 system, 3 enclosure, 4 processors, 16/17/19 memory, 32 boot, 127 end.
"""

from __future__ import annotations

import struct

from vdisk.vm._bios.memory_map import FOUR_GIB, KIB, MIB
from vdisk.vm._bios.rom import ROM_BASE, ROM_SEGMENT, ROM_SIZE

VERSION = (2, 8)
MAKER, PRODUCT, BIOS_VERSION, BIOS_DATE = "vdisk", "PC (i440FX and PIIX3)", "1.0", "11/11/2026"
ENTRY_LENGTH = 0x1F
TWO_TIB_KIB = 0x8000_0000  # a capacity that stands in the extended field
LARGEST_SIMPLE_MIB = 0x7FFF
OTHER, UNKNOWN = 1, 2
BIOS_HANDLE, SYSTEM_HANDLE, ENCLOSURE_HANDLE = 0x0000, 0x0100, 0x0300
PROCESSOR_HANDLE, ARRAY_HANDLE, DEVICE_HANDLE = 0x0400, 0x1000, 0x1100
RANGE_HANDLE, BOOT_HANDLE, END_HANDLE = 0x1300, 0x2000, 0x7F00
NO_ERRORS, NO_CACHE = 0xFFFE, 0xFFFF
CHARACTERISTICS = 1 << 7 | 1 << 15 | 1 << 16 | 1 << 19  # PCI, CD-ROM boot, choice, EDD
EXTENDED = bytes([0x01, 0x10])  # ACPI; this is a virtual machine
FAMILY_OTHER, CENTRAL, ENABLED = 0x01, 0x03, 0x41
DIMM, RAM, SYSTEM_BOARD, SYSTEM_MEMORY, MULTI_BIT_NONE = 0x09, 0x07, 0x03, 0x03, 0x03


def _structure(kind: int, handle: int, fields: bytes, *strings: str) -> bytes:
    texts = b"".join(text.encode() + b"\0" for text in strings) or b"\0"
    return struct.pack("<BBH", kind, 4 + len(fields), handle) + fields + texts + b"\0"


def _firmware() -> bytes:
    size_code = ROM_SIZE // (64 * KIB) - 1
    fields = struct.pack("<BBHBBQ", 1, 2, ROM_SEGMENT, 3, size_code, CHARACTERISTICS)
    release = bytes([1, 0, 0xFF, 0xFF])  # 1.0; no embedded controller
    return _structure(0, BIOS_HANDLE, fields + EXTENDED + release, MAKER, BIOS_VERSION, BIOS_DATE)


def _system() -> bytes:
    """The UUID is not there: a machine has none of its own."""
    fields = bytes([1, 2, 0, 0]) + bytes(16) + bytes([0x06, 0, 0])  # woken by the power switch
    return _structure(1, SYSTEM_HANDLE, fields, MAKER, PRODUCT)


def _enclosure() -> bytes:
    states = bytes([0x03, 0x03, 0x03, UNKNOWN])  # boot-up, power and thermal are safe
    fields = bytes([1, OTHER, 0, 0, 0]) + states + struct.pack("<IBBBB", 0, 0, 0, 0, 0)
    return _structure(3, ENCLOSURE_HANDLE, fields, MAKER)


def _processor(number: int) -> bytes:
    fields = struct.pack("<BBBBQBBHHHBB", 1, CENTRAL, FAMILY_OTHER, 2, 0, 0, 0, 0, 0, 0, ENABLED, 1)
    fields += struct.pack("<HHHBBB", NO_CACHE, NO_CACHE, NO_CACHE, 0, 0, 0)
    fields += struct.pack("<BBBHH", 1, 1, 1, 0x0004, FAMILY_OTHER)  # a core, a thread; 64 bits
    return _structure(4, PROCESSOR_HANDLE + number, fields, f"CPU {number}", MAKER)


def _memory(size: int, ranges: list[tuple[int, int]]) -> list[bytes]:
    kib, mib = size // KIB, size // MIB
    simple = min(kib, TWO_TIB_KIB)
    extended = size if kib >= TWO_TIB_KIB else 0
    kind = (OTHER, SYSTEM_MEMORY, MULTI_BIT_NONE)
    array = struct.pack("<BBBIHHQ", *kind, simple, NO_ERRORS, 1, extended)
    device = struct.pack("<HHHHH", ARRAY_HANDLE, NO_ERRORS, 64, 64, min(mib, LARGEST_SIMPLE_MIB))
    device += struct.pack("<BBBBBHH", DIMM, 0, 1, 0, RAM, 0, 0)
    device += struct.pack("<BBBBBI", 2, 0, 0, 0, 0, mib if mib >= LARGEST_SIMPLE_MIB else 0)
    device += struct.pack("<HHHH", 0, 0, 0, 0)
    found = [
        _structure(16, ARRAY_HANDLE, array),
        _structure(17, DEVICE_HANDLE, device, "DIMM 0", MAKER),
    ]
    for number, (start, end) in enumerate(ranges):
        mapped = struct.pack("<IIHBQQ", start // KIB, end // KIB - 1, ARRAY_HANDLE, 1, 0, 0)
        if end // KIB - 1 >= 0xFFFFFFFF:
            mapped = struct.pack("<IIHBQQ", *[0xFFFFFFFF] * 2, ARRAY_HANDLE, 1, start, end - 1)
        found.append(_structure(19, RANGE_HANDLE + number, mapped))
    return found


def structures(processors: int, low_end: int, high_end: int) -> list[bytes]:
    """Every structure in order."""
    ranges = [(0, low_end)] + ([(FOUR_GIB, high_end)] if high_end > FOUR_GIB else [])
    size = sum(end - start for start, end in ranges)
    return [
        _firmware(),
        _system(),
        _enclosure(),
        *(_processor(number) for number in range(processors)),
        *_memory(size, ranges),
        _structure(32, BOOT_HANDLE, bytes(6) + b"\0"),
        _structure(127, END_HANDLE, b""),
    ]


def entry_point(address: int, table: bytes, count: int, largest: int) -> bytes:
    """The ``_SM_`` entry point for a table at ``address``."""
    middle = bytearray(struct.pack("<5sBHIHB", b"_DMI_", 0, len(table), address, count, 0x28))
    middle[5] = -sum(middle) & 0xFF
    head = bytearray(
        struct.pack("<4sBBBBHB5s", b"_SM_", 0, ENTRY_LENGTH, *VERSION, largest, 0, bytes(5))
    )
    head[4] = -(sum(head) + sum(middle)) & 0xFF
    return bytes(head + middle)


def smbios_tables(address: int, processors: int, low_end: int, high_end: int) -> bytes:
    """Entry point and structures, to lie at ``address`` in the ROM's segment."""
    if not ROM_BASE <= address < ROM_BASE + ROM_SIZE:
        raise AssertionError(f"an SMBIOS entry point is not found at {address:#x}")
    parts = structures(processors, low_end, high_end)
    largest = max(map(len, parts))
    return entry_point(address + 32, b"".join(parts), len(parts), largest) + b"\0" + b"".join(parts)

"""The ACPI tables (ACPI 2.0, section 5.2) and how they come to the guest.

::

    RSDP -> RSDT, XSDT -> FADT -> DSDT, FACS
                       -> MADT  processors, I/O APIC, IRQ 0 on pin 2, the SCI's trigger mode
                       -> HPET  where there is one

All tables lie in one blob, the RSDP in another, since firmware puts it below 1 MiB.  Addresses in
them are offsets until somebody knows where the blobs lie: :meth:`AcpiTables.place` for firmware
of our own and direct boot, :meth:`AcpiTables.loader_files` for SeaBIOS, which follows a script
(QEMU, docs/specs/acpi_bios_linker_loader, "etc/table-loader").
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from vdisk.errors import InvalidRequestError
from vdisk.vm.devices import ioapic
from vdisk.vm.devices.acpi_pm import ACPI_DISABLE, ACPI_ENABLE, APM_PORT, SCI_IRQ
from vdisk.vm.devices.dsdt import LINK_IRQS, Hardware, dsdt
from vdisk.vm.memory import FOUR_GIB

PM_BASE = 0x600
"""Where our BIOS and SeaBIOS put the power management registers."""
HEADER = struct.Struct("<4sIBB6s8sI4sI")
OEM, OEM_TABLE, CREATOR = b"VDISK ", b"VDISKPC ", b"VDSK"
TABLES_FILE, RSDP_FILE, LOADER_FILE = "etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"
FACS_ALIGNMENT = 64
RSDP_V1_LENGTH, RSDP_LENGTH = 20, 36
LOCAL_APIC = 0xFEE0_0000

FADT_WBINVD, FADT_PROC_C1, FADT_SLP_BUTTON, FADT_RESET_REG = 1 << 0, 1 << 2, 1 << 5, 1 << 10
BOOT_LEGACY_DEVICES, BOOT_8042 = 1, 2
RESET_PORT, RESET_VALUE = 0xCF9, 0x06
SYSTEM_IO = 1
MADT_PCAT_COMPAT = 1
LEVEL_ACTIVE_HIGH, EDGE_ACTIVE_HIGH = 0x0D, 0x05

_LOADER_ENTRY = 128
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_ZONE_HIGH, _ZONE_FSEG = 1, 2


class Pointer(NamedTuple):
    """A field of ``size`` bytes at ``offset`` that holds the address of a place in the tables."""

    offset: int
    size: int


class AcpiTables:
    """The tables of one machine.

    ``tables``, ``rsdp``: the blobs, with offsets for addresses and zeros for checksums.
    ``pm_base``: where firmware puts the power management registers.
    """

    def __init__(self, hardware: Hardware, pm_base: int = PM_BASE) -> None:
        self.pm_base = pm_base
        self.tables = bytearray()
        self.rsdp = bytearray()
        self._pointers: list[Pointer] = []
        self._checksums: list[tuple[int, int, int]] = []
        facs = self._append(b"FACS" + struct.pack("<I", 64) + bytes(24) + b"\x01" + bytes(31))
        definition = self._table(b"DSDT", 2, dsdt(hardware))
        tables = [self._fadt(facs, definition), self._table(b"APIC", 1, _madt(hardware.cpus))]
        if hardware.hpet:
            tables.append(self._table(b"HPET", 1, _hpet()))
        self._build_rsdp(self._root(b"RSDT", 4, tables), self._root(b"XSDT", 8, tables))

    # -- building ----------------------------------------------------------------------------

    def _append(self, data: bytes) -> int:
        self.tables += bytes(-len(self.tables) % FACS_ALIGNMENT)
        start = len(self.tables)
        self.tables += data
        return start

    def _table(self, signature: bytes, revision: int, body: bytes) -> int:
        """A table with the common header."""
        length = HEADER.size + len(body)
        head = HEADER.pack(signature, length, revision, 0, OEM, OEM_TABLE, 1, CREATOR, 1)
        start = self._append(head + body)
        self._checksums.append((start + 9, start, length))
        return start

    def _fadt(self, facs: int, definition: int) -> int:
        start = self._table(b"FACP", 3, _fadt_body(facs, definition, self.pm_base))
        self._pointers += [Pointer(start + 36, 4), Pointer(start + 40, 4)]
        self._pointers += [Pointer(start + 132, 8), Pointer(start + 140, 8)]
        return start

    def _root(self, signature: bytes, size: int, tables: list[int]) -> int:
        body = b"".join(table.to_bytes(size, "little") for table in tables)
        start = self._table(signature, 1, body)
        entries = range(start + HEADER.size, start + HEADER.size + len(body), size)
        self._pointers += [Pointer(offset, size) for offset in entries]
        return start

    def _build_rsdp(self, rsdt: int, xsdt: int) -> None:
        self.rsdp += struct.pack("<8sB6sBI", b"RSD PTR ", 0, OEM, 2, rsdt)
        self.rsdp += struct.pack("<IQB3s", RSDP_LENGTH, xsdt, 0, bytes(3))

    # -- bringing them to the guest ----------------------------------------------------------

    def place(self, address: int) -> tuple[bytes, bytes]:
        """(tables, RSDP) for tables that lie at ``address`` (64-byte aligned, below 4 GiB)."""
        if address % FACS_ALIGNMENT or address + len(self.tables) > FOUR_GIB:
            raise InvalidRequestError(f"ACPI tables cannot lie at {address:#x}")
        tables, rsdp = bytearray(self.tables), bytearray(self.rsdp)
        for pointer in self._pointers:
            _add(tables, pointer, address)
        for pointer in (Pointer(16, 4), Pointer(24, 8)):
            _add(rsdp, pointer, address)
        for place, start, length in self._checksums:
            _check(tables, place, start, length)
        _check(rsdp, 8, 0, RSDP_V1_LENGTH)
        _check(rsdp, 32, 0, RSDP_LENGTH)
        return bytes(tables), bytes(rsdp)

    def loader_files(self) -> dict[str, bytes]:
        """The files of fw_cfg from which SeaBIOS places and links the tables."""
        script = [
            _loader(_ALLOCATE, "<56sIB", TABLES_FILE, FACS_ALIGNMENT, _ZONE_HIGH),
            _loader(_ALLOCATE, "<56sIB", RSDP_FILE, 16, _ZONE_FSEG),
        ]
        for pointer in self._pointers:
            script.append(_pointer(TABLES_FILE, pointer))
        for pointer in (Pointer(16, 4), Pointer(24, 8)):
            script.append(_pointer(RSDP_FILE, pointer))
        for place, start, length in self._checksums:
            script.append(_checksum(TABLES_FILE, place, start, length))
        script.append(_checksum(RSDP_FILE, 8, 0, RSDP_V1_LENGTH))
        script.append(_checksum(RSDP_FILE, 32, 0, RSDP_LENGTH))
        return {
            TABLES_FILE: bytes(self.tables),
            RSDP_FILE: bytes(self.rsdp),
            LOADER_FILE: b"".join(script),
        }


def _fadt_body(facs: int, definition: int, pm_base: int) -> bytes:
    """Revision 3: 208 bytes after the header."""
    pm1_control, timer = pm_base + 4, pm_base + 8
    flags = FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_RESET_REG
    body = struct.pack("<IIBBHI", facs, definition, 0, 0, SCI_IRQ, APM_PORT)
    body += bytes([ACPI_ENABLE, ACPI_DISABLE, 0, 0])
    body += struct.pack("<8I", pm_base, 0, pm1_control, 0, 0, timer, 0, 0)
    body += bytes([4, 2, 0, 4, 0, 0, 0, 0])  # lengths of the register blocks
    body += struct.pack("<HHHH", 0xFFFF, 0xFFFF, 0, 0)  # no C2, no C3
    body += bytes([0, 0, 0, 0, 0x32])  # duty, alarms: none; the century's place in CMOS
    body += struct.pack("<HBI", BOOT_LEGACY_DEVICES | BOOT_8042, 0, flags)
    body += _gas(RESET_PORT, 8) + bytes([RESET_VALUE, 0, 0, 0])
    body += struct.pack("<QQ", facs, definition)
    body += _gas(pm_base, 32) + _gas(0, 0) + _gas(pm1_control, 16) + _gas(0, 0)
    return body + _gas(0, 0) + _gas(timer, 32) + _gas(0, 0) + _gas(0, 0)


def _gas(address: int, bits: int) -> bytes:
    """A generic address structure, of an I/O port."""
    return struct.pack("<BBBBQ", SYSTEM_IO if bits else 0, bits, 0, 0, address)


def _madt(cpus: int) -> bytes:
    body = struct.pack("<II", LOCAL_APIC, MADT_PCAT_COMPAT)
    for number in range(cpus):
        body += struct.pack("<BBBBI", 0, 8, number, number, 1)
    body += struct.pack("<BBBBII", 1, 12, 0, 0, ioapic.BASE, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, 0, ioapic.TIMER_PIN, 0)
    for number in sorted({SCI_IRQ, *LINK_IRQS}):
        body += struct.pack("<BBBBIH", 2, 10, 0, number, number, LEVEL_ACTIVE_HIGH)
    return body + struct.pack("<BBBHB", 4, 6, 0xFF, EDGE_ACTIVE_HIGH, 1)  # NMI at LINT1


def _hpet() -> bytes:
    address = struct.pack("<BBBBQ", 0, 0, 0, 0, 0xFED0_0000)
    return struct.pack("<I", 0x8086_A201) + address + struct.pack("<BHB", 0, 0, 0)


def _add(blob: bytearray, pointer: Pointer, address: int) -> None:
    place = slice(pointer.offset, pointer.offset + pointer.size)
    value = int.from_bytes(blob[place], "little") + address
    blob[place] = value.to_bytes(pointer.size, "little")


def _check(blob: bytearray, place: int, start: int, length: int) -> None:
    """Let the bytes [start, start + length) sum to zero."""
    blob[place] = 0
    blob[place] = -sum(blob[start : start + length]) & 0xFF


def _loader(command: int, layout: str, *values: str | int) -> bytes:
    packed = struct.pack(layout, *(v.encode() if isinstance(v, str) else v for v in values))
    return (struct.pack("<I", command) + packed).ljust(_LOADER_ENTRY, b"\x00")


def _pointer(file: str, pointer: Pointer) -> bytes:
    return _loader(_ADD_POINTER, "<56s56sIB", file, TABLES_FILE, pointer.offset, pointer.size)


def _checksum(file: str, place: int, start: int, length: int) -> bytes:
    return _loader(_ADD_CHECKSUM, "<56sIII", file, place, start, length)

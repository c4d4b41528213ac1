"""The ACPI tables: links, checksums, the two ways of placing them, AML as its grammar has it."""

from __future__ import annotations

import struct

import pytest

from vdisk.errors import InvalidRequestError
from vdisk.vm.devices import aml
from vdisk.vm.devices.acpi_tables import (
    LOADER_FILE,
    PM_BASE,
    RSDP_FILE,
    TABLES_FILE,
    AcpiTables,
)
from vdisk.vm.devices.dsdt import Hardware, dsdt

ADDRESS = 0x7FE_0000
FULL = Hardware(4, serial_ports=(0, 1), parallel_port=True, hpet=True)


class Placed:
    """Tables in memory, followed as an operating system does."""

    def __init__(self, tables: bytes, rsdp: bytes, address: int = ADDRESS) -> None:
        self.tables, self.rsdp, self.address = tables, rsdp, address

    def table(self, address: int) -> bytes:
        start = address - self.address
        length = struct.unpack_from("<I", self.tables, start + 4)[0]
        return self.tables[start : start + length]

    def root(self) -> dict[str, bytes]:
        rsdt, xsdt = (
            struct.unpack_from("<I", self.rsdp, 16)[0],
            struct.unpack_from("<Q", self.rsdp, 24)[0],
        )
        short, wide = self.table(rsdt), self.table(xsdt)
        addresses = struct.unpack(f"<{(len(short) - 36) // 4}I", short[36:])
        assert addresses == struct.unpack(f"<{(len(wide) - 36) // 8}Q", wide[36:])
        found = {b"RSDT".decode(): short, "XSDT": wide}
        for address in addresses:
            table = self.table(address)
            found[table[:4].decode()] = table
        found["DSDT"] = self.table(struct.unpack_from("<I", found["FACP"], 40)[0])
        return found


def linked(files: dict[str, bytes], addresses: dict[str, int]) -> dict[str, bytearray]:
    """What SeaBIOS makes of etc/table-loader."""
    blobs: dict[str, bytearray] = {}
    script = files[LOADER_FILE]
    for start in range(0, len(script), 128):
        entry = script[start : start + 128]
        command = struct.unpack_from("<I", entry)[0]
        name = entry[4:60].rstrip(b"\0").decode()
        if command == 1:
            alignment, zone = struct.unpack_from("<IB", entry, 60)
            assert alignment & alignment - 1 == 0 and zone in {1, 2}
            blobs[name] = bytearray(files[name])
        elif command == 2:
            target = entry[60:116].rstrip(b"\0").decode()
            offset, size = struct.unpack_from("<IB", entry, 116)
            value = int.from_bytes(blobs[name][offset : offset + size], "little")
            value += addresses[target]
            blobs[name][offset : offset + size] = value.to_bytes(size, "little")
        else:
            offset, first, length = struct.unpack_from("<III", entry, 60)
            blobs[name][offset] = (
                blobs[name][offset] - sum(blobs[name][first : first + length])
            ) & 0xFF
    return blobs


def test_all_tables_are_reached_and_sum_to_zero() -> None:
    placed = Placed(*AcpiTables(FULL).place(ADDRESS))
    found = placed.root()
    assert {"RSDT", "XSDT", "FACP", "APIC", "HPET", "DSDT"} == found.keys()
    assert all(sum(table) & 0xFF == 0 for table in found.values())
    assert sum(placed.rsdp[:20]) & 0xFF == sum(placed.rsdp) & 0xFF == 0
    facs = struct.unpack_from("<I", found["FACP"], 36)[0]
    assert facs % 64 == 0 and placed.tables[facs - ADDRESS :][:4] == b"FACS"


def test_the_fadt_names_the_registers() -> None:
    fadt = Placed(*AcpiTables(FULL).place(ADDRESS)).root()["FACP"]
    assert len(fadt) == 244
    assert struct.unpack_from("<HIBB", fadt, 46) == (9, 0xB2, 0xF1, 0xF0)
    assert struct.unpack_from("<I", fadt, 56)[0] == PM_BASE
    assert struct.unpack_from("<I", fadt, 64)[0] == PM_BASE + 4
    assert struct.unpack_from("<I", fadt, 76)[0] == PM_BASE + 8
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 0, 0xCF9, 6)
    assert struct.unpack_from("<Q", fadt, 152)[0] == PM_BASE


@pytest.mark.parametrize("cpus", [1, 4])
def test_the_madt_has_every_processor(cpus: int) -> None:
    madt = Placed(*AcpiTables(Hardware(cpus)).place(ADDRESS)).root()["APIC"]
    entries, place = [], 44
    while place < len(madt):
        entries.append(madt[place : place + madt[place + 1]])
        place += madt[place + 1]
    assert [entry[3] for entry in entries if entry[0] == 0] == list(range(cpus))
    assert next(entry[3:] for entry in entries if entry[0] == 2) == b"\x00\x02\0\0\0\0\0"
    assert {entry[3] for entry in entries if entry[0] == 2 and entry[8] == 0x0D} == {5, 9, 10, 11}


def test_seabios_links_the_same_tables() -> None:
    acpi = AcpiTables(FULL)
    blobs = linked(acpi.loader_files(), {TABLES_FILE: ADDRESS, RSDP_FILE: 0xF5000})
    assert (bytes(blobs[TABLES_FILE]), bytes(blobs[RSDP_FILE])) == acpi.place(ADDRESS)


@pytest.mark.parametrize("address", [ADDRESS + 8, (1 << 32) - 64])
def test_impossible_places_are_refused(address: int) -> None:
    with pytest.raises(InvalidRequestError):
        AcpiTables(Hardware()).place(address)


def test_only_fitted_ports_are_described() -> None:
    small = dsdt(Hardware(serial_ports=()))
    assert b"COM1" not in small and b"LPT1" not in small and b"HPET" not in small
    assert b"COM2" in dsdt(FULL) and b"LPT1" in dsdt(FULL)


class TestAml:
    @pytest.mark.parametrize(
        ("length", "encoded"),
        [(0, "01"), (62, "3f"), (63, "4104"), (4093, "4fff"), (4094, "810001")],
    )
    def test_package_lengths(self, length: int, encoded: str) -> None:
        assert aml.pkg_length(bytes(length)).hex().startswith(encoded)
        assert len(aml.pkg_length(bytes(length))) == length + len(encoded) // 2

    @pytest.mark.parametrize(
        ("value", "encoded"),
        [(0, "00"), (1, "01"), (2, "0a02"), (0x100, "0b0001"), (1 << 16, "0c00000100")],
    )
    def test_integers(self, value: int, encoded: str) -> None:
        assert aml.integer(value).hex() == encoded

    def test_paths(self) -> None:
        assert aml.path("PCI0") == b"PCI0"
        assert aml.path("\\_SB") == b"\\_SB_"
        assert aml.path("^A.B") == b"^\x2eA___B___"
        assert aml.path("\\_SB.PCI0.ISA") == b"\\\x2f\x03_SB_PCI0ISA_"

    def test_identifiers(self) -> None:
        assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"

    def test_limits(self) -> None:
        with pytest.raises(InvalidRequestError):
            aml.integer(1 << 64)

"""ACPICA's compiler reads the tables as we mean them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.tools.peers import requires_peer, run
from vdisk.vm.devices.acpi_tables import AcpiTables
from vdisk.vm.devices.dsdt import Hardware

pytestmark = requires_peer("iasl")
ADDRESS = 0x7FE_0000
FULL = Hardware(
    4,
    pci_high=(1 << 33, 1 << 34),
    serial_ports=(0, 1, 2, 3),
    parallel_port=True,
    hpet=True,
)


@pytest.fixture(scope="module")
def disassembled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("acpi")
    tables = AcpiTables(FULL).place(ADDRESS)[0]
    place = 0
    while place < len(tables):
        signature, length = (
            tables[place : place + 4].decode(),
            struct.unpack_from("<I", tables, place + 4)[0],
        )
        name = f"{signature.lower()}.dat"
        (folder / name).write_bytes(tables[place : place + length])
        output = run("iasl", "-d", name, cwd=folder)
        assert b"Error" not in output.stderr, output.stderr
        place += -(-length // 64) * 64
    return folder


def test_the_dsdt_compiles_from_its_own_source(disassembled: Path) -> None:
    output = run("iasl", "-p", "again", "dsdt.dsl", cwd=disassembled).stdout
    assert b"0 Errors" in output, output.decode()
    source = (disassembled / "dsdt.dsl").read_text()
    assert source.count("PNP0C0F") == 4
    assert "S5 System State" in source and "S3 System State" in source
    assert source.count("Processor (") == 4


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("facp", ("PM1A Event Block Address : 00000600", "Legacy Devices Supported (V2) : 1")),
        ("apic", ("Subtable Type : 01 [I/O APIC]", "Interrupt Input LINT : 01")),
        ("hpet", ("Hardware Block ID : 8086A201",)),
    ],
)
def test_fields_lie_where_they_belong(
    disassembled: Path, table: str, expected: tuple[str, ...]
) -> None:
    source = (disassembled / f"{table}.dsl").read_text()
    for text in expected:
        assert text in source

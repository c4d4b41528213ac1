"""What a board tells its firmware."""

from __future__ import annotations

import struct

import pytest

from vdisk.vm import Machine
from vdisk.vm._machine.board import PIIX3_PM
from vdisk.vm.devices import fw_cfg
from vdisk.vm.devices.acpi_pm import PM_TMR, PMBA, PMREGMISC
from vdisk.vm.devices.acpi_tables import PM_BASE, TABLES_FILE


def read_file(machine: Machine, name: str) -> bytes:
    ports = machine.bus.ports

    def read(length: int) -> bytes:
        return bytes(ports.read(fw_cfg.PORT + fw_cfg.DATA, 1) for _ in range(length))

    ports.write(fw_cfg.PORT, 2, fw_cfg.FILE_DIRECTORY)
    for _ in range(int.from_bytes(read(4), "big")):
        size, key, _, found = struct.unpack(">IHH56s", read(64))
        if found.rstrip(b"\0").decode() == name:
            ports.write(fw_cfg.PORT, 2, key)
            return read(size)
    raise AssertionError(name)


def configure(machine: Machine, offset: int, size: int, value: int) -> None:
    slot, function = PIIX3_PM
    machine.bus.ports.write(0xCF8, 4, 1 << 31 | slot << 11 | function << 8 | offset & 0xFC)
    machine.bus.ports.write(0xCFC + offset % 4, size, value)


@pytest.mark.parametrize("base", [PM_BASE, 0xB000])
def test_power_management_is_where_firmware_has_put_it(base: int) -> None:
    """OVMF takes a place of its own, and GRUB looked for the timer at another for ever."""
    with Machine(memory=4 << 20, accel="interp") as machine:
        configure(machine, PMBA, 4, base | 1)
        configure(machine, PMREGMISC, 1, 1)
        with machine.bus.lock:
            tables = read_file(machine, TABLES_FILE)
        fadt = tables[tables.index(b"FACP") :]
        assert struct.unpack_from("<I", fadt, 76) == (base + PM_TMR,)
        assert struct.unpack_from("<Q", fadt, 212) == (base + PM_TMR,)
        assert machine.bus.ports.read(base + PM_TMR, 4) != 0xFFFF_FFFF
        configure(machine, PMREGMISC, 1, 0)
        again = read_file(machine, TABLES_FILE)
        assert struct.unpack_from("<I", again[again.index(b"FACP") :], 76) == (PM_BASE + PM_TMR,)

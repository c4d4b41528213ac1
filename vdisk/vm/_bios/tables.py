"""Tables that operating systems look for in F0000-FFFFF, and the memory map with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios import pci_bios
from vdisk.vm._bios.memory_map import memory_map
from vdisk.vm._bios.rom import CODE, ROM_BASE, TABLES

if TYPE_CHECKING:
    from vdisk.vm._bios.services import Services

ALIGNMENT = 16


class Tables:
    """Where each table went."""

    def __init__(self, services: Services) -> None:
        self.all, self.hw = services, services.hw
        self._next = ROM_BASE + TABLES

    def place(self) -> None:
        """POST: put every table into the ROM's segment, which can be written meanwhile."""
        self._next = ROM_BASE + TABLES
        entry = ROM_BASE + self.hw.rom.labels[pci_bios.BIOS32_ENTRY]
        self.put(pci_bios.bios32_header(entry))
        self.put(pci_bios.routing_table(self.hw))
        self.all.system.entries = memory_map(self.hw.low_end, self.hw.high_end, [])

    def put(self, table: bytes) -> int:
        """The address of a table's copy; 0 where there is no room left."""
        address = self._next
        if address + len(table) > ROM_BASE + CODE:
            return 0
        self.hw.space.write(address, table)
        self._next = -(-(address + len(table)) // ALIGNMENT) * ALIGNMENT
        return address

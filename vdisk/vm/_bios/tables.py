"""Tables that operating systems look for in F0000-FFFFF, and the memory map with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios import pci, pci_bios
from vdisk.vm._bios.memory_map import Entry, MemoryType, memory_map
from vdisk.vm._bios.rom import CODE, ROM_BASE, TABLES
from vdisk.vm._bios.smbios import smbios_tables
from vdisk.vm.devices.mp_table import mp_tables

if TYPE_CHECKING:
    from typing import Protocol

    from vdisk.vm._bios.services import Services

    class AcpiTables(Protocol):
        """What :class:`vdisk.vm.devices.acpi_tables.AcpiTables` is."""

        tables: bytearray

        def place(self, address: int) -> tuple[bytes, bytes]: ...


ALIGNMENT = 16
PAGE = 4096
FACS_SIZE, FIRMWARE_WAKING_VECTOR = 64, 12
"""Of the first of the ACPI tables (ACPI 2.0, 5.2.9)."""
MORE_PROCESSORS = 0x5F  # in CMOS: how many there are beside the first


class Tables:
    """Where each table went.  ``acpi``: what to place at the end of low RAM; ``rsdp``: its root
    pointer's address, or 0."""

    def __init__(self, services: Services, acpi: AcpiTables | None = None) -> None:
        self.all, self.hw, self.acpi = services, services.hw, acpi
        self.rsdp = 0
        self._next = ROM_BASE + TABLES

    def place(self) -> None:
        """POST: put every table into the ROM's segment, which can be written meanwhile."""
        self._next = ROM_BASE + TABLES
        entry = ROM_BASE + self.hw.rom.labels[pci_bios.BIOS32_ENTRY]
        self.put(pci_bios.bios32_header(entry))
        self.put(pci_bios.routing_table(self.hw))
        self._place_mp_tables()
        processors = self.hw.cmos(MORE_PROCESSORS) + 1
        self.put(smbios_tables(self._next, processors, self.hw.low_end, self.hw.high_end))
        entries = [] if self.acpi is None else [self._place_acpi(self.acpi)]
        self.all.system.entries = memory_map(self.hw.low_end, self.hw.high_end, entries)

    def _place_mp_tables(self) -> None:
        pins = {
            (each.device, each.read(pci.INTERRUPT_PIN, 1) - 1)
            for each in pci.functions(self.hw.ports)
            if each.read(pci.INTERRUPT_PIN, 1)
        }
        processors = self.hw.cmos(MORE_PROCESSORS) + 1
        self.put(mp_tables(self._next, processors, sorted(pins), pci.PIRQ_LINES))

    def _place_acpi(self, acpi: AcpiTables) -> Entry:
        """Write the ACPI tables; gives the memory that they take."""
        address = self._acpi_address(acpi)
        tables, rsdp = acpi.place(address)
        self.hw.space.write(address, tables)
        self.rsdp = self.put(rsdp)
        return Entry(address, self.hw.low_end - address, MemoryType.NVS)  # FACS is written to

    def _acpi_address(self, acpi: AcpiTables) -> int:
        return (self.hw.low_end - len(acpi.tables)) & ~(PAGE - 1)

    def waking_vector(self) -> int:
        """Where a system wants to go on behind S3, as it wrote into the FACS; 0: nowhere."""
        if self.acpi is None:
            return 0
        facs = self.hw.space.read(self._acpi_address(self.acpi), FACS_SIZE)
        vector = facs[FIRMWARE_WAKING_VECTOR : FIRMWARE_WAKING_VECTOR + 4]
        return int.from_bytes(vector, "little") if facs[:4] == b"FACS" else 0

    def put(self, table: bytes) -> int:
        """The address of a table's copy; 0 where there is no room left."""
        address = self._next
        if address + len(table) > ROM_BASE + CODE:
            return 0
        self.hw.space.write(address, table)
        self._next = -(-(address + len(table)) // ALIGNMENT) * ALIGNMENT
        return address

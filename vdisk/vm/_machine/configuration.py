"""What a board tells its firmware: CMOS memory, fw_cfg, ACPI tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._boot.entry import MemoryRange
from vdisk.vm._machine.boot_choice import NUMBERS
from vdisk.vm.devices import fw_cfg
from vdisk.vm.devices.acpi_pm import SLP_TYP_S3
from vdisk.vm.devices.acpi_tables import PM_BASE, AcpiTables
from vdisk.vm.devices.dsdt import Hardware
from vdisk.vm.devices.fdc import FITTED
from vdisk.vm.devices.serial import COM_PORTS
from vdisk.vm.memory import FOUR_GIB

if TYPE_CHECKING:
    from vdisk.vm._machine.board import Board
    from vdisk.vm._machine.boot_choice import BootChoice
    from vdisk.vm._machine.drives import Drives, MachineDrive
    from vdisk.vm.memory import GuestMemory

TWO_GIB = 1 << 31
CONVENTIONAL_END, MIB, TABLES_ROOM = 0x9F000, 1 << 20, 64 << 10


def hardware(board: Board, memory: GuestMemory, cpus: int) -> Hardware:
    """What the ACPI tables describe."""
    fitted = tuple(
        number for number, port in enumerate(COM_PORTS) if board.bus.ports.find(port) is not None
    )
    return Hardware(
        cpus=cpus,
        pci_memory=TWO_GIB if memory.low_end <= TWO_GIB else memory.low_end,
        serial_ports=fitted,
        parallel_port=True,
        diskettes=board.fdc is not None,
        hpet=True,
    )


def floppy_types(board: Board) -> tuple[int, ...]:
    """Of drives A and B, as CMOS memory has them: what takes the diskette that is in them."""
    if board.fdc is None:
        return (0, 0)
    return tuple(drive.type for drive in board.fdc.drives[:FITTED])


def describe(board: Board, memory: GuestMemory, cpus: int, boot: BootChoice) -> AcpiTables:
    """Fill in everything that firmware reads, before the machine starts; gives the tables."""
    rtc, config = board.rtc, board.fw_cfg
    rtc.describe_memory(memory.low_end, memory.high_end - FOUR_GIB)
    rtc.describe_processors(cpus)
    rtc.describe_equipment(floppy_types(board))
    config.add_number(fw_cfg.RAM_SIZE, memory.size, 8)
    config.add_number(fw_cfg.CPUS, cpus)
    config.add_number(fw_cfg.MAX_CPUS, cpus)
    config.add_memory_map(list(ram_ranges(memory)))
    tables = AcpiTables(described := hardware(board, memory, cpus))
    _offer_tables(board, described, tables)
    config.add_file("etc/system-states", bytes([0x80, 0, 0, 0x80 | SLP_TYP_S3, 0, 0x80]))
    config.add_number(fw_cfg.BOOT_MENU, boot.menu)
    config.add_file("etc/boot-menu-wait", boot.menu_ms.to_bytes(2, "little"))
    if boot.retry_ms is not None:
        config.add_file("etc/boot-fail-wait", boot.retry_ms.to_bytes(4, "little"))
    return tables


def _offer_tables(board: Board, described: Hardware, tables: AcpiTables) -> None:
    """Give the tables to firmware, which first puts chips where it likes: OVMF not at PM_BASE."""
    offered = tables

    def update() -> None:
        nonlocal offered
        base = board.power.base or PM_BASE
        if base != offered.pm_base:
            offered = AcpiTables(described, base)
            for name, data in offered.loader_files().items():
                board.fw_cfg.add_file(name, data)

    for name, data in tables.loader_files().items():
        board.fw_cfg.add_file(name, data)
        board.fw_cfg.before_reading(name, update)


def describe_boot_order(board: Board, drives: Drives, letters: str, *, strict: bool) -> None:
    """Tell what to boot from now: in CMOS memory, and by fw_cfg."""
    board.rtc.describe_boot_order(tuple(NUMBERS[letter] for letter in letters))
    board.fw_cfg.add_boot_order([*boot_paths(drives, letters), *(["HALT"] if strict else [])])


def ram_ranges(memory: GuestMemory) -> list[MemoryRange]:
    """The machine's RAM, as fw_cfg tells it: firmware takes away what it reserves."""
    ranges = [MemoryRange(0, memory.low_end)]
    if memory.high_end > FOUR_GIB:
        ranges.append(MemoryRange(FOUR_GIB, memory.high_end - FOUR_GIB))
    return ranges


def likely_ranges(memory: GuestMemory) -> list[MemoryRange]:
    """About what firmware will leave of the RAM, to find out early whether a kernel fits."""
    return [
        MemoryRange(0, CONVENTIONAL_END),
        MemoryRange(MIB, max(memory.low_end - MIB - TABLES_ROOM, 0)),
    ]


def boot_paths(drives: Drives, letters: str) -> list[str]:
    """Open Firmware paths of the drives to boot from, first choice first."""
    kinds = {"a": "floppy", "c": "disk", "d": "cdrom"}
    wanted = [kinds.get(letter) for letter in letters]
    return [_path(drive) for kind in wanted for drive in drives if drive.spec.media == kind]


def _path(drive: MachineDrive) -> str:
    if drive.spec.interface == "floppy":
        return f"/pci@i0cf8/isa@1/fdc@03f0/floppy@{drive.place:x}"
    if drive.spec.interface == "virtio":
        return f"/pci@i0cf8/scsi@{drive.slot:x}/disk@0,0"
    return f"/pci@i0cf8/ide@1,1/drive@{drive.place >> 1:x}/disk@{drive.place & 1:x}"

"""What a board tells its firmware: CMOS memory, fw_cfg, ACPI tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError
from vdisk.vm._boot.entry import MemoryRange
from vdisk.vm.devices import fw_cfg
from vdisk.vm.devices.acpi_tables import AcpiTables
from vdisk.vm.devices.dsdt import Hardware
from vdisk.vm.devices.serial import COM_PORTS
from vdisk.vm.memory import FOUR_GIB

if TYPE_CHECKING:
    from vdisk.vm._machine.board import Board
    from vdisk.vm._machine.drives import Drives, MachineDrive
    from vdisk.vm.memory import GuestMemory

BOOT_LETTERS = {"c": 2, "d": 3, "n": 4}
"""QEMU's ``-boot order=``: hard disk, CD-ROM, network; and their numbers in CMOS memory."""
TWO_GIB = 1 << 31
CONVENTIONAL_END, MIB, TABLES_ROOM = 0x9F000, 1 << 20, 64 << 10


def check_boot(boot: str) -> str:
    """The boot order, if it is one."""
    if not boot or set(boot) - BOOT_LETTERS.keys():
        raise InvalidRequestError(f"boot order {boot!r}: letters of {''.join(BOOT_LETTERS)}")
    return boot


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
        hpet=True,
    )


def describe(board: Board, memory: GuestMemory, cpus: int, drives: Drives, boot: str) -> AcpiTables:
    """Fill in everything that firmware reads, before the machine starts; gives the tables."""
    rtc, config = board.rtc, board.fw_cfg
    rtc.describe_memory(memory.low_end, memory.high_end - FOUR_GIB)
    rtc.describe_processors(cpus)
    rtc.describe_equipment()
    rtc.describe_boot_order(tuple(BOOT_LETTERS[letter] for letter in boot))
    config.add_number(fw_cfg.RAM_SIZE, memory.size, 8)
    config.add_number(fw_cfg.CPUS, cpus)
    config.add_number(fw_cfg.MAX_CPUS, cpus)
    config.add_memory_map(list(ram_ranges(memory)))
    tables = AcpiTables(hardware(board, memory, cpus))
    for name, data in tables.loader_files().items():
        config.add_file(name, data)
    config.add_boot_order(boot_paths(drives, boot))
    return tables


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


def boot_paths(drives: Drives, boot: str) -> list[str]:
    """Open Firmware paths of the drives to boot from, first choice first."""
    kinds = {"c": "disk", "d": "cdrom"}
    return [
        _path(drive) for letter in boot for drive in drives if drive.spec.media == kinds.get(letter)
    ]


def _path(drive: MachineDrive) -> str:
    if drive.spec.interface == "virtio":
        return f"/pci@i0cf8/scsi@{drive.slot:x}/disk@0,0"
    return f"/pci@i0cf8/ide@1,1/drive@{drive.place >> 1:x}/disk@{drive.place & 1:x}"

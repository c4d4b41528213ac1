"""The firmware that processors begin with: our own BIOS, or a file such as SeaBIOS's ``bios.bin``.

A BIOS image ends at 4 GiB, where the reset vector is, and its last 128 KiB show below 1 MiB::

    E0000           100000                          4 GiB - size            4 GiB
    +---------------+                               +-----------------------+
    | last 128 KiB  |                               | image                 |
    +---------------+                               +-----------------------+

A kernel that is booted directly is loaded when our BIOS has done its power-on self test: PCI has
its addresses then, and the tables are in place.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from vdisk.errors import FormatError, VdiskError
from vdisk.vm._boot.entry import MemoryRange, read_file
from vdisk.vm.bios import (
    ROM_BASE,
    AtaPorts,
    Bios,
    DevicePath,
    Drive,
    DriveKind,
    memory_types,
    rom_image,
)
from vdisk.vm.devices.ide import PORTS as IDE_PORTS
from vdisk.vm.memory import FOUR_GIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vdisk.vm._machine.board import Board
    from vdisk.vm._machine.boot_choice import BootChoice
    from vdisk.vm._machine.drives import MachineDrive
    from vdisk.vm._machine.processor import Processor
    from vdisk.vm.accel.base import Accelerator
    from vdisk.vm.devices.acpi_tables import AcpiTables
    from vdisk.vm.loader import Entry
    from vdisk.vm.memory import GuestMemory

LARGEST = 16 << 20
"""Bytes: what chip sets decode below 4 GiB."""
UNIT = 64 << 10
LOW_WINDOW = 128 << 10
MIB = 1 << 20
VGA_ROM = "vgabios-stdvga.bin"
LARGEST_VGA_ROM = 256 << 10
IDE_IRQS = (14, 15)
BOOT_KINDS = {"a": DriveKind.FLOPPY, "c": DriveKind.HARD_DISK, "d": DriveKind.CDROM}
ALL_KINDS = "cda"


class FirmwareFile:
    """A BIOS image read from a file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.image = read_file(path, LARGEST)
        if not self.image or len(self.image) % UNIT:
            raise FormatError(
                f"a BIOS image of {len(self.image)} bytes: not whole 64 KiB", path=path
            )

    def install(self, memory: GuestMemory, board: Board) -> None:
        """Put it where processors find it; the bridge shows its end below 1 MiB after a reset."""
        memory.load_rom(FOUR_GIB - len(self.image), self.image)
        low = self.image[-LOW_WINDOW:]
        board.host_bridge.load_rom(MIB - len(low), low)

    def vga_rom(self) -> bytes:
        """The video BIOS that lies beside it, as SeaBIOS's does; nothing if there is none."""
        path = os.path.join(os.path.dirname(self.path), VGA_ROM)
        return read_file(path, LARGEST_VGA_ROM) if os.path.exists(path) else b""


class OwnBios:
    """Our BIOS on a board; :meth:`boot_from` says what it boots."""

    def __init__(
        self,
        board: Board,
        memory: GuestMemory,
        accelerator: Accelerator,
        processors: Sequence[Processor],
        drives: Iterable[MachineDrive],
        *,
        boot: BootChoice,
        acpi: AcpiTables,
    ) -> None:
        self._memory = memory
        self._processors = processors
        self._processor = processors[0]
        self._bios = Bios(
            board.bus,
            memory,
            board.clock,
            drives=[bios_drive(drive) for drive in drives],
            menu_wait=boot.menu_ms / 1000 if boot.menu else 0,
            retry_wait=None if boot.retry_ms is None else boot.retry_ms / 1000,
            a20=lambda: accelerator.a20,
            acpi=acpi,
        )
        self._bios.processor = self._processor.vcpu
        self._bios.after_post(self._set_memory_types)
        board.host_bridge.load_rom(ROM_BASE, rom_image())

    def _set_memory_types(self) -> None:
        """On those that wait to be started when they are."""
        types = memory_types(self._memory.low_end)
        self._processor.vcpu.set_msrs(types)
        for other in self._processors[1:]:
            other.defer(partial(other.vcpu.set_msrs, types))

    def boot_from(self, letters: str, *, strict: bool) -> None:
        """Kinds of drives in the order in which they are tried; then the others, if not strict."""
        wanted = letters if strict else "".join(dict.fromkeys(letters + ALL_KINDS))
        self._bios.boot_from([BOOT_KINDS[letter] for letter in wanted if letter in BOOT_KINDS])

    def memory_map(self) -> list[MemoryRange]:
        """What POST has found."""
        return [MemoryRange(*map(int, entry)) for entry in self._bios.services.system.entries]

    def boot_kernel(
        self,
        load: Callable[[Sequence[MemoryRange], int], Entry],
        fail: Callable[[str], None],
    ) -> None:
        """After POST let ``load(memory map, address of the RSDP)`` say how the kernel begins.

        ``fail(why)``: told if it cannot be loaded after all (a file has changed, say).
        """

        def begin() -> None:
            try:
                entry = load(self.memory_map(), self._bios.services.tables.rsdp)
            except VdiskError as error:
                fail(f"the kernel cannot be booted: {error}")
            else:
                self._processor.defer(lambda: entry.apply(self._processor.vcpu))

        self._bios.boot_instead(begin)


def bios_drive(drive: MachineDrive) -> Drive:
    """A drive as the BIOS numbers and describes it (EDD)."""
    if drive.spec.media == "floppy":
        return Drive(DriveKind.FLOPPY, drive.disk, drive.name)
    kind = DriveKind.CDROM if drive.spec.media == "cdrom" else DriveKind.HARD_DISK
    if drive.spec.interface == "virtio":
        path = DevicePath("PCI", "SCSI", (0, drive.slot, 0, 0))
        return Drive(kind, drive.disk, drive.name, path)
    channel, slave = drive.place >> 1, drive.place & 1
    interface = "ATAPI" if kind is DriveKind.CDROM else "ATA"
    path = DevicePath("PCI", interface, (0, 1, 1, channel), slave)
    command, control = IDE_PORTS[channel]
    ports = AtaPorts(command, control, IDE_IRQS[channel], bool(slave))
    return Drive(kind, drive.disk, drive.name, path, ports)

"""All services together, and which trap leads to which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios import layout
from vdisk.vm._bios.boot import DEFAULT_ORDER, BootService
from vdisk.vm._bios.disk import DiskService
from vdisk.vm._bios.hardware import PIC1, PIC2
from vdisk.vm._bios.keyboard import KeyboardService
from vdisk.vm._bios.pci_bios import PciBiosService
from vdisk.vm._bios.post import Post
from vdisk.vm._bios.printer import PrinterService
from vdisk.vm._bios.serial import SerialService
from vdisk.vm._bios.system import SystemService
from vdisk.vm._bios.tables import Tables
from vdisk.vm._bios.timing import TimeService
from vdisk.vm._bios.video import VideoService

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.drives import DriveKind
    from vdisk.vm._bios.hardware import Hardware
    from vdisk.vm._bios.tables import AcpiTables

READ_IN_SERVICE = 0x0B  # OCW3
PCI_BIOS = 0xB1


class Services:
    """Everything behind the ROM's traps."""

    def __init__(
        self,
        hardware: Hardware,
        *,
        order: Sequence[DriveKind] = DEFAULT_ORDER,
        menu_wait: int = 0,
        retry_wait: int | None = None,
        acpi: AcpiTables | None = None,
    ) -> None:
        self.hw = hardware
        self.video = VideoService(hardware)
        self.keyboard = KeyboardService(hardware)
        self.disk = DiskService(hardware)
        self.system = SystemService(hardware)
        self.time = TimeService(hardware, self.system.event)
        self.pci_bios = PciBiosService(hardware)
        self.serial = SerialService(hardware)
        self.printer = PrinterService(hardware, self.video)
        self.tables = Tables(self, acpi)
        self.boot = BootService(
            hardware, self.video, self.keyboard, self.disk, order, menu_wait, retry_wait
        )
        self.post = Post(self)
        self.traps: dict[str, Callable[[Call], None]] = {
            "post": self.post.run,
            "option_rom": self.post.option_rom,
            "bootstrap": self.boot.service,
            "boot_failed": self.boot.failed,
            "boot_again": self.boot.again,
            "video": self.video.service,
            "vbe_window": self.video.vbe.window,
            "equipment": self.system.equipment,
            "memory_size": self.system.memory_size,
            "disk": self.disk.service,
            "serial": self.serial.service,
            "system": self.system.service,
            "system_wait": self.system.wait,
            "keyboard": self.keyboard.service,
            "scan_code": self.keyboard.scan_code,
            "printer": self.printer.service,
            "print_screen": self.printer.print_screen,
            "time_of_day": self._time_of_day,
            "rtc_interrupt": self.time.interrupt,
            "mouse_interrupt": self.system.mouse.interrupt,
            "pci_bios": self.pci_bios.far_call,
            "bios32_directory": self.pci_bios.directory,
            "other_interrupt": self.other_interrupt,
            "disk_interrupt": self.disk_interrupt,
        }

    def _time_of_day(self, call: Call) -> None:
        """int 1Ah serves two masters."""
        if call.ah == PCI_BIOS:
            call.wait = False
            self.pci_bios.service(call)
        else:
            self.time.service(call)

    def other_interrupt(self, _call: Call) -> None:
        """A hardware interrupt that nobody wants: end it, mask its line, note it at 40:6B."""
        for port, first in ((PIC2, 8), (PIC1, 0)):
            self.hw.outb(port, READ_IN_SERVICE)
            in_service = self.hw.inb(port)
            if port == PIC1:
                in_service &= ~(1 << 2)
            if in_service:
                line = (in_service & -in_service).bit_length() - 1
                self.hw.outb(port + 1, self.hw.inb(port + 1) | 1 << line)
                self.hw.end_of_interrupt(first + line)
                self.hw.bda.set_byte(layout.LAST_INTERRUPT, 1 << line)
                return

    def disk_interrupt(self, _call: Call) -> None:
        """int 76h: a disk of the first channel has finished."""
        self.hw.bda.set_byte(layout.DISK_INTERRUPT, 0xFF)
        self.hw.end_of_interrupt(14)

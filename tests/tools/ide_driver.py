"""A driver of IDE drives: through the ports, as a BIOS and an operating system do it."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

from tests.tools.patience import PATIENCE
from vdisk.vm.bus import Bus
from vdisk.vm.clock import VirtualClock
from vdisk.vm.devices.ide import PORTS, Piix3Ide
from vdisk.vm.devices.ide_registers import BSY, DEVICE_LBA, DRQ, ERR
from vdisk.vm.devices.pci import PciBus
from vdisk.vm.irq import IrqLine
from vdisk.vm.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.emu_blockdev import EmuBlockDevice

MIB = 1 << 20
DMA_BASE = 0xC000
TABLE, DATA = 1 * MIB, 2 * MIB


class IdeError(Exception):
    """The drive set ERR; its error register."""

    def __init__(self, error: int) -> None:
        super().__init__(f"error register {error:#x}")
        self.error = error


class IdeBoard:
    """Memory, a bus, and the PIIX3's IDE function with its two interrupts."""

    def __init__(self, size: int = 16 * MIB) -> None:
        self.bus = Bus()
        self.memory = GuestMemory(size)
        self.clock = VirtualClock()
        self.pci = PciBus(self.bus)
        self.irqs = [IrqLine(), IrqLine()]
        self.ide = Piix3Ide(self.bus, self.memory, self.clock, self.irqs)

    def plug(
        self, disk: EmuBlockDevice, channel: int = 0, drive: int = 0, *, cdrom: bool = False
    ) -> IdeDriver:
        self.ide.plug(disk, channel, drive, cdrom=cdrom)
        return IdeDriver(self, channel, drive)

    def enable(self) -> None:
        """Add the function to the bus, place its BAR, let it be a bus master."""
        self.pci.add(self.ide, 1)
        for register, value in ((0x20, DMA_BASE), (0x04, 5)):
            self.bus.ports.write(0xCF8, 4, 1 << 31 | 1 << 11 | register)
            self.bus.ports.write(0xCFC, 4, value)


class IdeDriver:
    """Of one drive."""

    def __init__(self, board: IdeBoard, channel: int, drive: int) -> None:
        self.board = board
        self.ports = board.bus.ports
        self.base, self.control = PORTS[channel]
        self.dma = DMA_BASE + 8 * channel
        self.irq = board.irqs[channel]
        self.number = drive

    # -- registers ---------------------------------------------------------------------------

    def get(self, register: int) -> int:
        return self.ports.read(self.base + register, 1)

    def put(self, register: int, value: int) -> None:
        self.ports.write(self.base + register, 1, value)

    def select(self, bits: int = 0) -> None:
        self.put(6, 0xA0 | self.number << 4 | bits)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait until the drive is not busy; its status, which acknowledges the interrupt."""
        end = time.monotonic() + seconds
        while self.ports.read(self.control, 1) & BSY:
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.0002)
        status = self.get(7)
        if status & ERR:
            raise IdeError(self.get(1))
        return status

    def wait_for_interrupt(self, seconds: float = PATIENCE) -> int:
        end = time.monotonic() + seconds
        while not self.irq.level:
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.0002)
        status = self.wait()
        assert not self.irq.level
        return status

    # -- commands ----------------------------------------------------------------------------

    def address(self, lba: int, count: int, *, extended: bool, features: int = 0) -> None:
        if extended:
            self.select(DEVICE_LBA)
            for shift in (24, 0):
                self.put(1, features >> (8 if shift else 0) & 0xFF)
                self.put(2, count >> (8 if shift else 0) & 0xFF)
                for register in (3, 4, 5):
                    self.put(register, lba >> (shift + 8 * (register - 3)) & 0xFF)
        else:
            self.select(DEVICE_LBA | lba >> 24 & 0xF)
            for register, value in ((1, features), (2, count), (3, lba), (4, lba >> 8)):
                self.put(register, value & 0xFF)
            self.put(5, lba >> 16 & 0xFF)

    def command(self, command: int, *registers: int) -> None:
        """A command without data; ``registers``: features, count, low, mid, high."""
        self.select()
        for number, value in enumerate(registers, 1):
            self.put(number, value)
        self.put(7, command)
        self.wait_for_interrupt()

    def read_block(self, length: int, width: int = 2) -> bytes:
        return b"".join(
            self.ports.read(self.base, width).to_bytes(width, "little")
            for _ in range(0, length, width)
        )

    def write_block(self, data: bytes, width: int = 2) -> None:
        for start in range(0, len(data), width):
            value = int.from_bytes(data[start : start + width], "little")
            self.ports.write(self.base, width, value)

    def identify(self, command: int = 0xEC) -> list[int]:
        """The 256 words."""
        self.select()
        self.put(7, command)
        assert self.wait_for_interrupt() & DRQ
        words = struct.unpack("<256H", self.read_block(512))
        assert not self.wait() & DRQ
        return list(words)

    def pio_read(
        self,
        command: int,
        lba: int,
        count: int,
        *,
        sector: int = 512,
        block: int = 1,
        width: int = 2,
    ) -> bytes:
        self.address(lba, count, extended=command in (0x24, 0x29))
        self.put(7, command)
        return self._blocks_in(count, sector, block, width)

    def _blocks_in(self, count: int, sector: int, block: int, width: int) -> bytes:
        data = b""
        while len(data) < count * sector:
            assert self.wait_for_interrupt() & DRQ
            data += self.read_block(min(block * sector, count * sector - len(data)), width)
        assert not self.wait() & DRQ
        return data

    def chs_read(self, cylinder: int, head: int, sector: int, count: int) -> bytes:
        self.select(head)
        for register, value in ((2, count), (3, sector), (4, cylinder & 0xFF), (5, cylinder >> 8)):
            self.put(register, value)
        self.put(7, 0x20)
        return self._blocks_in(count, 512, 1, 2)

    def pio_write(
        self,
        command: int,
        lba: int,
        data: bytes,
        *,
        sector: int = 512,
        block: int = 1,
        width: int = 2,
    ) -> None:
        self.address(lba, len(data) // sector, extended=command in (0x34, 0x39, 0xCE))
        self.put(7, command)
        for start in range(0, len(data), block * sector):
            assert self.wait() & DRQ
            self.write_block(data[start : start + block * sector], width)
            self.wait_for_interrupt()
        assert not self.wait() & DRQ

    # -- DMA ---------------------------------------------------------------------------------

    def table(self, regions: Sequence[tuple[int, int]], at: int = TABLE) -> None:
        """Write a PRD table: (gpa, bytes) of each region."""
        entries = b"".join(struct.pack("<II", gpa, length & 0xFFFF) for gpa, length in regions)
        entries = entries[:-1] + bytes([entries[-1] | 0x80])
        self.board.memory.write(at, entries)
        self.ports.write(self.dma + 4, 4, at)

    def start_dma(self, *, reading: bool) -> None:
        self.ports.write(self.dma + 2, 1, 0x06)
        self.ports.write(self.dma, 1, 8 * reading)
        self.ports.write(self.dma, 1, 8 * reading | 1)

    def stop_dma(self) -> int:
        """Status of the bus master when the transfer was over."""
        status = self.ports.read(self.dma + 2, 1)
        self.ports.write(self.dma, 1, 0)
        self.ports.write(self.dma + 2, 1, 0x06)
        return status

    def dma_command(
        self,
        command: int,
        lba: int,
        count: int,
        *,
        reading: bool,
        start_first: bool = False,
        features: int = 0,
    ) -> int:
        """A DMA command over the table that was laid; the bus master's status at its end."""
        self.address(lba, count, extended=command in (0x25, 0x35, 0x3D, 0x06), features=features)
        if start_first:
            self.start_dma(reading=reading)
        self.put(7, command)
        if not start_first:
            self.start_dma(reading=reading)
        try:
            self.wait_for_interrupt()
        except IdeError:
            self.stop_dma()
            raise
        return self.stop_dma()

    # -- packets -----------------------------------------------------------------------------

    def packet(
        self, packet: bytes, room: int = 0, *, limit: int = 0xFFFE, dma: bool = False
    ) -> bytes:
        """A packet command; what it answered (at most ``room`` bytes where it is DMA)."""
        self.select()
        self.put(1, int(dma))
        self.put(4, limit & 0xFF)
        self.put(5, limit >> 8)
        self.put(7, 0xA0)
        assert self.wait() & DRQ
        assert self.get(2) & 3 == 1
        if dma:
            self.table([(DATA, room)])
        self.write_block(packet.ljust(12, b"\0"))
        if dma:
            self.start_dma(reading=True)
        data = b""
        while True:
            status = self.wait_for_interrupt()
            if not status & DRQ:
                break
            assert self.get(2) & 3 == 2
            length = self.get(4) | self.get(5) << 8
            data += self.read_block(length + 1 & ~1)[:length]
        assert self.get(2) & 3 == 3
        if dma:
            self.stop_dma()
            data = self.board.memory.read(DATA, room)
        return data

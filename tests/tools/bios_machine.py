"""A PC without a processor for tests of the BIOS: chips, memory, and calls of its services.

The VGA keeps what is written and does nothing, unless a real one is asked for (``real_vga``).

::

    pc = BiosMachine(disks=[device])
    pc.post()
    answer = pc.interrupt(0x13, ax=0x0201, cx=1, dx=0x80, es=0x1000)
    assert not answer.carry

The place of the processor is taken by its registers: an interrupt makes the stack frame, puts RIP
at the trap of the ROM's handler, and writes to the trap port as the OUT there would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdisk.emu_blockdev import EmuBlockDevice
from vdisk.stores.memory import MemoryStore
from vdisk.vm._bios.rom import ROM_SEGMENT, TRAP_PORT, VECTORS, build
from vdisk.vm.accel.base import Registers, Segment, SystemRegisters
from vdisk.vm.bios import Bios, Drive, DriveKind, rom_image
from vdisk.vm.bus import Bus
from vdisk.vm.clock import VirtualClock
from vdisk.vm.devices.acpi_pm import AcpiPm
from vdisk.vm.devices.i440fx import I440fx
from vdisk.vm.devices.isa_irqs import IsaIrqs
from vdisk.vm.devices.parallel import ParallelPort
from vdisk.vm.devices.pci import PciBus
from vdisk.vm.devices.pic import PicPair
from vdisk.vm.devices.piix3 import Piix3
from vdisk.vm.devices.pit import Pit
from vdisk.vm.devices.port92 import Port92
from vdisk.vm.devices.ps2 import KeyboardController
from vdisk.vm.devices.ps2_keyboard import Keyboard
from vdisk.vm.devices.ps2_mouse import Mouse
from vdisk.vm.devices.rtc import Rtc
from vdisk.vm.devices.serial import Uart
from vdisk.vm.devices.vga import Vga
from vdisk.vm.memory import GuestMemory, PageKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from vdisk.block import BlockDevice
    from vdisk.emu_blockdev import ErrorPolicy

CARRY, ZERO, INTERRUPTS = 1, 1 << 6, 1 << 9
STACK_SEGMENT, STACK = 0x0000, 0x7000
NAMES = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
EPOCH = 1_700_000_000  # 2023-11-14 22:13:20
PRINTER = range(0x3BC, 0x3C0)  # in the middle of the VGA's, but not a port of it
STEP = 50_000  # ns that pass between two traps of a service that waits
MORE = 100_000  # steps after which it is taken to hang


class FakeProcessor:
    """Registers, and nothing that runs."""

    def __init__(self) -> None:
        self.registers = Registers()
        self.system = SystemRegisters(cr0=0x10)

    def get_registers(self) -> Registers:
        now = self.registers
        return Registers(list(now.gprs), now.rip, now.rflags)

    def set_registers(self, registers: Registers) -> None:
        self.registers = registers

    def get_system_registers(self) -> SystemRegisters:
        return self.system

    def set_system_registers(self, registers: SystemRegisters) -> None:
        self.system = registers


class Wire:
    """The far end of a serial or parallel port."""

    def __init__(self) -> None:
        self.sent = bytearray()

    def write(self, data: bytes) -> None:
        self.sent += data


class FakeVga:
    """Registers that keep what is written, and video memory that is only memory."""

    def __init__(self, bus: Bus) -> None:
        self.registers: dict[tuple[int, int], int] = {}
        self.dac = [[0, 0, 0] for _ in range(256)]
        self.log: list[tuple[int, int]] = []
        self._index = {0x3C0: 0, 0x3C4: 0, 0x3CE: 0, 0x3D4: 0, 0x3B4: 0}
        self._flip_flop = False
        self._dac_place = self._dac_part = 0
        self.misc = 0
        self.memory = bytearray(0x20000)
        self.dispi = {0: 0xB0C5, 10: 256, 4: 0}
        self._dispi_index = 0
        bus.ports.map(0x3B0, 0x30, self._read, self._write, "VGA")
        bus.ports.map(0x1CE, 3, self._read_dispi, self._write_dispi, "dispi")
        bus.mmio.map(0xA0000, 0x20000, self._read_memory, self._write_memory, "VGA memory")

    def _read_memory(self, offset: int, size: int) -> int:
        return int.from_bytes(self.memory[offset : offset + size], "little")

    def _write_memory(self, offset: int, size: int, value: int) -> None:
        self.memory[offset : offset + size] = value.to_bytes(size, "little")

    def _read_dispi(self, offset: int, size: int) -> int:
        return self._dispi_index if offset == 0 else self.dispi.get(self._dispi_index, 0)

    def _write_dispi(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._dispi_index = value
        else:
            self.dispi[self._dispi_index] = value

    def _read(self, offset: int, _size: int) -> int:
        port = 0x3B0 + offset
        if port in {0x3DA, 0x3BA}:
            self._flip_flop = False
            return 0
        if port == 0x3C1:
            return self.registers.get((0x3C0, self._index[0x3C0]), 0)
        if port == 0x3CC:
            return self.misc
        if port == 0x3C9:
            value = self.dac[self._dac_place][self._dac_part]
            self._next_dac()
            return value
        if port - 1 in self._index:
            return self.registers.get((port - 1, self._index[port - 1]), 0)
        return self.registers.get((port, 0), 0xFF) if port not in PRINTER else 0xFF

    def _next_dac(self) -> None:
        self._dac_part = (self._dac_part + 1) % 3
        self._dac_place = (self._dac_place + (self._dac_part == 0)) % 256

    def _write(self, offset: int, _size: int, value: int) -> None:
        port = 0x3B0 + offset
        self.log.append((port, value))
        if port == 0x3C0:
            if self._flip_flop:
                self.registers[0x3C0, self._index[port]] = value
            else:
                self._index[port] = value & 0x1F
            self._flip_flop = not self._flip_flop
        elif port == 0x3C2:
            self.misc = value
        elif port in {0x3C7, 0x3C8}:
            self._dac_place, self._dac_part = value, 0
        elif port == 0x3C9:
            self.dac[self._dac_place][self._dac_part] = value
            self._next_dac()
        elif port in self._index:
            self._index[port] = value
        elif port - 1 in self._index:
            self.registers[port - 1, self._index[port - 1]] = value
        else:
            self.registers[port, 0] = value


@dataclass
class Answer:
    """What a service left behind."""

    registers: Registers
    es: int
    ds: int
    flags: int
    waits: bool

    def __getattr__(self, name: str) -> int:
        """``ax``, ``al``, ``ebx`` …"""
        gprs = self.registers.gprs
        if name in NAMES:
            return gprs[NAMES.index(name)] & 0xFFFF
        if name[0] == "e" and name[1:] in NAMES:
            return gprs[NAMES.index(name[1:])] & 0xFFFFFFFF
        if len(name) == 2 and name[1] in "lh" and name[0] in "acdb":
            return gprs["acdb".index(name[0])] >> (8 if name[1] == "h" else 0) & 0xFF
        raise AttributeError(name)

    @property
    def carry(self) -> bool:
        return bool(self.flags & CARRY)

    @property
    def zero(self) -> bool:
        return bool(self.flags & ZERO)


class BiosMachine:
    """Chips, memory and the BIOS; disks are devices or bytes."""

    def __init__(
        self,
        *,
        disks: Sequence[BlockDevice | bytes] = (),
        floppies: Sequence[BlockDevice | bytes] = (),
        cdroms: Sequence[BlockDevice | bytes | None] = (),
        memory: int = 16 << 20,
        real_vga: bool = False,
        policy: ErrorPolicy | None = None,
        **settings: Any,
    ) -> None:
        self.bus, self.clock = Bus(), VirtualClock()
        self.memory = GuestMemory(memory)
        self.log: list[str] = []
        self.a20 = True
        self.drives = [
            Drive(kind, _disk(device, kind, policy))
            for kind, devices in (
                (DriveKind.FLOPPY, floppies),
                (DriveKind.HARD_DISK, disks),
                (DriveKind.CDROM, cdroms),
            )
            for device in devices
        ]
        self._make_chips(real_vga)
        self.processor = FakeProcessor()
        self.bios = Bios(
            self.bus, self.memory, self.clock, drives=self.drives, a20=lambda: self.a20, **settings
        )
        self.bios.processor = self.processor
        self.host.load_rom(0xF0000, rom_image())
        self.host.reset()

    def _make_chips(self, real_vga: bool) -> None:
        bus, clock = self.bus, self.clock
        self.pci, self.pic = PciBus(bus), PicPair(bus)
        self.irqs = IsaIrqs(self.pic.set_irq)
        self.host = I440fx(bus, self.memory)
        self.piix3 = Piix3(bus, self.pci, self.irqs, lambda: self.log.append("reset"))
        self.pm = AcpiPm(
            bus,
            clock,
            self.irqs.line(9),
            lambda: self.log.append("off"),
            lambda: self.log.append("suspend"),
        )
        self.pci.add(self.host, 0)
        self.pci.add(self.piix3, 1)
        self.pci.add(self.pm, 1, 3)
        self.pit = Pit(bus, clock, self.irqs.line(0))
        self.rtc = Rtc(bus, clock, self.irqs.line(8), EPOCH)
        self.keyboard, self.mouse = Keyboard(), Mouse()
        self.controller = KeyboardController(
            bus, clock, self.keyboard, self.mouse,
            irq1=self.irqs.line(1), irq12=self.irqs.line(12),
            set_a20=self._set_a20, reset_processor=lambda: self.log.append("reset"),
        )  # fmt: skip
        self.port92 = Port92(bus, self._set_a20, lambda: self.log.append("reset"))
        self.serial, self.printer = Wire(), Wire()
        self.uart = Uart(bus, clock, self.irqs.line(4), 0x3F8, self.serial)
        self.parallel = ParallelPort(bus, self.irqs.line(7), self.printer)
        if real_vga:
            card = Vga(bus, self.memory, clock)
            self.pci.add(card, 2)
            card.reset()
        else:
            self.memory.set_kind(0xA0000, 0x20000, PageKind.MMIO)
            self.vga = FakeVga(bus)

    def _set_a20(self, enabled: bool) -> None:
        self.a20 = enabled

    # -- calling -----------------------------------------------------------------------------

    def post(self) -> Answer:
        """Run the power-on self test."""
        return self.trap("post")

    def interrupt(self, number: int, *, es: int = 0, ds: int = 0, **registers: int) -> Answer:
        """INT ``number``, with ``ax=…, ebx=…``; waits of the ROM are gone through."""
        label = VECTORS[number]
        answer = self.trap(label, es=es, ds=ds, **registers)
        following = "system_wait" if label == "system" else label
        for _ in range(MORE):
            if not answer.waits or label == "keyboard":
                return answer
            self.clock.advance(self.clock.now() + STEP)
            answer = self._again(following)
        raise AssertionError(f"int {number:#x} waits for ever")

    def trap(
        self, name: str, *, es: int = 0, ds: int = 0, flags: int = 2, **registers: int
    ) -> Answer:
        """Reach a trap by its name, with a frame on the stack as INT makes it."""
        cpu = self.processor
        cpu.registers = Registers(rflags=flags)
        cpu.system.cs = Segment(ROM_SEGMENT, ROM_SEGMENT << 4)
        cpu.system.ss = Segment(STACK_SEGMENT, STACK_SEGMENT << 4)
        cpu.system.es, cpu.system.ds = Segment(es, es << 4), Segment(ds, ds << 4)
        for register, value in registers.items():
            cpu.registers.gprs[NAMES.index(register.removeprefix("e"))] = value
        cpu.registers.gprs[4] = STACK - 6
        frame = (0x1234, 0x0000, flags | INTERRUPTS)
        self.memory.write(STACK - 6, b"".join(word.to_bytes(2, "little") for word in frame))
        return self._again(name)

    def _again(self, name: str) -> Answer:
        """The ROM traps (once more), with the registers as they are."""
        cpu = self.processor
        (cpu.registers.rip,) = (at for at, trap in build().traps.items() if trap == name)
        self.bus.ports.write(TRAP_PORT, 1, 0)
        flags = int.from_bytes(self.memory.read(STACK - 2, 2), "little")
        waits = bool(cpu.registers.rflags & CARRY)
        system = cpu.system
        return Answer(cpu.registers, system.es.selector, system.ds.selector, flags, waits)

    # -- looking -----------------------------------------------------------------------------

    def word(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 2), "little")

    def screen(self) -> str:
        """The text of the first page."""
        cells = bytes(self.vga.memory[0x18000 : 0x18000 + 4000 : 2])
        rows = (cells[at : at + 80].decode("cp437") for at in range(0, 2000, 80))
        return "\n".join(row.replace("\0", " ").rstrip() for row in rows)

    def type(self, *scan_codes: int) -> None:
        """Scan codes as the ROM's keyboard interrupt passes them on."""
        for code in scan_codes:
            self.trap("scan_code", ax=code)


def _disk(
    content: BlockDevice | bytes | None, kind: DriveKind, policy: ErrorPolicy | None
) -> EmuBlockDevice:
    device = MemoryStore(content, growable=False) if isinstance(content, bytes) else content
    removable = kind is not DriveKind.HARD_DISK
    return EmuBlockDevice(device, removable=removable, threads=0, policy=policy)

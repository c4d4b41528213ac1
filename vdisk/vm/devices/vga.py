"""The video card: a VGA with the Bochs display interface, on PCI (QEMU, docs/specs/standard-vga).

::

    ports 3B0-3DF  the VGA (vga_registers)         1CE-1D1  the display interface (vga_dispi)
    A0000-BFFFF    planes (vga_memory), or a window of RAM
    BAR 0          all of video memory, linear     BAR 2    000 EDID; the registers again:
    ROM            the video BIOS, if any                   400 ports 3C0…, 500 display interface

Video memory lies behind the pages of BAR 0, which are RAM while the guest decodes them.  Where an
access to A0000-BFFFF would move a byte and nothing else, that range is RAM too (a *window*: a copy
that is brought back before anybody looks), since a trip through the bus for each byte is slow::

    odd/even planes 0 and 1  text and CGA modes, at B0000 or B8000
    chain-4, all planes      mode 13h, and banks of Bochs modes, at A0000

A picture is a copy taken under the bus lock and drawn without it (vga_draw, vga_text).
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from vdisk.errors import CorruptImageError, InvalidRequestError
from vdisk.vm.devices import vga_draw, vga_text
from vdisk.vm.devices import vga_registers as reg
from vdisk.vm.devices.base import State, bytewise_read, bytewise_write
from vdisk.vm.devices.edid import PREFERRED, best, edid
from vdisk.vm.devices.pci import BAR_PREFETCHABLE, Identity, PciDevice, is_free
from vdisk.vm.devices.vga_dispi import Dispi
from vdisk.vm.devices.vga_memory import WINDOWS, VgaMemory
from vdisk.vm.devices.vga_picture import PLANE_SPAN, UNIT, Picture
from vdisk.vm.devices.vga_registers import VgaRegisters
from vdisk.vm.memory import PageKind

if TYPE_CHECKING:
    from vdisk.vm.bus import Bus
    from vdisk.vm.clock import Clock
    from vdisk.vm.display.base import Frame, TextFrame
    from vdisk.vm.memory import GuestMemory

VENDOR, DEVICE, VGA_CLASS, REVISION = 0x1234, 0x1111, 0x030000, 2
LEGACY, LEGACY_LENGTH = 0xA0000, 0x20000
PORTS, PORT_COUNT = 0x3B0, 0x30
DISPI_PORT = 0x1CE
MEMORY_SIZE = 16 << 20
HOME = 0xE000_0000
"""Where video memory lies until the guest has assigned BAR 0: our BIOS puts it there."""
REGISTER_BAR = 4096
BAR_PORTS, BAR_DISPI, BAR_EXTENSION = 0x400, 0x500, 0x600
EXTENSION = (8).to_bytes(4, "little") + (0x1E1E_1E1E).to_bytes(4, "little")
"""Its size, and that the framebuffer is little-endian."""
CHUNK = 1 << 16
PAIRS, CHAINED = "pairs", "chained"


class Window(NamedTuple):
    """A range of A0000-BFFFF that is RAM.  ``bank``: of video memory, bytes (chained)."""

    kind: str
    start: int
    length: int
    bank: int


class Vga(PciDevice):
    """The card; a :class:`~vdisk.vm.display.base.Screen`."""

    SAVED: ClassVar[tuple[str, ...]] = (*PciDevice.SAVED, "registers", "dispi", "planes")

    def __init__(
        self,
        bus: Bus,
        memory: GuestMemory,
        clock: Clock,
        *,
        memory_size: int = MEMORY_SIZE,
        preferred: tuple[int, int] = PREFERRED,
        rom: bytes = b"",
    ) -> None:
        super().__init__("vga", bus, Identity(VENDOR, DEVICE, VGA_CLASS, REVISION, 0x1AF4, 0x1100))
        if memory_size < 1 << 20 or memory_size & memory_size - 1 or memory_size > 1 << 25:
            raise InvalidRequestError(f"video memory of {memory_size} bytes: 1 to 32 MiB")
        self._memory, self._size = memory, memory_size
        self._edid = edid(best(*preferred, memory_size), memory_size)
        self._home = HOME
        self._window: Window | None = None
        self._loaded = b""  # what the window held when it was opened
        self._changes = 0
        self._seen: bytes = b""
        self.registers = VgaRegisters(clock, self._registers_changed)
        self.dispi = Dispi(memory_size, self._dispi_changed)
        self.planes = VgaMemory(self.registers, memory.raw(self._home, memory_size))
        self._map_registers()
        self.add_placed_bar(0, memory_size, self._place, BAR_PREFETCHABLE)
        self.add_bar(2, REGISTER_BAR, bytewise_read(self._read_bar), self._write_bar)
        if rom:
            self.add_rom(rom, memory)

    def _map_registers(self) -> None:
        registers, bus = self.registers, self.bus
        bus.ports.map(
            PORTS, PORT_COUNT,
            bytewise_read(lambda offset: registers.read(PORTS + offset)),
            bytewise_write(lambda offset, value: registers.write(PORTS + offset, value)),
            "VGA",
        )  # fmt: skip
        bus.ports.map(DISPI_PORT, 4, self.dispi.read_port, self.dispi.write_port, "VGA dispi")
        read, write = bytewise_read(self.planes.read), bytewise_write(self._write_planes)
        bus.mmio.map(LEGACY, LEGACY_LENGTH, read, write, "VGA memory")

    def reset(self) -> None:
        self._close_window()
        self.registers.reset()
        self.dispi.reset()
        self.planes.reset()
        super().reset()
        self._memory.set_kind(LEGACY, LEGACY_LENGTH, PageKind.MMIO)
        self._registers_changed()

    # -- video memory ------------------------------------------------------------------------

    def _write_planes(self, address: int, value: int) -> None:
        self._changes += 1
        self.planes.write(address, value)

    def _place(self, address: int | None) -> bool:
        """BAR 0 moves: video memory is shown there, and lies there from then on."""
        memory, size = self._memory, self._size
        if address is None:
            memory.set_kind(self._home, size, PageKind.MMIO)
            return True
        if not is_free(memory, address, size):
            return False
        if address != self._home:
            self._move(address)
        memory.set_kind(address, size, PageKind.RAM)
        return True

    def _move(self, address: int) -> None:
        """Carry the contents along; ranges may overlap."""
        old, new = self._home, address
        content = bytes(self._memory.raw(old, self._size))
        _fill(self._memory.raw(old, self._size), bytes(self._size))
        self._home = new
        self._restore_memory(content)

    def _restore_memory(self, content: bytes) -> None:
        memory = self._memory.raw(self._home, self._size)
        _fill(memory, content)
        self.planes.attach(memory)
        self._memory.dirtied(self._home, self._size)

    # -- windows -----------------------------------------------------------------------------

    def _registers_changed(self) -> None:
        self._changes += 1
        wanted = self._wanted_window()
        if wanted != self._window:
            self._close_window()
            if wanted is not None:
                self._open_window(wanted)

    def _wanted_window(self) -> Window | None:
        """The window in which every access is plain, if there is one."""
        sequencer, graphics = self.registers.sequencer, self.registers.graphics
        start, length = WINDOWS[graphics[reg.GC_MISC] >> 2 & 3]
        plain = not graphics[reg.GC_ENABLE] and not graphics[reg.GC_ROTATE]
        plain = plain and graphics[reg.GC_BIT_MASK] == 0xFF
        if not plain:
            return None
        mode, planes = graphics[reg.GC_MODE], sequencer[reg.SEQ_MAP_MASK]
        if sequencer[reg.SEQ_MEMORY] & reg.MEMORY_CHAIN_4:
            chained = planes == 0xF and not mode & 0x0B and length == 0x10000
            if chained and not (self.dispi.enabled and self.dispi.linear):
                return Window(CHAINED, LEGACY, length, self.planes.bank)
            return None
        pairs = planes == 3 and mode & 0x1B == 0x10 and not graphics[reg.GC_READ_MAP] & 2
        if pairs and length == 0x8000 and not self.planes.bank:
            return Window(PAIRS, LEGACY + start, length, 0)
        return None

    def _open_window(self, window: Window) -> None:
        """Let the range be RAM, holding what it shows."""
        view = self._memory.raw(window.start, window.length)
        if window.kind == CHAINED:
            view[:] = self.planes.memory[window.bank : window.bank + window.length]
        else:
            words = self.planes.memory[: window.length * 2]
            view[:] = vga_text.cells(bytes(words))
        self._loaded = bytes(view)
        self._window = window
        self._memory.set_kind(window.start, window.length, PageKind.RAM)
        self._memory.dirtied(window.start, window.length)

    def _close_window(self) -> None:
        if self._window is not None:
            self._sync_window()
            self._memory.set_kind(self._window.start, self._window.length, PageKind.MMIO)
            self._window = None

    def _sync_window(self) -> None:
        """Bring back what the processor has written into the window."""
        window = self._window
        if window is None:
            return
        content = bytes(self._memory.raw(window.start, window.length))
        if content == self._loaded:
            return
        self._loaded = content
        if window.kind == CHAINED:
            self.planes.memory[window.bank : window.bank + window.length] = content
        else:
            words = bytearray(self.planes.memory[: window.length * 2])
            words[0::4], words[1::4] = content[0::2], content[1::2]
            self.planes.memory[: window.length * 2] = words

    # -- the display interface ---------------------------------------------------------------

    def _dispi_changed(self, started: bool) -> None:
        self._close_window()
        dispi = self.dispi
        self.registers.dac_8_bit = dispi.dac_8_bit
        self.planes.bank = dispi.bank if dispi.enabled else 0
        if started:
            _width, height, depth, stride, _start = dispi.geometry()
            if dispi.clears:
                self.planes.memory[: height * stride] = bytes(height * stride)
            self._prepare_access(planar=depth == 4)
        self._registers_changed()

    def _prepare_access(self, *, planar: bool) -> None:
        """A mode of the display interface is reached through A0000 without further ado."""
        graphics, sequencer = self.registers.graphics, self.registers.sequencer
        self.registers.misc |= reg.MISC_RAM | reg.MISC_COLOUR
        graphics[reg.GC_MISC] = graphics[reg.GC_MISC] & ~0x0C | 0x05
        graphics[reg.GC_MODE] &= ~0x1B
        graphics[reg.GC_ENABLE] = graphics[reg.GC_ROTATE] = 0
        graphics[reg.GC_BIT_MASK] = 0xFF
        sequencer[reg.SEQ_MAP_MASK] = 0x0F
        sequencer[reg.SEQ_MEMORY] = reg.MEMORY_SEQUENTIAL
        if not planar:
            sequencer[reg.SEQ_MEMORY] |= reg.MEMORY_CHAIN_4

    # -- BAR 2 -------------------------------------------------------------------------------

    def _read_bar(self, offset: int) -> int:
        if offset < len(self._edid):
            return self._edid[offset]
        if BAR_PORTS <= offset < BAR_PORTS + 0x20:
            return self.registers.read(0x3C0 + offset - BAR_PORTS)
        if BAR_DISPI <= offset < BAR_DISPI + 0x16:
            index, high = divmod(offset - BAR_DISPI, 2)
            return self.dispi.read(index) >> 8 * high & 0xFF
        if BAR_EXTENSION <= offset < BAR_EXTENSION + len(EXTENSION):
            return EXTENSION[offset - BAR_EXTENSION]
        return 0

    def _write_bar(self, offset: int, size: int, value: int) -> None:
        if BAR_PORTS <= offset < BAR_PORTS + 0x20:
            for place in range(size):
                self.registers.write(0x3C0 + offset - BAR_PORTS + place, value >> 8 * place & 0xFF)
        elif BAR_DISPI <= offset < BAR_DISPI + 0x16 and size >= 2 and not offset & 1:
            self.dispi.write((offset - BAR_DISPI) // 2, value & 0xFFFF)

    # -- the screen --------------------------------------------------------------------------

    def generation(self) -> int:
        """Another number whenever the picture may have changed."""
        with self.bus.lock:
            content = self._shown()
            if content != self._seen:
                self._seen = content
                self._changes += 1
            return self._changes

    def frame(self) -> Frame:
        """The picture, 32 bits a pixel."""
        return vga_draw.draw(self.picture())

    def text(self) -> TextFrame | None:
        """The characters of a text mode; None in a graphics mode."""
        return vga_text.text(self.picture())

    def picture(self) -> Picture:
        """Registers and memory as they are now."""
        with self.bus.lock:
            registers = self.registers
            geometry = self.dispi.geometry()[:4] if self.dispi.enabled else None
            if self._window is not None:
                self._sync_window()
            return Picture(
                registers.misc, bytes(registers.sequencer), bytes(registers.graphics),
                bytes(registers.crtc), bytes(registers.attribute),
                bool(registers.attribute_index & reg.PALETTE_SOURCE),
                bytes(registers.dac), registers.dac_mask, registers.dac_8_bit,
                registers.display_end(), self._visible_memory(), geometry,
            )  # fmt: skip

    def _shown(self) -> bytes:
        """Memory that the processor changes without our seeing it."""
        if self._window is not None and not self.dispi.enabled:
            return bytes(self._memory.raw(self._window.start, self._window.length))
        if self._window is not None:
            self._sync_window()
        return self._visible_memory()

    def _visible_memory(self) -> bytes:
        if not self.dispi.enabled:
            return bytes(self.planes.memory[: PLANE_SPAN * UNIT])
        _width, height, _depth, stride, start = self.dispi.geometry()
        return bytes(self.planes.memory[start : start + height * stride])

    # -- saving ------------------------------------------------------------------------------

    def save_state(self) -> State:
        self._sync_window()
        content = zlib.compress(self._memory.raw(self._home, self._size), 1)
        return super().save_state() | {"memory": content}

    def load_state(self, state: State) -> None:
        self._close_window()
        packed = state.get("memory") if isinstance(state, dict) else None
        if not isinstance(packed, bytes):
            raise CorruptImageError("the saved state of vga has no memory")
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(packed, self._size)
        except zlib.error as error:
            raise CorruptImageError(f"the saved state of vga: {error}") from error
        self.require(len(content) == self._size and not unpacker.unconsumed_tail, "its memory")
        super().load_state(state)
        self._restore_memory(content)
        self._registers_changed()


def _fill(memory: memoryview, content: bytes) -> None:
    """Copy, but leave alone what is right: untouched pages cost the host nothing."""
    for start in range(0, len(content), CHUNK):
        chunk = content[start : start + CHUNK]
        if bytes(memory[start : start + CHUNK]) != chunk:
            memory[start : start + len(chunk)] = chunk

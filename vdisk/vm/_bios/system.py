"""int 15h: memory, waiting, A20, the mouse; and int 11h, 12h."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vdisk.vm._bios import layout
from vdisk.vm._bios.memory_map import Entry, kib_above_1_mib
from vdisk.vm._bios.mouse import MouseService
from vdisk.vm._bios.timing import EventWait, delay, still_waiting

if TYPE_CHECKING:
    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.hardware import Hardware

NOT_SUPPORTED = 0x86
PORT_92, A20_GATE = 0x92, 0x02
SMAP = 0x534D4150
ENTRY_SIZE = 20
MOST_EXTENDED_KIB = 63 * 1024  # programs take more for a signed number
MOST_WORDS = 0x8000  # of a block move: 64 KiB
SOURCE_DESCRIPTOR, TARGET_DESCRIPTOR = 0x10, 0x18


class SystemService:
    """int 15h.  ``entries``: the memory map, set by POST."""

    def __init__(self, hardware: Hardware) -> None:
        self.hw = hardware
        self.entries: list[Entry] = []
        self.mouse = MouseService(hardware)
        self.event = EventWait(hardware)
        self._functions = {
            0x24: self._a20,
            0x4F: self._keyboard_intercept,
            0x53: self._unsupported,
            **dict.fromkeys((0x80, 0x81, 0x82, 0x85, 0x90, 0x91), self._nothing_to_do),
            0x83: self.event.service,
            0x86: self._wait,
            0x87: self._move,
            0x88: self._extended_memory,
            0xC0: self._configuration,
            0xC1: self._ebda,
            0xC2: self.mouse.service,
            0xE8: self._memory_map,
            0xEC: self._target_mode,
        }

    def service(self, call: Call) -> None:
        """Carry out AH; carry tells whether it was done."""
        call.wait = False
        self._functions.get(call.ah, self._unsupported)(call)

    def _unsupported(self, call: Call) -> None:
        call.ah = NOT_SUPPORTED
        call.carry = True

    def _nothing_to_do(self, call: Call) -> None:
        """Devices and tasks of multitasking systems that are not here: hooks for those that are."""
        call.ah = 0
        call.carry = False

    def _keyboard_intercept(self, call: Call) -> None:
        """4Fh: the scan code in AL is to be processed."""
        call.carry = True

    def _target_mode(self, call: Call) -> None:
        """EC00h: a system tells in which mode it will run; that changes nothing here."""
        self._nothing_to_do(call)

    # -- A20 ---------------------------------------------------------------------------------

    def _a20(self, call: Call) -> None:
        """24h: AL 0 closes and 1 opens the gate, 2 asks, 3 tells by what means."""
        gate = self.hw.inb(PORT_92)
        if call.al > 3:
            self._unsupported(call)
            return
        if call.al < 2:
            self.hw.outb(PORT_92, gate & ~(A20_GATE | 1) | (A20_GATE if call.al else 0))
        elif call.al == 2:
            call.al = int(bool(gate & A20_GATE))
        else:
            call.bx = 0x0003
        self._nothing_to_do(call)

    # -- waiting -----------------------------------------------------------------------------

    def _wait(self, call: Call) -> None:
        """86h: CX:DX microseconds; the ROM waits."""
        self._nothing_to_do(call)
        delay(self.hw, call, (call.cx << 16 | call.dx) * 1000)

    def wait(self, call: Call) -> None:
        """Whether the wait goes on: for time, or for the mouse."""
        if self.mouse.talking():
            self.mouse.go_on(call)
        else:
            still_waiting(self.hw, call)

    # -- memory ------------------------------------------------------------------------------

    def _move(self, call: Call) -> None:
        """87h: CX words between the bases of two descriptors of the table at ES:SI."""
        length, table = call.cx * 2, call.at_es(call.si)
        source, source_limit = _descriptor(call, table + SOURCE_DESCRIPTOR)
        target, target_limit = _descriptor(call, table + TARGET_DESCRIPTOR)
        if call.cx > MOST_WORDS or (length and min(source_limit, target_limit) < length - 1):
            call.ah = 2
            call.carry = True
            return
        space = self.hw.space.ungated()
        space.write(target, space.read(source, length))
        self._nothing_to_do(call)

    def _extended_memory(self, call: Call) -> None:
        low, blocks = kib_above_1_mib(self.entries)
        call.ax = min(low + blocks * 64, MOST_EXTENDED_KIB)
        call.carry = False

    def _memory_map(self, call: Call) -> None:
        if call.al == 0x20:
            self._next_entry(call)
        elif call.al in {0x01, 0x81}:
            low, blocks = kib_above_1_mib(self.entries)
            if call.al == 0x01:
                call.ax, call.bx, call.cx, call.dx = low, blocks, low, blocks
            else:
                call.eax, call.ebx, call.ecx, call.edx = low, blocks, low, blocks
            call.carry = False
        else:
            self._unsupported(call)

    def _next_entry(self, call: Call) -> None:
        """E820h: entry EBX of the map to ES:DI; EBX is then the next, or 0 after the last."""
        index = call.ebx
        if call.edx != SMAP or call.ecx < ENTRY_SIZE or index >= len(self.entries):
            self._unsupported(call)
            return
        entry = self.entries[index]
        data = struct.pack("<QQI", entry.start, entry.length, entry.kind)
        call.write(call.at_es(call.di), data)
        call.ebx = index + 1 if index + 1 < len(self.entries) else 0
        call.eax, call.ecx = SMAP, ENTRY_SIZE
        call.carry = False

    def memory_size(self, call: Call) -> None:
        """int 12h."""
        call.ax = self.hw.bda.word(layout.MEMORY_KIB)

    def equipment(self, call: Call) -> None:
        """int 11h."""
        call.ax = self.hw.bda.word(layout.EQUIPMENT)

    # -- what the system is ------------------------------------------------------------------

    def _configuration(self, call: Call) -> None:
        pointer = self.hw.rom.far("configuration")
        call.es, call.bx = pointer >> 16, pointer & 0xFFFF
        self._nothing_to_do(call)

    def _ebda(self, call: Call) -> None:
        call.es = self.hw.bda.word(layout.EBDA_SEGMENT)
        call.carry = False


def _descriptor(call: Call, at: int) -> tuple[int, int]:
    """Base and limit of a segment descriptor."""
    limit, low, middle, _, flags, high = struct.unpack("<HHBBBB", call.read(at, 8))
    limit |= (flags & 0x0F) << 16
    if flags & 0x80:
        limit = limit << 12 | 0xFFF
    return low | middle << 16 | high << 24, limit

"""How a processor enters a kernel: registers, descriptor table, page tables; and room for files.

Both protocols want flat segments; Linux also names the selectors and wants them in a GDT::

    selector  0  null     8  unused     10h  code (32 or 64 bits)     18h  data

For the 64-bit entry the first 4 GiB are mapped one to one with 2 MiB pages.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import InvalidRequestError, from_os_error
from vdisk.vm.accel.base import DescriptorTable, Registers, Segment, SystemRegisters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.vm.accel.base import Vcpu
    from vdisk.vm.memory import GuestMemory

RAX, RBX, RSP, RSI = 0, 3, 4, 6
CODE_SELECTOR, DATA_SELECTOR = 0x10, 0x18
LIMIT = 0xFFFF_FFFF
CODE_32, CODE_64, DATA = 0xC09B, 0xA09B, 0xC093
CR0_PE, CR0_ET, CR0_PG = 1, 1 << 4, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
TABLE_ENTRY, PAGE_2M = 0x03, 0x83
PAGE = 4096

RAM = 1
"""The type of usable memory in an E820 map."""


class MemoryRange(NamedTuple):
    """One entry of the firmware's memory map: bytes, and the E820 type (1 RAM, 2 reserved …)."""

    start: int
    length: int
    type: int = RAM


class Entry(NamedTuple):
    """The state in which the bootstrap processor begins."""

    registers: Registers
    system: SystemRegisters

    def apply(self, vcpu: Vcpu) -> None:
        """Let a processor begin here."""
        vcpu.set_system_registers(self.system)
        vcpu.set_registers(self.registers)


def descriptor(attributes: int) -> int:
    """A flat descriptor of 4 GiB as it stands in a GDT (SDM 3, 3.4.5)."""
    return (attributes & 0xFF) << 40 | (attributes >> 12) << 52 | 0xF << 48 | 0xFFFF


def _flat(code: int) -> SystemRegisters:
    data = Segment(DATA_SELECTOR, 0, LIMIT, DATA)
    system = SystemRegisters(
        cs=Segment(CODE_SELECTOR, 0, LIMIT, code), ds=data, es=data, fs=data, gs=data, ss=data
    )
    system.cr0 = CR0_PE | CR0_ET
    system.idt = DescriptorTable(0, 0)
    return system


def write_gdt(memory: GuestMemory, gdt: int, code: int) -> DescriptorTable:
    """Put a GDT with the boot selectors at ``gdt``."""
    memory.write(gdt, struct.pack("<4Q", 0, 0, descriptor(code), descriptor(DATA)))
    return DescriptorTable(gdt, 31)


def protected(memory: GuestMemory, rip: int, gdt: int) -> Entry:
    """32-bit protected mode without paging, interrupts off."""
    system = _flat(CODE_32)
    system.gdt = write_gdt(memory, gdt, CODE_32)
    return Entry(Registers(rip=rip), system)


def long_mode(memory: GuestMemory, rip: int, gdt: int, tables: int) -> Entry:
    """64-bit mode; ``tables``: six pages for the page tables."""
    directories = [tables + (2 + number) * PAGE for number in range(4)]
    memory.write(tables, struct.pack("<Q", tables + PAGE | TABLE_ENTRY))
    pointers = [directory | TABLE_ENTRY for directory in directories]
    memory.write(tables + PAGE, struct.pack("<4Q", *pointers))
    pages = [number << 21 | PAGE_2M for number in range(4 * 512)]
    memory.write(directories[0], struct.pack(f"<{len(pages)}Q", *pages))
    system = _flat(CODE_64)
    system.gdt = write_gdt(memory, gdt, CODE_64)
    system.cr0 |= CR0_PG
    system.cr3, system.cr4 = tables, CR4_PAE
    system.efer = EFER_LME | EFER_LMA
    return Entry(Registers(rip=rip), system)


def real_mode(segment: int, cs: int, stack: int) -> Entry:
    """Real mode at ``cs``:0, all other segments ``segment``, interrupts off."""
    data = Segment(segment, segment << 4, 0xFFFF, 0x93)
    system = SystemRegisters(
        cs=Segment(cs, cs << 4, 0xFFFF, 0x9B), ds=data, es=data, fs=data, gs=data, ss=data
    )
    system.cr0 = CR0_ET
    system.idt = DescriptorTable(0, 0x3FF)
    registers = Registers()
    registers.gprs[RSP] = stack
    return Entry(registers, system)


# -- files ---------------------------------------------------------------------------------------


def read_file(path: str, most: int) -> bytes:
    """A whole file of at most ``most`` bytes; raises errors of the ``VdiskError`` family."""
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise from_os_error(error, path=path, operation="open") from error
    if len(data) > most:
        raise InvalidRequestError("larger than the memory of the machine", path=path)
    return data


def load_file(path: str, memory: GuestMemory, ranges: Sequence[MemoryRange], floor: int,
              ceiling: int) -> tuple[int, int]:  # fmt: skip
    """Read a file straight into usable memory, as high as it fits; gives (start, length)."""
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            start = highest_place(ranges, length, floor, ceiling, path)
            view = memory.view(start, length)
            done = 0
            while done < length:
                count = file.readinto(view[done:])
                if not count:
                    raise InvalidRequestError("became shorter while it was read", path=path)
                done += count
    except OSError as error:
        raise from_os_error(error, path=path, operation="read") from error
    memory.dirtied(start, length)
    return start, length


def highest_place(
    ranges: Sequence[MemoryRange], length: int, floor: int, ceiling: int, path: str
) -> int:
    """The highest page boundary in [floor, ceiling) with ``length`` bytes of RAM behind it."""
    for entry in sorted(ranges, reverse=True):
        if entry.type != RAM:
            continue
        end = min(entry.start + entry.length, ceiling)
        start = (end - length) & ~(PAGE - 1)
        if start >= max(entry.start, floor) and length >= 0:
            return start
    raise InvalidRequestError(
        f"{length} bytes do not fit into the machine's memory below {ceiling:#x}", path=path
    )


def is_ram(ranges: Sequence[MemoryRange], start: int, end: int) -> bool:
    """True if [start, end) is usable memory as a whole."""
    return any(
        entry.type == RAM and entry.start <= start and end <= entry.start + entry.length
        for entry in ranges
    )


def require_ram(ranges: Sequence[MemoryRange], start: int, end: int, path: str) -> None:
    """Raise unless [start, end) is usable memory as a whole."""
    if is_ram(ranges, start, end):
        return
    raise InvalidRequestError(
        f"the kernel needs memory from {start:#x} to {end:#x}, which the machine does not have",
        path=path,
    )

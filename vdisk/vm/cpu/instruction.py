"""A system instruction with its operands in reach, and who carries out which.

Generated code leaves these instructions to Python, which decodes them again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import iced_x86 as iced
from iced_x86 import Mnemonic, OpKind, Register

from vdisk.vm.cpu import descriptors as d
from vdisk.vm.cpu import faults
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.operands import REGISTERS, SIZES

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.cpu.core import Core

    Handler = Callable[[Core, "Instruction"], None]

CR0_PE, CR0_MP, CR0_EM, CR0_TS, CR0_ET, CR0_NE = 1, 2, 4, 8, 16, 32
CR0_WP, CR0_AM, CR0_NW, CR0_CD, CR0_PG = 1 << 16, 1 << 18, 1 << 29, 1 << 30, 1 << 31
CR4_VME, CR4_PVI, CR4_TSD, CR4_DE, CR4_PSE, CR4_PAE, CR4_MCE, CR4_PGE = (
    1 << bit for bit in range(8)
)
CR4_PCE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_UMIP = 1 << 8, 1 << 9, 1 << 10, 1 << 11
CR4_KNOWN = (
    CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR
    | CR4_OSXMMEXCPT
)  # fmt: skip
"""Bits that may be set; the others are reserved here, as CPUID says."""
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1, 1 << 8, 1 << 10, 1 << 11


LARGEST_OPERAND = 512  # FXSAVE's
SEGMENT_NAMES = {getattr(Register, n.upper()): n for n in ("es", "cs", "ss", "ds", "fs", "gs")}


class Instruction:
    """The decoded instruction with its operands in reach."""

    def __init__(self, core: Core, decoded: iced.Instruction) -> None:
        self.core, self.i = core, decoded
        self.mode = core.state.mode

    def size(self, index: int = 0) -> int:
        """Bytes of an operand."""
        if self.i.op_kind(index) == OpKind.REGISTER:
            return SIZES[self.i.op_register(index)] // 8
        return int(iced.MemorySizeExt.size(self.i.memory_size))

    def offset(self) -> int:
        """The effective address of the memory operand."""
        i, state = self.i, self.core.state
        width = 64 if self.mode == 64 else 32
        total = i.memory_displacement
        for register, factor in ((i.memory_base, 1), (i.memory_index, i.memory_index_scale)):
            if register in (Register.NONE, Register.EIP, Register.RIP):
                continue
            width = SIZES[register]
            total += (state.gpr(REGISTERS[register] >> 3) & ((1 << width) - 1)) * factor
        if i.memory_base == Register.NONE and i.memory_index == Register.NONE:
            width = {2: 16, 4: 32, 8: 64}.get(i.memory_displ_size, width)
        return int(total & ((1 << width) - 1))

    def segment_name(self) -> str:
        """The segment of the memory operand."""
        return SEGMENT_NAMES[self.i.memory_segment]

    def linear(self, size: int, *, write: bool = False, plus: int = 0) -> int:
        """The linear address of the memory operand, checked against its segment."""
        return d.segment_linear(
            self.core, self.segment_name(), self.offset() + plus, size, write=write
        )

    def read(self, index: int = 0, size: int | None = None) -> int:
        """The value of a register or memory operand."""
        size = size or self.size(index)
        if self.i.op_kind(index) == OpKind.REGISTER:
            offset = REGISTERS[self.i.op_register(index)]
            return int.from_bytes(self.core.state.view[offset : offset + size], "little")
        return self.core.load(self.linear(size), size)

    def write(self, value: int, index: int = 0, size: int | None = None) -> None:
        """Set a register or memory operand; 32-bit registers are zero-extended."""
        size = size or self.size(index)
        if self.i.op_kind(index) != OpKind.REGISTER:
            self.core.store(self.linear(size, write=True), size, value)
            return
        offset = REGISTERS[self.i.op_register(index)]
        wide = 8 if size == 4 else size
        value &= (1 << 8 * size) - 1
        self.core.state.view[offset : offset + wide] = value.to_bytes(wide, "little")

    def operand_size(self) -> int:
        """Bytes, from the instruction's code."""
        return int(self.i.op_code().operand_size) // 8 or self.mode // 8


def fetch(core: Core) -> Instruction:
    """Decode the instruction at ``rip``; raises :class:`GuestFault` where it cannot be read."""
    state = core.state
    linear = core.wrap_linear(state.rip + state.cs_base)
    code = core.fetch_code(linear)
    decoder = iced.Decoder(state.mode, code, ip=state.rip)
    decoded = decoder.decode()
    mask = (1 << 64) - 1 if state.mode == 64 else 0xFFFF_FFFF
    core.next_rip = (state.rip + decoded.len) & mask
    return Instruction(core, decoded)


def not_canonical(core: Core) -> int:
    """#SS or #GP: which exception the instruction at ``rip`` meets at ``fault_address``."""
    try:
        n = fetch(core)
    except GuestFault:
        return faults.GP
    operands = [n.i.op_kind(index) for index in range(n.i.op_count)]
    if OpKind.MEMORY in operands:
        distance = n.offset() - core.state.fault_address
        if not n.i.is_stack_instruction or -LARGEST_OPERAND < distance <= 0:
            return faults.SS if n.i.memory_segment == Register.SS else faults.GP
    return faults.SS if n.i.is_stack_instruction else faults.GP


HANDLERS: dict[int, Handler] = {}
"""Who carries out which mnemonic."""


def on(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler for mnemonics."""

    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[getattr(Mnemonic, name)] = handler
        return handler

    return register


def privileged(core: Core) -> None:
    """#GP(0) but at CPL 0."""
    if core.state.cpl:
        raise GuestFault(faults.GP)


def protected(core: Core) -> None:
    """#UD in real and virtual-8086 mode."""
    if not core.state.cr0 & CR0_PE or core.virtual_8086:
        raise GuestFault(faults.UD)

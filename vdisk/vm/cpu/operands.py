"""What lowering reads of an instruction that iced-x86 has decoded.

Two kinds of functions of an ``iced_x86.Instruction``: *looks* give what decides about the form,
*reads* give a parameter of a record.
"""

from __future__ import annotations

import functools
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import iced_x86 as iced
from iced_x86 import OpKind, Register

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.state import FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from vdisk.vm.cpu.decode import Mode, Read

    Look = Callable[[iced.Instruction], Any]

# -- registers ---------------------------------------------------------------------------------


def _register_offsets() -> dict[Any, int]:
    table: dict[Any, int] = {}
    wide = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI")
    for number, name in enumerate(wide):
        stem = name[1:]
        for alias in (name, "E" + stem, stem):
            table[getattr(Register, alias)] = 8 * number
    for number, name in enumerate(("AL", "CL", "DL", "BL", "SPL", "BPL", "SIL", "DIL")):
        table[getattr(Register, name)] = 8 * number
    for number, name in enumerate(("AH", "CH", "DH", "BH")):
        table[getattr(Register, name)] = 8 * number + 1
    for number in range(8, 16):
        for suffix in ("", "D", "W", "L"):
            table[getattr(Register, f"R{number}{suffix}")] = 8 * number
    for name in ("ES", "CS", "SS", "DS", "FS", "GS"):
        table[getattr(Register, name)] = FIELDS[f"{name.lower()}_selector"].offset
    for number in range(16):
        table[getattr(Register, f"XMM{number}")] = FIELDS[f"xmm{number}"].offset
    for number in range(8):
        table[getattr(Register, f"MM{number}")] = FIELDS[f"st{number}"].offset
    return table


REGISTERS = _register_offsets()
SIZES = {number: iced.RegisterExt.size(number) * 8 for number in REGISTERS}
SELECTORS = {getattr(Register, name) for name in ("ES", "CS", "SS", "DS", "FS", "GS")}
SEGMENT_BASES = {
    getattr(Register, name): FIELDS[f"{name.lower()}_base"].offset
    for name in ("ES", "CS", "SS", "DS", "FS", "GS")
}
XMM = {getattr(Register, f"XMM{number}") for number in range(16)}
MMX = {getattr(Register, f"MM{number}") for number in range(8)}


def _representatives() -> dict[int, int]:
    """Registers that are lowered alike, but for the parameter, have one that stands for all."""
    table = {each: each for each in vars(Register).values() if isinstance(each, int)}
    general: dict[int, Any] = {8: Register.AL, 16: Register.AX, 32: Register.EAX, 64: Register.RAX}
    for register in REGISTERS.keys() - SELECTORS:
        if register in XMM or register in MMX:
            table[register] = Register.XMM0 if register in XMM else Register.MM0
        else:
            table[register] = general[SIZES[register]]
    return table


REPRESENTATIVES = _representatives()

# -- looks -------------------------------------------------------------------------------------

KINDS: tuple[Look, ...] = tuple(attrgetter(f"op{index}_kind") for index in range(4))
LOCK: Look = attrgetter("has_lock_prefix")
REP: Look = attrgetter("has_rep_prefix")
REPNE: Look = attrgetter("has_repne_prefix")
SEGMENT: Look = attrgetter("memory_segment")
DISPLACEMENT_SIZE: Look = attrgetter("memory_displ_size")

REPRESENTED: tuple[Look, ...] = (
    lambda i: REPRESENTATIVES[i.op0_register],
    lambda i: REPRESENTATIVES[i.op1_register],
    lambda i: REPRESENTATIVES[i.op2_register],
    lambda i: REPRESENTATIVES[i.op3_register],
)
"""The representative of each register operand."""


def same_registers(i: iced.Instruction) -> bool:
    """True if the first two operands are one register."""
    return i.op0_kind == i.op1_kind == OpKind.REGISTER and i.op0_register == i.op1_register


@functools.cache
def immediate_value(index: int) -> Look:
    """Where each value of an immediate operand is a form of its own."""
    return lambda i: i.immediate(index)


@functools.cache
def no_bits(index: int, mask: int) -> Look:
    """True if the immediate operand has none of these bits."""
    return lambda i: not i.immediate(index) & mask


_FLAG_BITS = (
    (iced.RflagsBits.OF, flags.OF),
    (iced.RflagsBits.SF, flags.SF),
    (iced.RflagsBits.ZF, flags.ZF),
    (iced.RflagsBits.AF, flags.AF),
    (iced.RflagsBits.CF, flags.CF),
    (iced.RflagsBits.PF, flags.PF),
)


@functools.cache
def flags_of(bits: int) -> int:
    """Our arithmetic flags, by iced's numbers."""
    return sum(ours for theirs, ours in _FLAG_BITS if bits & theirs)


def flags_touched(i: iced.Instruction) -> tuple[int, int]:
    """Flags that it reads and may change, by iced's numbers; of shifts the count decides."""
    return i.rflags_read, i.rflags_modified


@functools.cache
def address(mode: Mode) -> Look:
    """How an address is formed: representatives of base, index and segment."""
    segments = _segments(mode)

    def look(i: iced.Instruction) -> Hashable:
        base, index = REPRESENTATIVES[i.memory_base], REPRESENTATIVES[i.memory_index]
        return base, index, segments[i.memory_segment]

    return look


def _segments(mode: Mode) -> dict[int, int]:
    """Segments that have to be looked at stand for themselves, the others are none."""
    if mode.checked:
        looked_at = SELECTORS
    elif mode.code == 64:
        looked_at = {Register.FS, Register.GS}
    else:
        looked_at = {Register.CS, Register.FS, Register.GS}
    none: int = Register.NONE
    return {each: each if each in looked_at else none for each in (none, *SELECTORS)}


FITS_32 = range(-(1 << 31), 1 << 31)
FITS_ANYWHERE = range(-(1 << 31), (1 << 31) - (1 << 12))
"""Displacements that still fit when a place in the page is added."""


@functools.cache
def displacement_in(numbers: range) -> Look:
    """True if the displacement is one of these."""
    return lambda i: signed64(i.memory_displacement) in numbers


# -- reads -------------------------------------------------------------------------------------


def signed32(value: int) -> int:
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def signed64(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


OFFSETS: tuple[Read, ...] = (
    lambda i: REGISTERS[i.op0_register],
    lambda i: REGISTERS[i.op1_register],
    lambda i: REGISTERS[i.op2_register],
    lambda i: REGISTERS[i.op3_register],
)
"""Where each register operand is in the state."""
NUMBERS: tuple[Read, ...] = (
    lambda i: REGISTERS[i.op0_register] // 8,
    lambda i: REGISTERS[i.op1_register] // 8,
    lambda i: REGISTERS[i.op2_register] // 8,
    lambda i: REGISTERS[i.op3_register] // 8,
)
"""The same in units of 8 bytes."""
IMMEDIATES: tuple[Read, ...] = (
    lambda i: signed32(i.immediate(0)),
    lambda i: signed32(i.immediate(1)),
    lambda i: signed32(i.immediate(2)),
    lambda i: signed32(i.immediate(3)),
)
"""The immediate operands, of 32 bits."""
_SCALES = {1: 0, 2: 1, 4: 2, 8: 3}


def wide_immediate(i: iced.Instruction) -> int:
    """The second operand, of 64 bits."""
    return signed64(i.immediate64)


def base(i: iced.Instruction) -> int:
    return REGISTERS[i.memory_base]


def index(i: iced.Instruction) -> int:
    return REGISTERS[i.memory_index]


def scale(i: iced.Instruction) -> int:
    return _SCALES[i.memory_index_scale]


def displacement(i: iced.Instruction) -> int:
    return signed64(i.memory_displacement)


def narrow_displacement(i: iced.Instruction) -> int:
    """Of an address that is computed in 16 or 32 bits."""
    return signed32(i.memory_displacement)


@functools.cache
def relative_target(size: int) -> Read:
    """A direct jump's target, from the next instruction on; ``size``: of the instruction pointer.

    Instructions are decoded as if they stood at address 0.
    """
    half = 1 << (size - 1)
    mask = 2 * half - 1

    def read(i: iced.Instruction) -> int:
        return ((i.near_branch_target - i.len + half) & mask) - half

    return read

"""A piece of x86 code, the state it begins in, and what became of it.

Host and guest agree about addresses, so that a case is the same for both.  One 64 KiB arena at
``ARENA`` holds all that the code can reach (all else is unmapped; in 16-bit mode the segments
begin there)::

    +0000  nothing        a null pointer faults
    +1000  CODE           two pages, all HLT but the code of the case; writable
    +3000  nothing        an instruction may begin before it and end in it
    +8000  data           two pages; WINDOW: from 512 bytes before their border to the end
    +C000  READ_ONLY      a page of zeroes

The code ends by reaching a HLT, which no unprivileged program may execute, or by a fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vdisk.vm.accel.base import FpuState, Registers

PAGE = 0x1000
ARENA = 0x7000_0000
ARENA_SIZE = 0x1_0000
CODE = 0x1000
CODE_SIZE = 0x2000
DATA = 0x8000
DATA_SIZE = 0x2000
BORDER = DATA + PAGE
WINDOW = BORDER - 512
WINDOW_SIZE = DATA + DATA_SIZE - WINDOW
READ_ONLY = 0xC000
LONGEST_CODE = 64
HLT = 0xF4

CF, PF, AF, ZF, SF, TF, IF, DF, OF = (1 << bit for bit in (0, 2, 4, 6, 7, 8, 9, 10, 11))
NT, RF, AC, ID = (1 << bit for bit in (14, 16, 18, 21))
ARITHMETIC_FLAGS = CF | PF | AF | ZF | SF | OF
COMPARED_FLAGS = ARITHMETIC_FLAGS | TF | DF | NT | AC | ID
WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})

_EXCEPTIONS = "DE DB NMI BP OF BR UD NM DF ? TS NP SS GP PF ? MF AC MC XM"
VECTORS = {vector: f"#{name}" for vector, name in enumerate(_EXCEPTIONS.split())}


def base_of(mode: int) -> int:
    """The linear address that RIP and data pointers count from (``mode``: 16, 32, 64)."""
    return ARENA if mode == 16 else 0


@dataclass(slots=True)
class State:
    """All that unprivileged code reads and writes; ``memory`` is the window."""

    registers: Registers = field(default_factory=Registers)
    fpu: FpuState = field(default_factory=FpuState)
    memory: bytes = bytes(WINDOW_SIZE)


@dataclass(slots=True)
class Case:
    """``code`` at RIP, in a code segment of ``mode`` bits (16, 32, 64).

    What the code leaves undefined: ``ignored_flags``, ``ignored_gprs`` (a bit each),
    ``ignored_status`` (of the x87 status word), ``ignored_memory`` (start in the window, length).
    ``approximate``: floating-point results may differ in their last bits.  ``partial``: what is
    left of an unfinished reduction (C2 set) is the processor's affair.  ``note``: the instruction
    as text.
    """

    code: bytes
    state: State
    mode: int = 64
    ignored_flags: int = 0
    ignored_gprs: int = 0
    ignored_status: int = 0
    ignored_memory: tuple[tuple[int, int], ...] = ()
    approximate: bool = False
    partial: bool = False
    note: str = ""


@dataclass(slots=True)
class Outcome:
    """The state at the end.

    ``vector``: of the exception that ended the code; None if it came to a HLT (RIP shows which).
    ``error_code``: 0 for exceptions without one.  ``address``: CR2, of a page fault only.
    ``timed_out``: it did neither.
    """

    state: State
    vector: int | None = None
    error_code: int = 0
    address: int = 0
    timed_out: bool = False


def ended(case: Case, rip: int) -> bool:
    """True if the HLT at ``rip`` is not of the case's own code."""
    begin = case.state.registers.rip
    inside = begin <= rip < begin + len(case.code)
    return not inside and CODE <= rip + base_of(case.mode) - ARENA < CODE + CODE_SIZE


def abridged_tag(tag: int) -> int:
    """FXSAVE's tag byte (a bit a register, set if it is not empty) of an FSAVE tag word."""
    return sum(1 << i for i in range(8) if tag >> 2 * i & 3 != 3)


def full_tag(abridged: int, st: list[int], status: int) -> int:
    """The FSAVE tag word (SDM volume 2, FXSAVE, table "Recreating FSAVE Format")."""
    top, tag = status >> 11 & 7, 0
    for physical in range(8):
        kind = 3
        if abridged >> physical & 1:
            kind = _kind_of(st[(physical - top) & 7])
        tag |= kind << 2 * physical
    return tag


def _kind_of(value: int) -> int:
    """Tag of a register's content: 0 valid, 1 zero, 2 special."""
    exponent, significand = value >> 64 & 0x7FFF, value & (1 << 64) - 1
    if exponent == 0 and significand == 0:
        return 1
    if exponent in {0, 0x7FFF} or not significand >> 63:
        return 2
    return 0

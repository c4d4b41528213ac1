"""What particular instructions need of their operands and state to do something telling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import OpKind, Register

from tests.tools import x86_values as values
from tests.tools.x86_registers import NUMBERS, RAX, RBP, RCX, RDX, RSP
from tests.tools.x86_values import random_fpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.tools.x86_cases import Attempt


def _fix_divide(attempt: Attempt) -> None:
    """A dividend whose quotient mostly fits."""
    random, bits = attempt.random, attempt.operand_bits()
    if random.random() < 0.2 or RAX in attempt.pinned or RDX in attempt.pinned:
        return
    signed = attempt.name.startswith("IDIV")
    low = values.integer(random, bits)
    high = random.choice([0, 0, 1, 5])
    if signed:
        high = -1 if low >> bits - 1 else 0
    if bits == 8:
        attempt.set_gpr(RAX, (high << 8) | low, 16)
    else:
        attempt.set_gpr(RAX, low, bits)
        attempt.set_gpr(RDX, high, bits)


def _fix_bit_offset(attempt: Attempt) -> None:
    """A register bit offset stays within reach of the memory operand."""
    instruction = attempt.instruction
    if instruction.op0_kind == OpKind.REGISTER or instruction.op1_kind != OpKind.REGISTER:
        return
    number = NUMBERS[instruction.op1_register]
    if number in attempt.pinned:
        raise ValueError("the bit offset is an address")
    attempt.set_gpr(number, attempt.random.randrange(-800, 800), attempt.operand_bits(1))


def _fix_indirect(attempt: Attempt) -> None:
    """A near indirect branch ends on a HLT."""
    attempt.set_operand(0, attempt.pointer(attempt.code_offset()))
    if attempt.instruction.op0_register in {Register.SP, Register.ESP, Register.RSP}:
        raise ValueError("a branch to the stack")


def _fix_return(attempt: Attempt) -> None:
    """The return address is one of a HLT."""
    sp = attempt.stack_top()
    size = (
        2
        if "W" in attempt.name.partition("_")[0]
        else 4
        if "D" in attempt.name.partition("_")[0]
        else 8
    )
    attempt.fill(sp, size, attempt.pointer(attempt.code_offset()) & (1 << 8 * size) - 1)
    if attempt.random.random() < 0.8 and "IMM16" in attempt.name:
        attempt.instruction.immediate16 = attempt.random.randrange(64)


def _fix_enter(attempt: Attempt) -> None:
    random = attempt.random
    attempt.set_gpr(RBP, attempt.state.registers.gprs[RSP] + random.randrange(0, 64))
    attempt.instruction.immediate16 = random.randrange(64)
    attempt.instruction.immediate8_2nd = random.choice([0, 0, 1, 2, 3, 31, 33])


def _fix_leave(attempt: Attempt) -> None:
    attempt.set_gpr(RBP, attempt.state.registers.gprs[RSP] + attempt.random.randrange(0, 64))


def _fix_compare_exchange(attempt: Attempt) -> None:
    """Half of the comparisons succeed; a few are of the accumulator with itself."""
    accumulator = {8: Register.AL, 16: Register.AX, 32: Register.EAX, 64: Register.RAX}
    if attempt.instruction.op0_kind == OpKind.REGISTER and attempt.random.random() < 0.15:
        attempt.instruction.op0_register = accumulator[attempt.operand_bits()]
        return
    if attempt.random.random() < 0.5:
        return
    bits = attempt.operand_bits()
    gprs = attempt.state.registers.gprs
    if attempt.name.startswith(("CMPXCHG8B", "CMPXCHG16B")):
        half = bits // 2
        mask = (1 << half) - 1
        value = gprs[RAX] & mask | (gprs[RDX] & mask) << half
        attempt.set_operand(0, value)
    elif not (
        attempt.instruction.op0_kind == OpKind.REGISTER
        and attempt.instruction.op0_register not in NUMBERS
    ):
        attempt.set_operand(0, gprs[RAX] & (1 << bits) - 1)


def _fix_loop_count(attempt: Attempt) -> None:
    attempt.set_gpr(RCX, attempt.random.choice([0, 1, 2, 0x1_0000, 0x1_0001, 1 << 32]), 64)


def _fix_interrupt(attempt: Attempt) -> None:
    """Not the vector of Linux's system calls."""
    vectors = [v for v in range(256) if v != 0x80]
    attempt.instruction.immediate8 = attempt.random.choice(
        [3, 4, 0, 1, attempt.random.choice(vectors)]
    )


def _fix_double_shift(attempt: Attempt) -> None:
    """16-bit operands: a count of more than 16 gives anything."""
    if attempt.operand_bits() != 16:
        return
    count = attempt.random.randrange(17)
    if attempt.name.endswith("CL"):
        if RCX in attempt.pinned:
            raise ValueError("the count is an address")
        attempt.set_gpr(RCX, count, 8)
    else:
        attempt.instruction.immediate8 = count


def _fix_restore(attempt: Attempt) -> None:
    """An FXSAVE image whose MXCSR is legal, mostly, and whose pointers are zero."""
    start = attempt.target or 0
    fpu = random_fpu(attempt.random, attempt.mode)
    attempt.fill(start, 4, fpu.control | fpu.status << 16)
    attempt.fill(start + 4, 4, attempt.random.getrandbits(8))
    attempt.fill(start + 8, 16, 0)
    attempt.fill(start + 24, 4, fpu.mxcsr if attempt.random.random() < 0.9 else 1 << 16)
    for i in range(8):
        attempt.fill(start + 32 + 16 * i, 16, fpu.st[i])


def _fix_environment(attempt: Attempt) -> None:
    """An environment that some FSTENV could have stored."""
    start, fpu = attempt.target or 0, random_fpu(attempt.random, attempt.mode)
    wide = "28" in attempt.name or "108" in attempt.name
    size = 4 if wide else 2
    for i, value in enumerate((fpu.control, fpu.status, fpu.tag, 0, 0, 0, 0)):
        attempt.fill(start + size * i, size, value)


def _fix_mxcsr(attempt: Attempt) -> None:
    if attempt.random.random() < 0.9:
        attempt.set_operand(0, random_fpu(attempt.random, attempt.mode).mxcsr)


def _fix_flags(attempt: Attempt) -> None:
    """POPF: not the trap flag, which would end the case in another way."""
    sp = attempt.stack_top()
    attempt.fill(sp, 8, attempt.random.getrandbits(32) & ~0x100 & 0x3F_FFFF)


FIXES: tuple[tuple[tuple[str, ...], Callable[[Attempt], None]], ...] = (
    (("DIV_RM", "IDIV_RM"), _fix_divide),
    (("BT_RM", "BTS_RM", "BTR_RM", "BTC_RM"), _fix_bit_offset),
    (("JMP_RM", "CALL_RM"), _fix_indirect),
    (("RETN",), _fix_return),
    (("ENTER",), _fix_enter),
    (("LEAVE",), _fix_leave),
    (("CMPXCHG",), _fix_compare_exchange),
    (("LOOP", "JCXZ", "JECXZ", "JRCXZ"), _fix_loop_count),
    (("INT_IMM8",), _fix_interrupt),
    (("SHLD", "SHRD"), _fix_double_shift),
    (("FXRSTOR",), _fix_restore),
    (("FLDENV", "FRSTOR"), _fix_environment),
    (("LDMXCSR",), _fix_mxcsr),
    (("POPF",), _fix_flags),
)

"""From bytes to micro-ops: iced-x86 decodes, this table says which operation with what operands.

An instruction becomes one :class:`Op` or a few: a :class:`~vdisk.vm.cpu.context.Shape` and the
parameters of its record.  What depends on the instruction's place in its page (rip-relative
addresses, targets of jumps) is left as :class:`Op` attributes, so that a decoded instruction can
be used wherever the same bytes stand (:class:`Decoder` keeps them by their bytes).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import iced_x86 as iced
from iced_x86 import Mnemonic, OpKind, Register

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.context import Shape
from vdisk.vm.cpu.state import FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable


class Mode(NamedTuple):
    """What the meaning of bytes, and the code made from them, depends on.

    ``code``: 16, 32 or 64.  ``stack``: width of the stack pointer.  ``checked``: some segment has
    a base, a limit or rights that must be looked at.  ``step``: blocks are single instructions
    (TF or a breakpoint is set).  ``aligned``: accesses that are not aligned are faults (CR0.AM and
    EFLAGS.AC at CPL 3).
    """

    code: int
    stack: int
    checked: bool
    step: bool = False
    aligned: bool = False

    @property
    def careful(self) -> bool:
        """True if exceptions are delivered by Python, which works the mode out anew."""
        return self.step or self.aligned


FLAT_MODE = Mode(32, 32, checked=False)
"""What 32-bit systems run in."""


@dataclass(slots=True)
class Op:
    """One micro-op: a shape, and what its record holds."""

    shape: Shape
    r0: int = 0
    r1: int = 0
    r2: int = 0
    base: int = 0
    index: int = 0
    scale: int = 0
    disp: int = 0
    imm: int = 0
    segment: int = 0
    wide: int | None = None
    rip_relative: bool = False
    jump: int | None = None


@dataclass(slots=True)
class Decoded:
    """One instruction."""

    ops: list[Op]
    length: int
    name: str
    """The operation of its last micro-op."""
    reads: int = 0
    """Arithmetic flags that it looks at, or that a fault of it would show."""
    writes: int = 0
    """Arithmetic flags that it may change."""
    kills: int = 0
    """Arithmetic flags that it sets whatever they were."""
    leaves: int = -1
    """``cc_op`` after it where that is known, -2 where it leaves all as it was."""
    needs_known: bool = False
    """It asks for the flags that were there, so it matters what is known of them."""
    is_condition: bool = False
    ends: bool = False
    """The block ends with it."""
    falls_through: bool = False
    """It ends a block, but the next instruction may follow (conditional jumps)."""
    shadow: bool = False
    """The next instruction is its last (STI)."""
    jump: int | None = None
    """A direct jump: its target relative to the next instruction."""
    placed: bool = False
    """Its records depend on its place in the page (rip-relative addresses)."""


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
SEGMENT_BASES = {
    getattr(Register, name): FIELDS[f"{name.lower()}_base"].offset
    for name in ("ES", "CS", "SS", "DS", "FS", "GS")
}
ZERO = FIELDS["zero"].offset
CODE_PAGE = FIELDS["code_page"].offset
T3 = FIELDS["t3"].offset

_XMM = {getattr(Register, f"XMM{number}") for number in range(16)}
_MMX = {getattr(Register, f"MM{number}") for number in range(8)}
_IMMEDIATE = {
    getattr(OpKind, name)
    for name in (
        "IMMEDIATE8",
        "IMMEDIATE16",
        "IMMEDIATE32",
        "IMMEDIATE64",
        "IMMEDIATE8TO16",
        "IMMEDIATE8TO32",
        "IMMEDIATE8TO64",
        "IMMEDIATE32TO64",
        "IMMEDIATE8_2ND",
    )
}

_FLAG_BITS = (
    (iced.RflagsBits.OF, flags.OF),
    (iced.RflagsBits.SF, flags.SF),
    (iced.RflagsBits.ZF, flags.ZF),
    (iced.RflagsBits.AF, flags.AF),
    (iced.RflagsBits.CF, flags.CF),
    (iced.RflagsBits.PF, flags.PF),
)


@functools.cache
def _flags_of(bits: int) -> int:
    return sum(ours for theirs, ours in _FLAG_BITS if bits & theirs)


# -- operands ----------------------------------------------------------------------------------


class Lowering:
    """One instruction on its way to micro-ops."""

    def __init__(self, instruction: iced.Instruction, mode: Mode) -> None:
        self.i, self.mode = instruction, mode
        self.before: list[Op] = []
        self.stack = -mode.stack if mode.checked else mode.stack
        self.alignment = "a" if mode.aligned else ""

    def op(self, operation: str, size: int, **more: object) -> Op:
        """A micro-op without operands yet."""
        shape = Shape(
            operation,
            size,
            address=str(more.pop("address", self.mode.code)) + self.alignment,
            code=self.mode.code,
            stack=self.stack,
            variant=int(more.pop("variant", 0)),  # type: ignore[call-overload]
            lock=bool(more.pop("lock", False)),
        )
        return Op(shape, **more)  # type: ignore[arg-type]

    def with_operands(
        self, operation: str, size: int, indices: range | tuple[int, ...], *, variant: int = 0
    ) -> Op:
        """A micro-op with the instruction's operands, in order."""
        op = self.op(operation, size, variant=variant, lock=self.i.has_lock_prefix)
        letters, registers = "", []
        for index in indices:
            kind = self.i.op_kind(index)
            if kind == OpKind.REGISTER:
                register = self.i.op_register(index)
                letters += "x" if register in _XMM else "w" if register in _MMX else "r"
                registers.append(REGISTERS[register])
            elif kind in _IMMEDIATE:
                letters += "i"
                op.imm = _signed32(self.i.immediate(index))
            else:
                letters += "m"
                self.memory(op)
        for name, value in zip(("r0", "r1", "r2"), registers, strict=False):
            setattr(op, name, value if name != "r2" else value // 8)
        op.shape = op.shape._replace(operands=letters)
        return op

    def memory(self, op: Op) -> None:
        """Fill in the memory operand."""
        i = self.i
        width = self.address_width()
        displacement = i.memory_displacement
        address = str(width)
        op.base = op.index = ZERO
        if i.memory_base in (Register.RIP, Register.EIP):
            op.base, op.rip_relative = CODE_PAGE, True
        elif i.memory_base != Register.NONE:
            op.base = REGISTERS[i.memory_base]
        if i.memory_index != Register.NONE:
            op.index = REGISTERS[i.memory_index]
            op.scale = i.memory_index_scale.bit_length() - 1
            address += "x"
        op.disp = _signed64(displacement)
        if not -(1 << 31) <= op.disp < 1 << 31:
            if width == 64:
                self.absolute(op)
            else:
                op.disp = _signed32(displacement)
        op.segment, suffix = self.segment(i.memory_segment)
        op.shape = op.shape._replace(address=address + suffix + self.alignment)

    def absolute(self, op: Op) -> None:
        """A 64-bit address (MOV with moffs64) goes through a temporary."""
        first = self.op("mov_wide", 64, r0=T3, wide=op.disp)
        first.shape = first.shape._replace(operands="r", flags=False)
        self.before.append(first)
        op.base, op.disp = T3, 0

    def segment(self, register: int) -> tuple[int, str]:
        """Offset of a segment's base, and how the address changes by it."""
        if self.mode.code == 64:
            if register in (Register.FS, Register.GS):
                return SEGMENT_BASES[register], "s"
            return 0, ""
        if self.mode.checked or register in (Register.CS, Register.FS, Register.GS):
            return SEGMENT_BASES[register], "c"
        return 0, ""

    def address_width(self) -> int:
        """16, 32 or 64: the width that addresses of this instruction are computed in."""
        i = self.i
        for register in (i.memory_base, i.memory_index):
            if register != Register.NONE:
                if register in (Register.RIP, Register.EIP):
                    return 64 if register == Register.RIP else 32
                return SIZES[register]
        return i.memory_displ_size * 8 if i.memory_displ_size > 1 else self.default_address()

    def default_address(self) -> int:
        """Address size from the mode and the prefix."""
        return int(self.i.op_code().address_size) or self.mode.code

    def operand_size(self) -> int:
        """Width of the first register or memory operand, in bits."""
        for index in range(self.i.op_count):
            kind = self.i.op_kind(index)
            if kind == OpKind.REGISTER:
                return SIZES.get(self.i.op_register(index), self.mode.code)
            if kind == OpKind.MEMORY:
                return iced.MemorySizeExt.size(self.i.memory_size) * 8
        return self.mode.code

    def source_size(self) -> int:
        """Width of the second operand, in bits."""
        if self.i.op_kind(1) == OpKind.REGISTER:
            return SIZES[self.i.op_register(1)]
        return iced.MemorySizeExt.size(self.i.memory_size) * 8

    def all(self, operation: str, *, variant: int = 0) -> list[Op]:
        """One micro-op with all operands."""
        op = self.with_operands(
            operation, self.operand_size(), range(self.i.op_count), variant=variant
        )
        return [*self.before, op]


def _signed32(value: int) -> int:
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def _signed64(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


LOWER: dict[int, Callable[[Lowering], list[Op]]] = {}
"""By mnemonic: how an instruction becomes micro-ops."""

FAMILIES: dict[int, flags.Family] = {}
"""By mnemonic: the family of lazy flags that it leaves, where that is always the same."""


def lower(*names: str) -> Callable[[Callable[[Lowering], list[Op]]], None]:
    """Register a lowering for mnemonics."""

    def register(function: Callable[[Lowering], list[Op]]) -> None:
        for name in names:
            LOWER[getattr(Mnemonic, name)] = function

    return register


def lower_instruction(instruction: iced.Instruction, mode: Mode) -> Decoded:
    """One decoded instruction as micro-ops."""
    lowering = Lowering(instruction, mode)
    mnemonic = instruction.mnemonic
    function = LOWER.get(mnemonic)
    if instruction.is_invalid or function is None or _refused_lock(instruction):
        ops = [lowering.op("undefined", 32)]
    else:
        ops = [_normal(op) for op in function(lowering)]
    last = ops[-1]
    decoded = Decoded(ops, instruction.len, last.shape.operation, jump=last.jump)
    decoded.reads = _flags_of(instruction.rflags_read)
    changed = decoded.writes = decoded.kills = _flags_of(instruction.rflags_modified)
    family = FAMILIES.get(mnemonic)
    if family is not None:
        decoded.leaves = flags.cc_op(family, last.shape.size)
    elif not changed:
        decoded.leaves = -2
    _refine(decoded, last.shape)
    return decoded


CONDITIONAL_FLAGS = {"shl", "shr", "sar", "rol", "ror", "rcl", "rcr", "shld", "shrd"}
ENDS = {
    *("jmp", "jcc", "loop", "loope", "loopne", "jcxz", "jmp_indirect", "call", "call_indirect"),
    *("ret", "in", "out", "popf", "system", "undefined", "hlt", "iretq", "syscall", "sysretq"),
    *("write_cr3", "iretd", "sysenter", "sysexit", "int_real", "iret_real"),
}
FALL_THROUGH = {"jcc", "loop", "loope", "loopne", "jcxz"}
READS_ALL = {
    *("load_selector", "pop_selector"),
    *("pushf", "system", "in", "out", "undefined", "hlt", "iretq", "syscall", "sysretq"),
    *("write_cr3", "invlpg", "rdtsc", "wrmsr", "read_control", "iretd", "sysenter", "sysexit"),
    *("int_real", "iret_real"),
}


REPEATED = {"movs", "stos", "lods", "scas", "cmps"}

FAULTING = {
    *("push", "pop", "push_selector", "pusha", "popa", "leave", "enter", "call", "ret", "pushf"),
    *("movs", "stos", "lods", "scas", "cmps", "call_indirect", "div", "idiv", "aam", "xlat"),
    *("cli", "sti", "swapgs", "bound", "popf", "jmp_indirect", "load_selector", "pop_selector"),
}
"""Operations that may fault without a memory operand in their shape."""


def _refine(decoded: Decoded, shape: Shape) -> None:
    """What the general rule gets wrong, and what follows from it."""
    name = decoded.name
    if name in CONDITIONAL_FLAGS and shape.variant == 1:  # a count of zero changes nothing
        decoded.kills, decoded.leaves, decoded.reads = 0, -1, flags.ARITHMETIC
    if name in {"scas", "cmps"}:
        decoded.leaves = -1
        if shape.variant:
            decoded.kills = 0
    if name in READS_ALL:
        decoded.reads, decoded.kills = flags.ARITHMETIC, 0
    looks = bool(decoded.reads) or decoded.writes not in (0, flags.ARITHMETIC)
    decoded.needs_known = looks
    if name in FAULTING or any("m" in op.shape.operands for op in decoded.ops):
        decoded.reads = flags.ARITHMETIC
    decoded.ends = name in ENDS
    decoded.falls_through = name in FALL_THROUGH
    if name in REPEATED and shape.variant:
        # It may be interrupted, and a new block begin with it: what follows is the same then.
        decoded.ends = decoded.falls_through = True
    decoded.is_condition = name in {"jcc", "setcc", "cmovcc"}
    decoded.shadow = name == "sti"
    decoded.placed = any(op.rip_relative for op in decoded.ops)


_LOCKABLE = {
    getattr(Mnemonic, name)
    for name in (
        *("ADD", "ADC", "AND", "BTC", "BTR", "BTS", "CMPXCHG", "CMPXCHG8B", "CMPXCHG16B"),
        *("DEC", "INC", "NEG", "NOT", "OR", "SBB", "SUB", "XADD", "XCHG", "XOR"),
    )
}


STACK_OPERATIONS = {
    "pop_selector",
    *("push", "push_selector", "pop", "pusha", "popa", "leave", "enter", "call", "call_indirect"),
    *("ret", "pushf", "popf"),
}
CODE_OPERATIONS = STACK_OPERATIONS | {
    *("fxsave", "fxrstor"),
    *("jmp", "jcc", "loop", "loope", "loopne", "jcxz", "jmp_indirect", "in", "out", "popf"),
    *("iretq", "syscall", "sysretq", "write_cr3", "invlpg", "iretd", "sysenter", "sysexit"),
    *("int_real", "iret_real"),
    *("movs", "stos", "lods", "scas", "cmps", "xlat", "sse_masked_store"),
}


def _normal(op: Op) -> Op:
    """Without what an operation does not depend on, so that fewer handlers are made."""
    shape = op.shape
    if shape.operation not in STACK_OPERATIONS:
        shape = shape._replace(stack=64)
    if shape.operation not in CODE_OPERATIONS and "m" not in shape.operands:
        shape = shape._replace(code=64, address="")
    op.shape = shape
    return op


def _refused_lock(instruction: iced.Instruction) -> bool:
    """LOCK is for the instructions that it is defined for, with a memory destination."""
    if not instruction.has_lock_prefix:
        return False
    if instruction.mnemonic not in _LOCKABLE:
        return True
    return all(instruction.op_kind(i) != OpKind.MEMORY for i in range(instruction.op_count))

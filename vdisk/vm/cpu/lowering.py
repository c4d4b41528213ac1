"""From a decoded instruction to its form: what the tables of lowering are written with.

A table names a function for each mnemonic, which makes the micro-ops of an instruction:
:mod:`~vdisk.vm.cpu.lowering_integer`, :mod:`~vdisk.vm.cpu.lowering_control`,
:mod:`~vdisk.vm.cpu.lowering_sse`, :mod:`~vdisk.vm.cpu.lowering_x87`.  These functions see the
instruction through :class:`Lowering` alone: what decides about the form is *looked at*, which is
noted; parameters are given as functions that read them.  So whoever finds the same at each look
has the same form, and no instruction is lowered twice (:mod:`vdisk.vm.cpu.decoder`).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import iced_x86 as iced
from iced_x86 import Code, Mnemonic, OpKind, Register

from vdisk.vm.cpu import flags, operands
from vdisk.vm.cpu.context import Shape
from vdisk.vm.cpu.decode import Form, Mode, Pattern
from vdisk.vm.cpu.operands import FITS_32, FITS_ANYWHERE, MMX, SEGMENT_BASES, SIZES, XMM
from vdisk.vm.cpu.state import FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vdisk.vm.cpu.decode import Source
    from vdisk.vm.cpu.operands import Look

    Lower = Callable[["Lowering"], list[Pattern]]

ZERO = FIELDS["zero"].offset
CODE_PAGE = FIELDS["code_page"].offset
T3 = FIELDS["t3"].offset

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


@functools.cache
def _code_names() -> dict[int, str]:
    return {number: name for name, number in vars(Code).items() if isinstance(number, int)}


class Lowering:
    """One instruction on its way to micro-ops.

    ``code`` is iced's number for the encoding; what follows from it alone (the mnemonic, how many
    operands there are and how wide a memory operand is) needs no look.
    """

    def __init__(self, instruction: iced.Instruction, mode: Mode) -> None:
        self._i, self.mode = instruction, mode
        self.looks: dict[Look, Any] = {}
        """What was looked at, in order, and what was found."""
        self.before: list[Pattern] = []
        self.stack = -mode.stack if mode.checked else mode.stack
        self.alignment = "a" if mode.aligned else ""

    # -- what decides about the form -----------------------------------------------------------

    @property
    def mnemonic(self) -> iced.Mnemonic_:
        return self._i.mnemonic

    @property
    def code_name(self) -> str:
        """The encoding, as iced calls it: ``ADD_RM32_R32``."""
        return _code_names()[self._i.code]

    @property
    def op_code(self) -> iced.OpCodeInfo:
        """The encoding, as the manual has it."""
        return self._i.op_code()

    @property
    def op_count(self) -> int:
        return self._i.op_count

    @property
    def memory_size(self) -> int:
        """Width of the memory operand, in bits."""
        return int(iced.MemorySizeExt.size(self._i.memory_size)) * 8

    @property
    def stack_size(self) -> int:
        """What a PUSH or POP moves the stack pointer by, in bits."""
        return abs(self._i.stack_pointer_increment) * 8

    def look(self, look: Look) -> Any:
        """Let the form depend on something."""
        if look not in self.looks:
            self.looks[look] = look(self._i)
        return self.looks[look]

    def kind(self, index: int) -> iced.OpKind_:
        found: iced.OpKind_ = self.look(operands.KINDS[index])
        return found

    def kinds(self) -> list[iced.OpKind_]:
        return [self.kind(index) for index in range(self.op_count)]

    def register(self, index: int) -> int:
        """A register operand, where it is of those that are lowered alike one that stands for all
        (RAX for any of 64 bits); NONE for another operand."""
        if self.kind(index) != OpKind.REGISTER:
            return Register.NONE
        return int(self.look(operands.REPRESENTED[index]))

    def immediate(self, index: int) -> int:
        """The value of an immediate operand, where each makes a form of its own."""
        return int(self.look(operands.immediate_value(index)))

    def is_memory(self, index: int) -> bool:
        return self.kind(index) == OpKind.MEMORY

    def has_memory(self) -> bool:
        return OpKind.MEMORY in self.kinds()

    def operand_size(self) -> int:
        """Width of the first register or memory operand, in bits."""
        for index in range(self.op_count):
            kind = self.kind(index)
            if kind == OpKind.REGISTER:
                return SIZES.get(self.register(index), self.mode.code)
            if kind == OpKind.MEMORY:
                return self.memory_size
        return self.mode.code

    def source_size(self) -> int:
        """Width of the second operand, in bits."""
        return self.memory_size if self.is_memory(1) else SIZES[self.register(1)]

    def flags_touched(self) -> tuple[int, int]:
        """Flags that it reads and may change, by iced's numbers; of shifts the count decides."""
        if self.mnemonic in COUNTED:
            self.look(operands.flags_touched)
        return operands.flags_touched(self._i)

    # -- micro-ops -------------------------------------------------------------------------------

    def op(
        self,
        operation: str,
        size: int,
        *,
        address: str = "",
        variant: int = 0,
        lock: bool = False,
        **parameters: Source,
    ) -> Pattern:
        """A micro-op without operands yet."""
        shape = Shape(
            operation,
            size,
            address=(address or str(self.mode.code)) + self.alignment,
            code=self.mode.code,
            stack=self.stack,
            variant=variant,
            lock=lock,
        )
        return Pattern(shape, **parameters)  # type: ignore[arg-type]

    def with_operands(
        self, operation: str, size: int, indices: Iterable[int], *, variant: int = 0
    ) -> Pattern:
        """A micro-op with the instruction's operands, in order."""
        op = self.op(operation, size, variant=variant, lock=bool(self.look(operands.LOCK)))
        letters, registers = "", []
        for index in indices:
            kind = self.kind(index)
            if kind == OpKind.REGISTER:
                register = self.register(index)
                letters += "x" if register in XMM else "w" if register in MMX else "r"
                registers.append(index)
            elif kind in _IMMEDIATE:
                letters += "i"
                op.imm = operands.IMMEDIATES[index]
            else:
                letters += "m"
                self.memory(op)
        readers = (operands.OFFSETS, operands.OFFSETS, operands.NUMBERS)
        for name, reader, index in zip(("r0", "r1", "r2"), readers, registers, strict=False):
            setattr(op, name, reader[index])
        op.shape = op.shape._replace(operands=letters)
        return op

    def all(self, operation: str, *, variant: int = 0) -> list[Pattern]:
        """One micro-op with all operands."""
        size = self.operand_size()
        op = self.with_operands(operation, size, range(self.op_count), variant=variant)
        return [*self.before, op]

    # -- addresses -------------------------------------------------------------------------------

    def memory(self, op: Pattern) -> None:
        """Fill in the memory operand."""
        base, index, segment = self.look(operands.address(self.mode))
        width = self.address_width()
        words = str(width)
        op.base = op.index = ZERO
        op.disp = operands.displacement if width == 64 else operands.narrow_displacement
        if base in _INSTRUCTION_POINTERS:
            op.base, op.rip_relative = CODE_PAGE, True
        elif base != Register.NONE:
            op.base = operands.base
        if index != Register.NONE:
            op.index, op.scale = operands.index, operands.scale
            words += "x"
        if width == 64 and (base == Register.RIP or base == index == Register.NONE):
            words += self._far_away(op)
        op.segment, suffix = self.segment(segment)
        op.shape = op.shape._replace(address=words + suffix + self.alignment)

    def _far_away(self, op: Pattern) -> str:
        """A displacement that is too large for a record (MOV with moffs64, and what is almost 2 GiB
        away from the instruction) goes through a temporary."""
        fits = FITS_ANYWHERE if op.rip_relative else FITS_32
        if self.look(operands.displacement_in(fits)):
            return ""
        first = self.op("mov_wide", 64, r0=T3, wide=operands.displacement)
        first.shape = first.shape._replace(operands="r", flags=False)
        self.before.append(first)
        op.disp = 0
        if not op.rip_relative:
            op.base = T3
            return ""
        op.index = T3
        return "x"

    def segment(self, register: int | None = None) -> tuple[int, str]:
        """Offset of a segment's base (by default the memory operand's), and how the address
        changes by it; NONE for segments that need no look."""
        if register is None:
            register = self.look(operands.address(self.mode))[2]
        if register == Register.NONE:
            return 0, ""
        return SEGMENT_BASES[register], "s" if self.mode.code == 64 else "c"

    def address_width(self) -> int:
        """16, 32 or 64: the width that addresses of this instruction are computed in."""
        for register in self.look(operands.address(self.mode))[:2]:
            if register in _INSTRUCTION_POINTERS:
                return _INSTRUCTION_POINTERS[register]
            if register != Register.NONE:
                return SIZES[register]
        size = int(self.look(operands.DISPLACEMENT_SIZE))
        return size * 8 if size > 1 else self.default_address()

    def default_address(self) -> int:
        """Address size from the mode and the prefix."""
        return int(self.op_code.address_size) or self.mode.code


_INSTRUCTION_POINTERS = {Register.RIP: 64, Register.EIP: 32}

LOWER: dict[int, Lower] = {}
"""By mnemonic: how an instruction becomes micro-ops."""

FAMILIES: dict[int, flags.Family] = {}
"""By mnemonic: the family of lazy flags that it leaves, where that is always the same."""


def lower(*names: str) -> Callable[[Lower], Lower]:
    """Register a lowering for mnemonics."""

    def register(function: Lower) -> Lower:
        for name in names:
            LOWER[getattr(Mnemonic, name)] = function
        return function

    return register


def lower_instruction(d: Lowering) -> Form:
    """The form of an instruction."""
    function = LOWER.get(d.mnemonic)
    if function is None or _refused_lock(d):
        function = _undefined
    patterns = tuple(_normal(op) for op in function(d))
    for each in patterns:
        each.settle()
    last = patterns[-1]
    read, modified = (operands.flags_of(bits) for bits in d.flags_touched())
    form = Form(patterns, last.shape.operation, reads=read, writes=modified, kills=modified)
    family = FAMILIES.get(d.mnemonic)
    if not modified:  # a shift by nothing is among these
        form.leaves = -2
    elif family is not None:
        form.leaves = flags.cc_op(family, last.shape.size)
    _refine(form, last.shape)
    # Where neither limits nor a narrower instruction pointer need a look.
    form.links = (
        last.jumps and not d.mode.checked and not d.mode.step and last.shape.size == d.mode.code
    )
    return form


def _undefined(d: Lowering) -> list[Pattern]:
    return [d.op("undefined", 32)]


COUNTED = {
    getattr(Mnemonic, name)
    for name in ("SHL", "SAL", "SHR", "SAR", "ROL", "ROR", "RCL", "RCR", "SHLD", "SHRD")
}
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


def _refine(form: Form, shape: Shape) -> None:
    """What the general rule gets wrong, and what follows from it."""
    name = form.name
    if name in CONDITIONAL_FLAGS and shape.variant == 1:  # a count of zero changes nothing
        form.kills, form.leaves, form.reads = 0, -1, flags.ARITHMETIC
    if name in {"scas", "cmps"}:
        form.leaves = -1
        if shape.variant:
            form.kills = 0
    if name in READS_ALL:
        form.reads, form.kills = flags.ARITHMETIC, 0
    form.needs_known = bool(form.reads) or form.writes not in (0, flags.ARITHMETIC)
    if name in {"inc", "dec"}:  # whoever looks at CF finds it by way of what they leave
        form.writes = flags.ARITHMETIC
    if name in FAULTING or any("m" in op.shape.operands for op in form.patterns):
        form.reads = flags.ARITHMETIC
    form.ends = name in ENDS
    form.falls_through = name in FALL_THROUGH
    if name in REPEATED and shape.variant:
        # It may be interrupted, and a new block begin with it: what follows is the same then.
        form.ends = form.falls_through = True
    form.is_condition = name in {"jcc", "setcc", "cmovcc"}
    form.shadow = name == "sti"


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


def _normal(op: Pattern) -> Pattern:
    """Without what an operation does not depend on, so that fewer handlers are made."""
    shape = op.shape
    if shape.operation not in STACK_OPERATIONS:
        shape = shape._replace(stack=64)
    if shape.operation not in CODE_OPERATIONS and "m" not in shape.operands:
        shape = shape._replace(code=64, address="")
    op.shape = shape
    return op


def _refused_lock(d: Lowering) -> bool:
    """LOCK is for the instructions that it is defined for, with a memory destination."""
    if not d.look(operands.LOCK):
        return False
    return d.mnemonic not in _LOCKABLE or not d.has_memory()

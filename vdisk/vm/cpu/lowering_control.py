"""Which instruction that transfers control, uses the stack or belongs to the system is which
operation (SDM volume 1, sections 5.1.7, 5.1.15 and 5.21)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import Mnemonic, OpKind, Register

from vdisk.vm.cpu import operands
from vdisk.vm.cpu.decode import FLAT_MODE
from vdisk.vm.cpu.lowering import LOWER, Lowering, lower
from vdisk.vm.cpu.operands import REGISTERS, SEGMENT_BASES, SELECTORS, SIZES
from vdisk.vm.cpu.semantics.privileged import WITH_AUX

if TYPE_CHECKING:
    from vdisk.vm.cpu.decode import Pattern

CONDITIONS = (
    *("O", "NO", "B", "AE", "E", "NE", "BE", "A"),
    *("S", "NS", "P", "NP", "L", "GE", "LE", "G"),
)
"""By their numbers in opcodes."""
FREQUENT_SELECTORS = {Register.ES, Register.DS, Register.FS, Register.GS}
"""SS is not among them: it holds off interrupts, and CS cannot be loaded."""

# -- jumps ---------------------------------------------------------------------------------------

_NEAR = {OpKind.NEAR_BRANCH16: 16, OpKind.NEAR_BRANCH32: 32, OpKind.NEAR_BRANCH64: 64}
_FAR_POINTERS = {OpKind.FAR_BRANCH16, OpKind.FAR_BRANCH32}
_FAR_OPERANDS = ("M1616", "M1632", "M1664")
"""In the names of codes whose operand in memory is a selector and an offset."""


def _direct(d: Lowering, operation: str, variant: int = 0) -> Pattern:
    """A direct near jump; ``size`` is the width of the instruction pointer."""
    size = _NEAR[d.kind(0)]
    op = d.op(operation, size, variant=variant, wide=operands.relative_target(size))
    op.jumps = True
    return op


for _code, _condition in enumerate(CONDITIONS):

    def _jcc(d: Lowering, code: int = _code) -> list[Pattern]:
        return [_direct(d, "jcc", code)]

    LOWER[getattr(Mnemonic, f"J{_condition}")] = _jcc


@lower("JMP", "CALL")
def _jump(d: Lowering) -> list[Pattern]:
    name = "jmp" if d.mnemonic == Mnemonic.JMP else "call"
    if d.kind(0) in _NEAR:
        return [_direct(d, name)]
    if d.kind(0) in _FAR_POINTERS or any(word in d.code_name for word in _FAR_OPERANDS):
        return system(d)
    return [*d.before, d.with_operands(f"{name}_indirect", d.operand_size(), (0,))]


@lower("LOOP", "LOOPE", "LOOPNE")
def _loop(d: Lowering) -> list[Pattern]:
    name = {Mnemonic.LOOP: "loop", Mnemonic.LOOPE: "loope"}.get(d.mnemonic, "loopne")
    return [_counted(d, name)]


@lower("JCXZ", "JECXZ", "JRCXZ")
def _jcxz(d: Lowering) -> list[Pattern]:
    return [_counted(d, "jcxz")]


def _counted(d: Lowering, name: str) -> Pattern:
    """The counter's width is the address size; it is in the code's name."""
    op = _direct(d, name)
    words = d.code_name.split("_")
    counter = {"CX": 16, "ECX": 32, "RCX": 64, "JCXZ": 16, "JECXZ": 32, "JRCXZ": 64}
    width = next((counter[word] for word in reversed(words) if word in counter), d.mode.code)
    op.shape = op.shape._replace(address=str(width))
    return op


@lower("RET")
def _ret(d: Lowering) -> list[Pattern]:
    size = {"RETNQ": 64, "RETND": 32}.get(d.code_name[:5], 16)
    return [d.with_operands("ret", size, range(d.op_count))]


# -- the stack -----------------------------------------------------------------------------------


@lower("PUSH")
def _push(d: Lowering) -> list[Pattern]:
    if d.register(0) in SELECTORS:
        return [d.op("push_selector", d.stack_size, r0=REGISTERS[d.register(0)])]
    return [*d.before, d.with_operands("push", d.stack_size, (0,))]


@lower("POP")
def _pop(d: Lowering) -> list[Pattern]:
    if d.register(0) in FREQUENT_SELECTORS:
        return [d.op("pop_selector", d.stack_size, imm=SEGMENT_BASES[d.register(0)])]
    if d.register(0) in SELECTORS:
        return system(d)
    return [*d.before, d.with_operands("pop", d.stack_size, (0,))]


@lower("PUSHA", "PUSHAD", "POPA", "POPAD")
def _push_all(d: Lowering) -> list[Pattern]:
    name = "pusha" if d.mnemonic in (Mnemonic.PUSHA, Mnemonic.PUSHAD) else "popa"
    return [d.op(name, d.stack_size // 8)]


@lower("PUSHF", "PUSHFD", "PUSHFQ")
def _pushf(d: Lowering) -> list[Pattern]:
    return [d.op("pushf", d.stack_size)]


@lower("POPF", "POPFD", "POPFQ")
def _popf(d: Lowering) -> list[Pattern]:
    return [d.op("popf", d.stack_size)]


_FRAME_SIZES = {"Q": 64, "D": 32}
"""By the letter behind ENTER and LEAVE in the code's name."""


@lower("LEAVE")
def _leave(d: Lowering) -> list[Pattern]:
    return [d.op("leave", _FRAME_SIZES.get(d.code_name[5:6], 16))]


@lower("ENTER")
def _enter(d: Lowering) -> list[Pattern]:
    size = _FRAME_SIZES.get(d.code_name[5:6], 16)
    length, level = operands.IMMEDIATES[:2]
    return [d.op("enter", size, imm=length, disp=level)]


# -- ports ---------------------------------------------------------------------------------------


@lower("IN")
def _in(d: Lowering) -> list[Pattern]:
    return [_port(d, "in", 0, 1)]


@lower("OUT")
def _out(d: Lowering) -> list[Pattern]:
    return [_port(d, "out", 1, 0)]


def _port(d: Lowering, name: str, data: int, port: int) -> Pattern:
    immediate = d.kind(port) != OpKind.REGISTER
    op = d.op(name, SIZES[d.register(data)], variant=int(immediate))
    if immediate:
        op.imm = operands.IMMEDIATES[port]
    return op


# -- what has no operands, and the system -------------------------------------------------------

SIMPLE = {
    **dict.fromkeys(("NOP", "PREFETCHNTA", "PREFETCHT0", "PREFETCHT1", "PREFETCH"), ("nop", 0)),
    **dict.fromkeys(("PREFETCHT2", "PREFETCHW", "ENDBR64", "ENDBR32", "FWAIT"), ("nop", 0)),
    **dict.fromkeys(("LFENCE", "SFENCE", "RESERVEDNOP", "CLDEMOTE"), ("nop", 0)),
    **dict.fromkeys(("RDSSPD", "RDSSPQ"), ("nop", 0)),  # without shadow stacks
    "MFENCE": ("mfence", 0),
    "PAUSE": ("pause", 0),
    **dict.fromkeys(
        ("PREFETCHWT1", "PREFETCHRESERVED_M8", "PREFETCHIT0", "PREFETCHIT1"), ("nop", 0)
    ),
    "CLC": ("set_carry", 0),
    "STC": ("set_carry", 1),
    "CMC": ("set_carry", 2),
    "CLD": ("set_direction", 0),
    "STD": ("set_direction", 1),
    "LAHF": ("lahf", 0),
    "SAHF": ("sahf", 0),
    "DAA": ("daa", 0),
    "DAS": ("das", 0),
    "AAA": ("aaa", 0),
    "AAS": ("aas", 0),
    "CLI": ("cli", 0),
    "HLT": ("hlt", 0),
    "SWAPGS": ("swapgs", 0),
}
for _name, _what in SIMPLE.items():
    if hasattr(Mnemonic, _name):

        def _simple(d: Lowering, what: tuple[str, int] = _what) -> list[Pattern]:
            return [d.op(what[0], 32, variant=what[1])]

        LOWER[getattr(Mnemonic, _name)] = _simple


@lower("STI")
def _sti(d: Lowering) -> list[Pattern]:
    """Where a block is one instruction, Python remembers that the next one comes with it."""
    return system(d) if d.mode.step else [d.op("sti", 32)]


SYSTEM = (
    *("INT3", "INTO", "INT1", "RETF", "SYSRET"),
    *("SYSEXITQ", "LGDT", "LIDT", "SGDT", "SIDT", "LLDT"),
    *("SLDT", "LTR", "STR", "LMSW", "SMSW", "CLTS", "INVD", "WBINVD", "RDMSR"),
    "WBNOINVD",
    *("CPUID", "RDPMC", "VERR", "VERW", "LAR", "LSL", "ARPL"),
    *("LDS", "LES", "LFS", "LGS", "LSS", "INSB", "INSW", "INSD", "OUTSB", "OUTSW", "OUTSD"),
    *("MONITOR", "MWAIT", "SALC", "UD2", "XGETBV", "XSETBV", "CLFLUSH", "RDPID"),
    *("FNSTENV", "FLDENV", "FNSAVE", "FRSTOR"),
)


def system(d: Lowering) -> list[Pattern]:
    """Python carries it out (:mod:`vdisk.vm.cpu.system`)."""
    return [d.op("system", 32)]


@lower("INVLPG")
def _invlpg(d: Lowering) -> list[Pattern]:
    return [*d.before, d.with_operands("invlpg", 8, (0,))]


@lower("RDTSC", "RDTSCP", "WRMSR")
def _register_like(d: Lowering) -> list[Pattern]:
    if d.mode.step:
        return system(d)
    if d.mnemonic == Mnemonic.WRMSR:
        return [d.op("wrmsr", 32)]
    return [d.op("rdtsc", 32, variant=WITH_AUX if d.mnemonic == Mnemonic.RDTSCP else 0)]


@lower("IRETQ", "SYSCALL", "SYSRETQ")
def _long_transfer(d: Lowering) -> list[Pattern]:
    if d.mode.code != 64 or d.mode.careful:
        return system(d)
    name = {Mnemonic.IRETQ: "iretq", Mnemonic.SYSCALL: "syscall"}.get(d.mnemonic, "sysretq")
    return [d.op(name, 64)]


@lower("IRETD", "SYSENTER", "SYSEXIT")
def _flat_transfer(d: Lowering) -> list[Pattern]:
    if d.mode != FLAT_MODE:
        return system(d)
    names = {Mnemonic.IRETD: "iretd", Mnemonic.SYSENTER: "sysenter"}
    return [d.op(names.get(d.mnemonic, "sysexit"), 32)]


@lower("INT", "IRET")
def _real_transfer(d: Lowering) -> list[Pattern]:
    """Protected and virtual-8086 mode, in which code may have 16 bits too, are found out later."""
    if d.mode.code != 16 or d.mode.careful:
        return system(d)
    if d.mnemonic == Mnemonic.INT:
        return [d.op("int_real", 16, imm=operands.IMMEDIATES[0])]
    return [d.op("iret_real", 16)]


for _name in SYSTEM:
    if hasattr(Mnemonic, _name):
        LOWER[getattr(Mnemonic, _name)] = system

"""Which mnemonic is which operation: the tables of :mod:`vdisk.vm.cpu.decode`.

The groups are those of SDM volume 1, section 5.1 (general-purpose instructions).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import Mnemonic, OpKind, Register

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.decode import (
    FAMILIES,
    FLAT_MODE,
    LOWER,
    REGISTERS,
    SEGMENT_BASES,
    Lowering,
    Op,
    lower,
)
from vdisk.vm.cpu.semantics.privileged import WITH_AUX
from vdisk.vm.cpu.semantics.strings import BY_ELEMENT

if TYPE_CHECKING:
    from collections.abc import Callable

ALL_OPERANDS = {
    # binary arithmetic, logic
    **{name: name.lower() for name in ("ADD", "ADC", "SUB", "SBB", "CMP", "AND", "OR", "TEST")},
    **{name: name.lower() for name in ("INC", "DEC", "NEG", "NOT", "MUL", "DIV", "IDIV")},
    # moves
    **{name: name.lower() for name in ("LEA", "BSWAP", "MOVBE", "XADD", "CMPXCHG")},
    # bits
    **{name: name.lower() for name in ("BT", "BTS", "BTR", "BTC", "BSF", "BSR", "POPCNT")},
    **{name: name.lower() for name in ("TZCNT", "LZCNT", "ANDN", "BEXTR", "BLSI", "BLSR")},
    **{name: name.lower() for name in ("BLSMSK", "BZHI", "PDEP", "PEXT", "MULX", "RORX")},
    **{name: name.lower() for name in ("SHLX", "SHRX", "SARX", "ADCX", "ADOX", "BOUND")},
}
for _name, _operation in ALL_OPERANDS.items():

    def _all(d: Lowering, operation: str = _operation) -> list[Op]:
        return d.all(operation)

    LOWER[getattr(Mnemonic, _name)] = _all

for _name, _family in {
    "ADD": flags.Family.ADD,
    "XADD": flags.Family.ADD,
    "ADC": flags.Family.ADC,
    "SUB": flags.Family.SUB,
    "CMP": flags.Family.SUB,
    "NEG": flags.Family.SUB,
    "CMPXCHG": flags.Family.SUB,
    "SBB": flags.Family.SBB,
    "AND": flags.Family.LOGIC,
    "OR": flags.Family.LOGIC,
    "XOR": flags.Family.LOGIC,
    "TEST": flags.Family.LOGIC,
    "INC": flags.Family.INC,
    "DEC": flags.Family.DEC,
    "SHL": flags.Family.BITS,
    "SHR": flags.Family.BITS,
    "SAR": flags.Family.BITS,
    "IMUL": flags.Family.BITS,
    "MUL": flags.Family.BITS,
}.items():
    FAMILIES[getattr(Mnemonic, _name)] = _family

CONDITIONS = (
    "O",
    "NO",
    "B",
    "AE",
    "E",
    "NE",
    "BE",
    "A",
    "S",
    "NS",
    "P",
    "NP",
    "L",
    "GE",
    "LE",
    "G",
)


@lower("XOR")
def _xor(d: Lowering) -> list[Op]:
    i = d.i
    same = i.op_kind(1) == OpKind.REGISTER and i.op_register(0) == i.op_register(1)
    if same and i.op_kind(0) == OpKind.REGISTER:
        return [d.with_operands("zero", d.operand_size(), (0,))]
    return d.all("xor")


@lower("MOV")
def _mov(d: Lowering) -> list[Op]:
    i = d.i
    kinds = [i.op_kind(n) for n in range(2)]
    registers = [i.op_register(n) if kinds[n] == OpKind.REGISTER else 0 for n in range(2)]
    if any(r and (Register.CR0 <= r <= Register.TR7) for r in registers):
        return _move_special(d, registers)
    if registers[0] in FREQUENT_SELECTORS:
        op = d.with_operands("load_selector", 16, (1,))
        op.imm = SEGMENT_BASES[registers[0]]
        return [*d.before, op]
    if registers[0] in SELECTORS:
        return _system(d)
    if registers[1] in SELECTORS:
        size = 16 if kinds[0] != OpKind.REGISTER else d.operand_size()
        return [*d.before, d.with_operands("move_selector", size, (0, 1))]
    if kinds[1] == OpKind.IMMEDIATE64:
        op = d.with_operands("mov_wide", 64, (0,))
        op.wide = _as_signed(i.immediate(1), 64)
        return [op]
    return d.all("mov")


CONTROL_READ: dict[int, int] = {Register.CR0: 0, Register.CR2: 2, Register.CR3: 3, Register.CR4: 4}


def _move_special(d: Lowering, registers: list[int]) -> list[Op]:
    """Reading a control register and loading CR3 are frequent; the rest is not."""
    size = 64 if d.mode.code == 64 else 32
    if registers[1] in CONTROL_READ:
        op = d.with_operands("read_control", size, (0,), variant=CONTROL_READ[registers[1]])
        return [op]
    if registers[0] == Register.CR3:
        return [d.with_operands("write_cr3", size, (1,))]
    return _system(d)


FREQUENT_SELECTORS = {Register.ES, Register.DS, Register.FS, Register.GS}
"""SS is not among them: it holds off interrupts, and CS cannot be loaded."""
SELECTORS = {Register.ES, Register.CS, Register.SS, Register.DS, Register.FS, Register.GS}


def _as_signed(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


@lower("XCHG")
def _xchg(d: Lowering) -> list[Op]:
    """With memory it is atomic, LOCK or not."""
    ops = d.all("xchg")
    if "m" in ops[-1].shape.operands:
        ops[-1].shape = ops[-1].shape._replace(lock=True)
    return ops


@lower("MOVZX", "MOVSX", "MOVSXD")
def _extend(d: Lowering) -> list[Op]:
    operation = "movzx" if d.i.mnemonic == Mnemonic.MOVZX else "movsx"
    return d.all(operation, variant=d.source_size())


@lower("CRC32")
def _crc32(d: Lowering) -> list[Op]:
    return d.all("crc32", variant=d.source_size())


@lower("IMUL")
def _imul(d: Lowering) -> list[Op]:
    return d.all("imul1" if d.i.op_count == 1 else "imul")


@lower("CMPXCHG8B", "CMPXCHG16B")
def _cmpxchg_pair(d: Lowering) -> list[Op]:
    half = 32 if d.i.mnemonic == Mnemonic.CMPXCHG8B else 64
    return [*d.before, d.with_operands("cmpxchg_pair", half, (0,))]


@lower("SHL", "SAL", "SHR", "SAR", "ROL", "ROR", "RCL", "RCR")
def _shift(d: Lowering) -> list[Op]:
    i, size = d.i, d.operand_size()
    name = "shl" if i.mnemonic == Mnemonic.SAL else _NAMES[i.mnemonic]
    if i.op_kind(1) == OpKind.REGISTER:
        op = d.with_operands(name, size, (0,), variant=1)
        return [*d.before, op]
    op = d.with_operands(name, size, (0, 1))
    if not op.imm & (63 if size == 64 else 31):
        op.shape = op.shape._replace(operation="touch", operands=op.shape.operands[:1])
    return [*d.before, op]


_NAMES = {
    getattr(Mnemonic, name): name.lower()
    for name in ("SHL", "SHR", "SAR", "ROL", "ROR", "RCL", "RCR", "SHLD", "SHRD")
}


@lower("SHLD", "SHRD")
def _double_shift(d: Lowering) -> list[Op]:
    i, size = d.i, d.operand_size()
    if i.op_kind(2) == OpKind.REGISTER:
        return [*d.before, d.with_operands(_NAMES[i.mnemonic], size, (0, 1), variant=1)]
    op = d.with_operands(_NAMES[i.mnemonic], size, (0, 1, 2))
    if not op.imm & (63 if size == 64 else 31):
        op.shape = op.shape._replace(operation="touch", operands=op.shape.operands[:1])
    return [*d.before, op]


@lower("CBW", "CWDE", "CDQE", "CWD", "CDQ", "CQO")
def _sign(d: Lowering) -> list[Op]:
    size = {Mnemonic.CBW: 16, Mnemonic.CWD: 16, Mnemonic.CWDE: 32, Mnemonic.CDQ: 32}.get(
        d.i.mnemonic, 64
    )
    spread = d.i.mnemonic in (Mnemonic.CWD, Mnemonic.CDQ, Mnemonic.CQO)
    return [d.op("extend_into_rdx" if spread else "extend_accumulator", size)]


for _code, _condition in enumerate(CONDITIONS):

    def _set(d: Lowering, code: int = _code) -> list[Op]:
        return [*d.before, *d.all("setcc", variant=code)]

    def _cmov(d: Lowering, code: int = _code) -> list[Op]:
        return d.all("cmovcc", variant=code)

    def _jcc(d: Lowering, code: int = _code) -> list[Op]:
        return [direct(d, "jcc", code)]

    LOWER[getattr(Mnemonic, f"SET{_condition}")] = _set
    LOWER[getattr(Mnemonic, f"CMOV{_condition}")] = _cmov
    LOWER[getattr(Mnemonic, f"J{_condition}")] = _jcc


def direct(d: Lowering, operation: str, variant: int = 0) -> Op:
    """A direct near jump; ``size`` is the width of the instruction pointer."""
    i = d.i
    size = {OpKind.NEAR_BRANCH16: 16, OpKind.NEAR_BRANCH32: 32}.get(i.op_kind(0), 64)
    width = (1 << size) - 1
    relative = _as_signed((i.near_branch_target - i.len) & width, size)
    op = d.op(operation, size, variant=variant, wide=relative)
    op.jump = relative
    return op


@lower("JMP", "CALL")
def _jump(d: Lowering) -> list[Op]:
    i = d.i
    name = "jmp" if i.mnemonic == Mnemonic.JMP else "call"
    kind = i.op_kind(0)
    if kind in (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64):
        return [direct(d, name)]
    if kind in (OpKind.FAR_BRANCH16, OpKind.FAR_BRANCH32) or _is_far(i):
        return _system(d)
    return [*d.before, d.with_operands(f"{name}_indirect", d.operand_size(), (0,))]


def _is_far(i: object) -> bool:
    return "M1632" in _code_name(i) or "M1616" in _code_name(i) or "M1664" in _code_name(i)


def _code_name(i: object) -> str:
    import iced_x86 as iced

    global _CODES
    if not _CODES:
        _CODES = {v: k for k, v in vars(iced.Code).items() if isinstance(v, int)}
    return _CODES[i.code]  # type: ignore[attr-defined]


_CODES: dict[int, str] = {}


@lower("LOOP", "LOOPE", "LOOPNE")
def _loop(d: Lowering) -> list[Op]:
    name = {Mnemonic.LOOP: "loop", Mnemonic.LOOPE: "loope"}.get(d.i.mnemonic, "loopne")
    return [_counted(d, name)]


@lower("JCXZ", "JECXZ", "JRCXZ")
def _jcxz(d: Lowering) -> list[Op]:
    return [_counted(d, "jcxz")]


def _counted(d: Lowering, name: str) -> Op:
    """The counter's width is the address size; it is in the code's name."""
    op = direct(d, name)
    words = _code_name(d.i).split("_")
    counter = {"CX": 16, "ECX": 32, "RCX": 64, "JCXZ": 16, "JECXZ": 32, "JRCXZ": 64}
    width = next((counter[word] for word in reversed(words) if word in counter), d.mode.code)
    op.shape = op.shape._replace(address=str(width))
    return op


@lower("RET")
def _ret(d: Lowering) -> list[Op]:
    code = _code_name(d.i)
    size = 64 if code.startswith("RETNQ") else 32 if code.startswith("RETND") else 16
    return [d.with_operands("ret", size, range(d.i.op_count))]


def _stack_size(d: Lowering) -> int:
    return abs(d.i.stack_pointer_increment) * 8


@lower("PUSH")
def _push(d: Lowering) -> list[Op]:
    i, size = d.i, _stack_size(d)
    if i.op_kind(0) == OpKind.REGISTER and i.op_register(0) in SELECTORS:
        return [d.op("push_selector", size, r0=REGISTERS[i.op_register(0)])]
    return [*d.before, d.with_operands("push", size, (0,))]


@lower("POP")
def _pop(d: Lowering) -> list[Op]:
    i = d.i
    if i.op_kind(0) == OpKind.REGISTER and i.op_register(0) in FREQUENT_SELECTORS:
        op = d.op("pop_selector", _stack_size(d))
        op.imm = SEGMENT_BASES[i.op_register(0)]
        return [op]
    if i.op_kind(0) == OpKind.REGISTER and i.op_register(0) in SELECTORS:
        return _system(d)
    return [*d.before, d.with_operands("pop", _stack_size(d), (0,))]


@lower("PUSHA", "PUSHAD", "POPA", "POPAD")
def _push_all(d: Lowering) -> list[Op]:
    name = "pusha" if d.i.mnemonic in (Mnemonic.PUSHA, Mnemonic.PUSHAD) else "popa"
    return [d.op(name, _stack_size(d) // 8)]


@lower("PUSHF", "PUSHFD", "PUSHFQ")
def _pushf(d: Lowering) -> list[Op]:
    return [d.op("pushf", _stack_size(d))]


@lower("POPF", "POPFD", "POPFQ")
def _popf(d: Lowering) -> list[Op]:
    return [d.op("popf", _stack_size(d))]


@lower("LEAVE")
def _leave(d: Lowering) -> list[Op]:
    code = _code_name(d.i)
    return [d.op("leave", {"Q": 64, "D": 32}.get(code[5:6], 16))]


@lower("ENTER")
def _enter(d: Lowering) -> list[Op]:
    code = _code_name(d.i)
    size = {"Q": 64, "D": 32}.get(code[5:6], 16)
    return [d.op("enter", size, imm=d.i.immediate(0), disp=d.i.immediate(1))]


@lower("XLATB")
def _xlat(d: Lowering) -> list[Op]:
    op = d.op("xlat", 8)
    d.memory(op)
    op.index, op.scale = 128, 0
    op.shape = op.shape._replace(address=op.shape.address.replace("x", ""))
    op.base = 8 * 3
    return [op]


STRINGS = {
    **{
        f"MOVS{suffix}": ("movs", size)
        for suffix, size in zip("BWDQ", (8, 16, 32, 64), strict=True)
    },
    **{
        f"STOS{suffix}": ("stos", size)
        for suffix, size in zip("BWDQ", (8, 16, 32, 64), strict=True)
    },
    **{
        f"LODS{suffix}": ("lods", size)
        for suffix, size in zip("BWDQ", (8, 16, 32, 64), strict=True)
    },
    **{
        f"SCAS{suffix}": ("scas", size)
        for suffix, size in zip("BWDQ", (8, 16, 32, 64), strict=True)
    },
    **{
        f"CMPS{suffix}": ("cmps", size)
        for suffix, size in zip("BWDQ", (8, 16, 32, 64), strict=True)
    },
}
_SSE_NAMESAKES = {"MOVSD", "CMPSD"}
_STRING_ADDRESS = {
    getattr(OpKind, f"MEMORY_{prefix}{name}"): width
    for prefix in ("SEG_", "ES")
    for name, width in (
        *(("SI", 16), ("ESI", 32), ("RSI", 64), ("DI", 16), ("EDI", 32), ("RDI", 64)),
    )
    if hasattr(OpKind, f"MEMORY_{prefix}{name}")
}


def _string(d: Lowering) -> list[Op]:
    i = d.i
    operation, size = _STRING_OF[i.mnemonic]
    kinds = [i.op_kind(n) for n in range(i.op_count)]
    width = next((_STRING_ADDRESS[kind] for kind in kinds if kind in _STRING_ADDRESS), None)
    if width is None:  # MOVSD and CMPSD of SSE2 share the mnemonic
        namesake = SSE_NAMESAKES.get(i.mnemonic)
        return [d.op("undefined", 32)] if namesake is None else namesake(d)
    repeat = 1 if i.has_rep_prefix else 2 if i.has_repne_prefix else 0
    if repeat and d.mode.careful:
        repeat |= BY_ELEMENT
    segment, suffix = d.segment(i.memory_segment)
    op = d.op(operation, size, variant=repeat, address=f"{width}{suffix}")
    op.segment = segment
    return [op]


_STRING_OF = {getattr(Mnemonic, name): what for name, what in STRINGS.items()}
for _mnemonic in _STRING_OF:
    LOWER[_mnemonic] = _string

SSE_NAMESAKES: dict[int, Callable[[Lowering], list[Op]]] = {}
"""MOVSD and CMPSD as SSE2 knows them; filled in where those are."""


@lower("IN")
def _in(d: Lowering) -> list[Op]:
    return [_port(d, "in", 0, 1)]


@lower("OUT")
def _out(d: Lowering) -> list[Op]:
    return [_port(d, "out", 1, 0)]


def _port(d: Lowering, name: str, data: int, port: int) -> Op:
    from vdisk.vm.cpu.decode import SIZES

    i = d.i
    immediate = i.op_kind(port) != OpKind.REGISTER
    op = d.op(name, SIZES[i.op_register(data)], variant=int(immediate))
    if immediate:
        op.imm = i.immediate(port)
    return op


SIMPLE = {
    **dict.fromkeys(("NOP", "PREFETCHNTA", "PREFETCHT0", "PREFETCHT1", "PREFETCH"), ("nop", 0)),
    **dict.fromkeys(("PREFETCHT2", "PREFETCHW", "ENDBR64", "ENDBR32", "FWAIT"), ("nop", 0)),
    **dict.fromkeys(("LFENCE", "SFENCE", "RESERVEDNOP", "CLDEMOTE"), ("nop", 0)),
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

        def _simple(d: Lowering, what: tuple[str, int] = _what) -> list[Op]:
            return [d.op(what[0], 32, variant=what[1])]

        LOWER[getattr(Mnemonic, _name)] = _simple


@lower("STI")
def _sti(d: Lowering) -> list[Op]:
    """Where a block is one instruction, Python remembers that the next one comes with it."""
    return _system(d) if d.mode.step else [d.op("sti", 32)]


@lower("AAM", "AAD")
def _aam(d: Lowering) -> list[Op]:
    name = "aam" if d.i.mnemonic == Mnemonic.AAM else "aad"
    return [d.op(name, 8, imm=d.i.immediate(0))]


SYSTEM = (
    *("INT3", "INTO", "INT1", "RETF", "SYSRET"),
    *("SYSEXITQ", "LGDT", "LIDT", "SGDT", "SIDT", "LLDT"),
    *("SLDT", "LTR", "STR", "LMSW", "SMSW", "CLTS", "INVD", "WBINVD", "RDMSR"),
    *("CPUID", "RDPMC", "VERR", "VERW", "LAR", "LSL", "ARPL"),
    *("LDS", "LES", "LFS", "LGS", "LSS", "INSB", "INSW", "INSD", "OUTSB", "OUTSW", "OUTSD"),
    *("MONITOR", "MWAIT", "SALC", "UD2", "XGETBV", "XSETBV", "CLFLUSH", "RDPID"),
    *("FNSTENV", "FLDENV", "FNSAVE", "FRSTOR"),
)


def _system(d: Lowering) -> list[Op]:
    return [d.op("system", 32)]


@lower("INVLPG")
def _invlpg(d: Lowering) -> list[Op]:
    return [*d.before, d.with_operands("invlpg", 8, (0,))]


@lower("RDTSC", "RDTSCP", "WRMSR")
def _direct(d: Lowering) -> list[Op]:
    if d.mode.step:
        return _system(d)
    if d.i.mnemonic == Mnemonic.WRMSR:
        return [d.op("wrmsr", 32)]
    return [d.op("rdtsc", 32, variant=WITH_AUX if d.i.mnemonic == Mnemonic.RDTSCP else 0)]


@lower("IRETQ", "SYSCALL", "SYSRETQ")
def _long_transfer(d: Lowering) -> list[Op]:
    if d.mode.code != 64 or d.mode.careful:
        return _system(d)
    name = {Mnemonic.IRETQ: "iretq", Mnemonic.SYSCALL: "syscall"}.get(d.i.mnemonic, "sysretq")
    return [d.op(name, 64)]


@lower("IRETD", "SYSENTER", "SYSEXIT")
def _flat_transfer(d: Lowering) -> list[Op]:
    if d.mode != FLAT_MODE:
        return _system(d)
    names = {Mnemonic.IRETD: "iretd", Mnemonic.SYSENTER: "sysenter"}
    return [d.op(names.get(d.i.mnemonic, "sysexit"), 32)]


@lower("INT", "IRET")
def _real_transfer(d: Lowering) -> list[Op]:
    """Protected and virtual-8086 mode, in which code may have 16 bits too, are found out later."""
    if d.mode.code != 16 or d.mode.careful:
        return _system(d)
    if d.i.mnemonic == Mnemonic.INT:
        return [d.op("int_real", 16, imm=d.i.immediate(0))]
    return [d.op("iret_real", 16)]


for _name in SYSTEM:
    if hasattr(Mnemonic, _name):
        LOWER[getattr(Mnemonic, _name)] = _system

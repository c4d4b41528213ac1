"""Which integer instruction is which operation (the groups of SDM volume 1, section 5.1):
arithmetic, moves, bits and shifts, conditions, strings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import Mnemonic, OpKind, Register

from vdisk.vm.cpu import flags, operands
from vdisk.vm.cpu.lowering import FAMILIES, LOWER, ZERO, Lowering, lower
from vdisk.vm.cpu.lowering_control import CONDITIONS, FREQUENT_SELECTORS, system
from vdisk.vm.cpu.operands import SEGMENT_BASES, SELECTORS
from vdisk.vm.cpu.semantics.strings import BY_ELEMENT

if TYPE_CHECKING:
    from vdisk.vm.cpu.decode import Pattern
    from vdisk.vm.cpu.lowering import Lower

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

    def _all(d: Lowering, operation: str = _operation) -> list[Pattern]:
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

# -- arithmetic and logic ------------------------------------------------------------------------


@lower("XOR")
def _xor(d: Lowering) -> list[Pattern]:
    if d.look(operands.same_registers):
        return [d.with_operands("zero", d.operand_size(), (0,))]
    return d.all("xor")


@lower("CRC32")
def _crc32(d: Lowering) -> list[Pattern]:
    return d.all("crc32", variant=d.source_size())


@lower("IMUL")
def _imul(d: Lowering) -> list[Pattern]:
    return d.all("imul1" if d.op_count == 1 else "imul")


@lower("CMPXCHG8B", "CMPXCHG16B")
def _cmpxchg_pair(d: Lowering) -> list[Pattern]:
    half = 32 if d.mnemonic == Mnemonic.CMPXCHG8B else 64
    return [*d.before, d.with_operands("cmpxchg_pair", half, (0,))]


@lower("CBW", "CWDE", "CDQE", "CWD", "CDQ", "CQO")
def _sign(d: Lowering) -> list[Pattern]:
    size = {Mnemonic.CBW: 16, Mnemonic.CWD: 16, Mnemonic.CWDE: 32, Mnemonic.CDQ: 32}.get(
        d.mnemonic, 64
    )
    spread = d.mnemonic in (Mnemonic.CWD, Mnemonic.CDQ, Mnemonic.CQO)
    return [d.op("extend_into_rdx" if spread else "extend_accumulator", size)]


@lower("AAM", "AAD")
def _aam(d: Lowering) -> list[Pattern]:
    name = "aam" if d.mnemonic == Mnemonic.AAM else "aad"
    return [d.op(name, 8, imm=operands.IMMEDIATES[0])]


# -- shifts --------------------------------------------------------------------------------------


def _counted(d: Lowering, size: int, indices: tuple[int, ...]) -> list[Pattern]:
    """The last operand is the count: CL, or an immediate."""
    name = _SHIFTS[d.mnemonic]
    if d.kind(indices[-1]) == OpKind.REGISTER:
        return [*d.before, d.with_operands(name, size, indices[:-1], variant=1)]
    op = d.with_operands(name, size, indices)
    if d.look(operands.no_bits(indices[-1], 63 if size == 64 else 31)):
        op.shape = op.shape._replace(operation="touch", operands=op.shape.operands[:1])
    return [*d.before, op]


_SHIFTS = {
    getattr(Mnemonic, name): name.lower()
    for name in ("SHL", "SHR", "SAR", "ROL", "ROR", "RCL", "RCR", "SHLD", "SHRD")
}
_SHIFTS[Mnemonic.SAL] = "shl"


@lower("SHL", "SAL", "SHR", "SAR", "ROL", "ROR", "RCL", "RCR")
def _shift(d: Lowering) -> list[Pattern]:
    return _counted(d, d.operand_size(), (0, 1))


@lower("SHLD", "SHRD")
def _double_shift(d: Lowering) -> list[Pattern]:
    return _counted(d, d.operand_size(), (0, 1, 2))


# -- moves ---------------------------------------------------------------------------------------

CONTROL_READ: dict[int, int] = {Register.CR0: 0, Register.CR2: 2, Register.CR3: 3, Register.CR4: 4}


@lower("MOV")
def _mov(d: Lowering) -> list[Pattern]:
    registers = [d.register(0), d.register(1)]
    if any(Register.CR0 <= r <= Register.TR7 for r in registers):
        return _move_special(d, registers)
    if registers[0] in FREQUENT_SELECTORS:
        op = d.with_operands("load_selector", 16, (1,))
        op.imm = SEGMENT_BASES[registers[0]]
        return [*d.before, op]
    if registers[0] in SELECTORS:
        return system(d)
    if registers[1] in SELECTORS:
        size = 16 if d.kind(0) != OpKind.REGISTER else d.operand_size()
        return [*d.before, d.with_operands("move_selector", size, (0, 1))]
    if d.kind(1) == OpKind.IMMEDIATE64:
        op = d.with_operands("mov_wide", 64, (0,))
        op.wide = operands.wide_immediate
        return [op]
    return d.all("mov")


def _move_special(d: Lowering, registers: list[int]) -> list[Pattern]:
    """Reading a control register and loading CR3 are frequent; the rest is not."""
    size = 64 if d.mode.code == 64 else 32
    if registers[1] in CONTROL_READ:
        return [d.with_operands("read_control", size, (0,), variant=CONTROL_READ[registers[1]])]
    if registers[0] == Register.CR3:
        return [d.with_operands("write_cr3", size, (1,))]
    return system(d)


@lower("XCHG")
def _xchg(d: Lowering) -> list[Pattern]:
    """With memory it is atomic, LOCK or not."""
    ops = d.all("xchg")
    if "m" in ops[-1].shape.operands:
        ops[-1].shape = ops[-1].shape._replace(lock=True)
    return ops


@lower("MOVZX", "MOVSX", "MOVSXD")
def _extend(d: Lowering) -> list[Pattern]:
    operation = "movzx" if d.mnemonic == Mnemonic.MOVZX else "movsx"
    return d.all(operation, variant=d.source_size())


_RBX = operands.REGISTERS[Register.RBX]


@lower("XLATB")
def _xlat(d: Lowering) -> list[Pattern]:
    segment, suffix = d.segment()
    op = d.op("xlat", 8, address=f"{d.address_width()}{suffix}", base=_RBX, index=ZERO)
    op.segment = segment
    return [op]


# -- conditions ----------------------------------------------------------------------------------

for _code, _condition in enumerate(CONDITIONS):

    def _set(d: Lowering, code: int = _code) -> list[Pattern]:
        return d.all("setcc", variant=code)

    def _cmov(d: Lowering, code: int = _code) -> list[Pattern]:
        return d.all("cmovcc", variant=code)

    LOWER[getattr(Mnemonic, f"SET{_condition}")] = _set
    LOWER[getattr(Mnemonic, f"CMOV{_condition}")] = _cmov

# -- strings -------------------------------------------------------------------------------------

_STRING_OF = {
    getattr(Mnemonic, f"{name}{suffix}"): (name.lower(), size)
    for name in ("MOVS", "STOS", "LODS", "SCAS", "CMPS")
    for suffix, size in zip("BWDQ", (8, 16, 32, 64), strict=True)
}
_STRING_ADDRESS = {
    getattr(OpKind, f"MEMORY_{prefix}{name}"): width
    for prefix in ("SEG_", "ES")
    for name, width in (
        *(("SI", 16), ("ESI", 32), ("RSI", 64), ("DI", 16), ("EDI", 32), ("RDI", 64)),
    )
    if hasattr(OpKind, f"MEMORY_{prefix}{name}")
}
SSE_NAMESAKES: dict[int, Lower] = {}
"""MOVSD and CMPSD as SSE2 knows them; filled in where those are."""


def _string(d: Lowering) -> list[Pattern]:
    operation, size = _STRING_OF[d.mnemonic]
    width = next((_STRING_ADDRESS[kind] for kind in d.kinds() if kind in _STRING_ADDRESS), None)
    if width is None:  # MOVSD and CMPSD of SSE2 share the mnemonic
        return SSE_NAMESAKES[d.mnemonic](d)
    repeat = 1 if d.look(operands.REP) else 2 if d.look(operands.REPNE) else 0
    if repeat and d.mode.careful:
        repeat |= BY_ELEMENT
    segment, suffix = d.segment()
    op = d.op(operation, size, variant=repeat, address=f"{width}{suffix}")
    op.segment = segment
    return [op]


for _mnemonic in _STRING_OF:
    LOWER[_mnemonic] = _string

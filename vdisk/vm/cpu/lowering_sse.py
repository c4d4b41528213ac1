"""Which SSE and MMX mnemonic is which operation (the groups of SDM volume 1, sections 5.4-5.12)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import Mnemonic, OpKind

from vdisk.vm.cpu.lowering import LOWER, Lowering
from vdisk.vm.cpu.lowering import lower as on
from vdisk.vm.cpu.lowering_integer import SSE_NAMESAKES
from vdisk.vm.cpu.operands import MMX, XMM
from vdisk.vm.cpu.semantics.sse import UNALIGNED, define, variant_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from vdisk.vm.cpu.decode import Pattern
    from vdisk.vm.cpu.lowering import Lower


def words(text: str) -> list[str]:
    return text.split()


PACKED_FLOAT = words(
    "ADDPS ADDPD SUBPS SUBPD MULPS MULPD DIVPS DIVPD SQRTPS SQRTPD MINPS MINPD MAXPS MAXPD "
    "ADDSUBPS ADDSUBPD HADDPS HADDPD HSUBPS HSUBPD CMPPS CMPPD DPPS DPPD ROUNDPS ROUNDPD "
    "CVTDQ2PS CVTPS2DQ CVTTPS2DQ CVTPD2DQ CVTTPD2DQ CVTPD2PS CVTPS2PD"
)
SCALAR_FLOAT = words(
    "ADDSS ADDSD SUBSS SUBSD MULSS MULSD DIVSS DIVSD SQRTSS SQRTSD MINSS MINSD MAXSS MAXSD "
    "CMPSS ROUNDSS ROUNDSD CVTSS2SD CVTSD2SS"
)
EXACT = words(
    "ANDPS ANDPD ANDNPS ANDNPD ORPS ORPD XORPS XORPD SHUFPS SHUFPD UNPCKLPS UNPCKHPS UNPCKLPD "
    "UNPCKHPD BLENDPS BLENDPD RCPPS RCPSS RSQRTPS RSQRTSS MOVSHDUP MOVSLDUP MOVDDUP INSERTPS "
    "CVTDQ2PD PHMINPOSUW PACKUSDW PBLENDW PCMPEQQ PCMPGTQ PMULDQ PMULLD PMAXSB PMAXSD PMAXUD "
    "PMAXUW PMINSB PMINSD PMINUD PMINUW MPSADBW PMOVSXBW PMOVSXBD PMOVSXBQ PMOVSXWD PMOVSXWQ "
    "PMOVSXDQ PMOVZXBW PMOVZXBD PMOVZXBQ PMOVZXWD PMOVZXWQ PMOVZXDQ AESENC AESENCLAST AESDEC "
    "AESDECLAST AESIMC AESKEYGENASSIST PCLMULQDQ PSHUFD PSHUFLW PSHUFHW PSLLDQ PSRLDQ "
    "PUNPCKLQDQ PUNPCKHQDQ"
)
LANEWISE = words(
    "PADDB PADDW PADDD PADDQ PADDSB PADDSW PADDUSB PADDUSW PSUBB PSUBW PSUBD PSUBQ PSUBSB "
    "PSUBSW PSUBUSB PSUBUSW PAND PANDN POR PXOR PAVGB PAVGW PCMPEQB PCMPEQW PCMPEQD PCMPGTB "
    "PCMPGTW PCMPGTD PMADDWD PMAXSW PMAXUB PMINSW PMINUB PMULHUW PMULHW PMULLW PMULUDQ PSADBW "
    "PSLLW PSLLD PSLLQ PSRAW PSRAD PSRLW PSRLD PSRLQ PABSB PABSW PABSD PMADDUBSW PMULHRSW PSIGNB "
    "PSIGNW PSIGND PUNPCKLBW PUNPCKLWD PUNPCKLDQ"
)
JOINED = words("PACKSSWB PACKSSDW PACKUSWB PHADDW PHADDD PHADDSW PHSUBW PHSUBD PHSUBSW")
HIGH = words("PUNPCKHBW PUNPCKHWD PUNPCKHDQ")
PARTLY = {
    "RCPSS": 32, "RSQRTSS": 32, "INSERTPS": 32, "MOVDDUP": 64, "CVTDQ2PD": 64, "CVTPS2PD": 64,
    **{f"PMOV{s}X{kind}": size for s in "SZ" for kind, size in
       (("BW", 64), ("WD", 64), ("DQ", 64), ("BD", 32), ("WQ", 32), ("BQ", 16))},
}  # fmt: skip
"""Instructions that read less than 16 bytes of memory, and how many bits."""


OTHERS = words(
    "PSHUFB PALIGNR CMPSD COMISS UCOMISS COMISD UCOMISD PTEST PCMPESTRI PCMPESTRM PCMPISTRI "
    "PCMPISTRM PBLENDVB BLENDVPS BLENDVPD CVTSS2SI CVTTSS2SI CVTSD2SI CVTTSD2SI MOVMSKPS "
    "MOVMSKPD PMOVMSKB CVTSI2SS CVTSI2SD"
)
define(
    name.lower()
    for name in (*PACKED_FLOAT, *SCALAR_FLOAT, *EXACT, *LANEWISE, *JOINED, *HIGH, *OTHERS)
)


def _is(d: Lowering, index: int, registers: Container[int]) -> bool:
    return d.register(index) in registers


def _immediate(d: Lowering) -> int | None:
    """The immediate byte that is a last operand."""
    last = d.op_count - 1
    return d.immediate(last) if d.kind(last) == OpKind.IMMEDIATE8 else None


def _two(d: Lowering, operation: str, size: int, name: str, immediate: int | None) -> list[Pattern]:
    op = d.with_operands(operation, size, (0, 1), variant=variant_of(name, immediate))
    return [*d.before, op]


def _memory_bits(d: Lowering, otherwise: int) -> int:
    return d.memory_size if d.has_memory() else otherwise


def _register(names: list[str], make: Callable[[str], Lower]) -> None:
    for name in names:
        LOWER[getattr(Mnemonic, name)] = make(name)


def _packed(operation: str, size: int = 128) -> Callable[[str], Lower]:
    def make(name: str) -> Lower:
        lower, width = name.lower(), PARTLY.get(name, size)

        def function(d: Lowering) -> list[Pattern]:
            if d.kind(1) == OpKind.IMMEDIATE8:  # PSLLDQ and its kin: one register
                op = d.with_operands(
                    "sse_shift", 128, (0,), variant=variant_of(lower, d.immediate(1))
                )
                return [op]
            immediate = _immediate(d)
            if lower == "insertps" and d.kind(1) == OpKind.MEMORY:
                immediate = (immediate or 0) & 0x3F  # memory has one element
            return _two(d, operation, width, lower, immediate)

        return function

    return make


def _scalar(name: str) -> Lower:
    size = 32 if name in {"CVTSS2SD"} or (name.endswith("SS") and name != "CVTSD2SS") else 64

    def function(d: Lowering) -> list[Pattern]:
        return _two(d, "sse_float", size, name.lower(), _immediate(d))

    return function


def _either(operation: str) -> Callable[[str], Lower]:
    """XMM by SSE, MMX by ``operation``."""

    def make(name: str) -> Lower:
        lower = name.lower()

        def function(d: Lowering) -> list[Pattern]:
            narrow = _is(d, 0, MMX)
            if d.kind(1) == OpKind.IMMEDIATE8:
                how = "mmx_shift" if narrow else "sse_shift"
                return [d.with_operands(how, 64, (0,), variant=variant_of(lower, d.immediate(1)))]
            if narrow:
                return _two(d, operation, _memory_bits(d, 64), lower, _immediate(d))
            return _two(d, "sse", 128, lower, _immediate(d))

        return function

    return make


_register(PACKED_FLOAT, _packed("sse_float"))
_register(EXACT, _packed("sse"))
_register(SCALAR_FLOAT, _scalar)
_register(LANEWISE, _either("mmx"))
_register(JOINED, _either("mmx_joined"))
_register(HIGH, _either("mmx_high"))
_register(["PSHUFB"], _either("mmx_pshufb"))
_register(["PALIGNR"], _either("mmx_palignr"))


SSE_NAMESAKES[Mnemonic.CMPSD] = lambda d: _two(d, "sse_float", 64, "cmpsd", _immediate(d))
SSE_NAMESAKES[Mnemonic.MOVSD] = lambda d: _scalar_move(d, 64)


def _scalar_move(d: Lowering, size: int) -> list[Pattern]:
    return [*d.before, d.with_operands("sse_move_scalar", size, (0, 1))]


@on("MOVSS")
def _movss(d: Lowering) -> list[Pattern]:
    return _scalar_move(d, 32)


@on("MOVAPS", "MOVAPD", "MOVDQA", "MOVNTPS", "MOVNTPD", "MOVNTDQ", "MOVNTDQA")
def _aligned(d: Lowering) -> list[Pattern]:
    return [*d.before, d.with_operands("sse_move", 128, (0, 1))]


@on("MOVUPS", "MOVUPD", "MOVDQU", "LDDQU")
def _unaligned(d: Lowering) -> list[Pattern]:
    return [*d.before, d.with_operands("sse_move", 128, (0, 1), variant=UNALIGNED)]


@on("MOVD", "MOVQ")
def _movd(d: Lowering) -> list[Pattern]:
    size = 32 if d.mnemonic == Mnemonic.MOVD else 64
    if _is(d, 0, MMX) or _is(d, 1, MMX):
        operation = "mmx_move"
    else:
        operation = "sse_move_out" if _is(d, 1, XMM) else "sse_move_zero"
    return [*d.before, d.with_operands(operation, size, (0, 1))]


@on("MOVNTQ")
def _movntq(d: Lowering) -> list[Pattern]:
    return [*d.before, d.with_operands("mmx_move", 64, (0, 1))]


@on("MOVNTI")
def _movnti(d: Lowering) -> list[Pattern]:
    return d.all("mov")


@on("MOVDQ2Q", "MOVQ2DQ")
def _between(d: Lowering) -> list[Pattern]:
    to_mmx = d.mnemonic == Mnemonic.MOVDQ2Q
    return [d.with_operands("mmx_from_xmm" if to_mmx else "mmx_to_xmm", 64, (0, 1))]


_HALVES = {"MOVLPS": 0, "MOVLPD": 0, "MOVHPS": 1, "MOVHPD": 1, "MOVHLPS": 2, "MOVLHPS": 1}
for _half_name, _half in _HALVES.items():

    def _move_half(d: Lowering, which: int = _half) -> list[Pattern]:
        return [*d.before, d.with_operands("sse_move_half", 64, (0, 1), variant=which)]

    LOWER[getattr(Mnemonic, _half_name)] = _move_half


@on("COMISS", "UCOMISS", "COMISD", "UCOMISD", "PTEST")
def _compare(d: Lowering) -> list[Pattern]:
    name = _MNEMONICS[d.mnemonic]
    size = 128 if name == "ptest" else 32 if name.endswith("ss") else 64
    return _two(d, "sse_flags", size, name, None)


@on("PCMPESTRI", "PCMPESTRM", "PCMPISTRI", "PCMPISTRM", "PCMPESTRI64", "PCMPESTRM64")
def _string(d: Lowering) -> list[Pattern]:
    name = _MNEMONICS[d.mnemonic].removesuffix("64")
    size = 64 if d.mnemonic in (Mnemonic.PCMPESTRI64, Mnemonic.PCMPESTRM64) else 32
    return _two(d, "sse_string", size, name, _immediate(d))


@on("PBLENDVB", "BLENDVPS", "BLENDVPD")
def _blend(d: Lowering) -> list[Pattern]:
    return _two(d, "sse_blend", 128, _MNEMONICS[d.mnemonic], None)


@on("CVTSS2SI", "CVTTSS2SI", "CVTSD2SI", "CVTTSD2SI", "MOVMSKPS", "MOVMSKPD")
def _to_register(d: Lowering) -> list[Pattern]:
    return _two(d, "sse_to_register", d.operand_size(), _MNEMONICS[d.mnemonic], None)


@on("PMOVMSKB")
def _mask(d: Lowering) -> list[Pattern]:
    if _is(d, 1, MMX):
        return [d.with_operands("mmx_mask", d.operand_size(), (0, 1))]
    return _to_register(d)


@on("CVTSI2SS", "CVTSI2SD")
def _from_register(d: Lowering) -> list[Pattern]:
    return _two(d, "sse_from_register", d.source_size(), _MNEMONICS[d.mnemonic], None)


@on("CVTPI2PS", "CVTPI2PD")
def _convert_in(d: Lowering) -> list[Pattern]:
    name = "cvtdq2ps" if d.mnemonic == Mnemonic.CVTPI2PS else "cvtdq2pd"
    return _two(d, "mmx_convert_in", 64, name, None)


_OUT = {
    "CVTPS2PI": ("cvtps2dq", 64),
    "CVTTPS2PI": ("cvttps2dq", 64),
    "CVTPD2PI": ("cvtpd2dq", 128),
    "CVTTPD2PI": ("cvttpd2dq", 128),
}
for _out_name, (_sse_name, _out_size) in _OUT.items():

    def _convert_out(d: Lowering, name: str = _sse_name, size: int = _out_size) -> list[Pattern]:
        return _two(d, "mmx_convert_out", size, name, None)

    LOWER[getattr(Mnemonic, _out_name)] = _convert_out


def _element(operation: str, width: int) -> Lower:
    def function(d: Lowering) -> list[Pattern]:
        size = width if d.kind(0) == OpKind.MEMORY else d.operand_size()
        if _is(d, 0, XMM):
            size = width
        return [*d.before, d.with_operands(operation, size, (0, 1, 2), variant=width)]

    return function


for _width, _suffix in ((8, "B"), (32, "D"), (64, "Q")):
    LOWER[getattr(Mnemonic, f"PEXTR{_suffix}")] = _element("sse_extract", _width)
    LOWER[getattr(Mnemonic, f"PINSR{_suffix}")] = _element("sse_insert", _width)
LOWER[Mnemonic.EXTRACTPS] = _element("sse_extract", 32)


@on("PEXTRW")
def _pextrw(d: Lowering) -> list[Pattern]:
    if _is(d, 1, MMX):
        return [d.with_operands("mmx_extract", d.operand_size(), (0, 1, 2))]
    return _element("sse_extract", 16)(d)


@on("PINSRW")
def _pinsrw(d: Lowering) -> list[Pattern]:
    if _is(d, 0, MMX):
        return [*d.before, d.with_operands("mmx_insert", 16, (0, 1, 2))]
    return _element("sse_insert", 16)(d)


@on("PSHUFW")
def _pshufw(d: Lowering) -> list[Pattern]:
    return _two(d, "mmx", 64, "pshuflw", _immediate(d))


@on("MASKMOVDQU", "MASKMOVQ")
def _masked(d: Lowering) -> list[Pattern]:
    width = 128 if d.mnemonic == Mnemonic.MASKMOVDQU else 64
    kind = {OpKind.MEMORY_SEG_DI: 16, OpKind.MEMORY_SEG_EDI: 32}.get(d.kind(0), 64)
    op = d.with_operands("sse_masked_store", 8, (1, 2), variant=width)
    segment, suffix = d.segment()
    op.segment = segment
    op.shape = op.shape._replace(address=f"{kind}{suffix}")
    return [op]


@on("EMMS")
def _emms(d: Lowering) -> list[Pattern]:
    return [d.op("emms", 32)]


_MNEMONICS = {
    value: name.lower() for name, value in vars(Mnemonic).items() if isinstance(value, int)
}

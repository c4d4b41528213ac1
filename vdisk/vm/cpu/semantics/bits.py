"""Single bits and bit counts (SDM volume 2: BT…, BSF, BSR, POPCNT, LZCNT, TZCNT; BMI1, BMI2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.context import Context, semantic

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value


def _changed(operation: str, old: Value, bit: Value) -> Value:
    if operation == "bts":
        return old | bit
    return old & ~bit if operation == "btr" else old ^ bit


@semantic("bt", "bts", "btr", "btc")
def bit_test(c: Context) -> None:
    """A register as bit number reaches beyond a memory operand; an immediate does not."""
    operation = c.shape.operation
    number = c.read(1)
    inside = number & (c.size - 1)
    bit = c.const(1) << inside
    if c.kind(0) == "m" and c.kind(1) == "r":
        step = number.sext("i64").ashr({16: 4, 32: 5, 64: 6}[c.size]) * (c.size // 8)
        width = int(c.shape.address[:2])
        offset = (c.offset() + step) & ((1 << width) - 1)
        c._linear = c.segmented(offset, c.size // 8, operation != "bt")
    if operation == "bt":
        old = c.read(0)
    else:
        old, _ = c.modify(0, lambda old: _changed(operation, old, bit))
    c.set_flags(CF=(old >> inside).trunc("i1"))


@semantic("bsf", "bsr")
def bit_scan(c: Context) -> None:
    """The destination keeps its value where the source is zero (as AMD's manual says)."""
    b, source = c.b, c.read(1)
    if c.shape.operation == "bsf":
        index = b.unary("cttz", source)
    else:
        index = c.const(c.size - 1) - b.unary("ctlz", source)
    with b.if_(source.ne(0)):
        c.write(0, index)
    c.set_flags(ZF=source.eq(0))


@semantic("tzcnt", "lzcnt")
def count_zeroes(c: Context) -> None:
    source = c.read(1)
    result = c.b.unary("cttz" if c.shape.operation == "tzcnt" else "ctlz", source)
    c.write(0, result)
    c.set_flags(CF=source.eq(0), ZF=result.eq(0))


@semantic("popcnt")
def popcnt(c: Context) -> None:
    source = c.read(1)
    c.write(0, c.b.unary("ctpop", source))
    false = c.const(0, "i1")
    c.set_flags(CF=false, PF=false, AF=false, ZF=source.eq(0), SF=false, OF=false)


@semantic("andn")
def andn(c: Context) -> None:
    result = ~c.read(1) & c.read(2)
    c.write(0, result)
    c.bits(result)


@semantic("bextr")
def bextr(c: Context) -> None:
    b, control = c.b, c.read(2)
    start, length = control & 0xFF, (control >> 8) & 0xFF
    source = c.read(1)
    moved = b.select(start.ult(c.size), source >> (start & (c.size - 1)), c.const(0))
    kept = (c.const(1) << (length & (c.size - 1))) - 1
    result = b.select(length.ult(c.size), moved & kept, moved)
    c.write(0, result)
    c.bits(result)


@semantic("blsi", "blsr", "blsmsk")
def lowest_bit(c: Context) -> None:
    source = c.read(1)
    if c.shape.operation == "blsi":
        result, carry = source & -source, source.ne(0)
    elif c.shape.operation == "blsr":
        result, carry = source & (source - 1), source.eq(0)
    else:
        result, carry = source ^ (source - 1), source.eq(0)
    c.write(0, result)
    c.bits(result, carry)


@semantic("bzhi")
def bzhi(c: Context) -> None:
    b, source = c.b, c.read(1)
    index = c.read(2) & 0xFF
    kept = source & ((c.const(1) << (index & (c.size - 1))) - 1)
    result = b.select(index.ult(c.size), kept, source)
    c.write(0, result)
    c.bits(result, index.ugt(c.size - 1))


@semantic("pdep", "pext")
def scatter_or_gather(c: Context) -> None:
    """A bit of the mask a round, from the lowest up."""
    b, deposit = c.b, c.shape.operation == "pdep"
    source, rest = c.read(1), b.variable(c.type, c.read(2))
    result, number = b.variable(c.type), b.variable(c.type, 1)
    with b.loop():
        mask = rest.get()
        b.break_if(mask.eq(0))
        lowest, bit = mask & -mask, number.get()
        tested, target = (bit, lowest) if deposit else (lowest, bit)
        with b.if_((source & tested).ne(0)):
            result.set(result.get() | target)
        rest.set(mask ^ lowest)
        number.set(bit << 1)
    c.write(0, result.get())


@semantic("adcx", "adox")
def add_with_one_flag(c: Context) -> None:
    """ADX: an addition whose carry is CF or OF alone."""
    overflow = c.shape.operation == "adox"
    word = c.arithmetic_flags()
    carry = (word.bit(11) if overflow else word.bit(0)).zext("i128")
    total = c.read(0).zext("i128") + c.read(1).zext("i128") + carry
    c.write(0, total.trunc(c.type))
    out = (total >> c.size).trunc("i1")
    if overflow:
        c.set_flags(OF=out)
    else:
        c.set_flags(CF=out)


@semantic("crc32")
def crc32(c: Context) -> None:
    """CRC-32C of one operand (variant: its width), bit by bit: polynomial 11EDC6F41h reflected."""
    b, width = c.b, c.shape.variant
    crc = b.variable("i64", c.read(0).zext("i64") & 0xFFFF_FFFF)
    crc.set(crc.get() ^ c.read(1, width).zext("i64"))
    rounds = b.variable("i64", width)
    with b.loop():
        value = crc.get()
        step = b.select(value.trunc("i1"), 0x82F6_3B78, b.const("i64", 0))
        crc.set((value >> 1) ^ step)
        rounds.set(rounds.get() - 1)
        b.break_if(rounds.get().eq(0))
    c.write(0, crc.get().trunc(c.type))

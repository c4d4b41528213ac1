"""What every switch between tasks does: FXSAVE, FXRSTOR, LDMXCSR, STMXCSR (SDM volume 1, 10.5).

The 512-byte area, in 8-byte words::

    0   FCW, FSW, abridged tag, opcode     4-19   ST(0) … ST(7), 16 bytes each
    1   instruction pointer                20-51  XMM0 … XMM15 (XMM7 outside 64-bit mode)
    2   data pointer
    3   MXCSR, its mask
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.semantics.sse import align, available
from vdisk.vm.cpu.semantics.x87_host import in_state
from vdisk.vm.cpu.semantics.x87_stack import Fpu, set_status
from vdisk.vm.cpu.state import FIELDS

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value

AREA = 512
MXCSR_MASK = 0xFFFF
XMM0 = FIELDS["xmm0"].offset
CR4_OSFXSR = 1 << 9


def _area(c: Context, *, write: bool) -> Value:
    """Where it is; a page fault is the last byte's, if that has one."""
    linear = c.segmented(c.offset(), AREA, write)
    align(c, linear)
    last = c.wrap(linear + (AREA - 1))
    if write:
        c.check_write(last, 1)
        c.check_write(linear, AREA)
    else:
        c.load(last, "i8")
    return linear


def _abridged(c: Context) -> Value:
    """A bit for each physical register that is not empty."""
    tag, total = c.b.get("fpu_tag"), c.b.const("i32", 0)
    for number in range(8):
        used = ((tag >> 2 * number) & 3).ne(3)
        total = total | (used.zext("i32") << number)
    return total


@semantic("fxsave")
def fxsave(c: Context) -> None:
    in_state(c)
    fpu, b = Fpu(c, waits=False), c.b
    linear = _area(c, write=True)
    status = (b.get("fpu_status") & ~0x3800) | (b.get("fpu_top") << 11)
    low = (b.get("fpu_control") & 0xFFFF) | (status << 16)
    high = _abridged(c) | (b.get("fpu_opcode") << 16)
    mxcsr = b.call("read_mxcsr").zext("i64") | (MXCSR_MASK << 32)
    head = (low.zext("i64") | (high.zext("i64") << 32), b.get("fpu_ip"), b.get("fpu_dp"), mxcsr)
    for place, value in enumerate(head):
        c.store(c.wrap(linear + 8 * place), value)
    for number in range(8):
        c.store(c.wrap(linear + 32 + 16 * number), fpu.read(number))
    for number in range(16 if c.shape.code == 64 else 8):
        value = b.load_state(XMM0 + 16 * number, "i128")
        c.store(c.wrap(linear + 160 + 16 * number), value)


@semantic("fxrstor")
def fxrstor(c: Context) -> None:
    """Everything is read before anything is changed."""
    in_state(c)
    fpu, b = Fpu(c, waits=False), c.b
    linear = _area(c, write=False)
    head = [c.load(c.wrap(linear + 8 * place), "i64") for place in range(4)]
    registers = [c.load(c.wrap(linear + 32 + 16 * number), "i128") for number in range(8)]
    count = 16 if c.shape.code == 64 else 8
    vectors = [c.load(c.wrap(linear + 160 + 16 * number), "i128") for number in range(count)]
    with_sse = (b.get("cr4") & CR4_OSFXSR).ne(0)
    mxcsr = head[3].trunc("i32")
    with b.if_(with_sse & (mxcsr & ~MXCSR_MASK).ne(0), unlikely=True):
        c.raise_(faults.GP)
    status = (head[0] >> 16).trunc("i32") & 0xFFFF
    control = (head[0].trunc("i32") & 0x1F7F) | 0x40
    b.set("fpu_control", control)
    set_status(b, status & ~0x3800, control)
    b.set("fpu_top", (status >> 11) & 7)
    b.set("fpu_opcode", (head[0] >> 48).trunc("i32") & 0x7FF)
    b.set("fpu_ip", head[1])
    b.set("fpu_dp", head[2])
    abridged = (head[0] >> 32).trunc("i32")
    tag = b.const("i32", 0)
    for number in range(8):
        empty = (~(abridged >> number) & 1) * 3
        tag = tag | (empty << 2 * number)
    b.set("fpu_tag", tag)
    for number, value in enumerate(registers):
        b.store_state(fpu.offset(number), value & ((1 << 80) - 1))
    with b.if_(with_sse):
        b.call("write_mxcsr", mxcsr)
        for number, value in enumerate(vectors):
            b.store_state(XMM0 + 16 * number, value)


@semantic("ldmxcsr")
def ldmxcsr(c: Context) -> None:
    available(c)
    value = c.load(c.linear(32), "i32")
    with c.b.if_((value & ~MXCSR_MASK).ne(0), unlikely=True):
        c.raise_(faults.GP)
    c.b.call("write_mxcsr", value)


@semantic("stmxcsr")
def stmxcsr(c: Context) -> None:
    available(c)
    c.store(c.linear(32, write=True), c.b.call("read_mxcsr"))

"""Jumps, calls, loops and the stack (SDM volume 1, chapter 6 and section 7.3.8).

Near transfers only; far ones are system instructions.  A direct jump within the page follows the
record's link; any other goes through the TLB's code entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.faults import GP
from vdisk.vm.cpu.semantics.integer import RAX, RBP, RCX, RSP

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value


def next_rip(c: Context) -> Value:
    """The instruction pointer behind this instruction (what CALL pushes), ``i64``."""
    b = c.b
    linear = b.get("code_page") + b.param("off") + b.param("len")
    if c.shape.code != 64:
        linear = linear - b.get("cs_base")
    return linear


def check_target(c: Context, rip: Value) -> None:
    """#GP(0) where an instruction pointer is not canonical, or outside CS's limit."""
    b = c.b
    if c.shape.code == 64:
        wrong = ((rip + (1 << 47)) >> 48).ne(0)
    else:
        wrong = rip.ugt(b.get("cs_limit").zext("i64"))
    with b.if_(wrong, unlikely=True):
        c.raise_(GP)


def jump_to(c: Context, rip: Value) -> None:
    """Go to an instruction pointer that was checked."""
    c.b.goto(rip if c.shape.code == 64 else (rip + c.b.get("cs_base")) & 0xFFFF_FFFF)


def target(c: Context) -> Value:
    """Where a direct jump leads: ``wide`` is relative to the next instruction."""
    relative = next_rip(c) + c.b.param("wide")
    return relative if c.size == 64 else relative & ((1 << c.size) - 1)


def take(c: Context) -> None:
    """The branch of a direct jump."""
    if c.shape.variant >> 8:
        c.b.follow()
        return
    rip = target(c)
    if c.shape.code != 64:  # the canonical border is found when code is fetched behind it
        check_target(c, rip)
    jump_to(c, rip)


@semantic("jmp", ends=True)
def jmp(c: Context) -> None:
    """Direct; variant bit 8: linked within the page."""
    take(c)


@semantic("jcc", ends=True)
def jcc(c: Context) -> None:
    """Variant: the condition, and bit 8 where the target is linked.  The next record is a jump."""
    with c.b.if_(c.condition(c.shape.variant & 15)):
        take(c)
    c.b.next()


@semantic("loop", "loope", "loopne", "jcxz", ends=True)
def loop(c: Context) -> None:
    """Counts in CX, ECX or RCX by the width of addresses."""
    b, operation = c.b, c.shape.operation
    kind = f"i{c.shape.address[:2]}"
    count = c.gpr(RCX, kind)
    if operation == "jcxz":
        taken = count.eq(0)
    else:
        count = count - 1
        taken = count.ne(0)
        if operation != "loop":
            equal = c.condition(4)
            taken = taken & (equal if operation == "loope" else ~equal)
        c.set_gpr(RCX, count)
    with b.if_(taken):
        take(c)
    b.next()


@semantic("jmp_indirect", ends=True)
def jmp_indirect(c: Context) -> None:
    where = c.read(0).zext("i64")
    check_target(c, where)
    jump_to(c, where)


@semantic("call", ends=True)
def call(c: Context) -> None:
    c.push(next_rip(c).to(c.type))
    take(c)


@semantic("call_indirect", ends=True)
def call_indirect(c: Context) -> None:
    where = c.read(0).zext("i64")
    check_target(c, where)
    c.push(next_rip(c).to(c.type))
    jump_to(c, where)


@semantic("ret", ends=True)
def ret(c: Context) -> None:
    """Operand: how many bytes of arguments to drop."""
    where = c.peek(c.type).zext("i64")
    check_target(c, where)
    c.drop((c.b.param("imm") & 0xFFFF) + c.size // 8 if c.shape.operands else c.size // 8)
    jump_to(c, where)


@semantic("block_end", ends=True)
def block_end(c: Context) -> None:
    """What follows a block that reached its limit: go on at the record's own address."""
    b = c.b
    linear = b.get("code_page") + b.param("off")
    b.goto(linear if c.shape.code == 64 else linear & 0xFFFF_FFFF)


# -- stack -------------------------------------------------------------------------------------


@semantic("push")
def push(c: Context) -> None:
    c.push(c.read(0))


@semantic("push_selector")
def push_selector(c: Context) -> None:
    """A segment register; only its 16 bits are written where the operand is wider."""
    value = c.b.load_state(c.b.param("r0"), "i16")
    size = c.size // 8
    top = c.stack_pointer() - size
    if c.size == 64:
        c.store(c.stack_linear(top, size, write=True), value.zext("i64"))
    else:
        c.store(c.stack_linear(top, 2, write=True), value)
    c.set_stack_pointer(top)


@semantic("pop")
def pop(c: Context) -> None:
    """An address that uses RSP is formed with its value after the pop; a fault restores it."""
    b, value = c.b, c.peek(c.type)
    if c.kind(0) != "m":
        c.drop(c.size // 8)
        c.write(0, value)
        return
    before = b.load_state(8 * RSP, "i64")
    c.drop(c.size // 8)
    linear = c.offset()
    after = b.load_state(8 * RSP, "i64")
    b.store_state(8 * RSP, before)
    c._linear = c.segmented(linear, c.size // 8, write=True)
    c.write(0, value)
    b.store_state(8 * RSP, after)


@semantic("pusha")
def pusha(c: Context) -> None:
    """All eight are checked, in order, before the first is written."""
    size, top = c.size // 8, c.stack_pointer()
    places = [c.stack_linear(top - (n + 1) * size, size, write=True) for n in range(8)]
    for where in places:
        c.check_write(where, size)
    for place, where in enumerate(places):
        c.store(where, c.gpr(place))
    c.set_stack_pointer(top - 8 * size)


@semantic("popa")
def popa(c: Context) -> None:
    size = c.size // 8
    values = [c.peek(c.type, place * size) for place in range(8)]
    for place, value in enumerate(values):
        if 7 - place != RSP:
            c.b.store_state(8 * (7 - place), value)
    c.drop(8 * size)


@semantic("leave")
def leave(c: Context) -> None:
    frame = c.b.load_state(8 * RBP, f"i{abs(c.shape.stack)}").zext("i64")
    value = c.load(c.stack_linear(frame, c.size // 8, write=False), c.type)
    c.set_stack_pointer(frame + c.size // 8)
    c.set_gpr(RBP, value)


@semantic("enter")
def enter(c: Context) -> None:
    """ENTER size, level: imm holds the size, disp the nesting level (SDM volume 2)."""
    b, size = c.b, c.size // 8
    level = b.param("disp") & 31
    top = b.variable("i64", c.stack_pointer() - size)
    c.store(c.stack_linear(top.get(), size, write=True), c.gpr(RBP))
    frame = top.get()
    if abs(c.shape.stack) == 16:  # FrameTemp is ESP: only what moves it is 16 bits wide
        frame = (b.load_state(8 * RSP, "i64") & ~0xFFFF) | (frame & 0xFFFF)
    with b.if_(level.ne(0)):
        done, display = b.variable("i64", 1), b.variable("i64", _frame_pointer(c))
        with b.loop():
            b.break_if(done.get().uge(level))
            display.set(display.get() - size)
            value = c.load(c.stack_linear(display.get(), size, write=False), c.type)
            top.set(top.get() - size)
            c.store(c.stack_linear(top.get(), size, write=True), value)
            done.set(done.get() + 1)
        top.set(top.get() - size)
        c.store(c.stack_linear(top.get(), size, write=True), frame.trunc(c.type))
    lowest = top.get() - (b.param("imm") & 0xFFFF)
    c.check_write(c.stack_linear(lowest, size, write=True), size)
    c.set_gpr(RBP, frame.trunc(c.type))
    c.set_stack_pointer(lowest)


def _frame_pointer(c: Context) -> Value:
    return c.b.load_state(8 * RBP, f"i{abs(c.shape.stack)}").zext("i64")


@semantic("bound")
def bound(c: Context) -> None:
    """#BR where the index is outside the two signed bounds in memory."""
    index = c.read(0)
    lower = c.load(c.linear(2 * c.size), c.type)
    upper = c.load(c.wrap(c.linear(2 * c.size) + c.size // 8), c.type)
    with c.b.if_(index.slt(lower) | index.sgt(upper), unlikely=True):
        c.raise_(5)


@semantic("xlat")
def xlat(c: Context) -> None:
    """The address has rBX as base; AL is added, unsigned."""
    width = int(c.shape.address[:2])
    offset = (c.offset() + c.gpr(RAX, "i8").zext("i64")) & ((1 << width) - 1)
    c.b.store_state(0, c.load(c.segmented(offset, 1, write=False), "i8"))

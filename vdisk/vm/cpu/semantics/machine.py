"""What touches the machine but is too frequent to leave native code: ports, flags, time.

Everything rarer is a *system* record that goes to Python (:mod:`vdisk.vm.cpu.system`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.context import Context, Shape, semantic
from vdisk.vm.cpu.exits import Exit
from vdisk.vm.cpu.mmu import tlb_place
from vdisk.vm.cpu.semantics.control import next_rip
from vdisk.vm.cpu.semantics.integer import RAX, RDX
from vdisk.vm.cpu.state import CODE_TLB

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value

CR0_PE = 1
SUSPENDED = -(1 << 63)


@semantic("stale", ends=True)
def stale(c: Context) -> None:
    """A record whose instruction was written to: look its address up again."""
    c.b.goto(c.b.get("code_page") + c.b.param("off"), executed=False)


def stale_shape() -> Shape:
    """The shape of dead records."""
    return Shape("stale", flags=False)


@semantic("crossing", ends=True)
def crossing(c: Context) -> None:
    """Before an instruction that reaches into the next page: is it the page it was made with?

    ``wide`` is the address of that page's code array, which only the right page has.  Where the
    TLB does not know the page it is looked up; Python sees to a fault that this meets.
    """
    b = c.b
    following = b.get("code_page") + 0x1000
    place = tlb_place(b.tlb(), CODE_TLB, following)
    codes = b.variable("i64", b.load_state(place + 8, "i64"))
    with b.if_(b.load_state(place, "i64").ne(following)):
        linear = b.select(b.get("mode").eq(64), following, following & 0xFFFF_FFFF)
        codes.set(b.call("find_code_page", b.tlb(), linear))
        b.set("pending", 0)
    with b.if_(codes.get().eq(b.param("wide"))):
        b.next()
    b.leave(Exit.CROSSING)


@semantic("system", ends=True)
def system(c: Context) -> None:
    """Python carries out the instruction (it decodes it again)."""
    c.b.leave(Exit.SYSTEM)


@semantic("undefined", ends=True)
def undefined(c: Context) -> None:
    """#UD; variant: another exception that it is."""
    c.raise_(c.shape.variant or 6)


def go_on(c: Context) -> None:
    """End the block: what follows may look different now."""
    linear = c.b.get("code_page") + c.b.param("off") + c.b.param("len")
    c.b.goto(linear if c.shape.code == 64 else linear & 0xFFFF_FFFF)


def _ports_allowed(c: Context) -> None:
    """To Python where the I/O permission bitmap decides (CPL > IOPL, virtual-8086 mode)."""
    b = c.b
    word = b.get("eflags")
    level = (word >> 12) & 3
    protected = (b.get("cr0") & CR0_PE).ne(0)
    virtual = (word & flags.VM).ne(0)
    with b.if_(protected & (virtual | b.get("cpl").ugt(level)), unlikely=True):
        b.leave(Exit.SYSTEM)


def _publish_rip(c: Context) -> None:
    """Let the device's side see where the processor is."""
    c.b.set("rip", next_rip(c) - c.b.param("len"))


def _port(c: Context) -> Value:
    """DX, or an immediate."""
    if c.shape.variant:
        return c.b.param("imm") & 0xFF
    return c.gpr(RDX, "i16").zext("i64")


@semantic("in", ends=True)
def in_(c: Context) -> None:
    _ports_allowed(c)
    _publish_rip(c)
    b = c.b
    value = b.callback("port_read", "i64", b.get("vcpu"), _port(c), b.const("i64", c.size // 8))
    c.set_gpr(RAX, value.trunc(c.type))
    go_on(c)


@semantic("out", ends=True)
def out(c: Context) -> None:
    _ports_allowed(c)
    _publish_rip(c)
    b, value = c.b, c.gpr(RAX).zext("i64")
    size = b.const("i64", c.size // 8)
    b.callback("port_write", "void", b.get("vcpu"), _port(c), size, value)
    go_on(c)


# -- EFLAGS ------------------------------------------------------------------------------------


def whole_flags(c: Context) -> Value:
    """EFLAGS as PUSHF stores them, ``i64``."""
    b = c.b
    down = b.get("direction").slt(0).zext("i64") << 10
    return c.arithmetic_flags() | b.get("eflags").zext("i64") | down | flags.ALWAYS


@semantic("pushf", ends=True)
def pushf(c: Context) -> None:
    """Virtual-8086 mode with IOPL below 3 is for Python; RF and VM are not pushed."""
    b = c.b
    word = b.get("eflags")
    with b.if_((word & flags.VM).ne(0), unlikely=True):
        b.leave(Exit.SYSTEM)
    c.push((whole_flags(c) & ~(flags.RF | flags.VM)).to(c.type))
    b.next()


@semantic("popf", ends=True)
def popf(c: Context) -> None:
    """IF needs CPL <= IOPL and IOPL needs CPL 0; what touches TF or AC is Python's,
    and all of VM86."""
    b = c.b
    word = c.peek(c.type).zext("i64")
    old = b.get("eflags").zext("i64")
    rare = (word & flags.TF) | (old & (flags.VM | flags.TF)) | ((word ^ old) & flags.AC)
    with b.if_(rare.ne(0), unlikely=True):
        b.leave(Exit.SYSTEM)
    level = b.get("cpl").zext("i64")
    changeable = b.variable("i64", flags.NT)
    if c.size > 16:
        changeable.set(flags.NT | flags.AC | flags.ID)
    with b.if_(level.ule((old >> 12) & 3)):
        changeable.set(changeable.get() | flags.IF)
    with b.if_(level.eq(0)):
        changeable.set(changeable.get() | flags.IOPL)
    mask = changeable.get()
    new = (old & ~mask) | (word & mask)
    c.drop(c.size // 8)
    b.set("eflags", (new & ~flags.RF).trunc("i32"))
    b.set("direction", b.select((word & flags.DF).ne(0), -1, b.const("i64", 1)))
    c.set_flags_word(word & flags.ARITHMETIC)
    _notice_interrupts(c, new)
    go_on(c)


def _notice_interrupts(c: Context, word: Value) -> None:
    """Where IF is set and an interrupt waits, have run() look at it at the end of this block."""
    b = c.b
    with b.if_((word & flags.IF).ne(0) & b.poll("irq_pending").ne(0)):
        b.set("kick", SUSPENDED)


@semantic("cli", ends=True)
def cli(c: Context) -> None:
    b = c.b
    word = b.get("eflags")
    _privileged_flag(c, word)
    b.set("eflags", word & ~flags.IF)
    b.next()


@semantic("sti", ends=True)
def sti(c: Context) -> None:
    """Interrupts are taken after the *next* instruction, which ends the block."""
    b = c.b
    word = b.get("eflags")
    _privileged_flag(c, word)
    b.set("eflags", word | flags.IF)
    _notice_interrupts(c, b.const("i64", flags.IF))
    b.next()


def _privileged_flag(c: Context, word: Value) -> None:
    """CLI and STI need CPL <= IOPL; virtual-8086 mode has rules of its own."""
    b = c.b
    refused = b.get("cpl").ugt((word >> 12) & 3) | (word & flags.VM).ne(0)
    with b.if_((b.get("cr0") & CR0_PE).ne(0) & refused, unlikely=True):
        b.leave(Exit.SYSTEM)


PAUSES = 1000
"""How many the guest spends before its host's core is offered to others: some microseconds."""


@semantic("pause", ends=True)
def pause(c: Context) -> None:
    """A loop that waits for another processor, which may want this core."""
    b = c.b
    with b.if_(b.get("processors").ugt(1)):
        left = b.get("pauses_left")
        with b.if_(left.eq(0), unlikely=True):
            b.set("pauses_left", PAUSES)
            b.leave(Exit.PAUSED, after=True)
        b.set("pauses_left", left - 1)
    b.next()


@semantic("hlt", ends=True)
def hlt(c: Context) -> None:
    """Executed here: decoding it in Python again would keep the GIL from whoever has work now."""
    b = c.b
    with b.if_(b.get("cpl").ne(0), unlikely=True):
        b.leave(Exit.SYSTEM)
    b.leave(Exit.HALTED, after=True)


@semantic("swapgs")
def swapgs(c: Context) -> None:
    b = c.b
    with b.if_(b.get("cpl").ne(0), unlikely=True):
        c.raise_(13)
    gs, kernel = b.get("gs_base"), b.get("kernel_gs_base")
    b.set("gs_base", kernel)
    b.set("kernel_gs_base", gs)


@semantic("move_selector")
def move_selector(c: Context) -> None:
    """MOV from a segment register: 16 bits to memory, zero-extended to a register."""
    value = c.b.load_state(c.b.param("r1") if c.kind(0) == "r" else c.b.param("r0"), "i16")
    if c.kind(0) == "m":
        c.store(c.linear(16, write=True), value)
    else:
        c.write(0, value.zext(c.type) if c.size > 16 else value)

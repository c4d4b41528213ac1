"""Privileged instructions that are too frequent to leave native code (SDM volume 2 by name).

Each does its usual case; for the others it leaves to :mod:`vdisk.vm.cpu.system`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.delivery import interrupt_wanted, set_level
from vdisk.vm.cpu.exits import Exit
from vdisk.vm.cpu.paging import CR4_PAE, PHYSICAL_BITS, is_set
from vdisk.vm.cpu.semantics.control import next_rip
from vdisk.vm.cpu.semantics.integer import RAX, RCX, RDX, RSP
from vdisk.vm.cpu.semantics.machine import whole_flags

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value

EFER_SCE, EFER_LMA = 1, 1 << 10
CR4_TSD = 4
FLAT_LIMIT = 0xFFFF_FFFF
R11 = 11
MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE = 0xC000_0100, 0xC000_0101, 0xC000_0102


def _leave_unless(c: Context, condition: Value) -> None:
    """To Python unless this is the usual case."""
    with c.b.if_(~condition, unlikely=True):
        c.b.leave(Exit.SYSTEM)


def _supervisor(c: Context) -> None:
    """To Python, which raises #GP, but at CPL 0."""
    _leave_unless(c, c.b.get("cpl").eq(0))


def _go(c: Context, rip: Value) -> None:
    """Go on at ``rip`` in 64-bit code, with the TLB set that is current now."""
    c.b.goto(rip, tlb=c.b.get("tlb_current"))


@semantic("iretq", ends=True)
def iretq(c: Context) -> None:
    b = c.b
    _leave_unless(c, b.get("nmi_blocked").eq(0))
    done = b.call("return_long")
    _leave_unless(c, done.ne(0))
    _go(c, b.get("rip"))


@semantic("load_selector", ends=True)
def load_selector(c: Context) -> None:
    """MOV to DS, ES, FS or GS; the record's segment is which."""
    b = c.b
    with b.if_(is_set(b.get("eflags"), flags.VM), unlikely=True):
        b.leave(Exit.SYSTEM)
    selector = c.read(0, 16).zext("i64")
    _leave_unless(c, b.call("load_selector", b.param("imm"), selector).ne(0))
    b.next()


@semantic("pop_selector", ends=True)
def pop_selector(c: Context) -> None:
    """POP to DS, ES, FS or GS."""
    b = c.b
    with b.if_(is_set(b.get("eflags"), flags.VM), unlikely=True):
        b.leave(Exit.SYSTEM)
    selector = c.peek(c.type).zext("i64") & 0xFFFF
    _leave_unless(c, b.call("load_selector", b.param("imm"), selector).ne(0))
    c.drop(c.size // 8)
    b.next()


@semantic("iretd", ends=True)
def iretd(c: Context) -> None:
    """In 32-bit code with flat segments."""
    b = c.b
    _leave_unless(c, b.get("nmi_blocked").eq(0))
    done = b.call("return_flat")
    _leave_unless(c, done.ne(0))
    _go(c, b.get("rip"))


@semantic("int_real", ends=True)
def int_real(c: Context) -> None:
    """INT n in real mode; the operand is the vector."""
    b = c.b
    _leave_unless(c, b.call("interrupt_real", b.param("imm"), next_rip(c)).ne(0))
    _go(c, (b.get("cs_base") + b.get("rip")) & FLAT_LIMIT)


@semantic("iret_real", ends=True)
def iret_real(c: Context) -> None:
    """IRET of 16 bits in real mode."""
    b = c.b
    _leave_unless(c, b.get("nmi_blocked").eq(0))
    _leave_unless(c, b.call("return_real").ne(0))
    _go(c, (b.get("cs_base") + b.get("rip")) & FLAT_LIMIT)


@semantic("sysenter", ends=True)
def sysenter(c: Context) -> None:
    """In 32-bit code with flat segments."""
    b = c.b
    selector = b.get("sysenter_cs") & 0xFFFC
    usual = (
        selector.ne(0)
        & ~is_set(b.get("eflags"), flags.TF | flags.AC)
        & ~is_set(b.get("efer"), EFER_LMA)
    )
    _leave_unless(c, usual)
    b.set("eflags", b.get("eflags") & ~(flags.VM | flags.IF | flags.RF))
    _segment(c, "cs", selector, 0xC09B)
    _segment(c, "ss", selector + 8, 0xC093)
    c.set_gpr(RSP, b.get("sysenter_esp").trunc("i32"))
    set_level(b, b.const("i64", 0))
    _go(c, b.get("sysenter_eip") & FLAT_LIMIT)


@semantic("sysexit", ends=True)
def sysexit(c: Context) -> None:
    """In 32-bit code with flat segments."""
    b = c.b
    selector = b.get("sysenter_cs") & 0xFFFC
    usual = selector.ne(0) & b.get("cpl").eq(0) & ~is_set(b.get("efer"), EFER_LMA)
    _leave_unless(c, usual & ~is_set(b.get("eflags"), flags.TF | flags.AC))
    _segment(c, "cs", (selector + 16) | 3, 0xC0FB)
    _segment(c, "ss", (selector + 24) | 3, 0xC0F3)
    c.set_gpr(RSP, c.gpr(RCX, "i32"))
    set_level(b, b.const("i64", 3))
    _go(c, c.gpr(RDX, "i32").zext("i64"))


def _segment(c: Context, name: str, selector: Value, attributes: int) -> None:
    b = c.b
    b.set(f"{name}_selector", selector.trunc("i32"))
    b.set(f"{name}_base", 0)
    b.set(f"{name}_limit", FLAT_LIMIT)
    b.set(f"{name}_attributes", attributes)


@semantic("syscall", ends=True)
def syscall(c: Context) -> None:
    b = c.b
    word = whole_flags(c)
    usual = is_set(b.get("efer"), EFER_SCE) & ~is_set(word, flags.TF | flags.AC)
    _leave_unless(c, usual)
    c.set_gpr(RCX, next_rip(c))
    c.set_gpr(R11, word & ~flags.RF)
    selector = (b.get("star") >> 32) & 0xFFFC
    _segment(c, "cs", selector, 0xA09B)
    _segment(c, "ss", selector + 8, 0xC093)
    kept = word & ~b.get("sfmask")
    _set_flags(c, kept)
    set_level(b, b.const("i64", 0))
    _go(c, b.get("lstar"))


def _set_flags(c: Context, word: Value) -> None:
    """All of RFLAGS but TF, RF and VM, which are clear."""
    b = c.b
    c.set_flags_word(word & flags.ARITHMETIC)
    b.set("direction", b.select(is_set(word, flags.DF), -1, b.const("i64", 1)))
    system = flags.IF | flags.IOPL | flags.NT | flags.AC | flags.VIF | flags.VIP | flags.ID
    b.set("eflags", (word & system).trunc("i32"))


@semantic("sysretq", ends=True)
def sysretq(c: Context) -> None:
    b = c.b
    rip, word = c.gpr(RCX, "i64"), c.gpr(R11, "i64")
    upper = rip.ashr(47)
    usual = is_set(b.get("efer"), EFER_SCE) & b.get("cpl").eq(0) & upper.eq(0)
    _leave_unless(c, usual & ~is_set(word, flags.TF | flags.AC))
    selector = b.get("star") >> 48
    _segment(c, "cs", (selector + 16) | 3, 0xA0FB)
    _segment(c, "ss", (selector + 8) | 3, 0xC0F3)
    _set_flags(c, word)
    interrupt_wanted(b, word)
    set_level(b, b.const("i64", 3))
    _go(c, rip)


@semantic("invlpg", ends=True)
def invlpg(c: Context) -> None:
    _supervisor(c)
    b = c.b
    b.call("flush_page", c.segmented(c.offset(), 1, write=False))
    b.next()


@semantic("read_control")
def read_control(c: Context) -> None:
    """Variant: the number of the control register (0, 2, 3, 4)."""
    _supervisor(c)
    c.write(0, c.b.get(f"cr{c.shape.variant}").to(c.type))


@semantic("write_cr3", ends=True)
def write_cr3(c: Context) -> None:
    """With PAE and outside long mode, and with reserved bits, Python does it."""
    _supervisor(c)
    b, value = c.b, c.read(0).zext("i64")
    if c.shape.code == 64:
        _leave_unless(c, (value >> PHYSICAL_BITS).eq(0))
    else:
        _leave_unless(c, ~is_set(b.get("cr4"), CR4_PAE) | is_set(b.get("efer"), EFER_LMA))
    b.set("cr3", value)
    b.call("flush_all")
    linear = b.get("code_page") + b.param("off") + b.param("len")
    b.goto(linear if c.shape.code == 64 else linear & 0xFFFF_FFFF)


WITH_AUX = 1


@semantic("rdtsc")
def rdtsc(c: Context) -> None:
    """Variant :data:`WITH_AUX`: RDTSCP, by which Linux looks at the time."""
    b = c.b
    _leave_unless(c, ~is_set(b.get("cr4"), CR4_TSD) | b.get("cpl").eq(0))
    now = b.timestamp()
    c.set_gpr(RAX, now.trunc("i32"))
    c.set_gpr(RDX, (now >> 32).trunc("i32"))
    if c.shape.variant & WITH_AUX:
        c.set_gpr(RCX, b.get("tsc_aux").trunc("i32"))


@semantic("wrmsr", ends=True)
def wrmsr(c: Context) -> None:
    """The bases of FS and GS, which change with each task, here; the others in Python."""
    _supervisor(c)
    b = c.b
    index = c.gpr(RCX, "i32")
    value = c.gpr(RAX, "i32").zext("i64") | (c.gpr(RDX, "i32").zext("i64") << 32)
    upper = value.ashr(47)
    with b.if_(upper.eq(0) | upper.eq(-1)):
        for number, name in (
            (MSR_FS_BASE, "fs_base"),
            (MSR_GS_BASE, "gs_base"),
            (MSR_KERNEL_GS_BASE, "kernel_gs_base"),
        ):
            with b.if_(index.eq(number)):
                b.set(name, value)
                b.next()
    b.leave(Exit.SYSTEM)

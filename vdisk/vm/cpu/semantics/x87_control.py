"""x87: the control, status and tag words (SDM volume 1, section 8.1; volume 2 by name)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.semantics.x87_host import in_state, live, run_on_host
from vdisk.vm.cpu.semantics.x87_stack import C1, ES, Fpu, set_status

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value

ALL_MASKED = 0x3F


@semantic("f_stack")
def f_stack(c: Context) -> None:
    """FINCSTP (variant 1), FDECSTP (7), FNOP (0)."""
    if run_on_host(c):
        return
    fpu = Fpu(c)
    if c.shape.variant & 7:
        c.b.set("fpu_top", (c.b.get("fpu_top") + (c.shape.variant & 7)) & 7)
        fpu.conditions(0, C1)


@semantic("ffree")
def ffree(c: Context) -> None:
    if run_on_host(c):
        return
    fpu = Fpu(c)
    fpu.free(c.b.param("imm").trunc("i32"))
    fpu.conditions(0, C1)
    fpu.finish()


@semantic("fwait")
def fwait(c: Context) -> None:
    """#NM only with both TS and MP; #MF where an unmasked exception waits."""
    b = c.b
    with b.if_((b.get("cr0") & 0xA).eq(0xA), unlikely=True):
        c.raise_(faults.NM)
    with b.if_((b.get("fpu_status") & ES).ne(0), unlikely=True):
        c.raise_(faults.MF)


@semantic("fldcw")
def fldcw(c: Context) -> None:
    """What is unmasked now may be pending already."""
    Fpu(c, notes=False)
    b = c.b
    control = (c.load(c.linear(16), "i16").zext("i32") & 0x1F7F) | 0x40
    _control_on_host(c, control)
    b.set("fpu_control", control)
    set_status(b, b.get("fpu_status"), control)


def _control_on_host(c: Context, control: Value) -> None:
    """The host's control word, if all exceptions stay masked; otherwise its registers are left."""
    b = c.b
    if not b.holds_x87:
        return
    with live(c), b.if_((control & ALL_MASKED).eq(ALL_MASKED)):
        b.set("fpu_control", control)
        b.x87_host(FLDCW, "fpu_control")
        b.next()
    in_state(c)


FLDCW = bytes((0xD9, 5 << 3))


@semantic("fnstcw")
def fnstcw(c: Context) -> None:
    Fpu(c, waits=False)
    c.store(c.linear(16, write=True), c.b.get("fpu_control").trunc("i16"))


@semantic("fnstsw")
def fnstsw(c: Context) -> None:
    """To memory, or to AX."""
    b = c.b
    if b.holds_x87:
        with live(c):
            c.write(0, b.x87_host_status())
            b.next()
        c.forget_linear()
    Fpu(c, waits=False)
    word = (b.get("fpu_status") & ~0x3800) | (b.get("fpu_top") << 11)
    c.write(0, word.trunc("i16"))


@semantic("fnclex")
def fnclex(c: Context) -> None:
    if run_on_host(c, noted=False):
        return
    Fpu(c, waits=False)
    c.b.set("fpu_status", c.b.get("fpu_status") & 0x7F00)


@semantic("fninit")
def fninit(c: Context) -> None:
    in_state(c)
    Fpu(c, waits=False)
    for name, value in (
        *(("fpu_control", 0x37F), ("fpu_status", 0), ("fpu_top", 0), ("fpu_tag", 0xFFFF)),
        *(("fpu_opcode", 0), ("fpu_ip", 0), ("fpu_dp", 0)),
    ):
        c.b.set(name, value)

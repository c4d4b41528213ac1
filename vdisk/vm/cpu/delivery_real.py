"""INT and IRET in real mode without leaving native code: boot loaders live by them.

::

    vector 0 … 255, at 4 * vector: offset, segment        the stack afterwards: IP, CS, FLAGS

A stack that is not 16 bits wide or wraps, single steps, what is beyond a limit: declined (see
:mod:`vdisk.vm.cpu.delivery`), and done by :mod:`vdisk.vm.cpu.interrupts`.
SDM volume 3, section 21.1.4; volume 2, INT and IRET.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.delivery import (
    RSP,
    decline_if,
    decline_pending,
    interrupt_wanted,
    load,
    store,
    supervisor_load,
)
from vdisk.vm.cpu.paging import is_set
from vdisk.vm.cpu.routines import routine

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value

MASK, MASK_16 = 0xFFFF_FFFF, 0xFFFF
FRAME = 6  # bytes
CR0_PE = 1
STACK_32 = 0x4000  # D/B of SS
RIGHTS_KEPT, RIGHTS = ~0x6F, 0x93
"""CS in real mode: readable, writable data; what else the descriptor had stays."""
CHANGEABLE = flags.IF | flags.IOPL | flags.NT


def _decline_unusual(b: Builder) -> None:
    protected = is_set(b.get("cr0"), CR0_PE)
    decline_if(b, protected | is_set(b.get("ss_attributes"), STACK_32))


def _enter_code(b: Builder, selector: Value, offset: Value) -> None:
    b.set("cs_selector", selector.trunc("i32"))
    b.set("cs_base", selector << 4)
    b.set("cs_attributes", (b.get("cs_attributes") & (RIGHTS_KEPT & MASK)) | RIGHTS)
    b.set("rip", offset)


@routine("i64", "i64", "i64")
def interrupt_real(b: Builder, vector: Value, back: Value) -> None:
    """INT: ``back`` is pushed; 1 with ``rip`` the handler, or 0: declined."""
    _decline_unusual(b)
    where = vector << 2
    decline_if(b, (where + 3).ugt(b.get("idt_limit").zext("i64")))
    entry = supervisor_load(b, (b.get("idt_base") + where) & MASK, 4)
    decline_if(b, (entry & MASK_16).ugt(b.get("cs_limit").zext("i64")))
    pointer = b.load_state(RSP, "i64")
    decline_if(b, (pointer & MASK_16).ult(FRAME))
    top = b.get("ss_base") + (pointer & MASK_16)
    saved = (b.call("flags_word"), b.get("cs_selector").zext("i64"), back)
    for place, value in enumerate(saved, 1):
        store(b, b.get("tlb_current"), (top - 2 * place) & MASK, value & MASK_16, 2)
        decline_pending(b)
    b.store_state(RSP, pointer - FRAME)
    b.set("eflags", b.get("eflags") & ~(flags.IF | flags.TF | flags.AC | flags.RF))
    _enter_code(b, entry >> 16, entry & MASK_16)
    b.return_(b.const("i64", 1))


@routine("i64")
def return_real(b: Builder) -> None:
    """IRET; 1 and ``rip``, or 0: declined."""
    _decline_unusual(b)
    pointer = b.load_state(RSP, "i64")
    decline_if(b, (pointer & MASK_16).ugt(MASK_16 + 1 - FRAME))
    top, frame = b.get("ss_base") + (pointer & MASK_16), []
    for place in range(3):
        frame.append(load(b, b.get("tlb_current"), (top + 2 * place) & MASK, 2))
        decline_pending(b)
    offset, selector, word = frame
    old = b.get("eflags").zext("i64")
    decline_if(b, is_set(old | word, flags.TF) | offset.ugt(b.get("cs_limit").zext("i64")))
    b.store_state(RSP, (pointer & ~MASK_16) | ((pointer + FRAME) & MASK_16))
    b.set("cc_op", 0)
    b.set("cc_src", word & flags.ARITHMETIC)
    b.set("direction", b.select(is_set(word, flags.DF), -1, b.const("i64", 1)))
    b.set("eflags", ((old & ~CHANGEABLE) | (word & CHANGEABLE)).trunc("i32"))
    interrupt_wanted(b, word)
    _enter_code(b, selector, offset)
    b.return_(b.const("i64", 1))

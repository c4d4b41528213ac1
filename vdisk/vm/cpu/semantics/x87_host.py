"""The guest's x87 registers in the host's: native code, while all exceptions are masked.

From ``x87_enter`` to ``x87_leave`` (:mod:`vdisk.vm.cpu.native_x87`) the host's register stack,
tags, status and control word *are* the guest's (``x87_live``), so a guest's instruction is the
host's very instruction: stack faults, rounding and condition codes are the processor's.  Only
memory operands are ours.  What the state holds of x87 is stale meanwhile.

``…_on_host`` write that, and what is left is written behind them; they give True where nothing is,
because another tier does it.  With unmasked exceptions, and in the reference interpreter, the
registers are in the state (:mod:`vdisk.vm.cpu.semantics.x87_stack`).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vdisk.vm.cpu.builder import Value
    from vdisk.vm.cpu.context import Context

CODE_SHIFT = 20
"""Where the instruction's two bytes begin in ``variant``, less what all x87 instructions share."""


def host_code(first: int, second: int) -> int:
    """An instruction's bytes (D8 … DF, and ModR/M) as a part of ``variant``."""
    return ((first & 7) << 6 | second & 0x3F) << CODE_SHIFT


def _register_code(c: Context) -> bytes:
    code = c.shape.variant >> CODE_SHIFT
    return bytes((0xD8 | code >> 6, 0xC0 | code & 0x3F))


def _memory_code(c: Context) -> bytes:
    """With the address in RAX."""
    code = c.shape.variant >> CODE_SHIFT
    return bytes((0xD8 | code >> 6, code & 0x38))


def note_pointer(c: Context) -> None:
    """The instruction pointer that FNSTENV stores."""
    c.b.set("fpu_ip", c.b.get("code_page") + c.b.param("off"))


def in_state(c: Context) -> None:
    """Have the registers in the state, for what works on them there."""
    if c.b.holds_x87:
        with c.b.if_(c.b.get("x87_live").ne(0), unlikely=True):
            c.b.call("x87_leave")


@contextmanager
def live(c: Context) -> Iterator[None]:
    """What is written inside happens where the host's registers are the guest's."""
    with c.b.if_(c.b.get("x87_live").ne(0)):
        yield


@contextmanager
def made_live(c: Context) -> Iterator[None]:
    """The same, after they have been made that if they can be."""
    with c.b.if_(c.b.get("x87_live").eq(0), unlikely=True):
        c.b.call("x87_enter")
    with live(c):
        yield


def _on_host(c: Context, write: Callable[[], None], *, noted: bool = True) -> bool:
    """What ``write`` writes, and on to the next record, if the registers are in the host."""
    if not c.b.holds_x87:
        return False
    with made_live(c):
        if noted:
            note_pointer(c)
        write()
        c.b.next()
    return c.b.elsewhere()


def run_on_host(c: Context, *, noted: bool = True) -> bool:
    """An instruction on registers alone."""
    return _on_host(c, lambda: c.b.x87_host(_register_code(c)), noted=noted)


def move_on_host(c: Context, taken: Value) -> bool:
    """FCMOVcc, whose condition is worked out already."""
    return _on_host(c, lambda: c.b.x87_host_if(_register_code(c)[1] & 7, taken))


def compare_on_host(c: Context) -> bool:
    """FCOMI and its kin."""
    return _on_host(c, lambda: c.set_flags_word(c.b.x87_host_flags(_register_code(c))))


# -- memory operands ---------------------------------------------------------------------------


def _access_on_host(c: Context, size: int, *, write: bool) -> bool:
    """An instruction with a memory operand that the TLB has."""
    b = c.b
    if not b.holds_x87:
        return False
    with made_live(c):
        linear = c.linear(size, write=write)
        c.check_alignment(linear, size // 8)
        hit, address = c.probe(linear, size // 8, write=write)
        with b.if_(hit):
            note_pointer(c)
            b.x87_host(_memory_code(c), address)
            b.next()
    c.forget_linear()
    return b.elsewhere()


def load_on_host(c: Context, size: int) -> bool:
    """An instruction that reads memory, as soon as that is known to be there."""
    return _access_on_host(c, size, write=False)


def store_on_host(c: Context, size: int) -> bool:
    """One that writes memory."""
    return _access_on_host(c, size, write=True)


def loaded_on_host(c: Context, value: Value) -> None:
    """The same instruction with an operand that took the slow way."""
    b = c.b
    if b.holds_x87:
        with live(c):
            note_pointer(c)
            b.set("scratch0", value.zext("i128"))
            b.x87_host(_memory_code(c), "scratch0")
            b.next()


def stored_on_host(c: Context, linear: Value, kind: str) -> None:
    """The same where the store will take the slow way, which is known to be free."""
    b = c.b
    if b.holds_x87:
        with live(c):
            c.check_alignment(linear, int(kind[1:]) // 8)
            note_pointer(c)
            b.x87_host(_memory_code(c), "scratch0")
            c.store(linear, b.get("scratch0").trunc(kind))
            b.next()

"""The run-time that generated code calls: lazy flags, the page walker, the slow ways to memory.

Routines are written in the builder's language like the semantics, so native code and the
reference interpreter share them.  They take the state first and keep all other registers of
their caller (``preserve_mostcc``), so that a handler that never calls them pays nothing.

A routine that meets a fault describes it in the state (``fault_vector``, ``fault_error``,
``fault_address``) and sets ``pending``; the handler then ends in ``fault``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdisk.vm.cpu import flags

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.cpu.builder import Builder, Value

PRESERVE = "preserve_mostcc"


@dataclass(frozen=True, slots=True)
class Routine:
    """One routine: its name, the types of its arguments after the state, what it gives."""

    name: str
    arguments: tuple[str, ...]
    result: str
    write: Callable[..., None]
    convention: str = PRESERVE

    @property
    def declaration(self) -> str:
        """How another module declares it."""
        types = ", ".join(("ptr", *self.arguments))
        return f"declare {self.convention} {self.result} @{self.name}({types})"


ROUTINES: dict[str, Routine] = {}


def routine(result: str, *arguments: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function ``write(b, *arguments)`` that writes the routine of its name."""

    def register(write: Callable[..., None]) -> Callable[..., None]:
        name = write.__name__
        ROUTINES[name] = Routine(name, arguments, result, write)
        return write

    return register


# -- flags -------------------------------------------------------------------------------------


@routine("i64")
def arithmetic_flags(b: Builder) -> None:
    """CF, PF, AF, ZF, SF, OF as they stand in EFLAGS."""
    operation = b.get("cc_op")
    for family, size in flags.ALL_CC_OPS:
        with b.if_(operation.eq(flags.cc_op(family, size))):
            b.return_(flags.Lazy(b, family, size).word())
    b.return_(b.const("i64", 0))


@routine("i64")
def saved_carry(b: Builder) -> None:
    """CF of what came before the last INC or DEC (or a run of them)."""
    operation = b.get("cf_op")
    for family, size in flags.ALL_CC_OPS:
        if family not in {flags.Family.INC, flags.Family.DEC}:
            with b.if_(operation.eq(flags.cc_op(family, size))):
                b.return_(flags.Lazy(b, family, size, "cf").cf().zext("i64"))
    b.return_(b.const("i64", 0))


@routine("void")
def save_carry(b: Builder) -> None:
    """Before INC and DEC: keep what CF comes from, unless another of them has kept it."""
    operation = b.get("cc_op")
    with b.if_((operation & ~3).eq(4 * flags.Family.INC)):
        b.return_()
    with b.if_((operation & ~3).eq(4 * flags.Family.DEC)):
        b.return_()
    b.set("cf_op", operation)
    for name in ("dst", "src", "src2"):
        b.set(f"cf_{name}", b.get(f"cc_{name}"))
    b.return_()


def page_of(linear: Value) -> Value:
    """The address of the page that ``linear`` is in."""
    return linear & ~0xFFF


def raise_fault(b: Builder, vector: int, error: Value | int = 0) -> None:
    """Describe a fault of the present instruction."""
    b.set("fault_vector", vector)
    b.set("fault_error", error)
    b.set("pending", 1)

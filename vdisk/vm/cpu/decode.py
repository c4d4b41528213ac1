"""What an instruction is lowered to: micro-ops, and what translation has to know of it.

All instructions that lowering does not tell apart have one :class:`Form`: the shapes of their
micro-ops, the flags that they read and change, whether a block ends with them.  What they differ
in (which register, which displacement) are parameters of records, which a :class:`Pattern` takes
from the instruction.  What depends on the instruction's place in its page (rip-relative addresses,
targets of jumps) is left open, so that all this holds wherever the same bytes stand.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm.cpu.known import Bit
from vdisk.vm.cpu.records import RECORD, WIDE_RECORD

if TYPE_CHECKING:
    from collections.abc import Callable

    import iced_x86 as iced

    from vdisk.vm.cpu.context import Shape
    from vdisk.vm.cpu.known import Parameter

    Read = Callable[[iced.Instruction], int]
    """How a parameter is found in a decoded instruction."""
    Source = int | Read


class Mode(NamedTuple):
    """What the meaning of bytes, and the code made from them, depends on.

    ``code``: 16, 32 or 64.  ``stack``: width of the stack pointer.  ``checked``: some segment has
    a base, a limit or rights that must be looked at.  ``step``: blocks are single instructions
    (TF or a breakpoint is set).  ``aligned``: accesses that are not aligned are faults (CR0.AM and
    EFLAGS.AC at CPL 3).
    """

    code: int
    stack: int
    checked: bool
    step: bool = False
    aligned: bool = False

    @property
    def careful(self) -> bool:
        """True if exceptions are delivered by Python, which works the mode out anew."""
        return self.step or self.aligned


FLAT_MODE = Mode(32, 32, checked=False)
"""What 32-bit systems run in."""


@dataclass(frozen=True, slots=True)
class Op:
    """One micro-op: a shape, and what its record holds."""

    shape: Shape
    rip_relative: bool = False
    jump: int | None = None
    """The target of a direct jump, relative to the next instruction."""
    r0: int = 0
    r1: int = 0
    r2: int = 0
    base: int = 0
    index: int = 0
    scale: int = 0
    disp: int = 0
    imm: int = 0
    segment: int = 0
    wide: int = 0
    """In place of ``disp`` and ``imm``, where the pattern says so."""


PARAMETERS = tuple(each.name for each in fields(Op))[3:]
"""What :meth:`Pattern.values` gives."""
DISP, IMM, WIDE = (PARAMETERS.index(name) for name in ("disp", "imm", "wide"))


@dataclass(slots=True)
class Pattern:
    """One micro-op of all instructions of a form: parameters are constants, or read from each."""

    shape: Shape
    r0: Source = 0
    r1: Source = 0
    r2: Source = 0
    base: Source = 0
    index: Source = 0
    scale: Source = 0
    disp: Source = 0
    imm: Source = 0
    segment: Source = 0
    wide: Source | None = None
    rip_relative: bool = False
    jumps: bool = False
    """``wide`` is where a direct jump leads to."""
    _constants: list[int] = field(default_factory=list)
    _read: tuple[tuple[int, Read], ...] = ()

    def settle(self) -> None:
        """No parameter will be given any more."""
        sources: list[Source] = [getattr(self, name) or 0 for name in PARAMETERS]
        self._constants = [0 if callable(each) else each for each in sources]
        self._read = tuple((place, each) for place, each in enumerate(sources) if callable(each))

    def values(self, instruction: iced.Instruction) -> list[int]:
        """The parameters of an instruction, as in ``PARAMETERS``."""
        values = self._constants.copy()
        for place, read in self._read:
            values[place] = read(instruction)
        return values

    def op(self, instruction: iced.Instruction) -> Op:
        """The micro-op of an instruction."""
        values = self.values(instruction)
        jump = values[WIDE] if self.jumps else None
        return Op(self.shape, self.rip_relative, jump, *values)

    def record(self, handler: int, values: list[int], length: int) -> bytes:
        """A record at offset 0 with count 0.

        ``values``: see :meth:`values`; ``length``: the instruction's.
        """
        r0, r1, r2, base, index, scale, disp, imm, segment, wide = values
        if self.wide is None:
            return RECORD.pack(
                handler, r0, r1, base, index, disp, imm, 0, length, scale, segment, 0, r2
            )
        return WIDE_RECORD.pack(
            handler, r0, r1, base, index, wide, 0, length, scale, segment, 0, r2
        )


@dataclass(eq=False)
class Form:
    """What instructions have in common that are lowered alike."""

    patterns: tuple[Pattern, ...]
    name: str
    """The operation of the last micro-op."""
    reads: int = 0
    """Arithmetic flags that they look at, or that a fault of them would show."""
    writes: int = 0
    """Arithmetic flags that they may change."""
    kills: int = 0
    """Arithmetic flags that they set whatever they were."""
    leaves: int = -1
    """``cc_op`` behind them where that is known, -2 where they leave all as it was."""
    needs_known: bool = False
    """They ask for the flags that were there, so it matters what is known of them."""
    is_condition: bool = False
    ends: bool = False
    """The block ends with them."""
    falls_through: bool = False
    """They end a block, but the next instruction may follow (conditional jumps)."""
    shadow: bool = False
    """The next instruction is the block's last (STI)."""
    links: bool = False
    """They may follow a link to a target in their page."""
    open: dict[int, tuple[Parameter, int] | None] = field(default_factory=dict)
    """By width of the displacement: which parameter, of which micro-op, the number is that stands
    in the last four bytes (:meth:`vdisk.vm.cpu.decoder.Decoder.field`)."""
    handlers: dict[int, list[int]] = field(default_factory=dict)
    """By the key of a variant: the translator's numbers of their handlers."""

    @property
    def jumps(self) -> bool:
        """True for direct jumps."""
        return self.patterns[-1].jumps

    @functools.cached_property
    def entry(self) -> tuple[int, ...]:
        """The part of their entries that all have in common (:mod:`vdisk.vm.cpu.known`)."""
        bits = (
            self.ends * Bit.ENDS
            | self.falls_through * Bit.FALLS_THROUGH
            | self.shadow * Bit.SHADOW
            | self.links * Bit.LINKABLE
            | self.needs_known * Bit.NEEDS_KNOWN
            | self.is_condition * Bit.IS_CONDITION
        )
        return len(self.patterns), bits, self.reads, self.writes, self.kills, self.leaves

    @functools.cached_property
    def placed(self) -> int:
        """A bit for each record that depends on its place in the page (rip-relative addresses)."""
        return sum(each.rip_relative << place for place, each in enumerate(self.patterns))

    def decoded(self, instruction: iced.Instruction) -> Decoded:
        """One instruction of this form."""
        return Decoded(self, [each.op(instruction) for each in self.patterns], instruction.len)


class Decoded(NamedTuple):
    """One instruction."""

    form: Form
    ops: list[Op]
    length: int

    @property
    def jump(self) -> int | None:
        """A direct jump: its target relative to the next instruction."""
        return self.ops[-1].jump

"""Writes code in which what is known of the state is not loaded again.

A register that an instruction leaves is mostly what the next one takes.  LLVM finds that out as
well, but it takes LLVM as long as all the rest; here it costs a look into a dictionary, and lines
that are never written need not be read.  What is known is kept along every way that control takes:
behind a label it is what all that lead there agree on, and nothing where something may come back
from below.

Stores are always written: whatever leaves the code finds the state as it has to be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.builder import Value, bits
from vdisk.vm.cpu.llvm_builder import LlvmBuilder
from vdisk.vm.cpu.state import FIELDS, SEGMENTS

if TYPE_CHECKING:
    from vdisk.vm.cpu.routines import Routine

Facts = dict[int, Value]
"""What fields of the state hold, by their offsets."""

REGISTERS = range(FIELDS["rip"].offset)
"""General registers, the page, the operands of lazy flags."""
OTHERS = {
    FIELDS[name].offset
    for name in ("cc_op", "cf_op", "direction", *(f"{segment}_base" for segment in SEGMENTS))
}
VECTORS = range(FIELDS["xmm0"].offset, FIELDS["xmm15"].offset + 16)
LEAVES_ALONE = {
    *("slow_load", "slow_store", "check_write", "writable_address", "locked_address", "stored"),
    *("segment_linear", "arithmetic_flags", "saved_carry", "host_time"),
    *("simd_begin", "simd_end", "read_mxcsr", "write_mxcsr", "x87_enter", "x87_leave"),
}
"""Routines that change nothing of what is kept in mind.  Vector registers of the host they do
change, so nothing of these is worth keeping across a call."""


class ForwardingBuilder(LlvmBuilder):
    """An :class:`~vdisk.vm.cpu.llvm_builder.LlvmBuilder` that remembers what it has written."""

    def __init__(self, known: dict[str, Routine]) -> None:
        super().__init__(known)
        self._facts: Facts = {}
        self._arriving: dict[str, list[Facts]] = {}
        """By labels that are not placed yet: what is known on each way there."""
        self._narrow: dict[str, Value] = {}
        """What values were before they were extended with zeroes."""

    # -- along the ways of control ---------------------------------------------------------------

    def _note(self, label: str) -> None:
        self._arriving.setdefault(label, []).append(self._facts.copy())

    def _jump(self, label: str) -> None:
        if not self._dead:
            self._note(label)
        super()._jump(label)

    def _branch(self, condition: Value, then: str, otherwise: str, weights: str = "") -> None:
        super()._branch(condition, then, otherwise, weights)
        self._note(then)
        self._note(otherwise)

    def _begin(self, label: str, *, again: bool = False) -> None:
        arriving = self._arriving.pop(label, [])
        if len(arriving) == 1 and not again and self._lines[-1] == f"  br label %{label}":
            self._lines.pop()  # the only way here is the one straight on
            self._dead = False
            return
        super()._begin(label, again=again)
        self._facts = {} if again or not arriving else _agreed(arriving)

    # -- what is known ---------------------------------------------------------------------------

    def _cast(self, how: str, value: Value, kind: str) -> Value:
        before = self._narrow.get(value.text)
        if before is not None and how == "trunc":
            return before.to(kind)
        result = super()._cast(how, value, kind)
        if how == "zext":
            self._narrow[result.text] = value
        return result

    def load_state(self, offset: Value | int, kind: str) -> Value:
        self._join()
        where = offset.const if isinstance(offset, Value) else offset
        found = None if where is None else self._facts.get(where)
        if found is not None and bits(found.type) >= bits(kind):
            return found.trunc(kind)
        result = super().load_state(offset, kind)
        if where is not None:
            self._learn(where, result)
        return result

    def store_state(self, offset: Value | int, value: Value) -> None:
        self._join()
        super().store_state(offset, value)
        where = offset.const if isinstance(offset, Value) else offset
        if where is None:
            self._facts.clear()
            return
        end = where + bits(value.type) // 8
        for at in [at for at in self._facts if at < end]:
            if where < at + bits(self._facts[at].type) // 8:
                del self._facts[at]
        self._learn(where, value)

    def _learn(self, where: int, value: Value) -> None:
        if not self._dead and (where in REGISTERS or where in OTHERS or where in VECTORS):
            self._facts[where] = value

    def fill_state(self, offset: int, length: int, byte: int) -> None:
        super().fill_state(offset, length, byte)
        self._facts.clear()

    def call(self, routine: str, *arguments: Value) -> Value:
        result = super().call(routine, *arguments)
        stays = routine in LEAVES_ALONE
        kept = {at: value for at, value in self._facts.items() if stays and at not in VECTORS}
        self._facts = kept
        return result

    def callback(self, field: str, kind: str, *arguments: Value) -> Value:
        result = super().callback(field, kind, *arguments)
        self._facts.clear()
        return result


def _agreed(arriving: list[Facts]) -> Facts:
    """What is known whichever way was taken."""
    first, *others = arriving
    for each in others:
        first = {at: value for at, value in first.items() if _is_same(value, each.get(at))}
    return first


def _is_same(one: Value, other: Value | None) -> bool:
    return other is not None and (one.text, one.type) == (other.text, other.type)

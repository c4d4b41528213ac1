"""The x87 state as a whole: FNSAVE, FNSTENV and their kin.

SDM volume 1, sections 8.1 and 10.5; volume 2, the instructions' pages.  ``fpu_tag`` holds a bit
pair for each physical register (3: empty); ``fpu_top`` is kept apart from the status word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.instruction import on

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core
    from vdisk.vm.cpu.instruction import Instruction

INITIAL_CONTROL = 0x37F
ALL_EMPTY = 0xFFFF


def status_word(core: Core) -> int:
    """The status word with TOP in it."""
    return core.state.fpu_status & ~0x3800 | core.state.fpu_top << 11


def abridged_tag(core: Core) -> int:
    """FXSAVE's tag byte: a bit for each physical register that is not empty."""
    tag = core.state.fpu_tag
    return sum(1 << number for number in range(8) if tag >> 2 * number & 3 != 3)


def _tag(abridged: int, number: int, value: int) -> int:
    """The full tag of a physical register: 0 valid, 1 zero, 2 special, 3 empty."""
    if not abridged >> number & 1:
        return 3
    exponent, fraction = value >> 64 & 0x7FFF, value & ((1 << 64) - 1)
    if exponent == 0 and fraction == 0:
        return 1
    return 0 if exponent not in (0, 0x7FFF) and fraction >> 63 else 2


# -- FNSTENV, FLDENV, FNSAVE, FRSTOR -----------------------------------------------------------

ENVIRONMENT = {2: 14, 4: 28}
"""Bytes of the environment by operand size (SDM volume 1, figures 8-9 to 8-12)."""


def _operand_size(n: Instruction) -> int:
    return 2 if n.operand_size() == 2 else 4


def full_tag(core: Core) -> int:
    """The tag word, with each register's class worked out."""
    state, abridged = core.state, abridged_tag(core)
    values = [getattr(state, f"st{number}") & ((1 << 80) - 1) for number in range(8)]
    return sum(_tag(abridged, number, values[number]) << 2 * number for number in range(8))


def _environment(core: Core, size: int) -> list[int]:
    state = core.state
    words = [state.fpu_control, status_word(core), full_tag(core)]
    pointer = [state.fpu_ip & 0xFFFF_FFFF, state.fpu_opcode << 16, state.fpu_dp & 0xFFFF_FFFF, 0]
    if size == 2:
        return [*words, *(value & 0xFFFF for value in pointer)]
    return [*(word | 0xFFFF_0000 for word in words), *pointer[:3], 0xFFFF_0000]


def _load_environment(core: Core, values: list[int]) -> None:
    state = core.state
    control, status, tag = (value & 0xFFFF for value in values[:3])
    state.fpu_control = control & 0x1F7F | 0x40
    state.fpu_top, state.fpu_tag = status >> 11 & 7, tag
    pending = status & ~control & 0x3F
    summary = 0x8080 if pending else 0
    state.fpu_status = status & 0x477F | summary
    state.fpu_ip, state.fpu_opcode, state.fpu_dp = values[3], values[4] >> 16 & 0x7FF, values[5]


def _probe_write(core: Core, linear: int, size: int, length: int) -> None:
    """Raise a page fault in the order of processors: first word, last byte, the rest."""
    core.check_alignment(linear, size)
    core.check_write(linear, size)
    core.check_write(core.wrap_linear(linear + length - 1), 1)
    core.check_write(linear, length)


def _probe_read(core: Core, linear: int, size: int, length: int) -> int:
    """The same for reading; gives ``linear``."""
    core.load(linear, size)
    core.load(core.wrap_linear(linear + length - 1), 1)
    return linear


@on("FNSTENV")
def _fnstenv(core: Core, n: Instruction) -> None:
    _available_x87(core)
    size = _operand_size(n)
    linear = n.linear(ENVIRONMENT[size], write=True)
    _probe_write(core, linear, size, ENVIRONMENT[size])
    for place, value in enumerate(_environment(core, size)):
        core.store(core.wrap_linear(linear + place * size), size, value)
    core.state.fpu_control |= 0x3F
    core.state.fpu_status &= ~0x8080  # nothing is unmasked any more


@on("FLDENV")
def _fldenv(core: Core, n: Instruction) -> None:
    _available_x87(core, waits=True)
    size = _operand_size(n)
    linear = _probe_read(core, n.linear(ENVIRONMENT[size]), size, ENVIRONMENT[size])
    _load_environment(
        core, [core.load(core.wrap_linear(linear + place * size), size) for place in range(7)]
    )


@on("FNSAVE")
def _fnsave(core: Core, n: Instruction) -> None:
    _available_x87(core)
    state = core.state
    size = _operand_size(n)
    length = ENVIRONMENT[size] + 80
    linear = n.linear(length, write=True)
    _probe_write(core, linear, size, length)
    for place, value in enumerate(_environment(core, size)):
        core.store(core.wrap_linear(linear + place * size), size, value)
    for number in range(8):
        at = core.wrap_linear(linear + ENVIRONMENT[size] + 10 * number)
        value = getattr(state, f"st{(state.fpu_top + number) & 7}")
        core.store(at, 8, value, alignment=1)
        core.store(core.wrap_linear(at + 8), 2, value >> 64, alignment=1)
    initialise(core)


@on("FRSTOR")
def _frstor(core: Core, n: Instruction) -> None:
    _available_x87(core, waits=True)
    state = core.state
    size = _operand_size(n)
    length = ENVIRONMENT[size] + 80
    linear = _probe_read(core, n.linear(length), size, length)
    words = [core.load(core.wrap_linear(linear + place * size), size) for place in range(7)]
    values = []
    for number in range(8):
        at = core.wrap_linear(linear + ENVIRONMENT[size] + 10 * number)
        high = core.load(core.wrap_linear(at + 8), 2, alignment=1)
        values.append(high << 64 | core.load(at, 8, alignment=1))
    _load_environment(core, words)
    for number, value in enumerate(values):
        setattr(state, f"st{(state.fpu_top + number) & 7}", value)


def _available_x87(core: Core, *, waits: bool = False) -> None:
    if core.state.x87_fault:
        raise GuestFault(core.state.x87_fault)
    if waits and core.state.fpu_status & 0x80:
        raise GuestFault(faults.MF)


def initialise(core: Core) -> None:
    """What FNINIT leaves."""
    state = core.state
    state.fpu_control, state.fpu_status, state.fpu_top = INITIAL_CONTROL, 0, 0
    state.fpu_tag, state.fpu_opcode, state.fpu_ip, state.fpu_dp = ALL_EMPTY, 0, 0, 0

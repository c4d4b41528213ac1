"""The x87 and SSE state as a whole: FXSAVE, FXRSTOR, FNSAVE, FNSTENV and their kin, MXCSR.

SDM volume 1, sections 8.1 and 10.5; volume 2, the instructions' pages.  ``fpu_tag`` holds a bit
pair for each physical register (3: empty); ``fpu_top`` is kept apart from the status word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.system import CR0_EM, CR0_TS, CR4_OSFXSR, on

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core
    from vdisk.vm.cpu.system import Instruction

MXCSR_MASK = 0xFFFF
FXSAVE_SIZE = 512
INITIAL_CONTROL = 0x37F
ALL_EMPTY = 0xFFFF


def available(core: Core) -> None:
    """#NM where CR0 says that x87 is emulated, or that its state is another task's."""
    if core.state.cr0 & (CR0_EM | CR0_TS):
        raise GuestFault(faults.NM)


def status_word(core: Core) -> int:
    """The status word with TOP in it."""
    return core.state.fpu_status & ~0x3800 | core.state.fpu_top << 11


def abridged_tag(core: Core) -> int:
    """FXSAVE's tag byte: a bit for each physical register that is not empty."""
    tag = core.state.fpu_tag
    return sum(1 << number for number in range(8) if tag >> 2 * number & 3 != 3)


def _area(core: Core, n: Instruction, *, write: bool) -> int:
    """The 512-byte area: aligned to 16, writable as a whole."""
    available(core)
    linear = n.linear(FXSAVE_SIZE, write=write)
    if linear & 15:
        raise GuestFault(faults.GP)
    if write:
        core.check_write(linear, FXSAVE_SIZE)
    return linear


@on("FXSAVE", "FXSAVE64")
def _fxsave(core: Core, n: Instruction) -> None:
    state, at = core.state, _area(core, n, write=True)
    image = bytearray(416)
    words = (state.fpu_control, status_word(core), abridged_tag(core), state.fpu_opcode)
    for place, word in enumerate(words):
        image[2 * place : 2 * place + 2] = word.to_bytes(2, "little")
    image[8:16] = state.fpu_ip.to_bytes(8, "little")
    image[16:24] = state.fpu_dp.to_bytes(8, "little")
    image[24:28] = state.mxcsr.to_bytes(4, "little")
    image[28:32] = MXCSR_MASK.to_bytes(4, "little")
    for number in range(8):
        value = getattr(state, f"st{(state.fpu_top + number) & 7}") & ((1 << 80) - 1)
        image[32 + 16 * number : 48 + 16 * number] = value.to_bytes(16, "little")
    for number in range(16 if state.mode == 64 else 8):
        value = getattr(state, f"xmm{number}")
        image[160 + 16 * number : 176 + 16 * number] = value.to_bytes(16, "little")
    length = 416 if state.mode == 64 else 288
    for place in range(0, length, 8):
        core.store(at + place, 8, int.from_bytes(image[place : place + 8], "little"))


@on("FXRSTOR", "FXRSTOR64")
def _fxrstor(core: Core, n: Instruction) -> None:
    state, at = core.state, _area(core, n, write=False)
    length = 416 if state.mode == 64 else 288
    image = b"".join(
        core.load(at + place, 8).to_bytes(8, "little") for place in range(0, length, 8)
    )

    def field(start: int, size: int) -> int:
        return int.from_bytes(image[start : start + size], "little")

    if state.cr4 & CR4_OSFXSR and field(24, 4) & ~MXCSR_MASK:
        raise GuestFault(faults.GP)
    state.fpu_control, status, tag = field(0, 2) & 0x1F7F | 0x40, field(2, 2), field(4, 1)
    top = state.fpu_top = status >> 11 & 7
    state.fpu_status, state.fpu_opcode = status & ~0x3800, field(6, 2)
    state.fpu_ip, state.fpu_dp = field(8, 8), field(16, 8)
    values = [field(32 + 16 * number, 10) for number in range(8)]
    for number, value in enumerate(values):
        setattr(state, f"st{(top + number) & 7}", value)
    state.fpu_tag = sum(_tag(tag, n, values[(n - top) & 7]) << 2 * n for n in range(8))
    if state.cr4 & CR4_OSFXSR:
        state.mxcsr = field(24, 4)
        for number in range(16 if state.mode == 64 else 8):
            setattr(state, f"xmm{number}", field(160 + 16 * number, 16))


def _tag(abridged: int, number: int, value: int) -> int:
    """The full tag of a physical register: 0 valid, 1 zero, 2 special, 3 empty."""
    if not abridged >> number & 1:
        return 3
    exponent, fraction = value >> 64 & 0x7FFF, value & ((1 << 64) - 1)
    if exponent == 0 and fraction == 0:
        return 1
    return 0 if exponent not in (0, 0x7FFF) and fraction >> 63 else 2


@on("LDMXCSR")
def _ldmxcsr(core: Core, n: Instruction) -> None:
    value = n.read(0, 4)
    if value & ~MXCSR_MASK:
        raise GuestFault(faults.GP)
    core.state.mxcsr = value


@on("STMXCSR")
def _stmxcsr(core: Core, n: Instruction) -> None:
    n.write(core.state.mxcsr, 0, 4)


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


@on("FNSTENV")
def _fnstenv(core: Core, n: Instruction) -> None:
    _available_x87(core)
    size = _operand_size(n)
    linear = n.linear(ENVIRONMENT[size], write=True)
    core.check_write(linear, ENVIRONMENT[size])
    for place, value in enumerate(_environment(core, size)):
        core.store(core.wrap_linear(linear + place * size), size, value)
    core.state.fpu_control |= 0x3F


@on("FLDENV")
def _fldenv(core: Core, n: Instruction) -> None:
    _available_x87(core, waits=True)
    size = _operand_size(n)
    linear = n.linear(ENVIRONMENT[size])
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
    core.check_write(linear, length)
    for place, value in enumerate(_environment(core, size)):
        core.store(core.wrap_linear(linear + place * size), size, value)
    for number in range(8):
        at = core.wrap_linear(linear + ENVIRONMENT[size] + 10 * number)
        value = getattr(state, f"st{(state.fpu_top + number) & 7}")
        core.store(at, 8, value)
        core.store(core.wrap_linear(at + 8), 2, value >> 64)
    initialise(core)


@on("FRSTOR")
def _frstor(core: Core, n: Instruction) -> None:
    _available_x87(core, waits=True)
    state = core.state
    size = _operand_size(n)
    linear = n.linear(ENVIRONMENT[size] + 80)
    words = [core.load(core.wrap_linear(linear + place * size), size) for place in range(7)]
    values = []
    for number in range(8):
        at = core.wrap_linear(linear + ENVIRONMENT[size] + 10 * number)
        high = core.load(core.wrap_linear(at + 8), 2)
        values.append(high << 64 | core.load(at, 8))
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

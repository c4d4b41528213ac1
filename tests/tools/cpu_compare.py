"""What differs between two outcomes of a case, the processor's and ours."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from tests.tools.cpu_state import (
    COMPARED_FLAGS,
    VECTORS,
    WITH_ERROR_CODE,
    abridged_tag,
)
from vdisk.vm.accel.base import GPR_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.tools.cpu_state import Case, Outcome

C2 = 0x400
RESULT_STATUS = 0x0230
"""C1, PE, UE: they tell how a result was rounded."""
TOLERANCE_ST = 2.0**-50  # compared as Python floats
TOLERANCE_XMM = 1.5 * 2.0**-11  # twice what RCPPS may be off


def differences(case: Case, expected: Outcome, actual: Outcome) -> list[str]:
    """One line a difference; an empty list: the same, as far as it is defined."""
    found = list(_ending(expected, actual))
    if not found:
        found += _integer(case, expected, actual)
        found += _floating(case, expected, actual)
        found += _memory(case, expected, actual)
    return found


def describe(case: Case) -> str:
    """The case for a human: the instruction and the state it begins in."""
    registers, fpu = case.state.registers, case.state.fpu
    lines = [f"{case.note or '?'}  [{case.code.hex(' ')}]  {case.mode}-bit, rip {registers.rip:#x}"]
    pairs = [f"{n}={v:#x}" for n, v in zip(GPR_NAMES, registers.gprs, strict=True)]
    lines += ["  " + " ".join(pairs[:8]), "  " + " ".join(pairs[8:])]
    lines.append(f"  rflags={registers.rflags:#x} mxcsr={fpu.mxcsr:#x} control={fpu.control:#x}")
    lines.append(f"  status={fpu.status:#x} tag={fpu.tag:#x}")
    lines.append("  st " + " ".join(f"{value:020x}" for value in fpu.st))
    lines.append("  xmm " + " ".join(f"{value:032x}" for value in fpu.xmm))
    return "\n".join(lines)


def ending(outcome: Outcome) -> str:
    """How a case ended, as text."""
    if outcome.timed_out:
        return "no end"
    if outcome.vector is None:
        return "end"
    text = VECTORS.get(outcome.vector, f"vector {outcome.vector}")
    if outcome.vector in WITH_ERROR_CODE:
        text += f"({outcome.error_code:#x})"
    return text + (f" at {outcome.address:#x}" if outcome.vector == 14 else "")


def _ending(expected: Outcome, actual: Outcome) -> Iterator[str]:
    if ending(expected) != ending(actual):
        yield f"ends with {ending(actual)}, should {ending(expected)}"
        return
    wanted, got = expected.state.registers.rip, actual.state.registers.rip
    if wanted != got:
        yield f"rip {got:#x}, should be {wanted:#x}"


def _integer(case: Case, expected: Outcome, actual: Outcome) -> Iterator[str]:
    wanted, got = expected.state.registers, actual.state.registers
    count, mask = (16, (1 << 64) - 1) if case.mode == 64 else (8, (1 << 32) - 1)
    for number in range(count):
        if not case.ignored_gprs >> number & 1 and (wanted.gprs[number] ^ got.gprs[number]) & mask:
            name = GPR_NAMES[number]
            yield f"{name} {got.gprs[number]:#x}, should be {wanted.gprs[number]:#x}"
    flags = COMPARED_FLAGS & ~case.ignored_flags
    if (wanted.rflags ^ got.rflags) & flags:
        yield f"rflags {got.rflags & flags:#x}, should be {wanted.rflags & flags:#x}"


def _floating(case: Case, expected: Outcome, actual: Outcome) -> Iterator[str]:
    wanted, got = expected.state.fpu, actual.state.fpu
    unfinished = case.partial and wanted.status & C2
    status = 0xFFFF & ~case.ignored_status
    if case.approximate or unfinished:
        status &= ~RESULT_STATUS
    for name, mask in (("control", 0xFFFF), ("status", status), ("mxcsr", 0xFFFFFFFF)):
        ours, theirs = getattr(got, name) & mask, getattr(wanted, name) & mask
        if ours != theirs:
            yield f"{name} {ours:#x}, should be {theirs:#x}"
    if abridged_tag(wanted.tag) != abridged_tag(got.tag):
        yield f"tag {abridged_tag(got.tag):#x}, should be {abridged_tag(wanted.tag):#x}"
    for i, (ours, theirs) in enumerate(zip(got.st, wanted.st, strict=True)):
        if (
            ours != theirs
            and not (unfinished and i == 0)
            and not (case.approximate and _registers_close(ours, theirs))
        ):
            yield f"st{i} {ours:020x}, should be {theirs:020x}"
    for i, (ours, theirs) in enumerate(zip(got.xmm, wanted.xmm, strict=True)):
        if ours != theirs and not (case.approximate and _lanes_close(ours, theirs)):
            yield f"xmm{i} {ours:032x}, should be {theirs:032x}"


def _memory(case: Case, expected: Outcome, actual: Outcome) -> Iterator[str]:
    wanted, got = expected.state.memory, actual.state.memory
    if wanted == got:
        return
    ignored = {i for start, size in case.ignored_memory for i in range(start, start + size)}
    places = [i for i, pair in enumerate(zip(wanted, got, strict=True)) if pair[0] != pair[1]]
    places = [place for place in places if place not in ignored]
    if places:
        a, b = places[0], min(places[-1] + 1, places[0] + 32)
        yield f"window+{a:#x} {got[a:b].hex()}, should be {wanted[a:b].hex()}"


def extended(value: int) -> float:
    """An 80-bit value as a float; what floats have no room for becomes NaN."""
    sign, exponent, significand = value >> 79, value >> 64 & 0x7FFF, value & (1 << 64) - 1
    if exponent == 0x7FFF or not significand >> 63:
        return math.nan if value & (1 << 79) - 1 else 0.0
    try:
        magnitude = math.ldexp(significand, exponent - 16383 - 63)
    except OverflowError:
        return math.nan
    return -magnitude if sign else magnitude


def close(a: float, b: float, tolerance: float) -> bool:
    """Equal but for the last bits."""
    return abs(a - b) <= tolerance * max(abs(a), abs(b))


def _registers_close(ours: int, theirs: int) -> bool:
    """The same for x87 registers; of denormals the last bit may differ."""
    if not (ours | theirs) >> 63 & 0x7FFF:
        return abs(ours - theirs) <= 1
    return close(extended(ours), extended(theirs), TOLERANCE_ST)


def _lanes_close(ours: int, theirs: int) -> bool:
    mine = struct.unpack("<4f", ours.to_bytes(16, "little"))
    right = struct.unpack("<4f", theirs.to_bytes(16, "little"))
    bits_mine = struct.unpack("<4I", ours.to_bytes(16, "little"))
    bits_right = struct.unpack("<4I", theirs.to_bytes(16, "little"))
    lanes = zip(mine, right, bits_mine, bits_right, strict=True)
    return all(p == q or close(a, b, TOLERANCE_XMM) for a, b, p, q in lanes)

"""What mode the processor is in, as its segments, flags and control registers say.

SDM volume 3, sections 2.2 (modes), 2.5 and 13.1 (which exceptions coprocessor instructions raise).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import debug, faults, flags
from vdisk.vm.cpu.decode import Mode

if TYPE_CHECKING:
    from vdisk.vm.cpu.state import CpuState

EFER_LMA = 1 << 10
CR0_PE, CR0_EM, CR0_TS, CR0_AM = 1, 4, 8, 1 << 18
CR4_OSFXSR = 1 << 9
CS_L, DEFAULT_32 = 0x2000, 0x4000
FLAT_LIMIT = 0xFFFF_FFFF
RIGHTS, WRITABLE_DATA = 0x9E, 0x92
"""Of a segment's attributes: present, data that may be written and expands up."""


def present(state: CpuState, *, alone: bool) -> Mode:
    """What code means now; ``alone``: the next instruction is to be executed by itself."""
    step = bool(state.eflags & flags.TF) or bool(state.dr7 & debug.ENABLES) or alone
    aligned = checks_alignment(state)
    if state.efer & EFER_LMA and state.cs_attributes & CS_L:
        return Mode(64, 64, checked=False, step=step, aligned=aligned)
    if not state.cr0 & CR0_PE or state.eflags & flags.VM:
        return Mode(16, 16, checked=True, step=step, aligned=aligned)
    code = 32 if state.cs_attributes & DEFAULT_32 else 16
    stack = 32 if state.ss_attributes & DEFAULT_32 else 16
    return Mode(code, stack, checked=not _is_flat(state), step=step, aligned=aligned)


def checks_alignment(state: CpuState) -> bool:
    """True where an operand that is not aligned is #AC (SDM volume 3, section 6.15)."""
    return state.cpl == 3 and bool(state.eflags & flags.AC and state.cr0 & CR0_AM)


def _is_flat(state: CpuState) -> bool:
    """True if CS, SS, DS and ES have base 0, all of 4 GiB and every right."""
    if state.cs_base or state.cs_limit != FLAT_LIMIT:
        return False
    for name in ("ss", "ds", "es"):
        attributes = getattr(state, f"{name}_attributes")
        if getattr(state, f"{name}_base") or getattr(state, f"{name}_limit") != FLAT_LIMIT:
            return False
        if attributes & RIGHTS != WRITABLE_DATA:
            return False
    return bool(state.cs_attributes & 2)


def coprocessor_faults(state: CpuState) -> tuple[int, int, int]:
    """What SSE, MMX and x87 instructions raise, as CR0 and CR4 are; 0: nothing."""
    cr0 = state.cr0
    if cr0 & CR0_EM:
        return faults.UD, faults.UD, faults.NM
    busy = faults.NM if cr0 & CR0_TS else 0
    return (busy if state.cr4 & CR4_OSFXSR else faults.UD), busy, busy

"""Control and debug registers, and what keeps caches and TLB (SDM volume 3, chapters 2 and 17)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import Mnemonic, OpKind

from vdisk.vm.cpu import debug, faults, flags
from vdisk.vm.cpu import descriptors as d
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.instruction import (
    CR0_AM,
    CR0_CD,
    CR0_EM,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR4_DE,
    CR4_KNOWN,
    CR4_PAE,
    CR4_PGE,
    CR4_PSE,
    EFER_LMA,
    EFER_LME,
    Instruction,
    on,
    privileged,
)
from vdisk.vm.cpu.paging import PHYSICAL_BITS

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core


def read_control(core: Core, number: int) -> int:
    if number == 8 and core.apic is not None:
        with core.bus.lock:
            return core.apic.task_priority
    if number not in (0, 2, 3, 4, 8):
        raise GuestFault(faults.UD)
    return int(getattr(core.state, f"cr{number}"))


def write_control(core: Core, number: int, value: int) -> None:
    """MOV to a control register (SDM volume 3, section 2.5)."""
    state = core.state
    match number:
        case 0:
            write_cr0(core, value)
        case 2:
            state.cr2 = value
        case 3:
            if value >> PHYSICAL_BITS:
                raise GuestFault(faults.GP)
            load_pdptes(core, state.cr0, value, state.cr4)
            state.cr3 = value
            state.flush_tlb()
        case 4:
            _write_cr4(core, value)
        case 8:
            if value >> 4:
                raise GuestFault(faults.GP)
            state.cr8 = value
            if core.apic is not None:
                with core.bus.lock:
                    core.apic.task_priority = value
        case _:
            raise GuestFault(faults.UD)


def load_pdptes(core: Core, cr0: int, cr3: int, cr4: int) -> None:
    """PAE paging keeps its four top entries; #GP(0) if reserved bits are set in one."""
    if cr0 & CR0_PG and cr4 & CR4_PAE and not core.long_mode and not core.load_pdptes(cr3):
        raise GuestFault(faults.GP)


def write_cr0(core: Core, value: int) -> None:
    """Paging on and off decides whether long mode is active."""
    state = core.state
    if value >> 32 or (value & CR0_PG and not value & CR0_PE):
        raise GuestFault(faults.GP)
    if value & CR0_NW and not value & CR0_CD:
        raise GuestFault(faults.GP)
    known = CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG
    value = value & known | CR0_ET
    turning_on = value & CR0_PG and not state.cr0 & CR0_PG
    if turning_on and state.efer & EFER_LME:
        if not state.cr4 & CR4_PAE or state.cs_attributes & d.L:
            raise GuestFault(faults.GP)
        state.efer |= EFER_LMA
    if not value & CR0_PG and state.cr0 & CR0_PG and state.efer & EFER_LMA:
        if state.mode == 64:
            raise GuestFault(faults.GP)
        state.efer &= ~EFER_LMA
    changed = state.cr0 ^ value
    if changed & (CR0_PG | CR0_CD | CR0_NW):
        load_pdptes(core, value, state.cr3, state.cr4)
    state.cr0 = value
    if changed & (CR0_PG | CR0_WP | CR0_PE):
        state.flush_tlb()
    if changed & CR0_PE and not value & CR0_PE:
        core.set_cpl(0)
    core.update_mode()


def _write_cr4(core: Core, value: int) -> None:
    if value & ~CR4_KNOWN or (core.long_mode and not value & CR4_PAE):
        raise GuestFault(faults.GP)
    changed = core.state.cr4 ^ value
    if changed & (CR4_PSE | CR4_PAE | CR4_PGE):
        load_pdptes(core, core.state.cr0, core.state.cr3, value)
    core.state.cr4 = value
    if changed & CR4_DE:
        debug.watch(core)
    if changed & (CR4_PSE | CR4_PAE | CR4_PGE):
        core.state.flush_tlb()
    core.update_mode()


def debug_number(core: Core, number: int) -> int:
    if number in (4, 5):
        if core.state.cr4 & CR4_DE:
            raise GuestFault(faults.UD)
        return number + 2
    if number > 7:
        raise GuestFault(faults.UD)
    return number


def write_debug(core: Core, number: int, value: int) -> None:
    number = debug_number(core, number)
    if number >= 6 and value >> 32:
        raise GuestFault(faults.GP)
    if number == 6:
        value = value & 0xE00F | 0xFFFF_0FF0
    elif number == 7:
        value = value & 0xFFFF_2FFF | 0x400
    setattr(core.state, f"dr{number}", value)
    core.state.eflags &= ~flags.RF  # left over from when nothing was compared with it
    if number != 6:
        debug.watch(core)
    core.update_mode()


@on("LMSW")
def _lmsw(core: Core, n: Instruction) -> None:
    privileged(core)
    old = core.state.cr0
    value = old & ~0xE | n.read(0, 2) & 0xF | old & CR0_PE
    write_cr0(core, value)


@on("SMSW")
def _smsw(core: Core, n: Instruction) -> None:
    in_register = n.i.op_kind(0) == OpKind.REGISTER
    n.write(core.state.cr0, 0, n.size() if in_register else 2)


@on("CLTS")
def _clts(core: Core, _: Instruction) -> None:
    privileged(core)
    core.state.cr0 &= ~CR0_TS
    core.update_mode()


@on("INVLPG")
def _invlpg(core: Core, _: Instruction) -> None:
    privileged(core)
    core.state.flush_tlb()


@on("RDPMC")
def _rdpmc(_core: Core, _: Instruction) -> None:
    """There are no counters, so ECX never names one."""
    raise GuestFault(faults.GP)


@on("INVD", "WBINVD", "WBNOINVD", "CLFLUSH")
def _cache(core: Core, n: Instruction) -> None:
    if n.i.mnemonic == Mnemonic.CLFLUSH:
        core.load(n.linear(1), 1)
    else:
        privileged(core)

"""Debug registers and single steps (SDM volume 3, chapter 17).

::

    DR0-DR3  linear addresses (I/O ports with CR4.DE)
    DR6      what happened: B0-B3 breakpoints, BD (13) debug registers touched, BS (14) single step
    DR7      L0 G0 … L3 G3 (0-7) enable; GD (13); then for each R/W and LEN, 4 bits from 16 on

While TF or a breakpoint is enabled a block is a single instruction (``Mode.step``), and
:func:`one_instruction` enters generated code for each: execution
breakpoints are compared before it, what it has accessed afterwards.

An access to a watched page never enters the TLB (:func:`~vdisk.vm.cpu.mmu.fill`), so it takes the
slow way, which compares it with the data breakpoints and notes them in ``debug_hits``.  Whoever
debugs nothing pays one look at ``watching`` on that way, and nothing on the fast one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import iced_x86 as iced

from vdisk.vm.cpu import faults, flags
from vdisk.vm.cpu.exits import Exit
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.routines import page_of, routine

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value
    from vdisk.vm.cpu.core import Core
    from vdisk.vm.cpu.events import Events
    from vdisk.vm.cpu.state import CpuState

MET = 0xF
BD, BS, BT = 1 << 13, 1 << 14, 1 << 15
GD = 1 << 13
ENABLES = 0xFF
CR4_DE = 1 << 3
EXECUTE, WRITE, PORT, ACCESS = range(4)
LENGTHS = (1, 2, 8, 4)
"""What LEN means, in bytes."""


def breakpoints(core: Core, *kinds: int) -> list[tuple[int, int, int]]:
    """The enabled breakpoints of these kinds: (number, address, length)."""
    state = core.state
    dr7 = state.dr7
    found = []
    for number in range(4):
        kind, length = dr7 >> 16 + 4 * number & 3, LENGTHS[dr7 >> 18 + 4 * number & 3]
        if dr7 >> 2 * number & 3 and kind in kinds:
            found.append((number, getattr(state, f"dr{number}") & -length, length))
    return found


def note(state: CpuState, hits: int) -> None:
    """What a debug exception is for: B0-B3 become what this one met, other bits stay set."""
    state.dr6 = state.dr6 & ~MET | hits


def watch(core: Core) -> None:
    """Let generated code know what to look out for, after DR7, CR4.DE or an address changed."""
    state = core.state
    core.watched_ports = breakpoints(core, PORT) if state.cr4 & CR4_DE else []
    watching = bool(breakpoints(core, WRITE, ACCESS))
    if watching or state.watching:
        state.flush_tlb()
    state.watching = int(watching)


def port_accessed(core: Core, port: int, size: int) -> None:
    """Note the I/O breakpoints that an access meets."""
    for number, address, length in core.watched_ports:
        if port < address + length and address < port + size:
            core.state.debug_hits |= 1 << number


def check_execution(core: Core) -> None:
    """#DB before an instruction with an execution breakpoint; RF holds it back."""
    state = core.state
    if state.eflags & flags.RF or not state.dr7 & ENABLES:
        return
    linear = core.wrap_linear(state.rip + state.cs_base)
    hits = sum(1 << n for n, address, _ in breakpoints(core, EXECUTE) if address == linear)
    if hits:
        note(state, hits)
        raise GuestFault(faults.DB)


def check_detect(core: Core) -> None:
    """#DB instead of an access to a debug register while DR7.GD is set."""
    if core.state.dr7 & GD:
        note(core.state, BD)
        raise GuestFault(faults.DB)


def is_repeated(core: Core) -> bool:
    """True if the instruction at ``rip`` is a repeated string instruction."""
    state = core.state
    try:
        code = core.fetch_code(core.wrap_linear(state.rip + state.cs_base))
    except GuestFault:
        return False
    instruction = iced.Decoder(state.mode, code).decode()
    repeats = instruction.has_rep_prefix or instruction.has_repne_prefix
    return bool(instruction.is_string_instruction and repeats)


# -- one instruction at a time -----------------------------------------------------------------


def one_instruction(core: Core) -> bool:
    """One instruction (or iteration), with the debug exceptions before and behind it.

    False if nothing has happened yet, for its code had to be made first.
    """
    state = core.state
    held, core.holds_debug = core.holds_debug, False
    try:
        if not held:
            check_execution(core)
    except GuestFault as fault:
        state.budget -= 1
        core.raise_fault(fault)
        return True
    core.traced = bool(state.eflags & flags.TF)
    resume, start = state.eflags & flags.RF, state.rip
    state.eflags &= ~flags.RF  # an instruction that is executed clears it, or IRET loads it
    done = _enter_once(core)
    if state.exit_reason == Exit.FAULT:
        state.debug_hits = 0
    elif not done or (resume and state.rip == start and is_repeated(core)):
        state.eflags |= resume
        core.holds_debug = held
    if done:
        trap(core)
    return done or state.exit_reason == Exit.FAULT


def _enter_once(core: Core) -> bool:
    """Enter generated code; a budget of 0 has it leave when it has counted an instruction."""
    counted = core.enter_briefly(core.enter)
    executed = core.handle_exit() or counted > 0
    return executed and core.state.exit_reason != Exit.FAULT


def in_shadow(core: Core) -> None:
    """Behind MOV SS or STI: if an interrupt waits, one instruction before it is taken."""
    if not core.interrupt_waits():
        before = core.state.budget
        core.step()
        core.inhibit &= before == core.state.budget
        return
    core.alone, core.inhibit = True, False
    core.update_mode()
    try:
        core.inhibit = not one_instruction(core) or core.inhibit
    finally:
        core.alone = False
        core.update_mode()


def trap(core: Core) -> None:
    """#DB behind an instruction: what it has accessed, TF, a task's T flag."""
    state = core.state
    if core.holds_debug:
        return
    hits = state.debug_hits | (BS if core.traced else 0)
    state.debug_hits = 0
    if hits:
        note(state, hits)
        core.raise_fault(GuestFault(faults.DB))


def merge(core: Core) -> None:
    """INT1 is a #DB that tells of what MOV SS before it has met as well."""
    state = core.state
    if state.debug_hits:
        note(state, state.debug_hits)
        state.debug_hits = 0


def trap_task(core: Events) -> None:
    """#DB before the first instruction of a task with the T flag that an interrupt began."""
    state = core.state
    if state.debug_hits & BT:
        state.debug_hits &= ~BT
        note(state, BT)
        core.raise_fault(GuestFault(faults.DB))


# -- as generated code sees them ---------------------------------------------------------------


def _data_breakpoints(b: Builder) -> list[tuple[int, Value, Value]]:
    """Of each breakpoint: its number, whether it is for writes, whether for reads too."""
    dr7 = b.get("dr7")
    result = []
    for number in range(4):
        enabled = ((dr7 >> (2 * number)) & 3).ne(0)
        kind = (dr7 >> (16 + 4 * number)) & 3
        result.append((number, enabled & kind.eq(WRITE), enabled & kind.eq(ACCESS)))
    return result


@routine("void", "i64", "i64", "i64")
def note_access(b: Builder, linear: Value, size: Value, access: Value) -> None:
    """Compare an access within a page (0 read, 1 write) with the data breakpoints."""
    hits = b.variable("i32", b.get("debug_hits"))
    dr7 = b.get("dr7")
    for number, for_writes, for_all in _data_breakpoints(b):
        code = (dr7 >> (18 + 4 * number)) & 3  # 0, 1, 3 are one less than the length; 2 means 8
        less = b.select(code.eq(2), 7, code)
        first = b.get(f"dr{number}") & ~less
        meets = linear.ule(first + less) & (linear + (size - 1)).uge(first)
        with b.if_(meets & (for_all | (for_writes & access.eq(1)))):
            hits.set(hits.get() | (1 << number))
    b.set("debug_hits", hits.get())
    b.return_()


@routine("i64", "i64")
def is_watched(b: Builder, linear: Value) -> None:
    """1 if a data breakpoint is in the page of ``linear``."""
    for number, for_writes, for_all in _data_breakpoints(b):
        with b.if_((for_writes | for_all) & page_of(b.get(f"dr{number}")).eq(page_of(linear))):
            b.return_(b.const("i64", 1))
    b.return_(b.const("i64", 0))

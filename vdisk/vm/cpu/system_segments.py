"""Segment registers and descriptor tables: MOV, POP, LxS, LGDT …, LLDT, LTR, LAR and their kin.

SDM volume 2 by name; volume 3, chapter 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import Mnemonic, OpKind, Register

from vdisk.vm.cpu import debug, faults, flags
from vdisk.vm.cpu import descriptors as d
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.instruction import SEGMENT_NAMES, Instruction, on, privileged, protected
from vdisk.vm.cpu.stacks import current_stack
from vdisk.vm.cpu.system_control import debug_number, read_control, write_control, write_debug

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core


@on("MOV")
def _mov(core: Core, n: Instruction) -> None:
    target = n.i.op_register(0) if n.i.op_kind(0) == OpKind.REGISTER else Register.NONE
    if target in SEGMENT_NAMES:
        if target == Register.CS:
            raise GuestFault(faults.UD)
        d.load_data(core, SEGMENT_NAMES[target], n.read(1, 2))
        core.inhibit = core.holds_debug = target == Register.SS
    elif Register.CR0 <= target <= Register.CR15:
        privileged(core)
        write_control(core, target - Register.CR0, n.read(1))
    elif Register.DR0 <= target <= Register.DR15:
        privileged(core)
        debug.check_detect(core)
        write_debug(core, target - Register.DR0, n.read(1))
    else:
        _read_special(core, n)


def _read_special(core: Core, n: Instruction) -> None:
    source = n.i.op_register(1)
    privileged(core)
    if Register.CR0 <= source <= Register.CR15:
        n.write(read_control(core, source - Register.CR0))
    elif Register.DR0 <= source <= Register.DR15:
        debug.check_detect(core)
        number = debug_number(core, source - Register.DR0)
        n.write(getattr(core.state, f"dr{number}"))
    else:
        raise GuestFault(faults.UD)


@on("POP")
def _pop(core: Core, n: Instruction) -> None:
    size = abs(n.i.stack_pointer_increment)
    stack = current_stack(core)
    value = stack.pop(size)
    register = n.i.op_register(0)
    d.load_data(core, SEGMENT_NAMES[register], value & 0xFFFF)
    stack.commit()
    core.inhibit = core.holds_debug = register == Register.SS


@on("LDS", "LES", "LFS", "LGS", "LSS")
def _load_far(core: Core, n: Instruction) -> None:
    name = {
        Mnemonic.LDS: "ds",
        Mnemonic.LES: "es",
        Mnemonic.LFS: "fs",
        Mnemonic.LGS: "gs",
    }.get(n.i.mnemonic, "ss")
    size = n.size(0)
    offset = core.load(n.linear(size + 2), size)
    selector = core.load(n.linear(2, plus=size), 2)
    d.load_data(core, name, selector)
    n.write(offset)


@on("LGDT", "LIDT")
def _load_table(core: Core, n: Instruction) -> None:
    privileged(core)
    wide = 8 if n.mode == 64 else 4
    limit, base = core.load(n.linear(2), 2), core.load(n.linear(wide, plus=2), wide)
    if n.mode != 64 and n.operand_size() == 2:
        base &= 0xFF_FFFF
    if n.mode == 64 and not core.canonical(base):
        raise GuestFault(faults.GP)
    name = "gdt" if n.i.mnemonic == Mnemonic.LGDT else "idt"
    setattr(core.state, f"{name}_base", base)
    setattr(core.state, f"{name}_limit", limit)


@on("SGDT", "SIDT")
def _store_table(core: Core, n: Instruction) -> None:
    name = "gdt" if n.i.mnemonic == Mnemonic.SGDT else "idt"
    wide = 8 if n.mode == 64 else 4
    core.store(n.linear(2, write=True), 2, getattr(core.state, f"{name}_limit"))
    core.store(n.linear(wide, write=True, plus=2), wide, getattr(core.state, f"{name}_base"))


@on("LLDT")
def _lldt(core: Core, n: Instruction) -> None:
    protected(core)
    privileged(core)
    selector = n.read(0, 2)
    if not selector & ~3:
        d.set_segment(core.state, "ldtr", selector, d.NULL)
        return
    if selector & 4:
        raise GuestFault(faults.GP, selector & ~3)
    descriptor, _, _ = d.fetch_system(core, selector)
    if descriptor.is_segment or descriptor.type != d.LDT:
        raise GuestFault(faults.GP, selector & ~3)
    if not descriptor.present:
        raise GuestFault(faults.NP, selector & ~3)
    if not core.canonical(descriptor.base):
        raise GuestFault(faults.GP, selector & ~3)
    d.set_segment(core.state, "ldtr", selector, descriptor)


@on("LTR")
def _ltr(core: Core, n: Instruction) -> None:
    protected(core)
    privileged(core)
    selector = n.read(0, 2)
    if selector & 4 or not selector & ~3:
        raise GuestFault(faults.GP, selector & ~3)
    descriptor, where, _ = d.fetch_system(core, selector)
    allowed = (d.TSS32,) if core.long_mode else (d.TSS16, d.TSS32)
    if descriptor.is_segment or descriptor.type not in allowed:
        raise GuestFault(faults.GP, selector & ~3)
    if not descriptor.present:
        raise GuestFault(faults.NP, selector & ~3)
    if not core.canonical(descriptor.base):
        raise GuestFault(faults.GP, selector & ~3)
    at = core.wrap_linear(where + 5)
    core.store(at, 1, core.load(at, 1, supervisor=True) | d.BUSY, supervisor=True)
    busy = descriptor._replace(attributes=descriptor.attributes | d.BUSY)
    d.set_segment(core.state, "tr", selector, busy)


@on("SLDT", "STR")
def _store_selector(core: Core, n: Instruction) -> None:
    protected(core)
    name = "ldtr" if n.i.mnemonic == Mnemonic.SLDT else "tr"
    in_register = n.i.op_kind(0) == OpKind.REGISTER
    n.write(getattr(core.state, f"{name}_selector"), 0, n.size() if in_register else 2)


@on("LAR", "LSL", "VERR", "VERW")
def _inspect(core: Core, n: Instruction) -> None:
    protected(core)
    single = n.i.mnemonic in (Mnemonic.VERR, Mnemonic.VERW)
    selector = n.read(0 if single else 1, 2)
    found = _inspected(core, n.i.mnemonic, selector)
    word = core.arithmetic_flags() & ~flags.ZF | (flags.ZF if found is not None else 0)
    core.state.cc_op, core.state.cc_src = 0, word
    if found is not None and not single:
        n.write(found)


_LSL_SYSTEM = {d.TSS16, d.LDT, d.TSS16_BUSY, d.TSS32, d.TSS32_BUSY}
_LAR_SYSTEM = _LSL_SYSTEM | {d.CALL_GATE16, d.TASK_GATE, d.CALL_GATE32}
_LONG_SYSTEM = {d.LDT, d.TSS32, d.TSS32_BUSY}


def _inspected(core: Core, mnemonic: int, selector: int) -> int | None:
    """What LAR or LSL give (1 for VERR, VERW), or None where they clear ZF."""
    if not selector & ~3:
        return None
    try:
        descriptor, _, raw = d.fetch(core, selector)
    except GuestFault as fault:
        if fault.vector == faults.GP:
            return None
        raise
    level = max(core.state.cpl, selector & 3)
    conforming = descriptor.is_code and descriptor.type & d.CONFORMING
    if not conforming and descriptor.dpl < level:
        return None
    if mnemonic in (Mnemonic.VERR, Mnemonic.VERW):
        if not descriptor.is_segment:
            return None
        code, bit = descriptor.is_code, bool(descriptor.type & 2)
        allowed = (bit or not code) if mnemonic == Mnemonic.VERR else (bit and not code)
        return 1 if allowed else None
    if not descriptor.is_segment:
        kinds = _LSL_SYSTEM if mnemonic == Mnemonic.LSL else _LAR_SYSTEM
        if core.long_mode:
            kinds = _LONG_SYSTEM | ({d.CALL_GATE32} & kinds)
        if descriptor.type not in kinds:
            return None
    return descriptor.limit if mnemonic == Mnemonic.LSL else raw >> 32 & 0x00FF_FF00


@on("ARPL")
def _arpl(core: Core, n: Instruction) -> None:
    protected(core)
    target, source = n.read(0, 2), n.read(1, 2)
    lower = target & 3 < source & 3
    if lower:
        n.write(target & ~3 | source & 3, 0, 2)
    word = core.arithmetic_flags() & ~flags.ZF | (flags.ZF if lower else 0)
    core.state.cc_op, core.state.cc_src = 0, word

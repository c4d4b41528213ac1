"""System instructions: what generated code leaves to Python (SDM volume 3; volume 2 by name).

:func:`execute` decodes the instruction at ``rip`` again and carries it out on a
:class:`~vdisk.vm.cpu.core.Core`.  ``core.next_rip`` is where the guest goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import iced_x86 as iced
from iced_x86 import Mnemonic, OpKind, Register

from vdisk.vm.cpu import cpuid, debug, faults, flags, msr, strings_io, transfers
from vdisk.vm.cpu import descriptors as d
from vdisk.vm.cpu.decode import REGISTERS, SIZES
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.mmu import PHYSICAL_BITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.cpu.core import Core

    Handler = Callable[[Core, "Instruction"], None]

CR0_PE, CR0_MP, CR0_EM, CR0_TS, CR0_ET, CR0_NE = 1, 2, 4, 8, 16, 32
CR0_WP, CR0_AM, CR0_NW, CR0_CD, CR0_PG = 1 << 16, 1 << 18, 1 << 29, 1 << 30, 1 << 31
CR4_VME, CR4_PVI, CR4_TSD, CR4_DE, CR4_PSE, CR4_PAE, CR4_MCE, CR4_PGE = (
    1 << bit for bit in range(8)
)
CR4_PCE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_UMIP = 1 << 8, 1 << 9, 1 << 10, 1 << 11
CR4_KNOWN = (
    CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR
    | CR4_OSXMMEXCPT
)  # fmt: skip
"""Bits that may be set; the others are reserved here, as CPUID says."""
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1, 1 << 8, 1 << 10, 1 << 11


LARGEST_OPERAND = 512  # FXSAVE's
_SEGMENT_NAMES = {getattr(Register, n.upper()): n for n in ("es", "cs", "ss", "ds", "fs", "gs")}


class Instruction:
    """The decoded instruction with its operands in reach."""

    def __init__(self, core: Core, decoded: iced.Instruction) -> None:
        self.core, self.i = core, decoded
        self.mode = core.state.mode

    def size(self, index: int = 0) -> int:
        """Bytes of an operand."""
        if self.i.op_kind(index) == OpKind.REGISTER:
            return SIZES[self.i.op_register(index)] // 8
        return int(iced.MemorySizeExt.size(self.i.memory_size))

    def offset(self) -> int:
        """The effective address of the memory operand."""
        i, state = self.i, self.core.state
        width = 64 if self.mode == 64 else 32
        total = i.memory_displacement
        for register, factor in ((i.memory_base, 1), (i.memory_index, i.memory_index_scale)):
            if register in (Register.NONE, Register.EIP, Register.RIP):
                continue
            width = SIZES[register]
            total += (state.gpr(REGISTERS[register] >> 3) & ((1 << width) - 1)) * factor
        if i.memory_base == Register.NONE and i.memory_index == Register.NONE:
            width = {2: 16, 4: 32, 8: 64}.get(i.memory_displ_size, width)
        return int(total & ((1 << width) - 1))

    def segment_name(self) -> str:
        """The segment of the memory operand."""
        return _SEGMENT_NAMES[self.i.memory_segment]

    def linear(self, size: int, *, write: bool = False, plus: int = 0) -> int:
        """The linear address of the memory operand, checked against its segment."""
        return d.segment_linear(
            self.core, self.segment_name(), self.offset() + plus, size, write=write
        )

    def read(self, index: int = 0, size: int | None = None) -> int:
        """The value of a register or memory operand."""
        size = size or self.size(index)
        if self.i.op_kind(index) == OpKind.REGISTER:
            offset = REGISTERS[self.i.op_register(index)]
            return int.from_bytes(self.core.state.view[offset : offset + size], "little")
        return self.core.load(self.linear(size), size)

    def write(self, value: int, index: int = 0, size: int | None = None) -> None:
        """Set a register or memory operand; 32-bit registers are zero-extended."""
        size = size or self.size(index)
        if self.i.op_kind(index) != OpKind.REGISTER:
            self.core.store(self.linear(size, write=True), size, value)
            return
        offset = REGISTERS[self.i.op_register(index)]
        wide = 8 if size == 4 else size
        value &= (1 << 8 * size) - 1
        self.core.state.view[offset : offset + wide] = value.to_bytes(wide, "little")

    def operand_size(self) -> int:
        """Bytes, from the instruction's code."""
        return int(self.i.op_code().operand_size) // 8 or self.mode // 8


def fetch(core: Core) -> Instruction:
    """Decode the instruction at ``rip``; raises :class:`GuestFault` where it cannot be read."""
    state = core.state
    linear = core.wrap_linear(state.rip + state.cs_base)
    code = core.fetch_code(linear)
    decoder = iced.Decoder(state.mode, code, ip=state.rip)
    decoded = decoder.decode()
    mask = (1 << 64) - 1 if state.mode == 64 else 0xFFFF_FFFF
    core.next_rip = (state.rip + decoded.len) & mask
    return Instruction(core, decoded)


def not_canonical(core: Core) -> int:
    """#SS or #GP: which exception the instruction at ``rip`` meets at ``fault_address``."""
    try:
        n = fetch(core)
    except GuestFault:
        return faults.GP
    operands = [n.i.op_kind(index) for index in range(n.i.op_count)]
    if OpKind.MEMORY in operands:
        distance = n.offset() - core.state.fault_address
        if not n.i.is_stack_instruction or -LARGEST_OPERAND < distance <= 0:
            return faults.SS if n.i.memory_segment == Register.SS else faults.GP
    return faults.SS if n.i.is_stack_instruction else faults.GP


def execute(core: Core) -> None:
    """Carry out the instruction at ``rip``."""
    instruction = fetch(core)
    handler = HANDLERS.get(instruction.i.mnemonic)
    if handler is None:
        raise GuestFault(faults.UD)
    handler(core, instruction)


HANDLERS: dict[int, Handler] = {}


def on(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler for mnemonics."""

    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[getattr(Mnemonic, name)] = handler
        return handler

    return register


def privileged(core: Core) -> None:
    """#GP(0) but at CPL 0."""
    if core.state.cpl:
        raise GuestFault(faults.GP)


def protected(core: Core) -> None:
    """#UD in real and virtual-8086 mode."""
    if not core.state.cr0 & CR0_PE or core.virtual_8086:
        raise GuestFault(faults.UD)


# -- far transfers -----------------------------------------------------------------------------


@on("JMP", "CALL")
def _far(core: Core, n: Instruction) -> None:
    how = transfers.JUMP if n.i.mnemonic == Mnemonic.JMP else transfers.CALL
    if n.i.op_kind(0) in (OpKind.FAR_BRANCH16, OpKind.FAR_BRANCH32):
        wide = n.i.op_kind(0) == OpKind.FAR_BRANCH32
        offset = n.i.far_branch32 if wide else n.i.far_branch16
        transfers.far_transfer(core, n.i.far_branch_selector, offset, 4 if wide else 2, how)
        return
    size = n.size() - 2
    offset = core.load(n.linear(size + 2), size)
    selector = core.load(n.linear(2, plus=size), 2)
    transfers.far_transfer(core, selector, offset, size, how)


@on("RETF")
def _retf(core: Core, n: Instruction) -> None:
    transfers.far_return(core, n.operand_size(), n.i.immediate(0) if n.i.op_count else 0)


@on("IRET", "IRETD", "IRETQ")
def _iret(core: Core, n: Instruction) -> None:
    transfers.interrupt_return(core, {Mnemonic.IRET: 2, Mnemonic.IRETD: 4}.get(n.i.mnemonic, 8))


@on("INT")
def _int(core: Core, n: Instruction) -> None:
    if core.virtual_8086 and (core.state.eflags >> 12 & 3) < 3:
        raise GuestFault(faults.GP)
    core.software_interrupt(n.i.immediate(0))


@on("INT3")
def _int3(core: Core, _: Instruction) -> None:
    core.software_interrupt(faults.BP)


@on("INT1")
def _int1(core: Core, _: Instruction) -> None:
    core.software_interrupt(faults.DB, checked=False)


@on("INTO")
def _into(core: Core, _: Instruction) -> None:
    if core.arithmetic_flags() & flags.OF:
        core.software_interrupt(faults.OF)


# -- SYSCALL and its kin -----------------------------------------------------------------------


def _flat_segment(core: Core, name: str, selector: int, attributes: int) -> None:
    d.set_segment(core.state, name, selector, d.Descriptor(0, 0xFFFF_FFFF, attributes))


@on("SYSCALL")
def _syscall(core: Core, _: Instruction) -> None:
    state = core.state
    if not state.efer & EFER_SCE or state.mode != 64:
        raise GuestFault(faults.UD)
    state.rcx, state.r11 = core.next_rip, core.flags_word() & ~flags.RF
    selector = state.star >> 32 & 0xFFFC
    _flat_segment(core, "cs", selector, 0xA09B)
    _flat_segment(core, "ss", selector + 8, 0xC093)
    core.set_flags(core.flags_word() & ~state.sfmask & ~flags.RF)
    core.set_cpl(0)
    core.update_mode()
    core.traced = bool(state.eflags & flags.TF)
    core.next_rip = state.lstar


@on("SYSRET", "SYSRETQ")
def _sysret(core: Core, n: Instruction) -> None:
    state = core.state
    if not state.efer & EFER_SCE or not core.long_mode:
        raise GuestFault(faults.UD)
    privileged(core)
    selector = state.star >> 48
    if n.i.mnemonic == Mnemonic.SYSRETQ:
        if not core.canonical(state.rcx):
            raise GuestFault(faults.GP)
        _flat_segment(core, "cs", selector + 16 | 3, 0xA0FB)
        core.next_rip = state.rcx
    else:
        _flat_segment(core, "cs", selector | 3, 0xC0FB)
        core.next_rip = state.rcx & 0xFFFF_FFFF
    _flat_segment(core, "ss", selector + 8 | 3, 0xC0F3)
    core.set_flags(state.r11, kept=flags.RF | flags.VM)
    core.set_cpl(3)
    core.update_mode()


@on("SYSENTER")
def _sysenter(core: Core, _: Instruction) -> None:
    state = core.state
    protected(core)
    selector = state.sysenter_cs & 0xFFFC
    if not selector:
        raise GuestFault(faults.GP)
    state.eflags &= ~(flags.VM | flags.IF | flags.RF)
    _flat_segment(core, "cs", selector, 0xA09B if core.long_mode else 0xC09B)
    _flat_segment(core, "ss", selector + 8, 0xC093)
    state.rsp, core.next_rip = state.sysenter_esp, state.sysenter_eip
    core.set_cpl(0)
    core.update_mode()


@on("SYSEXIT", "SYSEXITQ")
def _sysexit(core: Core, n: Instruction) -> None:
    state = core.state
    protected(core)
    privileged(core)
    selector = state.sysenter_cs & 0xFFFC
    if not selector:
        raise GuestFault(faults.GP)
    wide = n.i.mnemonic == Mnemonic.SYSEXITQ
    mask = (1 << 64) - 1 if wide else 0xFFFF_FFFF
    if not core.canonical(state.rcx & mask) or not core.canonical(state.rdx & mask):
        raise GuestFault(faults.GP)
    selector += 32 if wide else 16
    _flat_segment(core, "cs", selector | 3, 0xA0FB if wide else 0xC0FB)
    _flat_segment(core, "ss", selector + 8 | 3, 0xC0F3)
    state.rsp, core.next_rip = state.rcx & mask, state.rdx & mask
    core.set_cpl(3)
    core.update_mode()


# -- segments and tables -----------------------------------------------------------------------


@on("MOV")
def _mov(core: Core, n: Instruction) -> None:
    target = n.i.op_register(0) if n.i.op_kind(0) == OpKind.REGISTER else Register.NONE
    if target in _SEGMENT_NAMES:
        if target == Register.CS:
            raise GuestFault(faults.UD)
        d.load_data(core, _SEGMENT_NAMES[target], n.read(1, 2))
        core.inhibit = core.holds_debug = target == Register.SS
    elif Register.CR0 <= target <= Register.CR15:
        privileged(core)
        write_control(core, target - Register.CR0, n.read(1))
    elif Register.DR0 <= target <= Register.DR15:
        privileged(core)
        debug.check_detect(core)
        _write_debug(core, target - Register.DR0, n.read(1))
    else:
        _read_special(core, n)


def _read_special(core: Core, n: Instruction) -> None:
    source = n.i.op_register(1)
    privileged(core)
    if Register.CR0 <= source <= Register.CR15:
        n.write(_read_control(core, source - Register.CR0))
    elif Register.DR0 <= source <= Register.DR15:
        debug.check_detect(core)
        number = _debug_number(core, source - Register.DR0)
        n.write(getattr(core.state, f"dr{number}"))
    else:
        raise GuestFault(faults.UD)


@on("POP")
def _pop(core: Core, n: Instruction) -> None:
    size = abs(n.i.stack_pointer_increment)
    stack = transfers.current_stack(core)
    value = stack.pop(size)
    register = n.i.op_register(0)
    d.load_data(core, _SEGMENT_NAMES[register], value & 0xFFFF)
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


# -- control and debug registers ---------------------------------------------------------------


def _read_control(core: Core, number: int) -> int:
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


def _debug_number(core: Core, number: int) -> int:
    if number in (4, 5):
        if core.state.cr4 & CR4_DE:
            raise GuestFault(faults.UD)
        return number + 2
    if number > 7:
        raise GuestFault(faults.UD)
    return number


def _write_debug(core: Core, number: int, value: int) -> None:
    number = _debug_number(core, number)
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


@on("INVD", "WBINVD", "CLFLUSH")
def _cache(core: Core, n: Instruction) -> None:
    if n.i.mnemonic == Mnemonic.CLFLUSH:
        core.load(n.linear(1), 1)
    else:
        privileged(core)


# -- the rest ----------------------------------------------------------------------------------


@on("HLT")
def _hlt(core: Core, _: Instruction) -> None:
    privileged(core)
    core.halted = True


@on("CLI", "STI")
def _interrupt_flag(core: Core, n: Instruction) -> None:
    """Reached where CPL > IOPL, in virtual-8086 mode, or instruction by instruction."""
    state = core.state
    if state.cpl > state.eflags >> 12 & 3:
        raise GuestFault(faults.GP)
    if n.i.mnemonic == Mnemonic.CLI:
        state.eflags &= ~flags.IF
    else:
        core.inhibit = not state.eflags & flags.IF
        state.eflags |= flags.IF


@on("PUSHF", "PUSHFD", "PUSHFQ")
def _pushf(core: Core, n: Instruction) -> None:
    """Virtual-8086 mode."""
    if core.virtual_8086 and (core.state.eflags >> 12 & 3) < 3:
        raise GuestFault(faults.GP)
    core.push(core.flags_word() & ~(flags.VM | flags.RF), abs(n.i.stack_pointer_increment))


@on("POPF", "POPFD", "POPFQ")
def _popf(core: Core, n: Instruction) -> None:
    state, size = core.state, abs(n.i.stack_pointer_increment)
    iopl = state.eflags >> 12 & 3
    if core.virtual_8086 and iopl < 3:
        raise GuestFault(faults.GP)
    stack = transfers.current_stack(core)
    word = stack.pop(size)
    stack.commit()
    kept = flags.VM | flags.VIF | flags.VIP | flags.RF
    if state.cpl > 0:
        kept |= flags.IOPL
    if state.cpl > iopl:
        kept |= flags.IF
    core.set_flags(word & ~flags.RF, size, kept=kept)
    core.update_mode()


@on("CPUID")
def _cpuid(core: Core, _: Instruction) -> None:
    state = core.state
    values = cpuid.leaf(core, state.rax & 0xFFFF_FFFF, state.rcx & 0xFFFF_FFFF)
    state.rax, state.rbx, state.rcx, state.rdx = values


@on("RDTSC", "RDTSCP")
def _rdtsc(core: Core, n: Instruction) -> None:
    state = core.state
    if state.cr4 & CR4_TSD and state.cpl:
        raise GuestFault(faults.GP)
    now = core.timestamp()
    state.rax, state.rdx = now & 0xFFFF_FFFF, now >> 32
    if n.i.mnemonic == Mnemonic.RDTSCP:
        state.rcx = state.tsc_aux & 0xFFFF_FFFF


@on("RDMSR")
def _rdmsr(core: Core, _: Instruction) -> None:
    privileged(core)
    value = msr.read(core, core.state.rcx & 0xFFFF_FFFF)
    core.state.rax, core.state.rdx = value & 0xFFFF_FFFF, value >> 32


@on("WRMSR")
def _wrmsr(core: Core, _: Instruction) -> None:
    privileged(core)
    state = core.state
    value = (state.rdx & 0xFFFF_FFFF) << 32 | state.rax & 0xFFFF_FFFF
    msr.write(core, state.rcx & 0xFFFF_FFFF, value)


@on("SALC")
def _salc(core: Core, _: Instruction) -> None:
    core.state.view[0] = 0xFF if core.arithmetic_flags() & flags.CF else 0


@on("IN", "OUT", "INSB", "INSW", "INSD", "OUTSB", "OUTSW", "OUTSD")
def _ports(core: Core, n: Instruction) -> None:
    strings_io.execute(core, n)

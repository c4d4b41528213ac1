"""Port instructions that generated code leaves to Python: INS, OUTS, and I/O that the TSS allows.

SDM volume 1, chapter 19: with CPL > IOPL, or in virtual-8086 mode, the I/O permission bitmap of
the TSS decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import Mnemonic, OpKind

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.descriptors import segment_linear
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core
    from vdisk.vm.cpu.instruction import Instruction

MAP_BASE = 102  # offset of the bitmap's offset in a 32-bit and a 64-bit TSS
CHUNK = 256
"""Elements of a repeated instruction between looks at interrupts."""
SHORTEST_RUN = 4
"""Elements that are worth doing together."""
WORD = 8

_SIZES = {
    Mnemonic.INSB: 1,
    Mnemonic.INSW: 2,
    Mnemonic.INSD: 4,
    Mnemonic.OUTSB: 1,
    Mnemonic.OUTSW: 2,
    Mnemonic.OUTSD: 4,
}
_WIDTHS = {
    OpKind.MEMORY_ESDI: 16,
    OpKind.MEMORY_ESEDI: 32,
    OpKind.MEMORY_ESRDI: 64,
    OpKind.MEMORY_SEG_SI: 16,
    OpKind.MEMORY_SEG_ESI: 32,
    OpKind.MEMORY_SEG_RSI: 64,
}


def check_port(core: Core, port: int, size: int) -> None:
    """#GP(0) where the ports may not be used."""
    state = core.state
    if not state.cr0 & 1:
        return
    if state.cpl <= state.eflags >> 12 & 3 and not core.virtual_8086:
        return
    if state.tr_limit < MAP_BASE + 1:
        raise GuestFault(faults.GP)
    base = core.load(core.wrap_linear(state.tr_base + MAP_BASE), 2, supervisor=True)
    where = base + (port >> 3)
    if where + 1 > state.tr_limit:
        raise GuestFault(faults.GP)
    bits = core.load(core.wrap_linear(state.tr_base + where), 2, supervisor=True)
    if bits >> (port & 7) & ((1 << size) - 1):
        raise GuestFault(faults.GP)


def execute(core: Core, n: Instruction) -> None:
    """IN, OUT (checked), INS, OUTS."""
    if n.i.mnemonic in _SIZES:
        _string(core, n)
        return
    is_in = n.i.mnemonic == Mnemonic.IN
    port_operand, data = (1, 0) if is_in else (0, 1)
    by_register = n.i.op_kind(port_operand) == OpKind.REGISTER
    port = n.read(port_operand, 2) if by_register else n.i.immediate(port_operand)
    size = n.size(data)
    check_port(core, port, size)
    if is_in:
        n.write(core.port_in(port, size))
    else:
        core.port_out(port, size, n.read(data))


def _string(core: Core, n: Instruction) -> None:
    """INS and OUTS; a repeated one does a bounded number of elements and comes back."""
    i, state = n.i, core.state
    size, is_in = _SIZES[i.mnemonic], i.mnemonic in (Mnemonic.INSB, Mnemonic.INSW, Mnemonic.INSD)
    kinds = [i.op_kind(index) for index in range(i.op_count)]
    width = next(_WIDTHS[kind] for kind in kinds if kind in _WIDTHS)
    mask = (1 << width) - 1
    port = state.rdx & 0xFFFF
    check_port(core, port, size)
    repeat = i.has_rep_prefix or i.has_repne_prefix
    count = state.rcx & mask if repeat else 1
    number = 7 if is_in else 6
    most = 1 if core.stepping else CHUNK  # steps and breakpoints are behind each element
    left = min(count, most)
    while left:
        done = _run(core, n, port, size, number, mask, left) or 1
        if done == 1:
            _element(core, n, port, size, number, mask)
        left -= done
        if repeat:
            _set_part(core, 1, state.rcx - done, mask)
    state.budget -= max(min(count, most) - 1, 0)  # each element counts as an instruction
    if count > most:
        core.next_rip = state.rip


def _run(
    core: Core, n: Instruction, port: int, size: int, number: int, mask: int, count: int
) -> int:
    """Elements inside one page, upwards, all at once; how many: 0 where there is no such run.

    Whatever may fault is looked at before the port is: a fault leaves nothing half done.
    """
    offset = core.state.gpr(number) & mask
    if count < SHORTEST_RUN or core.state.direction >> 63 or offset + size * count > mask:
        return 0
    is_in = number == 7
    try:
        name = "es" if is_in else n.segment_name()
        linear = segment_linear(core, name, offset, size * count, write=is_in)
        core.check_alignment(linear, size)
        count = min(count, (PAGE_SIZE - (linear & PAGE_SIZE - 1)) // size)
        if count < SHORTEST_RUN:
            return 0
        if is_in:
            core.check_write(linear, size * count)
    except GuestFault:
        return 0
    if is_in:
        _store_many(core, linear, core.port_in_many(port, size, count))
    else:
        core.port_out_many(port, size, _load_many(core, linear, size * count))
    _set_part(core, number, core.state.gpr(number) + size * count, mask)
    return count


def _store_many(core: Core, linear: int, data: bytes) -> None:
    if core.store_run(linear, data):
        return
    whole = len(data) & -WORD
    for start in range(0, whole, WORD):
        word = int.from_bytes(data[start : start + WORD], "little")
        core.store(linear + start, WORD, word, alignment=1)
    for start in range(whole, len(data)):
        core.store(linear + start, 1, data[start])


def _load_many(core: Core, linear: int, length: int) -> bytes:
    found = core.load_run(linear, length)
    if found is not None:
        return found
    whole = length & -WORD
    words = [core.load(linear + at, WORD, alignment=1) for at in range(0, whole, WORD)]
    parts = [word.to_bytes(WORD, "little") for word in words]
    return b"".join(parts) + bytes(core.load(linear + at, 1) for at in range(whole, length))


def _set_part(core: Core, number: int, value: int, mask: int) -> None:
    old = core.state.gpr(number) if mask == 0xFFFF else 0
    core.state.set_gpr(number, old & ~mask | value & mask)


def _element(core: Core, n: Instruction, port: int, size: int, number: int, mask: int) -> None:
    state = core.state
    offset = state.gpr(number) & mask
    if number == 7:
        linear = segment_linear(core, "es", offset, size, write=True)
        core.check_alignment(linear, size)
        core.check_write(linear, size)
        core.store(linear, size, core.port_in(port, size))
    else:
        name = n.segment_name()
        core.port_out(port, size, core.load(segment_linear(core, name, offset, size), size))
    step = -size if state.direction >> 63 else size
    _set_part(core, number, state.gpr(number) + step, mask)

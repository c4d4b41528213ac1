"""What is inside a processor, for monitors: its registers as numbers and as QEMU writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import OutOfRangeError
from vdisk.vm._bios.paging import Translation
from vdisk.vm._bios.space import Space
from vdisk.vm.accel.base import GPR_NAMES
from vdisk.vm.memory import PageKind
from vdisk.vm.monitor.control import ProcessorState

if TYPE_CHECKING:
    from vdisk.vm._machine.processor import Processor
    from vdisk.vm.accel.base import FpuState, Registers, Segment, SystemRegisters
    from vdisk.vm.bus import Bus
    from vdisk.vm.memory import GuestMemory

SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
LONG_MODE_ACTIVE = 1 << 10  # EFER.LMA
LONG, DEFAULT_32 = 1 << 13, 1 << 14  # L and D/B of Segment.attributes
RFLAGS_VM, RFLAGS_IF = 1 << 17, 1 << 9
PROTECTED = 1 << 0  # CR0.PE
_FLAGS = ((11, "O"), (10, "D"), (7, "S"), (6, "Z"), (4, "A"), (2, "P"), (0, "C"))
_SHOWN = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")


def state(processor: Processor) -> ProcessorState:
    """A processor that stands still."""
    general, system = processor.vcpu.get_registers(), processor.vcpu.get_system_registers()
    named = dict(zip(GPR_NAMES, general.gprs, strict=True))
    named |= {"rip": general.rip, "rflags": general.rflags, "eflags": general.rflags}
    for name in _SHOWN:
        named[f"e{name[1:]}"] = named[name] & 0xFFFFFFFF
        named[name[1:]] = named[name] & 0xFFFF
    named["eip"] = named["pc"] = general.rip
    for name in SEGMENTS:
        named[name] = getattr(system, name).selector
        named[f"{name}.base"] = getattr(system, name).base
    for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
        named[name] = getattr(system, name)
    bits = code_bits(system)
    code = general.rip + (0 if bits == 64 else system.cs.base)
    if bits != 64:
        code &= 0xFFFFFFFF
    named["pc"] = code
    return ProcessorState(named, bits, code, processor.halted)


def code_bits(system: SystemRegisters) -> int:
    """Of what kind the code segment is."""
    if system.efer & LONG_MODE_ACTIVE and system.cs.attributes & LONG:
        return 64
    return 32 if system.cs.attributes & DEFAULT_32 else 16


def read_virtual(
    processor: Processor, memory: GuestMemory, bus: Bus, address: int, length: int
) -> bytes:
    """Memory by linear addresses; raises OutOfRangeError where there is none."""
    system = processor.vcpu.get_system_registers()
    translation = Translation(system, Space(memory, bus.mmio))
    parts = []
    for at, size in translation.pieces(address, length):
        if at is None or memory.kind(at) is PageKind.MMIO:
            raise OutOfRangeError(f"cannot access memory at {address:#x}")
        parts.append(memory.read(at, size))
        address += size
    return b"".join(parts)


def registers_text(processor: Processor) -> str:
    """As QEMU's ``info registers``."""
    vcpu = processor.vcpu
    general, system, fpu = vcpu.get_registers(), vcpu.get_system_registers(), vcpu.get_fpu()
    long = bool(system.efer & LONG_MODE_ACTIVE)
    lines = _general_lines(general, long=long)
    flags = "".join(letter if general.rflags >> bit & 1 else "-" for bit, letter in _FLAGS)
    name, width = ("RIP", 16) if long else ("EIP", 8)
    lines.append(
        f"{name}={general.rip:0{width}x} {'RFL' if long else 'EFL'}={general.rflags:08x} [{flags}] "
        f"CPL={_privilege(general, system)} HLT={processor.halted:d}"
    )
    lines += [_segment_line(one, getattr(system, one), width) for one in (*SEGMENTS, "ldtr", "tr")]
    for table in ("gdt", "idt"):
        value = getattr(system, table)
        lines.append(f"{table.upper()}=     {value.base:0{width}x} {value.limit:08x}")
    control = [("CR0", system.cr0, 8), ("CR2", system.cr2, width), ("CR3", system.cr3, width),
               ("CR4", system.cr4, 8)]  # fmt: skip
    lines.append(" ".join(f"{one}={value:0{digits}x}" for one, value, digits in control))
    for group in ((0, 1, 2, 3), (6, 7)):
        lines.append(" ".join(f"DR{n}={system.dr[n]:016x}" for n in group))
    lines.append(f"EFER={system.efer:016x}")
    return "\n".join([*lines, *_fpu_lines(fpu, 16 if long else 8)]) + "\n"


def _general_lines(general: Registers, *, long: bool) -> list[str]:
    named = dict(zip(GPR_NAMES, general.gprs, strict=True))
    if not long:
        cells = [f"E{name[1:].upper()}={named[name] & 0xFFFFFFFF:08x}" for name in _SHOWN]
    else:
        cells = [f"{name.upper():3}={named[name]:016x}" for name in (*_SHOWN, *GPR_NAMES[8:])]
    return [" ".join(cells[start : start + 4]) for start in range(0, len(cells), 4)]


def _privilege(general: Registers, system: SystemRegisters) -> int:
    if not system.cr0 & PROTECTED:
        return 0
    return 3 if general.rflags & RFLAGS_VM else system.cs.selector & 3


def _segment_line(name: str, segment: Segment, width: int) -> str:
    label = {"ldtr": "LDT"}.get(name, name.upper())
    return (
        f"{label:3}={segment.selector:04x} {segment.base:0{width}x} {segment.limit:08x} "
        f"{segment.attributes << 8:08x}"
    )


def _fpu_lines(fpu: FpuState, vectors: int) -> list[str]:
    top = fpu.status >> 11 & 7
    used = sum((fpu.tag >> 2 * n & 3 != 3) << n for n in range(8))
    lines = [
        f"FCW={fpu.control:04x} FSW={fpu.status:04x} [ST={top}] FTW={used:02x} "
        f"MXCSR={fpu.mxcsr:08x}"
    ]
    low = (1 << 64) - 1
    cells = [(n, fpu.st[(n - top) & 7]) for n in range(8)]
    texts = [f"FPR{n}={value & low:016x} {value >> 64:04x}" for n, value in cells]
    texts += [f"XMM{n:02}={v >> 64:016x} {v & low:016x}" for n, v in enumerate(fpu.xmm[:vectors])]
    return [*lines, *(" ".join(texts[at : at + 2]) for at in range(0, len(texts), 2))]

"""Any guest code, tables and registers do on every engine what they do on one; ≤ 256 MiB, ≤ 2 s.

Input: a byte that chooses the mode, a byte of what else is on (and, in its upper bits, whether the
second tier takes part), eight bytes that registers, descriptor tables and page tables are made
from, then the code.  Each engine executes some hundred instructions; whatever they do, they do in
the guest's memory, and they leave the same: every register, all of memory, the way it ended.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tests.tools.cpu_state import abridged_tag
from tests.tools.engines import ENGINES
from tests.tools.guest_cpu import CODES, DATAS, KERNEL_CODE, KERNEL_DATA, descriptor, gate
from tests.tools.x86_values import random_fpu
from vdisk.vm._machine.state import save_vcpu
from vdisk.vm.accel.base import DescriptorTable, Registers, Segment, SystemRegisters, VcpuExit
from vdisk.vm.bus import Bus
from vdisk.vm.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.tools.engines import Engine
    from vdisk.vm.accel.software_vcpu import SoftwareVcpu

SLOWNESS = 8.0
"""LLVM needs 2 ms for an instruction of a new shape, 20 and more for a region."""
LONGEST = 4096
BUDGET, HOT_BUDGET = 600, 120
SLACK = 4096 + 64  # bytes of a page that a repeated MOVS does at once, and a block
SIZE = 1 << 20
CODE, GDT, IDT, TSS, TABLES, STACK = 0x2000, 0x8000, 0x9000, 0xB000, 0x1_0000, 0x8_0000
TABLE_PAGES = 16
SEED = slice(2, 10)
MODES = ("real", "v86", "16", "32", "paged", "pae", "compatible", "64", "user32", "user64")
SINGLE_STEP, BREAKPOINTS, HOLES, TINY, WP = 1, 2, 4, 8, 16
PE, AM, PG = 1, 1 << 18, 1 << 31
PSE, PAE, PGE = 1 << 4, 1 << 5, 1 << 7
LONG = 0xD01
FLAT16 = Segment(8, 0, 0xFFFF, 0x009B), Segment(16, 0, 0xFFFF, 0x0093)
FLAT32 = Segment(8, 0, 0xFFFFFFFF, 0xC09B), Segment(16, 0, 0xFFFFFFFF, 0xC093)
V86 = Segment(0, 0, 0xFFFF, 0x00F3)


class Rig:
    """A processor that inputs are tried on; made once, for the translations of one run serve the
    next, or are dropped for it."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.memory = GuestMemory(SIZE)
        self.engine = engine.make(self.memory, Bus())
        self.vcpu = cast("SoftwareVcpu", self.engine.vcpu(0))
        self.vcpu.timestamp_source = lambda: 0

    def fresh(self, mode: str, options: int, rng: random.Random) -> None:
        """Memory, tables and registers that ``rng`` makes."""
        self._clear()
        self.memory.write(STACK - 0x1000, rng.randbytes(0x2000))
        self._tables(rng)
        self._paging(mode, options, rng)
        self.vcpu.reset()
        self.vcpu.set_system_registers(self._system(mode, options, rng))
        flags = 2 | rng.getrandbits(22) & 0x4CD5 | (0x100 if options & SINGLE_STEP else 0)
        flags |= 1 << 17 if mode == "v86" else 0
        gprs = [_number(rng) for _ in range(16)]
        gprs[4] = STACK if rng.random() < 0.8 else _number(rng)
        if mode in {"real", "v86", "16"}:
            gprs[4] &= 0xFFFF
        self.vcpu.set_registers(Registers(gprs, CODE, flags))
        self.vcpu.set_fpu(random_fpu(rng, 64 if mode in {"64", "user64"} else 32))

    def _clear(self) -> None:
        """No page keeps anything of the input before; those that are empty keep their code."""
        everything = self.memory.read(0, SIZE)
        for start in range(0, SIZE, 0x1000):
            if everything.count(0, start, start + 0x1000) != 0x1000:
                self.memory.write(start, bytes(0x1000))

    def _tables(self, rng: random.Random) -> None:
        write = self.memory.write
        for index, segment in enumerate((*FLAT32, CODES[32], DATAS[32], CODES[64], KERNEL_CODE)):
            write(GDT + 8 + 8 * index, descriptor(segment))
        write(GDT + 0x40, descriptor(Segment(0x40, TSS, 0x67, 0x0089)) + bytes(8))
        for place in range(0x50, 0x100, 8):
            write(GDT + place, rng.randbytes(8))
        for vector in range(64):
            made = gate(
                CODE + rng.randrange(0x100), rng.choice((8, 0x28, 0x30)), rng.choice((0, 3))
            )
            broken = rng.random() < 0.1
            write(IDT + 16 * vector, rng.randbytes(16) if broken else made)
        write(TSS, rng.randbytes(0x68))
        for level in range(3):
            write(TSS + 4 + 8 * level, STACK.to_bytes(8, "little"))

    def _paging(self, mode: str, options: int, rng: random.Random) -> None:
        """Tables whose pages are the tables' own, memory, and nothing."""
        wide = 4 if mode == "paged" else 8
        for page in range(TABLE_PAGES):
            entries = bytearray()
            for index in range(4096 // wide):
                entries += _entry(rng, page, index, wide, options).to_bytes(wide, "little")
            self.memory.write(TABLES + 0x1000 * page, bytes(entries))

    def _system(self, mode: str, options: int, rng: random.Random) -> SystemRegisters:
        system = self.vcpu.get_system_registers()
        code, data = _segments(mode)
        system.cs = code
        system.es = system.ss = system.ds = system.fs = system.gs = data
        system.tr = Segment(0x40, TSS, 0x67, 0x008B)
        system.gdt, system.idt = DescriptorTable(GDT, 0xFF), DescriptorTable(IDT, 0x3FF)
        if mode == "real":
            system.idt = DescriptorTable(0, 0x3FF)
        paged = mode not in {"real", "v86", "16", "32"}
        long = mode in {"compatible", "64", "user32", "user64"}
        system.cr0 = (0 if mode == "real" else PE) | (PG if paged else 0) | AM | 0x10
        system.cr0 |= 1 << 16 if options & WP else 0
        system.cr4 = PSE | PGE | 0x600 | (PAE if long or mode == "pae" else 0)
        system.cr3 = TABLES
        system.efer = LONG if long else 0
        if options & BREAKPOINTS:
            system.dr = [_number(rng) & 0xFFFF for _ in range(4)] + [0, 0, 0xFFFF0FF0, 0]
            system.dr[7] = 0x400 | rng.getrandbits(32) & 0xFFFF2FFF
        return system


def _segments(mode: str) -> tuple[Segment, Segment]:
    return {
        "real": (Segment(0, 0, 0xFFFF, 0x0093), Segment(0, 0, 0xFFFF, 0x0093)),
        "v86": (V86, V86),
        "16": FLAT16,
        "compatible": FLAT32,
        "64": (KERNEL_CODE, KERNEL_DATA),
        "user32": (CODES[32], DATAS[32]),
        "user64": (CODES[64], DATAS[64]),
    }.get(mode, FLAT32)


def _number(rng: random.Random) -> int:
    """A register: small, an address, a border of some width, or anything."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randrange(64)
    if kind == 1:
        return rng.randrange(SIZE + 0x2000)
    if kind == 2:
        return (1 << rng.choice((7, 15, 16, 20, 31, 32, 47, 48, 63))) - rng.randrange(17)
    if kind == 3:
        return -rng.randrange(1, 1 << 16) & (1 << 64) - 1
    if kind == 4:
        return CODE + rng.randrange(0x400)
    return rng.getrandbits(64)


def _entry(rng: random.Random, page: int, index: int, wide: int, options: int) -> int:
    """A table's entry: near the beginning they lead on and map memory as it is, mostly."""
    tidy = 0.5 if options & HOLES else 0.97
    if rng.random() < tidy:
        if page < 3 and not index:
            return TABLES + 0x1000 * (page + 1) | 7
        if page == 3 or (wide == 4 and page == 1):
            return 0x1000 * (index % 256) | 7 | rng.choice((0, 0, 0x60))
    if rng.random() < 0.6:
        return 0
    target = rng.choice((TABLES + 0x1000 * rng.randrange(TABLE_PAGES), rng.randrange(2 * SIZE)))
    if rng.random() < 0.1:
        target = rng.getrandbits(8 * wide)
    return (target & ~0xFFF | rng.getrandbits(9) | 1) & (1 << 8 * wide) - 1


_rigs: list[Rig] = []


def prepare() -> None:
    """Make the processors: the interpreter, threaded code, the second tier."""
    if not _rigs:
        _rigs.extend(Rig(engine) for engine in ENGINES[:3])
        note_approximations(_rigs[0].vcpu)


def _seed(mode: str, options: int, code: str) -> bytes:
    return bytes([MODES.index(mode), options]) + bytes(8) + bytes.fromhex(code)


def seeds() -> dict[str, bytes]:
    """A few instructions of each kind, in each mode."""
    code = {
        "loop": "b910000000 48ffc0 ffc9 75f9 f4",
        "store": "c7052000000001000000 8905ff0f0000 f3a4 f3ab",
        "stack": "50 53 e800000000 58 c3 60 61 c8100002 c9",
        "far": "ea00200000 0800 9a0020000008 00 cb cf",
        "system": "0f22d8 0f20c0 0f22e0 0f01f8 0f30 0f32 0fa2 0f0107",
        "modify": "c60508000000cc 90909090 eb f0",
        "ports": "e460 e660 ec ee 6c 6e f36c",
        "locked": "f00fc101 f0480fc709 f00fb00a 8701",
    }
    kinds = list(code)
    chosen = {
        (mode, kinds[(number + more) % len(kinds)])
        for number, mode in enumerate(MODES)
        for more in (0, 3)
    }
    return {
        f"{mode} {kind}": _seed(mode, number * 7 % 32, code[kind])
        for number, (mode, kind) in enumerate(sorted(chosen))
    }


PREFIXES = (b"", b"", b"", b"\x66", b"\xf2", b"\xf3", b"\xf0", b"\x48", b"\x67", b"\x66\x48")


def instruction(rng: random.Random) -> bytes:
    """Bytes of an instruction: of one byte, of two or three (SSE), of x87."""
    prefix, tail = rng.choice(PREFIXES), rng.randbytes(rng.choice((1, 1, 2, 5, 6)))
    kind = rng.randrange(5)
    if kind == 0:
        return prefix + bytes([rng.randrange(256)]) + tail
    if kind == 1:
        return bytes([rng.randrange(0xD8, 0xE0)]) + tail
    if kind == 2:
        return prefix + b"\x0f" + rng.choice((b"\x38", b"\x3a")) + tail + b"\x03"
    return prefix + b"\x0f" + tail


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another mode, other tables, other code."""
    changed = bytearray(data.ljust(16, b"\0"))
    match rng.randrange(8):
        case 0:
            changed[0] = rng.randrange(len(MODES))
        case 1:
            changed[1] = rng.randrange(256)
        case 2:
            changed[SEED] = rng.randbytes(8)
        case 3:
            changed += rng.randbytes(rng.randrange(1, 64))
        case 4:
            at = rng.randrange(10, len(changed))
            changed[at:at] = rng.choice(list(seeds().values()))[10:]
        case 5 | 6:
            for _ in range(rng.randrange(1, 6)):
                at = rng.randrange(10, len(changed))
                changed[at:at] = instruction(rng)
        case _:
            for _ in range(rng.randrange(1, 8)):
                changed[rng.randrange(10, len(changed))] = rng.randrange(256)
    return bytes(changed[:LONGEST])


# -- one input ---------------------------------------------------------------------------------

APPROXIMATE = {
    *("f2xm1", "fsin", "fcos", "fpatan", "fyl2x", "fyl2xp1", "fsincos", "fptan"),
    *("rcpps", "rcpss", "rsqrtps", "rsqrtss"),
}
"""The interpreter works out another last bit than the host, or (RCPPS) a better result."""
approximated: list[str] = []


def note_approximations(vcpu: SoftwareVcpu) -> None:
    """Have the interpreter tell of them: such runs differ, and rightly."""
    names: dict[str, Any] = getattr(vcpu, "names")  # noqa: B009 - of the interpreter alone
    for function in ("x87", "sse"):
        names[function] = _noting(names[function])


def _noting(function: Callable[..., Any]) -> Callable[..., Any]:
    def noting(name: str, *arguments: Any) -> Any:
        if name in APPROXIMATE:
            approximated.append(name)
        return function(name, *arguments)

    return noting


class Ending(NamedTuple):
    """What a run has left."""

    result: VcpuExit
    instructions: int
    registers: dict[str, object]
    memory: bytes

    def differences(self, other: Ending) -> list[str]:
        """What another engine has left differently."""
        names = [name for name, value in self.registers.items() if value != other.registers[name]]
        found = [f"{name} {self.registers[name]} {other.registers[name]}" for name in names]
        places = [
            start
            for start in range(0, SIZE, 16)
            if self.memory[start : start + 16] != other.memory[start : start + 16]
        ]
        for at in places[:4]:
            mine, theirs = self.memory[at : at + 16].hex(), other.memory[at : at + 16].hex()
            found.append(f"memory {at:#x} {mine} {theirs}")
        return found


def execute(rig: Rig, data: bytes, budget: int) -> Ending:
    """One input on one engine."""
    rng = random.Random(data[SEED])
    rig.fresh(MODES[data[0] % len(MODES)], data[1], rng)
    rig.memory.write(CODE, data[10 : 10 + LONGEST])
    before = rig.vcpu.instructions
    result = rig.vcpu.run(budget)
    executed = rig.vcpu.instructions - before
    assert result in {VcpuExit.HLT, VcpuExit.INTERRUPTED, VcpuExit.SHUTDOWN}, rig.vcpu.error
    assert executed <= budget + SLACK
    saved = save_vcpu(rig.vcpu)
    system = saved["system"]
    saved["fpu"]["tag"] = abridged_tag(saved["fpu"]["tag"])  # classes are worked out when stored
    registers = {**saved["registers"], **saved["fpu"], **system, "msrs": saved["msrs"]}
    return Ending(result, executed, registers, rig.memory.read(0, SIZE))


def run(data: bytes) -> None:
    data = data.ljust(10, b"\0")
    hot = data[1] >> 5 == 0
    rigs, budget = (_rigs, HOT_BUDGET) if hot else (_rigs[:2], BUDGET)
    approximated.clear()
    first = execute(rigs[0], data, budget)
    for rig in rigs[1:]:
        ending = execute(rig, data, budget)
        if ending[:2] != first[:2] and VcpuExit.INTERRUPTED in {first.result, ending.result}:
            continue  # how many elements of a string count as one is the engine's affair
        if not approximated:
            assert ending.result is first.result, f"{rig.name} {ending[:2]}, not {first[:2]}"
            found = first.differences(ending)
            assert not found, f"{rig.name}: {found}"

"""One interface for whatever executes a guest: the recompiler, KVM, the reference interpreter.

An :class:`Accelerator` is made for a :class:`~vdisk.vm.memory.GuestMemory` and a
:class:`~vdisk.vm.bus.Bus` and gives vCPUs.  A vCPU carries out port and memory-mapped I/O on the
bus itself (holding ``bus.lock``) and comes back from :meth:`Vcpu.run` only when somebody has to
decide something::

    while True:
        match vcpu.run():
            case VcpuExit.HLT:          wait until vcpu.interrupts.pending() (or an NMI, INIT …)
            case VcpuExit.MWAIT:        the same, or until vcpu.line_changed() (or any earlier)
            case VcpuExit.INTERRUPTED:  kick() was called, or the budget is used up
            case VcpuExit.SHUTDOWN:     triple fault
            case VcpuExit.ERROR:        the accelerator cannot go on; vcpu.error says why

Interrupts: before each guest instruction (at the latest at the next branch after a
:meth:`Vcpu.kick`), while RFLAGS.IF is set, the vCPU asks ``interrupts.pending()`` and takes the
vector of ``interrupts.acknowledge()``.

The register sets follow KVM's: general registers, system registers, floating point, MSRs.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from vdisk.vm.irq import InterruptSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus
    from vdisk.vm.memory import GuestMemory


RFLAGS_IF = 1 << 9


class VcpuExit(enum.Enum):
    """Why :meth:`Vcpu.run` came back."""

    HLT = "hlt"
    MWAIT = "mwait"
    INTERRUPTED = "interrupted"
    SHUTDOWN = "shutdown"
    ERROR = "error"


GPR_NAMES = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)


@dataclass(slots=True)
class Registers:
    """General registers in encoding order (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8…r15)."""

    gprs: list[int] = field(default_factory=lambda: [0] * 16)
    rip: int = 0
    rflags: int = 2


@dataclass(slots=True)
class Segment:
    """A segment register with its hidden part.

    ``attributes``: bits 8-15 and 20-23 of a descriptor's second word, shifted down by 8, as in
    the SDM's figure 3-8 and AMD's VMCB (type, S, DPL, P, AVL, L, D/B, G).  ``limit``: bytes.
    """

    selector: int = 0
    base: int = 0
    limit: int = 0xFFFF
    attributes: int = 0x0093


@dataclass(slots=True)
class DescriptorTable:
    """GDTR or IDTR."""

    base: int = 0
    limit: int = 0xFFFF


@dataclass(slots=True)
class SystemRegisters:
    """Segments, descriptor tables, control registers."""

    es: Segment = field(default_factory=Segment)
    cs: Segment = field(default_factory=Segment)
    ss: Segment = field(default_factory=Segment)
    ds: Segment = field(default_factory=Segment)
    fs: Segment = field(default_factory=Segment)
    gs: Segment = field(default_factory=Segment)
    ldtr: Segment = field(default_factory=lambda: Segment(attributes=0x0082))
    tr: Segment = field(default_factory=lambda: Segment(attributes=0x008B))
    gdt: DescriptorTable = field(default_factory=DescriptorTable)
    idt: DescriptorTable = field(default_factory=DescriptorTable)
    cr0: int = 0x60000010
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int = 0xFEE00900
    dr: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400])


@dataclass(slots=True)
class FpuState:
    """x87, SSE: ``st`` holds ST(0)…ST(7) as 80-bit integers; ``xmm`` 128-bit integers."""

    st: list[int] = field(default_factory=lambda: [0] * 8)
    control: int = 0x037F
    status: int = 0
    tag: int = 0xFFFF
    opcode: int = 0
    instruction_pointer: int = 0
    data_pointer: int = 0
    xmm: list[int] = field(default_factory=lambda: [0] * 16)
    mxcsr: int = 0x1F80


class LocalApic(InterruptSource, Protocol):
    """The local APIC that belongs to a vCPU: its registers at ``apic_base`` and CR8."""

    def mmio_read(self, offset: int, size: int) -> int: ...
    def mmio_write(self, offset: int, size: int, value: int) -> None: ...
    def read_msr(self, index: int) -> int | None:
        """IA32_APIC_BASE, IA32_TSC_DEADLINE, x2APIC registers; None: no such register."""

    def write_msr(self, index: int, value: int) -> bool:
        """False: no such register, or a value it refuses (#GP)."""

    @property
    def task_priority(self) -> int:
        """CR8: bits 4-7 of TPR."""

    @task_priority.setter
    def task_priority(self, value: int) -> None: ...


class Vcpu(ABC):
    """One virtual processor.  Its methods but :meth:`kick` are for one thread at a time.

    ``interrupts``: set by the machine before the first run.  ``apic``: None where the machine has
    none (then CPUID does not show one either).  ``error``: text, after ``VcpuExit.ERROR``.
    ``instructions``: how many were executed by the end of the last run (0 where the accelerator
    cannot tell).
    ``timestamp_source``: what the time-stamp counter counts (ns), where the machine has a time of
    its own; None: the host's.
    ``masked_interrupts_wake``: interrupts end ``VcpuExit.MWAIT`` with RFLAGS.IF clear, too.
    """

    index: int
    interrupts: InterruptSource | None = None
    apic: LocalApic | None = None
    error: str = ""
    instructions: int = 0
    timestamp_source: Callable[[], int] | None = None
    masked_interrupts_wake: bool = False

    def line_changed(self) -> bool:
        """After ``VcpuExit.MWAIT``: somebody has written the line that MONITOR watches."""
        return True

    def executed(self) -> int:
        """From any thread: instructions so far, those of the present run included."""
        return self.instructions

    @property
    def interruptible(self) -> bool:
        """RFLAGS.IF, between two runs."""
        return bool(self.get_registers().rflags & RFLAGS_IF)

    @abstractmethod
    def run(self, budget: int | None = None) -> VcpuExit:
        """Execute until something has to be decided, or about ``budget`` instructions are done."""

    @abstractmethod
    def kick(self) -> None:
        """From any thread: make :meth:`run` look at its interrupts soon.

        If :meth:`request_exit` was called it comes back with ``INTERRUPTED``.
        """

    @abstractmethod
    def request_exit(self) -> None:
        """From any thread: make the present or the next :meth:`run` return ``INTERRUPTED``."""

    @abstractmethod
    def reset(self) -> None:
        """The state after RESET# (SDM volume 3, table 9-1): CS:IP = F000:FFF0, base FFFF0000."""

    @abstractmethod
    def inject_nmi(self) -> None:
        """From any thread: a non-maskable interrupt."""

    @property
    @abstractmethod
    def nmi_waits(self) -> bool:
        """True if one will be taken as soon as the vCPU runs, which ends its HLT."""

    @abstractmethod
    def get_registers(self) -> Registers: ...

    @abstractmethod
    def set_registers(self, registers: Registers) -> None: ...

    @abstractmethod
    def get_system_registers(self) -> SystemRegisters: ...

    @abstractmethod
    def set_system_registers(self, registers: SystemRegisters) -> None: ...

    @abstractmethod
    def get_fpu(self) -> FpuState: ...

    @abstractmethod
    def set_fpu(self, state: FpuState) -> None: ...

    @abstractmethod
    def get_msrs(self) -> dict[int, int]:
        """Every model-specific register that a saved machine needs."""

    @abstractmethod
    def set_msrs(self, msrs: dict[int, int]) -> None: ...

    def get_extra(self) -> dict[str, int | bytes]:
        """What else a saved machine needs, in the accelerator's own terms: events under way …"""
        return {}

    def set_extra(self, extra: dict[str, int | bytes]) -> None:  # noqa: B027
        """Take back what :meth:`get_extra` of the same accelerator gave; after all other sets."""

    def close(self) -> None:  # noqa: B027 - not every accelerator holds something
        """Release what the vCPU holds."""


class Accelerator(ABC):
    """Makes vCPUs for one machine.

    ``name``: ``llvm``, ``kvm`` or ``interp``.  ``a20``: False masks bit 20 of every physical
    address (the machine sets it from port 92h and the keyboard controller).
    """

    name: str
    memory: GuestMemory
    bus: Bus
    counts_instructions: bool = False

    @abstractmethod
    def vcpu(self, index: int) -> Vcpu:
        """Processor ``index`` (its APIC id); 0 is the bootstrap processor."""

    @property
    @abstractmethod
    def a20(self) -> bool: ...

    @a20.setter
    @abstractmethod
    def a20(self, enabled: bool) -> None: ...

    def close(self) -> None:  # noqa: B027
        """Release what the accelerator holds; its vCPUs are closed already."""

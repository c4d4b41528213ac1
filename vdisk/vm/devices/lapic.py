"""The local APIC of a processor (SDM volume 3, chapter 11; AMD APM volume 2, chapter 16).

Registers of 32 bits, one every 16 bytes of the page at IA32_APIC_BASE::

    020 ID            080 TPR           0D0 LDR          100-170 ISR       280 ESR
    030 version       0A0 PPR           0E0 DFR          180-1F0 TMR       300 ICR 31-0
                      0B0 EOI           0F0 SVR          200-270 IRR       310 ICR 63-32
    320 LVT timer  330 thermal  340 counters  350 LINT0  360 LINT1  370 error
    380 initial count   390 current count   3E0 divide configuration

An interrupt goes through three registers of 256 bits, a bit a vector: IRR when it arrives, ISR
while it is served (until EOI), TMR says whether its EOI is told to the I/O APIC.  The highest
vector wins if its class (bits 4-7) is above that of PPR, the larger of TPR and the one in service.

LINT0 is where the 8259 pair is wired to: delivery mode ExtINT lets it through ("virtual wire"),
as does an APIC that is switched off.  At RESET# the bootstrap processor's LINT0 is that already,
which the firmware of a PC would otherwise have to do first thing.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Protocol

from vdisk.vm.devices.apic_bus import BROADCAST, FIXED, LOWEST_PRIORITY, ApicBus, DeliveryMode
from vdisk.vm.devices.base import Device, State
from vdisk.vm.devices.lapic_timer import ApicTimer, TimerMode, Tsc

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.clock import Clock
    from vdisk.vm.irq import InterruptSource

ID, VERSION, TPR, APR, PPR, EOI, RRD = 0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xC0
LDR, DFR, SVR, ISR, TMR, IRR, ESR = 0xD0, 0xE0, 0xF0, 0x100, 0x180, 0x200, 0x280
ICR_LOW, ICR_HIGH = 0x300, 0x310
LVT_TIMER, LVT_THERMAL, LVT_COUNTERS, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(0x320, 0x380, 0x10)
INITIAL_COUNT, CURRENT_COUNT, DIVIDE = 0x380, 0x390, 0x3E0

VERSION_VALUE = 0x0005_0014  # integrated, six LVT entries
MASKED = 1 << 16
LVT_LEVEL = 1 << 15
LVT_WRITABLE = {
    LVT_TIMER: 0x7_00FF,
    LVT_THERMAL: 0x1_07FF,
    LVT_COUNTERS: 0x1_07FF,
    LVT_LINT0: 0x1_A7FF,
    LVT_LINT1: 0x1_A7FF,
    LVT_ERROR: 0x1_00FF,
}
SVR_ENABLED, SVR_WRITABLE = 1 << 8, 0x3FF
ICR_WRITABLE = 0xC_CFFF
ICR_LOGICAL, ICR_ASSERT, ICR_LEVEL = 1 << 11, 1 << 14, 1 << 15
ESR_SEND_ILLEGAL_VECTOR, ESR_RECEIVED_ILLEGAL_VECTOR, ESR_ILLEGAL_REGISTER = 1 << 5, 1 << 6, 1 << 7
LOWEST_VECTOR = 16  # those below are reserved

MSR_APIC_BASE, MSR_TSC_DEADLINE = 0x1B, 0x6E0
BASE_ADDRESS, BASE_BSP, BASE_X2APIC, BASE_ENABLED = 0xFEE0_0000, 1 << 8, 1 << 10, 1 << 11
BASE_RESERVED = ~((1 << 40) - 1) | 0x2FF | BASE_X2APIC


class ApicCore(Protocol):
    """The processor that belongs to a local APIC; all are called with the bus lock held."""

    def interrupt(self) -> None:
        """There may be an interrupt to take: end a HLT, look again soon."""

    def nmi(self) -> None: ...
    def init(self) -> None:
        """INIT: reset, and wait for a start-up IPI unless it is the bootstrap processor."""

    def startup(self, vector: int) -> None:
        """Start-up IPI: begin at vector << 12 if waiting for one."""


class Lapic(Device):
    """One local APIC.  ``pic``: the 8259 pair behind LINT0; ``tsc``: for the TSC-deadline mode."""

    SAVED: ClassVar[tuple[str, ...]] = (
        *("base", "_id", "_tpr", "_ldr", "_dfr", "_svr", "_lvt", "_icr_low", "_icr_high"),
        *("_esr", "_errors", "_lint", "timer"),
    )
    load_order = 2

    def __init__(
        self, apic_id: int, bus: ApicBus, clock: Clock, core: ApicCore,
        pic: InterruptSource | None = None, tsc: Tsc | None = None,
    ) -> None:  # fmt: skip
        self.name = f"lapic{apic_id}"
        self._initial_id = apic_id
        self._bus = bus
        self._core = core
        self._pic = pic
        self.timer = ApicTimer(clock, self._timer_expired, tsc)
        self._lvt = [MASKED] * 6
        self._lint = [False, False]
        self._reads = self._read_table()
        self._writes = self._write_table()
        self.reset()
        bus.attach(self)

    def reset(self) -> None:
        self.base = BASE_ADDRESS | BASE_ENABLED | (0 if self._initial_id else BASE_BSP)
        self._power_up()

    def _power_up(self) -> None:
        self._id = self._initial_id << 24
        self.init()

    def init(self) -> None:
        """The state after INIT: as after RESET#, but for the ID and IA32_APIC_BASE (11.4.7.3)."""
        self._irr = self._isr = self._tmr = 0
        self._tpr = self._ldr = self._icr_low = self._icr_high = self._esr = self._errors = 0
        self._dfr = 0xFFFF_FFFF
        self._svr = 0xFF
        self._lvt[:] = [MASKED] * 6
        if self.base & BASE_BSP:
            self._lvt[3] = DeliveryMode.EXTINT << 8
        self.timer.reset()
        self._next = -1

    # -- to the processor ------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Switched on, by IA32_APIC_BASE and by SVR: it takes ordinary interrupts."""
        return bool(self.base & BASE_ENABLED and self._svr & SVR_ENABLED)

    def pending(self) -> bool:
        return self._next >= 0 or (
            self._pic is not None and self._pic.pending() and self._passes_pic()
        )

    def acknowledge(self) -> int:
        vector = self._next
        if vector >= 0:
            self._irr &= ~(1 << vector)
            self._isr |= 1 << vector
            self._update()
            return vector
        if self._pic is not None and self._passes_pic() and self._pic.pending():
            return self._pic.acknowledge()
        return self._svr & 0xFF  # spurious

    def _passes_pic(self) -> bool:
        if not self.base & BASE_ENABLED:
            return bool(self.base & BASE_BSP)
        entry = self._lvt[3]
        return not entry & MASKED and entry >> 8 & 7 == DeliveryMode.EXTINT

    @property
    def task_priority(self) -> int:
        return self._tpr >> 4

    @task_priority.setter
    def task_priority(self, value: int) -> None:
        self._set_tpr((value & 0xF) << 4)

    def _set_tpr(self, value: int) -> None:
        self._tpr = value & 0xFF
        self._offer()

    @property
    def processor_priority(self) -> int:
        """PPR (11.8.3.1)."""
        serving = self._isr.bit_length() - 1
        if serving < 0 or self._tpr >> 4 >= serving >> 4:
            return self._tpr
        return serving & 0xF0

    def _update(self) -> None:
        """Find the interrupt to offer after IRR, ISR or TPR have changed."""
        highest = self._irr.bit_length() - 1
        offered = highest >= 0 and highest >> 4 > self.processor_priority >> 4 and self.enabled
        self._next = highest if offered else -1

    def _offer(self) -> None:
        """After something that may have held an interrupt back is gone: what waits is told of."""
        self._update()
        if self._next >= 0:
            self._core.interrupt()

    # -- from the bus ----------------------------------------------------------------------------

    def matches(self, destination: int, *, logical: bool) -> bool:
        """True if a message to ``destination`` (8 bits) is for this APIC (11.6.2)."""
        if not logical:
            return destination in {self._id >> 24, BROADCAST}
        own = self._ldr >> 24
        if self._dfr >> 28 == 0xF:  # flat model
            return bool(own & destination)
        same_cluster = destination >> 4 in {own >> 4, 0xF}
        return same_cluster and bool(own & destination & 0xF)

    def accept(self, mode: int, vector: int, *, level: bool) -> None:
        """Take a message whose destination this APIC is."""
        if mode in (FIXED, LOWEST_PRIORITY):
            if self.enabled:
                self._accept_fixed(vector, level)
        elif mode == DeliveryMode.NMI:
            self._core.nmi()
        elif mode == DeliveryMode.INIT:
            self._core.init()
        elif mode == DeliveryMode.STARTUP:
            self._core.startup(vector)
        elif mode == DeliveryMode.EXTINT:
            self._core.interrupt()

    def _accept_fixed(self, vector: int, level: bool) -> None:
        if vector < LOWEST_VECTOR:
            self._error(ESR_RECEIVED_ILLEGAL_VECTOR)
            return
        bit = 1 << vector
        self._irr |= bit
        self._tmr = self._tmr | bit if level else self._tmr & ~bit
        self._offer()

    def set_lint(self, pin: int, level: bool) -> None:
        """Drive LINT0 (the 8259 pair) or LINT1 (NMI)."""
        rising = level and not self._lint[pin]
        self._lint[pin] = level
        entry = self._lvt[3 + pin]
        mode = entry >> 8 & 7
        if pin == 0 and level and self._passes_pic():
            self._core.interrupt()
        elif rising and self.base & BASE_ENABLED and not entry & MASKED:
            self.accept(mode, entry & 0xFF, level=False)

    def _timer_expired(self) -> None:
        self._local(0)

    def _local(self, number: int) -> None:
        """An event of the local vector table's entry ``number``."""
        entry = self._lvt[number]
        if not entry & MASKED:
            self.accept(entry >> 8 & 7, entry & 0xFF, level=False)

    def _error(self, bit: int) -> None:
        """Note an error; the first since ESR was written last interrupts (11.5.3)."""
        before = self._errors
        self._errors |= bit
        if not before & bit and self._lvt[5] & 0xFF >= LOWEST_VECTOR:
            self._local(5)

    # -- registers -------------------------------------------------------------------------------

    def mmio_read(self, offset: int, size: int) -> int:
        """Any size and offset within a register; the upper 12 bytes of each read as zeroes."""
        within = offset & 0xF
        if within >= 4:
            return 0
        read = self._reads.get(offset & ~0xF)
        if read is None:
            self._error(ESR_ILLEGAL_REGISTER)
            return 0
        return read() >> 8 * within & (1 << 8 * size) - 1

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Only whole registers can be written (11.4.1); anything else is ignored."""
        if offset & 0xF or size < 4:
            return
        write = self._writes.get(offset)
        if write is not None:
            write(value & 0xFFFF_FFFF)
        elif offset not in self._reads:
            self._error(ESR_ILLEGAL_REGISTER)

    def _read_table(self) -> dict[int, Callable[[], int]]:
        table: dict[int, Callable[[], int]] = {
            ID: lambda: self._id,
            VERSION: lambda: VERSION_VALUE,
            TPR: lambda: self._tpr,
            APR: lambda: 0,
            PPR: lambda: self.processor_priority,
            EOI: lambda: 0,
            RRD: lambda: 0,
            LDR: lambda: self._ldr,
            DFR: lambda: self._dfr,
            SVR: lambda: self._svr,
            ESR: lambda: self._esr,
            ICR_LOW: lambda: self._icr_low,
            ICR_HIGH: lambda: self._icr_high,
            INITIAL_COUNT: lambda: self.timer.initial_count,
            CURRENT_COUNT: self.timer.current_count,
            DIVIDE: lambda: self.timer.divide_configuration,
        }
        for word in range(8):
            table[ISR + 0x10 * word] = partial(self._wide_word, "_isr", word)
            table[TMR + 0x10 * word] = partial(self._wide_word, "_tmr", word)
            table[IRR + 0x10 * word] = partial(self._wide_word, "_irr", word)
        for number in range(6):
            table[LVT_TIMER + 0x10 * number] = partial(self._lvt.__getitem__, number)
        return table

    def _write_table(self) -> dict[int, Callable[[int], None]]:
        table: dict[int, Callable[[int], None]] = {
            ID: self._write_id,
            TPR: self._set_tpr,
            EOI: self._write_eoi,
            LDR: self._write_ldr,
            DFR: self._write_dfr,
            SVR: self._write_svr,
            ESR: self._write_esr,
            ICR_LOW: self._write_icr_low,
            ICR_HIGH: self._write_icr_high,
            INITIAL_COUNT: self.timer.set_initial_count,
            DIVIDE: self.timer.set_divide,
        }
        for number in range(6):
            table[LVT_TIMER + 0x10 * number] = partial(self._write_lvt, number)
        return table

    def _wide_word(self, name: str, word: int) -> int:
        register: int = getattr(self, name)
        return register >> 32 * word & 0xFFFF_FFFF

    def _write_id(self, value: int) -> None:
        self._id = value & 0xFF00_0000

    def _write_ldr(self, value: int) -> None:
        self._ldr = value & 0xFF00_0000

    def _write_dfr(self, value: int) -> None:
        self._dfr = value | 0x0FFF_FFFF

    def _write_eoi(self, _value: int) -> None:
        vector = self._isr.bit_length() - 1
        if vector < 0:
            return
        self._isr &= ~(1 << vector)
        self._offer()
        if self._tmr >> vector & 1:
            self._bus.end_of_interrupt(vector)

    def _write_svr(self, value: int) -> None:
        self._svr = value & SVR_WRITABLE
        if not value & SVR_ENABLED:  # 11.4.7.2: all LVT entries are masked
            self._lvt[:] = [entry | MASKED for entry in self._lvt]
        self._offer()

    def _write_esr(self, _value: int) -> None:
        self._esr, self._errors = self._errors, 0

    def _write_lvt(self, number: int, value: int) -> None:
        value &= LVT_WRITABLE[LVT_TIMER + 0x10 * number]
        if not self._svr & SVR_ENABLED:
            value |= MASKED
        if number == 0:
            if self.timer.tsc is None and value >> 17 & 3 == TimerMode.TSC_DEADLINE:
                value &= ~(TimerMode.RESERVED << 17)  # a reserved bit without the feature
            self.timer.set_mode(value >> 17 & 3)
        self._lvt[number] = value
        if number == 3 and self._lint[0] and self._passes_pic():
            self._core.interrupt()

    def _write_icr_high(self, value: int) -> None:
        self._icr_high = value & 0xFF00_0000

    def _write_icr_low(self, value: int) -> None:
        """Send an inter-processor interrupt (11.6.1)."""
        self._icr_low = value & ICR_WRITABLE
        mode = DeliveryMode(value >> 8 & 7)
        level = bool(value & ICR_LEVEL)
        if mode is DeliveryMode.INIT and level and not value & ICR_ASSERT:
            return  # INIT level de-assert: not of these processors (footnote of table 11-3)
        if mode in {DeliveryMode.SMI, DeliveryMode.RESERVED, DeliveryMode.EXTINT}:
            return
        if mode in {FIXED, LOWEST_PRIORITY} and value & 0xFF < LOWEST_VECTOR:
            self._error(ESR_SEND_ILLEGAL_VECTOR)
            return
        self._bus.deliver(self._ipi_targets(value), mode, value & 0xFF, level=False)

    def _ipi_targets(self, value: int) -> list[Lapic]:
        shorthand = value >> 18 & 3
        if shorthand == 1:
            return [self]
        if shorthand == 2:
            return list(self._bus.apics)
        if shorthand == 3:
            return [apic for apic in self._bus.apics if apic is not self]
        logical = bool(value & ICR_LOGICAL)
        return self._bus.destination(self._icr_high >> 24, logical=logical)

    # -- model-specific registers ----------------------------------------------------------------

    def read_msr(self, index: int) -> int | None:
        if index == MSR_APIC_BASE:
            return self.base
        if index == MSR_TSC_DEADLINE and self.timer.tsc is not None:
            return self.timer.tsc_deadline
        return None

    def write_msr(self, index: int, value: int) -> bool:
        if index == MSR_APIC_BASE:
            return self._write_base(value)
        if index == MSR_TSC_DEADLINE and self.timer.tsc is not None:
            self.timer.set_tsc_deadline(value)
            return True
        return False

    def _write_base(self, value: int) -> bool:
        if value & BASE_RESERVED:
            return False
        switched_off = self.base & BASE_ENABLED and not value & BASE_ENABLED
        self.base = value & ~BASE_BSP | self.base & BASE_BSP
        if switched_off:  # 11.4.3: comes back as after power-up
            self._power_up()
        self._update()
        return True

    # -- saving ----------------------------------------------------------------------------------

    def save_state(self) -> State:
        """The three registers of 256 bits are wider than other states' integers: bytes."""
        wide = {name: getattr(self, f"_{name}").to_bytes(32, "little") for name in _WIDE}
        return {**super().save_state(), **wide}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        for name in _WIDE:
            value = state.get(name)
            self.require(isinstance(value, bytes) and len(value) == 32, name)
            setattr(self, f"_{name}", int.from_bytes(state[name], "little"))
        self._update()

    def restored(self) -> None:
        registers = (self._id, self._ldr, self._dfr, self._icr_low, self._icr_high, *self._lvt)
        self.require(all(0 <= value < 1 << 32 for value in registers), "a register")
        self.require(0 <= self._tpr <= 0xFF and 0 <= self._svr <= SVR_WRITABLE, "TPR or SVR")
        self.require(not self.base & BASE_RESERVED, "IA32_APIC_BASE")


_WIDE = ("irr", "isr", "tmr")

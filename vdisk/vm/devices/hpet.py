"""The high precision event timer ("IA-PC HPET Specification" 1.0a).

::

    FED00000  000 capabilities   period (63-32, fs)  vendor (31-16)  legacy(15) 64-bit(13) timers-1
              010 configuration  LEG_RT(1)  ENABLE(0)      020 interrupt status, ones clear
              0F0 main counter
    timer n   100 + 20n  configuration  route capability (63-32)  ROUTE(13-9) 32MODE(8) VAL_SET(6)
                         64-bit(5) can be periodic(4) PERIODIC(3) ENABLE(2) LEVEL(1)
              108 + 20n  comparator

The counter runs at 100 MHz.  In legacy replacement timer 0 is IRQ 0 and timer 1 IRQ 8, and the
8254 and the clock are cut off (:class:`IrqGate`); otherwise a timer goes to the pin of the I/O
APIC that the guest chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.devices.base import Device
from vdisk.vm.irq import IrqLine

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus
    from vdisk.vm.clock import Clock

BASE, LENGTH = 0xFED0_0000, 0x400
TICK = 10  # ns
TIMERS = 3
CAPABILITIES = TICK * 1_000_000 << 32 | 0x8086_A001 | TIMERS - 1 << 8
CONFIGURATION, STATUS, COUNTER, FIRST_TIMER, TIMER_SIZE = 0x10, 0x20, 0xF0, 0x100, 0x20
ENABLE, LEGACY = 1, 2
LEVEL, INTERRUPTS, PERIODIC, CAN_REPEAT, IS_64_BIT, VALUE_SET, MODE_32 = 2, 4, 8, 16, 32, 64, 256
WRITABLE = 0x3F4E | MODE_32
ROUTES = range(16, 24)
"""Pins of the I/O APIC that nothing else in this machine drives."""
FIXED = CAN_REPEAT | IS_64_BIT | sum(1 << pin for pin in ROUTES) << 32
SHORTEST_PERIOD = 5_000
"""Ticks between interrupts of a periodic timer: a guest gets 20 kHz at most."""
WORD_64, WORD_32 = (1 << 64) - 1, (1 << 32) - 1


class IrqGate:
    """A wire that the legacy replacement cuts: what drives ``input`` reaches ``target`` or not."""

    def __init__(self, target: IrqLine) -> None:
        self.input = IrqLine(self._changed)
        self._target = target
        self._open = True

    def _changed(self, level: bool) -> None:
        if self._open:
            self._target.set(level)

    def set_open(self, is_open: bool) -> None:
        """Let the wire through, or cut it."""
        self._open = is_open
        self._target.set(is_open and self.input.level)


class Comparator(Device):
    """One timer."""

    SAVED: ClassVar[tuple[str, ...]] = ("config", "value", "period", "_timer")

    def __init__(self, number: int, clock: Clock, fired: Callable[[Comparator], None]) -> None:
        self.number = number
        self.name = f"hpet timer {number}"
        self._timer = clock.timer(lambda: fired(self))
        self.reset()

    def reset(self) -> None:
        self.config, self.value, self.period = 0, WORD_64, 0
        self._timer.cancel()

    @property
    def mask(self) -> int:
        """The bits that are compared."""
        return WORD_32 if self.config & MODE_32 else WORD_64

    def arm(self, counter: int, now: int) -> None:
        """Fire when the counter, which is ``counter`` at ``now``, reaches the comparator."""
        left = self.value - counter & self.mask
        self._timer.arm(now + (left or self.mask + 1) * TICK)

    def stop(self) -> None:
        """Fire no more."""
        self._timer.cancel()

    def go_on(self, counter: int) -> None:
        """After firing: a periodic comparator moves on, past what was missed."""
        if self.config & PERIODIC and self.period:
            behind = counter + SHORTEST_PERIOD - self.value & self.mask
            periods = -(-behind // self.period)
            self.value = self.value + self.period * periods & self.mask

    def write_value(self, value: int) -> None:
        """The comparator register: also the period, while periodic."""
        if not self.config & PERIODIC or self.config & VALUE_SET:
            self.value = value & self.mask
        if self.config & PERIODIC:
            self.period = value & self.mask
        self.config &= ~VALUE_SET

    def restored(self) -> None:
        numbers = (self.config, self.value, self.period)
        self.require(all(0 <= number <= WORD_64 for number in numbers), "a register")


class Hpet(Device):
    """The block of timers.

    ``set_pin(pin, level)``: of the I/O APIC.  ``legacy``: lines to IRQ 0 and IRQ 8; ``gates``:
    what else drives these.
    """

    SAVED: ClassVar[tuple[str, ...]] = (
        *("timers", "_config", "_status", "_base", "_base_time", "_levels"),
    )
    name = "hpet"

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        set_pin: Callable[[int, bool], None],
        legacy: tuple[IrqLine, IrqLine],
        gates: tuple[IrqGate, IrqGate],
    ) -> None:
        self._clock = clock
        self._set_pin, self._legacy, self._gates = set_pin, legacy, gates
        self.timers = [Comparator(number, clock, self._fired) for number in range(TIMERS)]
        self._levels = [False] * TIMERS
        self._config = self._status = self._base = self._base_time = 0
        bus.mmio.map(BASE, LENGTH, self._read, self._write, "HPET")

    def reset(self) -> None:
        for timer in self.timers:
            self._drive(timer, False)
            timer.reset()
        self._config = self._status = self._base = self._base_time = 0
        self._set_legacy()

    def counter(self) -> int:
        """The main counter."""
        if not self._config & ENABLE:
            return self._base
        return self._base + (self._clock.now() - self._base_time) // TICK & WORD_64

    # -- interrupts --------------------------------------------------------------------------

    def _set_legacy(self) -> None:
        for gate in self._gates:
            gate.set_open(not self._config & LEGACY)

    def _rearm(self) -> None:
        """Arm the timers that the counter can reach."""
        now, counter = self._clock.now(), self.counter()
        for timer in self.timers:
            if self._config & ENABLE:
                timer.arm(counter, now)
            else:
                timer.stop()

    def _fired(self, timer: Comparator) -> None:
        counter = self.counter()
        timer.go_on(counter)
        timer.arm(counter, self._clock.now())
        if timer.config & LEVEL:
            self._status |= 1 << timer.number
            self._drive(timer, bool(timer.config & INTERRUPTS))
        elif timer.config & INTERRUPTS:
            self._drive(timer, True)
            self._drive(timer, False)

    def _drive(self, timer: Comparator, level: bool) -> None:
        """Let the line of a timer have a level."""
        if self._levels[timer.number] == level:
            return
        self._levels[timer.number] = level
        if self._config & LEGACY and timer.number < len(self._legacy):
            self._legacy[timer.number].set(level)
            return
        pin = timer.config >> 9 & 0x1F
        if pin in ROUTES:
            self._set_pin(pin, level)

    # -- registers ---------------------------------------------------------------------------

    def _register(self, offset: int) -> int:
        """The 64 bits of a register."""
        fixed = {0: CAPABILITIES, CONFIGURATION: self._config, STATUS: self._status}
        if offset in fixed:
            return fixed[offset]
        if offset == COUNTER:
            return self.counter()
        number, inside = divmod(offset - FIRST_TIMER, TIMER_SIZE)
        if 0 <= number < TIMERS and inside < 16:
            timer = self.timers[number]
            return timer.value if inside else timer.config | FIXED
        return 0

    def _read(self, offset: int, size: int) -> int:
        return self._register(offset & ~7) >> 8 * (offset & 7)

    def _write(self, offset: int, size: int, value: int) -> None:
        if size < 4 or offset & 3 or (offset & 4 and size == 8):
            return  # the specification allows words of 32 and 64 bits
        register, shift = offset & ~7, 8 * (offset & 4)
        mask = (1 << 8 * size) - 1 << shift
        whole = self._register(register) & ~mask | value << shift
        if register == CONFIGURATION:
            self._write_config(whole & (ENABLE | LEGACY))
        elif register == STATUS:
            self._clear(value << shift & mask)
        elif register == COUNTER and not self._config & ENABLE:
            self._base = whole & WORD_64
        elif register >= FIRST_TIMER:
            number, inside = divmod(register - FIRST_TIMER, TIMER_SIZE)
            if number < TIMERS and inside < 16:
                self._write_timer(self.timers[number], inside, whole)

    def _write_config(self, value: int) -> None:
        counter = self.counter()
        changed = self._config ^ value
        if changed & LEGACY:
            for timer in self.timers:
                self._drive(timer, False)
        self._config = value
        if changed & ENABLE:
            self._base, self._base_time = counter, self._clock.now()
            self._rearm()
        if changed & LEGACY:
            self._set_legacy()

    def _clear(self, bits: int) -> None:
        self._status &= ~bits
        for timer in self.timers:
            if bits >> timer.number & 1:
                self._drive(timer, False)

    def _write_timer(self, timer: Comparator, inside: int, value: int) -> None:
        if inside:
            timer.write_value(value)
        else:
            self._drive(timer, False)
            timer.config = value & WRITABLE
            timer.value &= timer.mask
            timer.period &= timer.mask
        self._rearm()

    def restored(self) -> None:
        self.require(0 <= self._config <= 3 and 0 <= self._status < 1 << TIMERS, "a register")
        self.require(0 <= self._base <= WORD_64, "the counter")
        levels, self._levels[:] = list(self._levels), [False] * TIMERS
        self._set_legacy()
        for timer, level in zip(self.timers, levels, strict=True):
            self._drive(timer, level)

"""The timer of a local APIC (SDM volume 3, section 11.5.4).

It counts down from the initial count at the rate of a 1 GHz bus clock divided by 1…128, and
interrupts at zero once (one-shot) or again and again (periodic); or it interrupts when the
time-stamp counter reaches IA32_TSC_DEADLINE.  Nothing ticks here: the current count is computed
from the time when it is read, and a timer of the machine's clock is armed for the zero.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from vdisk.vm.devices.base import Device

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.clock import Clock

SECOND = 1_000_000_000
BUS_HZ = SECOND
"""One tick a nanosecond at divide by 1, as other virtual machines have it."""
SHORTEST_PERIOD = 20_000
"""ns between two periodic interrupts at least: a guest must not occupy the host with timers."""


class Tsc(NamedTuple):
    """The time-stamp counter of a vCPU, where a machine offers the TSC-deadline mode."""

    read: Callable[[], int]
    hz: int


class TimerMode(enum.IntEnum):
    """Bits 17-18 of the LVT timer register."""

    ONE_SHOT = 0
    PERIODIC = 1
    TSC_DEADLINE = 2
    RESERVED = 3


class ApicTimer(Device):
    """Calls ``expired()`` whenever the count has come to zero."""

    SAVED: ClassVar[tuple[str, ...]] = (
        *("mode", "divide_configuration", "initial_count", "tsc_deadline"),
        *("_start", "_running", "_alarm"),
    )

    def __init__(self, clock: Clock, expired: Callable[[], None], tsc: Tsc | None) -> None:
        self.name = "lapic.timer"
        self.tsc = tsc
        self._clock = clock
        self._expired = expired
        self._alarm = clock.timer(self._fire)
        self.reset()

    def reset(self) -> None:
        self.mode = 0
        self.divide_configuration = 0
        self.initial_count = 0
        self.tsc_deadline = 0
        self._start = 0
        self._running = False
        self._alarm.cancel()

    @property
    def divisor(self) -> int:
        """Bits 0, 1 and 3 of the divide configuration: 2, 4 … 128, then 1 (figure 11-10)."""
        bits = self.divide_configuration & 3 | self.divide_configuration >> 1 & 4
        return 1 << (bits + 1 & 7)

    def _ticks_to_ns(self, ticks: int) -> int:
        return ticks * self.divisor * SECOND // BUS_HZ

    def set_mode(self, mode: int) -> None:
        """Bits 17-18 of the LVT; a change to or from TSC-deadline disarms (11.5.4.1)."""
        if mode == self.mode:
            return
        deadline_before = self.mode == TimerMode.TSC_DEADLINE
        self.mode = mode
        if deadline_before or mode == TimerMode.TSC_DEADLINE:
            self.initial_count = self.tsc_deadline = 0
            self._running = False
            self._alarm.cancel()
        elif self._running:
            self._arm_from(self._clock.now())

    def set_initial_count(self, count: int) -> None:
        """Start counting down from ``count``; 0 stops."""
        if self.mode == TimerMode.TSC_DEADLINE:
            return
        self.initial_count = count
        self._start = self._clock.now()
        self._running = count != 0
        self._rearm()

    def set_divide(self, value: int) -> None:
        """Write the divide configuration; the count goes on at the new rate."""
        left = self.current_count()
        self.divide_configuration = value & 0xB
        if self._running:
            self._start = self._clock.now() - self._ticks_to_ns(self.initial_count - left)
            self._rearm()

    def current_count(self) -> int:
        """The current-count register."""
        if not self._running or self.mode == TimerMode.TSC_DEADLINE:
            return 0
        ticks = (self._clock.now() - self._start) * BUS_HZ // SECOND // self.divisor
        if self.mode == TimerMode.PERIODIC:
            return self.initial_count - ticks % self.initial_count
        return max(self.initial_count - ticks, 0)

    def set_tsc_deadline(self, value: int) -> None:
        """Write IA32_TSC_DEADLINE; 0 disarms, a time that has passed interrupts at once."""
        if self.tsc is None or self.mode != TimerMode.TSC_DEADLINE:
            return
        self.tsc_deadline = value
        self._alarm.cancel()
        if value:
            wait = max(value - self.tsc.read(), 0) * SECOND // self.tsc.hz
            self._alarm.arm(self._clock.now() + wait)

    def _rearm(self) -> None:
        if not self._running:
            self._alarm.cancel()
        else:
            self._arm_from(self._start)

    def _arm_from(self, earliest: int) -> None:
        """Arm for the first zero that is not before ``earliest``."""
        period = self._ticks_to_ns(self.initial_count)
        if self.mode == TimerMode.PERIODIC:
            passed = max((earliest - self._start) // period, 0)
            self._alarm.arm(self._start + (passed + 1) * period)
        elif self.mode == TimerMode.ONE_SHOT:
            self._alarm.arm(self._start + period)

    def _fire(self) -> None:
        if self.mode == TimerMode.TSC_DEADLINE:
            if self.tsc is not None and self.tsc.read() < self.tsc_deadline:
                self.set_tsc_deadline(self.tsc_deadline)  # the two clocks differ a little
                return
            self.tsc_deadline = 0
        elif self.mode == TimerMode.PERIODIC:
            period = self._ticks_to_ns(self.initial_count)
            self._arm_from(self._clock.now() + max(SHORTEST_PERIOD - period, 0))
        else:
            self._running = False
        self._expired()

    def restored(self) -> None:
        self.require(0 <= self.mode <= 3, "its mode")
        self.require(0 <= self.initial_count < 1 << 32, "its count")
        self.require(not self._running or self.initial_count > 0, "it runs from 0")
        self.require(self.divide_configuration & ~0xB == 0, "its divisor")
        if self.tsc_deadline:
            self.set_tsc_deadline(self.tsc_deadline)

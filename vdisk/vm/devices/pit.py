"""The 8254 programmable interval timer (Intel 8254 data sheet).

::

    40h-42h  counters 0-2, 1.193182 MHz        OUT 0 -> IRQ 0    OUT 2 -> speaker
    43h      control word   SC1 SC0 | RW1 RW0 | M2 M1 M0 | BCD
             SC=3 read-back 1 1 | /COUNT | /STATUS | counters 2 1 0 | 0
             status byte    OUT | null count | RW1 RW0 | M2 M1 M0 | BCD

A counter is not stepped: its count and its output follow from the clock at which it was loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.clock import SECOND
from vdisk.vm.devices.base import Device, bytewise_read, bytewise_write

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus
    from vdisk.vm.clock import Clock
    from vdisk.vm.irq import IrqLine

PORT, CONTROL = 0x40, 3
FREQUENCY = 1_193_182
"""Hz: a twelfth of four times the colour subcarrier."""
READ_BACK = 3
LATCH, LOW, HIGH, LOW_HIGH = 0, 1, 2, 3
NEVER = 1 << 62
TERMINAL_COUNT, ONE_SHOT, RATE, SQUARE, SOFT_STROBE, HARD_STROBE = range(6)
SHORTEST_PERIOD = 50_000
"""ns between interrupts of a counter: a guest that asks for a megahertz of them gets 20 kHz."""


def ticks(nanoseconds: int) -> int:
    """How many clocks of the counters have passed."""
    return nanoseconds * FREQUENCY // SECOND


def nanoseconds(clocks: int) -> int:
    """The time at which that many clocks have passed."""
    return -(-clocks * SECOND // FREQUENCY)


class Counter(Device):
    """One counter.  All times are clocks since power-on.

    ``_start``: when the count was loaded (or would have been, had it not paused), while
    ``counting``.  ``_elapsed``: what had been counted when GATE went low (modes 0 and 4).
    ``_next``, ``_next_at``: modes 2 and 3, the count that the next (half) period begins with.
    """

    SAVED: ClassVar[tuple[str, ...]] = (
        *(
            "mode",
            "_mode_bits",
            "access",
            "bcd",
            "gate",
            "reload",
            "counting",
            "_start",
            "_elapsed",
            "_null",
        ),
        *("_next", "_next_at", "_next_rises", "_low_byte", "_second_write", "_second_read"),
        *("_latched", "_latch", "_status_latched", "_status"),
    )

    def __init__(self, number: int, clock: Clock) -> None:
        self.name = f"pit counter {number}"
        self._clock = clock
        self._gate_at_reset = number != 2  # the speaker's is bit 0 of port 61h
        self.reset()

    def reset(self) -> None:
        self.mode, self.access, self.bcd = SQUARE, LOW_HIGH, False
        self._mode_bits = SQUARE
        self.gate = self._gate_at_reset
        self.reload = 0x10000
        self.counting, self._null = False, True
        self._start = self._elapsed = self._next = self._next_at = 0
        self._low_byte = self._latched = self._latch = self._status = 0
        self._next_rises = self._second_write = self._second_read = False
        self._status_latched = False

    def now(self) -> int:
        """Clocks since power-on."""
        return ticks(self._clock.now())

    # -- what the time makes of it -----------------------------------------------------------

    def _passed(self, now: int) -> int:
        """Clocks counted since the count was loaded or the gate triggered."""
        if not self.gate and self.mode in {TERMINAL_COUNT, SOFT_STROBE}:
            return self._elapsed
        if self._next and now >= self._next_at:
            high = 0 if self._next_rises else (self._next + 1) // 2
            self._start, self.reload = self._next_at - high, self._next
            self._next, self._null = 0, False
        return max(now - self._start, 0)

    def output(self, now: int) -> bool:
        """The level of OUT."""
        if not self.counting:
            return self.mode != TERMINAL_COUNT
        passed = self._passed(now)
        if self.mode in {TERMINAL_COUNT, ONE_SHOT}:
            return passed >= self.reload
        if self.mode in {SOFT_STROBE, HARD_STROBE}:
            return passed != self.reload
        phase = passed % self.reload
        if not self.gate:
            return True
        return phase != self.reload - 1 if self.mode == RATE else phase < (self.reload + 1) // 2

    def count(self, now: int) -> int:
        """The 16 bits of the counting element, in BCD if so programmed."""
        passed = self._passed(now) if self.counting and self._running() else 0
        if self.mode == RATE:
            value = self.reload - passed % self.reload
        elif self.mode == SQUARE:
            half, phase = (self.reload + 1) // 2, passed % self.reload
            value = self.reload - 2 * (phase if phase < half else phase - half) & ~1
        else:
            value = self.reload - passed
        return _to_bcd(value % 10000) if self.bcd else value & 0xFFFF

    def latest(self) -> int:
        """The count that was written last, in force or about to be."""
        return self._next or self.reload

    def _running(self) -> bool:
        return self.gate or self.mode not in {RATE, SQUARE}

    def next_rise(self, now: int) -> int | None:
        """The clock at which OUT next goes high, after ``now``."""
        if not self.counting or not (self.gate or self.mode in {ONE_SHOT, HARD_STROBE}):
            return None
        passed = self._passed(now)
        if self.mode in {RATE, SQUARE}:
            if self._next:
                return self._next_at if self._next_rises else self._next_at + self._next // 2
            return self._start + (passed // self.reload + 1) * self.reload
        rise = self._start + self.reload + (self.mode in {SOFT_STROBE, HARD_STROBE})
        return rise if rise > now else None

    # -- what is done to it ------------------------------------------------------------------

    def set_gate(self, gate: bool) -> None:
        """Drive GATE."""
        if gate == self.gate:
            return
        now = self.now()
        if self.mode in {TERMINAL_COUNT, SOFT_STROBE}:
            if gate:
                self._start = now - self._elapsed
            else:
                self._elapsed = self._passed(now)
            self.gate = gate
            return
        self.gate = gate
        if gate and (self.counting or self._next):
            self._load(self.latest(), now)

    def _load(self, count: int, now: int) -> None:
        """Begin counting with the next clock."""
        self.reload, self._start = count, now + 1
        self.counting, self._null = True, False
        self._next = self._elapsed = 0

    def control(self, access: int, mode: int, bcd: bool) -> None:
        """A control word: a new mode, nothing counts until a count is written."""
        self.access, self.bcd = access, bcd
        self.mode = mode & 3 if mode > HARD_STROBE else mode  # M2 is don't-care for modes 2, 3
        self._mode_bits = mode
        self.counting, self._null = False, True
        self._next = self._latched = 0
        self._second_write = self._second_read = self._status_latched = False

    def write(self, value: int) -> None:
        """A byte of the count."""
        if self.access == LOW_HIGH and not self._second_write:
            self._low_byte, self._second_write = value, True
            if self.mode == TERMINAL_COUNT:  # the first byte stops the count
                self.counting = False
            return
        count = value << 8 if self.access == HIGH else value
        if self.access == LOW_HIGH:
            count, self._second_write = value << 8 | self._low_byte, False
        if self.bcd:
            count = _from_bcd(count) or 10000
        self._new_count(count or 0x10000)

    def _new_count(self, count: int) -> None:
        now = self.now()
        self._null = True
        if self.mode in {ONE_SHOT, HARD_STROBE}:  # taken by the next trigger
            self._next, self._next_at = count, NEVER
        elif not self.counting or self.mode in {TERMINAL_COUNT, SOFT_STROBE}:
            self._load(count, now)
        else:
            self._next_period(count, now)

    def _next_period(self, count: int, now: int) -> None:
        """Modes 2 and 3 while counting: the present period (mode 3: half of it) goes on."""
        passed = self._passed(now)
        period, half = self.reload, (self.reload + 1) // 2
        begun = self._start + passed // period * period
        self._next_rises = self.mode == RATE or passed % period >= half
        self._next, self._next_at = count, begun + (period if self._next_rises else half)

    def latch_count(self) -> None:
        """Hold the present count until it is read."""
        if not self._latched:
            self._latch = self.count(self.now())
            self._latched = 2 if self.access == LOW_HIGH else 1

    def latch_status(self) -> None:
        """Hold the status byte until it is read."""
        if not self._status_latched:
            now = self.now()
            output = self.output(now) << 7
            self._status = (
                output | self._null << 6 | self.access << 4 | self._mode_bits << 1 | self.bcd
            )
            self._status_latched = True

    def read(self) -> int:
        """The status if latched, else the latched count, else the present one."""
        if self._status_latched:
            self._status_latched = False
            return self._status
        count = self._latch if self._latched else self.count(self.now())
        self._latched = max(self._latched - 1, 0)
        high = self.access == HIGH
        if self.access == LOW_HIGH:
            high = self._second_read
            self._second_read = not high
        return count >> 8 if high else count & 0xFF

    def restored(self) -> None:
        self.require(0 < self.reload <= 0x10000 and 0 <= self._next <= 0x10000, "a count")
        self.require(0 <= self._mode_bits <= 7 and 0 <= self.mode <= HARD_STROBE, "a mode")
        self.require(LOW <= self.access <= LOW_HIGH, "a mode")
        self.require(0 <= self._latched <= 2, "a latch")


class Pit(Device):
    """The three counters.  ``irq``: OUT of counter 0.

    An interrupt controller sees the edge at which OUT rises; that it was low before is shown
    just then, since one timer a period is enough.
    """

    SAVED: ClassVar[tuple[str, ...]] = ("counters", "irq", "_timer")
    name = "pit"

    def __init__(self, bus: Bus, clock: Clock, irq: IrqLine) -> None:
        self.irq = irq
        self.counters = [Counter(number, clock) for number in range(3)]
        self._clock = clock
        self._timer = clock.timer(self._rise)
        self._on_change: list[Callable[[], None]] = []
        bus.ports.map(PORT, 4, bytewise_read(self._read), bytewise_write(self._write), "8254")

    def on_speaker_change(self, callback: Callable[[], None]) -> None:
        """Call back after the guest has programmed counter 2."""
        self._on_change.append(callback)

    def reset(self) -> None:
        for counter in self.counters:
            counter.reset()
        self._arm()

    def _rise(self) -> None:
        self.irq.lower()
        self.irq.raise_()
        self._arm(shortest=SHORTEST_PERIOD)

    def _arm(self, shortest: int = 0) -> None:
        """Show OUT 0, and come back when it next rises."""
        counter = self.counters[0]
        now = counter.now()
        self.irq.set(counter.output(now))
        rise = counter.next_rise(now)
        if rise is None:
            self._timer.cancel()
        else:
            self._timer.arm(max(nanoseconds(rise), self._clock.now() + shortest))

    def _read(self, offset: int) -> int:
        return 0xFF if offset == CONTROL else self.counters[offset].read()

    def _write(self, offset: int, value: int) -> None:
        number = value >> 6 if offset == CONTROL else offset
        if offset != CONTROL:
            self.counters[offset].write(value)
        elif number == READ_BACK:
            self._read_back(value)
            return
        elif value >> 4 & 3 == LATCH:
            self.counters[number].latch_count()
            return
        else:
            self.counters[number].control(value >> 4 & 3, value >> 1 & 7, bool(value & 1))
        if number == 0:
            self._arm()
        elif number == 2:
            for callback in self._on_change:
                callback()

    def _read_back(self, command: int) -> None:
        for number, counter in enumerate(self.counters):
            if command >> number + 1 & 1:
                if not command & 0x20:
                    counter.latch_count()
                if not command & 0x10:
                    counter.latch_status()


def _to_bcd(value: int) -> int:
    return int(str(value), 16)


def _from_bcd(value: int) -> int:
    """The number of four digits; digits above nine count as what they are."""
    digits = (value >> 12, value >> 8 & 15, value >> 4 & 15, value & 15)
    return (digits[0] * 1000 + digits[1] * 100 + digits[2] * 10 + digits[3]) % 10000

"""The real-time clock and CMOS memory (Motorola MC146818A data sheet).

::

    70h  index (bit 7: NMI mask)      71h  data         index 00-7F
    00 seconds  02 minutes  04 hours  06 day of week 1-7  07 day  08 month  09 year   32 century
    01 03 05    alarm (C0-FF: any)
    0A  UIP | DV2-DV0 | RS3-RS0       0B  SET PIE AIE UIE SQWE DM 24/12 DSE
    0C  IRQF PF AF UF (read clears)   0D  VRT

What the rest of the memory means is the BIOS's business; :meth:`Rtc.describe_memory` and its
neighbours fill in what PC firmware expects there.

The time of day is an offset to the clock: the second that began at ``_base_time`` is ``_base``
(seconds since 1970-01-01, of the time the guest sees).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.clock import SECOND
from vdisk.vm.devices.base import Device

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus
    from vdisk.vm.clock import Clock
    from vdisk.vm.irq import IrqLine

PORT = 0x70
SIZE = 128
SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
DAY_OF_WEEK, DAY, MONTH, YEAR = 6, 7, 8, 9
REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D = 0x0A, 0x0B, 0x0C, 0x0D
SHUTDOWN_STATUS, RESUMING = 0x0F, 0xFE
"""Where firmware finds why there was a reset: to go on after S3."""
CENTURY = 0x32
TIME_REGISTERS = (SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY, MONTH, YEAR, CENTURY)
ALARM_REGISTERS = {SECONDS_ALARM: SECONDS, MINUTES_ALARM: MINUTES, HOURS_ALARM: HOURS}

A_UIP, A_DIVIDER, A_RATE = 0x80, 0x70, 0x0F
DIVIDER_RESET = 0x60
B_SET, B_PIE, B_AIE, B_UIE, B_DM, B_24, B_DSE = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02, 0x01
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10
D_VRT = 0x80
HOURS_PM = 0x80
ALARM_ANY = 0xC0

CRYSTAL = 32768  # Hz
UPDATE = 244_000 + 1_984_000
"""ns that UIP is set before the registers change (data sheet, "Update Cycle")."""
MEMORY_CHECKSUMMED = range(0x10, 0x2E)
CHECKSUM = 0x2E
LATEST = 253_402_300_799
"""9999-12-31 23:59:59, the last second that a BCD century can name."""
MIB = 1 << 20


class Rtc(Device):
    """The clock and its 128 bytes.  ``irq``: IRQ 8.

    ``epoch``: the time of day at time 0 of the clock, in seconds since 1970-01-01 as the guest
    shall read it (UTC, or local time for guests that want that).
    """

    SAVED: ClassVar[tuple[str, ...]] = (
        *("_index", "memory", "_base", "_base_time", "_flags", "_periods_seen", "_last_second"),
        *("irq", "_second_timer", "_periodic_timer"),
    )
    name = "rtc"

    def __init__(self, bus: Bus, clock: Clock, irq: IrqLine, epoch: int) -> None:
        self.irq = irq
        self.memory = bytearray(SIZE)
        self._clock = clock
        self._base, self._base_time = epoch, 0
        self._index = self._flags = self._periods_seen = 0
        self._last_second = epoch
        self.alarm: Callable[[], None] = lambda: None
        """Called when the alarm goes off: its pin leads to power management, too."""
        self._second_timer = clock.timer(self._second)
        self._periodic_timer = clock.timer(self._periodic)
        self.memory[REGISTER_A], self.memory[REGISTER_B] = 0x26, B_24
        self.memory[REGISTER_D] = D_VRT
        self._store_time()
        bus.ports.map(PORT, 2, self._read, self._write, "RTC")
        self._arm_second()

    def reset(self) -> None:
        """The battery keeps time and memory; interrupts are disabled (data sheet, RESET)."""
        self.memory[REGISTER_B] &= ~(B_PIE | B_AIE | B_UIE | 0x08)
        self._index = self._flags = 0
        self._update_irq()
        self._arm_periodic()

    # -- what firmware finds in the memory -----------------------------------------------------

    def describe_memory(self, low_end: int, high_bytes: int) -> None:
        """RAM below 4 GiB and above, in the places where PC firmware looks for it."""
        above_1m = min(max(low_end - MIB, 0) >> 10, 0xFFFF)
        above_16m = min(max(low_end - 16 * MIB, 0) >> 16, 0xFFFF)
        self._word(0x15, min(low_end >> 10, 640))
        self._word(0x17, above_1m)
        self._word(0x30, above_1m)
        self._word(0x34, above_16m)
        self.memory[0x5B:0x5E] = (high_bytes >> 16).to_bytes(3, "little")
        self._checksum()

    def describe_processors(self, count: int) -> None:
        """How many processors wait for a start-up IPI beside the first."""
        self.memory[0x5F] = count - 1

    def describe_equipment(self, floppies: tuple[int, ...] = (0, 0), mouse: bool = True) -> None:
        """The equipment byte: FPU, PS/2 mouse, how many diskette drives; and their types."""
        self.memory[0x10] = floppies[0] << 4 | floppies[1]
        fitted = sum(kind != 0 for kind in floppies)
        drives = 1 | fitted - 1 << 6 if fitted else 0
        self.memory[0x14] = 0x02 | (0x04 if mouse else 0) | drives
        self._checksum()

    def describe_boot_order(self, devices: tuple[int, ...]) -> None:
        """Up to three of 1 floppy, 2 hard disk, 3 CD-ROM, 4 network (38h, 3Dh)."""
        order = (*devices, 0, 0, 0)[:3]
        self.memory[0x3D] = order[0] | order[1] << 4
        self.memory[0x38] = self.memory[0x38] & 0x0F | order[2] << 4

    def _word(self, index: int, value: int) -> None:
        self.memory[index : index + 2] = value.to_bytes(2, "little")

    def _checksum(self) -> None:
        total = sum(self.memory[index] for index in MEMORY_CHECKSUMMED) & 0xFFFF
        self.memory[CHECKSUM : CHECKSUM + 2] = total.to_bytes(2, "big")

    # -- time --------------------------------------------------------------------------------

    def _halted(self) -> bool:
        """True while the registers are being set, or the divider is held in reset."""
        setting = self.memory[REGISTER_B] & B_SET
        return bool(setting) or self.memory[REGISTER_A] & DIVIDER_RESET == DIVIDER_RESET

    def now(self) -> int:
        """The time of day in whole seconds since 1970-01-01."""
        return self._base + (self._clock.now() - self._base_time) // SECOND

    def _in_update(self) -> bool:
        into = (self._clock.now() - self._base_time) % SECOND
        return not self._halted() and into >= SECOND - UPDATE

    def _encode(self, value: int) -> int:
        return value if self.memory[REGISTER_B] & B_DM else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self.memory[REGISTER_B] & B_DM else (value >> 4) * 10 + (value & 0xF)

    def _store_time(self) -> None:
        """Put the present time into the registers."""
        at = civil(self.now())
        hour = at.tm_hour
        if not self.memory[REGISTER_B] & B_24:
            hour = self._encode((hour + 11) % 12 + 1) | (HOURS_PM if hour >= 12 else 0)
        else:
            hour = self._encode(hour)
        values = (at.tm_sec, at.tm_min, 0, at.tm_wday, at.tm_mday, at.tm_mon, at.tm_year % 100)
        for register, value in zip(TIME_REGISTERS, values, strict=False):
            self.memory[register] = self._encode(value)
        self.memory[HOURS] = hour
        self.memory[CENTURY] = self._encode(at.tm_year // 100)

    def _hour(self, value: int) -> int:
        if self.memory[REGISTER_B] & B_24:
            return self._decode(value)
        return self._decode(value & ~HOURS_PM) % 12 + (12 if value & HOURS_PM else 0)

    def _take_time(self) -> None:
        """Let the time be what the registers say, beginning a second now.

        Registers that hold no date count on from the nearest: day 0 is the last of the month
        before, second 61 the second of the next minute.
        """
        field = {register: self._decode(self.memory[register]) for register in TIME_REGISTERS}
        year = field[CENTURY] * 100 + field[YEAR]
        day = days(year, field[MONTH], field[DAY])
        clock = self._hour(self.memory[HOURS]) * 3600 + field[MINUTES] * 60 + field[SECONDS]
        self._base, self._base_time = min(day * 86400 + clock, LATEST), self._clock.now()
        self._last_second = self._base

    # -- interrupts --------------------------------------------------------------------------

    def _arm_second(self) -> None:
        if self._halted():
            self._second_timer.cancel()
        else:
            into = (self._clock.now() - self._base_time) % SECOND
            self._second_timer.arm(self._clock.now() - into + SECOND)

    def _second(self) -> None:
        """The update cycle has ended: a new second."""
        self._flags |= C_UF
        now = self.now()
        first = max(self._last_second + 1, now - 86400)  # a clock that jumped skips no alarm
        if any(self._alarm_matches(second) for second in range(first, now + 1)):
            self._flags |= C_AF
            if self.memory[REGISTER_B] & B_AIE:
                self.alarm()
        self._last_second = now
        self._update_irq()
        self._arm_second()

    def _alarm_matches(self, second: int) -> bool:
        wanted = [self.memory[register] for register in ALARM_REGISTERS]
        values = (second % 60, second // 60 % 60, second // 3600 % 24)
        for position, (alarm, value) in enumerate(zip(wanted, values, strict=True)):
            decoded = self._hour(alarm) if position == 2 else self._decode(alarm)
            if alarm < ALARM_ANY and decoded != value:
                return False
        return True

    def _period(self) -> int:
        """Clocks of the crystal between periodic interrupts; 0: none."""
        rate = self.memory[REGISTER_A] & A_RATE
        if rate == 0 or self.memory[REGISTER_A] & DIVIDER_RESET == DIVIDER_RESET:
            return 0
        return 1 << (rate + 6 if rate <= 2 else rate - 1)

    def _periods(self) -> int:
        """How many periods have ended since power-on."""
        period = self._period()
        return self._clock.now() * CRYSTAL // SECOND // period if period else 0

    def _arm_periodic(self) -> None:
        period = self._period()
        if period and self.memory[REGISTER_B] & B_PIE:
            clocks = (self._periods() + 1) * period
            self._periodic_timer.arm(-(-clocks * SECOND // CRYSTAL))
        else:
            self._periodic_timer.cancel()

    def _periodic(self) -> None:
        self._update_irq()
        self._arm_periodic()

    def _update_irq(self) -> None:
        """IRQF and the line follow from flags and enables, which are bit by bit the same."""
        periods = self._periods()
        if periods != self._periods_seen:
            self._flags |= C_PF
            self._periods_seen = periods
        active = self._flags & self.memory[REGISTER_B] & (C_PF | C_AF | C_UF)
        self.irq.set(bool(active))

    # -- registers ---------------------------------------------------------------------------

    def _read(self, offset: int, size: int) -> int:
        if size > 1:
            return 0xFF | self._read(1, 1) << 8
        return self.read_register(self._index) if offset else 0xFF

    def read_register(self, index: int) -> int:
        """What the guest reads at an index."""
        if index in TIME_REGISTERS and not self._halted():
            self._store_time()
        if index == REGISTER_A:
            return self.memory[REGISTER_A] | (A_UIP if self._in_update() else 0)
        if index == REGISTER_C:
            self._update_irq()
            value = self._flags | (C_IRQF if self.irq.level else 0)
            self._flags = 0
            self.irq.lower()  # a period that has ended since is another edge
            self._update_irq()
            return value
        return self.memory[index]

    def _write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._index = value & 0x7F
        if offset or size > 1:
            self.write_register(self._index, value >> (0 if offset else 8) & 0xFF)

    def write_register(self, index: int, value: int) -> None:
        """The guest writes the memory at an index."""
        if index == REGISTER_A:
            self._write_a(value & ~A_UIP)
        elif index == REGISTER_B:
            self._write_b(value)
        elif index in TIME_REGISTERS:
            if not self._halted():
                self._store_time()
            self.memory[index] = value
            if not self._halted():
                self._take_time()
                self._arm_second()
        elif index not in {REGISTER_C, REGISTER_D}:
            self.memory[index] = value

    def _write_a(self, value: int) -> None:
        halted = self._halted()
        if not halted:
            self._store_time()
        self.memory[REGISTER_A] = value
        self._after_control(halted)
        self._periods_seen = self._periods()
        self._arm_periodic()

    def _write_b(self, value: int) -> None:
        halted = self._halted()
        if not halted:
            self._store_time()
        if value & B_SET:
            value &= ~B_UIE  # setting the SET bit clears UIE
        self.memory[REGISTER_B] = value
        self._after_control(halted)
        self._update_irq()
        self._arm_periodic()

    def _after_control(self, was_halted: bool) -> None:
        if was_halted and not self._halted():
            self._take_time()
        self._arm_second()

    def restored(self) -> None:
        self.require(0 <= self._index < SIZE and 0 <= self._flags <= 0xFF, "a register")
        self.require(0 <= self._base <= LATEST and 0 <= self._last_second < 1 << 62, "the time")


def days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 of a Gregorian date whose month and day may be out of range."""
    year, month = year + (month - 1) // 12, (month - 1) % 12 + 1
    year -= month <= 2
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return max(year * 365 + year // 4 - year // 100 + year // 400 + day_of_year - 719468, 0)


def civil(seconds: int) -> time.struct_time:
    """Date and time of day until ``LATEST``; Sunday is day 1 of the week."""
    at = time.gmtime(min(seconds, LATEST))
    return time.struct_time((*at[:6], (at.tm_wday + 1) % 7 + 1, *at[7:]))

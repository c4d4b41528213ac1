"""Time: the RTC and the tick counter (int 1Ah, int 70h), and waiting (int 15h AH=83h, 86h)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios import layout

if TYPE_CHECKING:
    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.hardware import Hardware

SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR = 0x00, 0x02, 0x04, 0x07, 0x08, 0x09
ALARM = ((0x01, "dh"), (0x03, "cl"), (0x05, "ch"))
REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D, CENTURY = 0x0A, 0x0B, 0x0C, 0x0D, 0x32
UPDATING = 0x80  # register A
PERIODIC, ALARM_ENABLE, DAYLIGHT, TWENTY_FOUR = 0x40, 0x20, 0x01, 0x02  # register B

TICKS_A_DAY = 0x1800B0
PIT_HZ, PIT_COUNT = 1_193_182, 65536
PERIOD_MICROSECONDS = 976  # of the RTC's 1024 Hz interrupt
LONG_WAIT = 60_000_000
"""Nanoseconds; for less, the next timer tick (55 ms) may be too late to halt for."""


def delay(hardware: Hardware, call: Call, nanoseconds: int) -> None:
    """Let the ROM wait until so much time has passed."""
    hardware.ebda.put(layout.DEADLINE, 8, hardware.clock.now() + nanoseconds)
    still_waiting(hardware, call)


def still_waiting(hardware: Hardware, call: Call) -> None:
    """Tell the ROM whether to go on waiting, and whether it can halt meanwhile."""
    left = hardware.ebda.get(layout.DEADLINE, 8) - hardware.clock.now()
    call.wait, call.spin = left > 0, left < LONG_WAIT


def from_bcd(value: int) -> int:
    return (value >> 4) * 10 + (value & 0x0F)


class EventWait:
    """int 15h AH=83h: a flag in memory is set after CX:DX microseconds, by the RTC's interrupt."""

    def __init__(self, hardware: Hardware) -> None:
        self.hw = hardware

    def service(self, call: Call) -> None:
        bda = self.hw.bda
        if call.al == 1:
            self._stop()
        elif call.al != 0 or bda.byte(layout.WAIT_ACTIVE) & 1:
            call.ah, call.carry = 0x86 if call.al else 0x00, True
            return
        else:
            bda.set_word(layout.WAIT_FLAG, call.bx)
            bda.set_word(layout.WAIT_FLAG + 2, call.es)
            bda.set_dword(layout.WAIT_COUNT, call.cx << 16 | call.dx)
            bda.set_byte(layout.WAIT_ACTIVE, 1)
            self.hw.enable_irq(8)
            self.hw.set_cmos(REGISTER_B, self.hw.cmos(REGISTER_B) | PERIODIC)
        call.ah, call.carry = 0, False

    def _stop(self) -> None:
        self.hw.bda.set_byte(layout.WAIT_ACTIVE, 0)
        self.hw.set_cmos(REGISTER_B, self.hw.cmos(REGISTER_B) & ~PERIODIC)

    def tick(self) -> None:
        """The RTC's periodic interrupt."""
        bda = self.hw.bda
        if not bda.byte(layout.WAIT_ACTIVE) & 1:
            return
        left = bda.dword(layout.WAIT_COUNT) - PERIOD_MICROSECONDS
        bda.set_dword(layout.WAIT_COUNT, max(left, 0))
        if left <= 0:
            flag = (bda.word(layout.WAIT_FLAG + 2) << 4) + bda.word(layout.WAIT_FLAG)
            value = self.hw.space.read(flag, 1)[0]
            self.hw.space.write(flag, bytes([value | 0x80]))
            self._stop()


class TimeService:
    """int 1Ah below B1h, and int 70h."""

    def __init__(self, hardware: Hardware, event: EventWait) -> None:
        self.hw, self.event = hardware, event
        self._functions = {
            0x00: self._get_ticks,
            0x01: self._set_ticks,
            0x02: self._get_time,
            0x03: self._set_time,
            0x04: self._get_date,
            0x05: self._set_date,
            0x06: self._set_alarm,
            0x07: self._cancel_alarm,
        }

    def service(self, call: Call) -> None:
        function = self._functions.get(call.ah)
        if function is None:
            call.carry = True
            return
        call.carry = call.wait = False
        function(call)

    def initialize(self) -> None:
        """POST: the RTC counts, without interrupts; the tick counter says the time of day."""
        hw = self.hw
        hw.set_cmos(REGISTER_A, 0x26)
        hw.set_cmos(REGISTER_B, TWENTY_FOUR)
        hw.cmos(REGISTER_C)
        hw.cmos(REGISTER_D)
        hour, minute, second = (from_bcd(hw.cmos(at)) for at in (HOURS, MINUTES, SECONDS))
        seconds = (hour * 60 + minute) * 60 + second
        hw.bda.set_dword(layout.TICKS, seconds * PIT_HZ // PIT_COUNT % TICKS_A_DAY)
        hw.bda.set_byte(layout.MIDNIGHT, 0)

    def interrupt(self, call: Call) -> None:
        """int 70h: what the RTC wants; the ROM calls int 4Ah for an alarm."""
        cause = self.hw.cmos(REGISTER_C) & self.hw.cmos(REGISTER_B)
        if cause & PERIODIC:
            self.event.tick()
        call.wait = bool(cause & ALARM_ENABLE)

    # -- the counter -------------------------------------------------------------------------

    def _get_ticks(self, call: Call) -> None:
        ticks = self.hw.bda.dword(layout.TICKS)
        call.cx, call.dx = ticks >> 16, ticks & 0xFFFF
        call.ax = self.hw.bda.byte(layout.MIDNIGHT)
        self.hw.bda.set_byte(layout.MIDNIGHT, 0)

    def _set_ticks(self, call: Call) -> None:
        self.hw.bda.set_dword(layout.TICKS, call.cx << 16 | call.dx)
        self.hw.bda.set_byte(layout.MIDNIGHT, 0)
        call.ah = 0

    # -- the clock ---------------------------------------------------------------------------

    def _updating(self, call: Call) -> bool:
        """While the registers change the ROM waits: some two milliseconds."""
        call.wait = bool(self.hw.cmos(REGISTER_A) & UPDATING)
        return call.wait

    def _get_time(self, call: Call) -> None:
        if not self._updating(call):
            cmos = self.hw.cmos
            call.ch, call.cl, call.dh = cmos(HOURS), cmos(MINUTES), cmos(SECONDS)
            call.dl = cmos(REGISTER_B) & DAYLIGHT
            call.ax = call.ch

    def _set_time(self, call: Call) -> None:
        kept = self.hw.cmos(REGISTER_B) & (PERIODIC | ALARM_ENABLE)
        for register, value in ((SECONDS, call.dh), (MINUTES, call.cl), (HOURS, call.ch)):
            self.hw.set_cmos(register, value)
        self.hw.set_cmos(REGISTER_B, kept | TWENTY_FOUR | call.dl & DAYLIGHT)
        call.ah = 0

    def _get_date(self, call: Call) -> None:
        if not self._updating(call):
            cmos = self.hw.cmos
            call.ch, call.cl = cmos(CENTURY), cmos(YEAR)
            call.dh, call.dl = cmos(MONTH), cmos(DAY)
            call.ah = 0

    def _set_date(self, call: Call) -> None:
        parts = ((YEAR, call.cl), (MONTH, call.dh), (DAY, call.dl), (CENTURY, call.ch))
        for register, value in parts:
            self.hw.set_cmos(register, value)
        call.ah = 0

    def _set_alarm(self, call: Call) -> None:
        control = self.hw.cmos(REGISTER_B)
        if control & ALARM_ENABLE:
            call.carry = True
            return
        for register, name in ALARM:
            self.hw.set_cmos(register, getattr(call, name))
        self.hw.enable_irq(8)
        self.hw.set_cmos(REGISTER_B, control | ALARM_ENABLE)

    def _cancel_alarm(self, call: Call) -> None:
        self.hw.set_cmos(REGISTER_B, self.hw.cmos(REGISTER_B) & ~ALARM_ENABLE)

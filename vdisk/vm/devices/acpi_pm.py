"""ACPI power management: function 3 of the 82371AB, PIIX4 (data sheet 290562, section 7; ACPI 2.0,
section 4.7).

Configuration space: 40h PMBA (where the registers lie, in I/O), 80h PMREGMISC bit 0 (decode)::

    +0  PM1_STS  WAK(15) RTC(10) SLPBTN(9) PWRBTN(8) GBL(5) BM(4) TMR(0)   ones clear
    +2  PM1_EN           RTC(10)           PWRBTN(8) GBL(5)       TMR(0)
    +4  PM1_CNT  SLP_EN(13) SLP_TYP(12-10) GBL_RLS(2) BM_RLD(1) SCI_EN(0)
    +8  PM_TMR   24 bits at 3.579545 MHz
    B2h APM_CNT  SMI command: F1h ACPI on, F0h ACPI off         B3h APM_STS

There is no system management mode; what its handler would do for APM_CNT is done here.

SLP_EN with the type of S3 lets the machine sleep: all but memory, this function and the RTC loses
its power.  The power button, or the RTC's alarm where RTC_EN is set, wakes it; PM1_STS then says
what it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.errors import InvalidRequestError
from vdisk.vm.clock import SECOND
from vdisk.vm.devices.base import bytewise_read, bytewise_write
from vdisk.vm.devices.pci import Identity, PciDevice

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus, Range
    from vdisk.vm.clock import Clock
    from vdisk.vm.irq import IrqLine

VENDOR, DEVICE, REVISION = 0x8086, 0x7113, 3
BRIDGE_CLASS = 0x068000
PMBA, PMREGMISC, DEVACTB = 0x40, 0x80, 0x58
APMC_ENABLED = 1 << 25  # SeaBIOS takes it as: system management mode is set up already
BLOCK = 64
PM1_STS, PM1_EN, PM1_CNT, PM_TMR = 0, 2, 4, 8
STS_TMR, STS_GBL, STS_PWRBTN, STS_RTC, STS_WAK = 1 << 0, 1 << 5, 1 << 8, 1 << 10, 1 << 15
EVENTS = STS_TMR | STS_GBL | STS_PWRBTN | STS_RTC
STATUS_BITS = EVENTS | STS_WAK | 1 << 4 | 1 << 9
CNT_SCI_EN, CNT_SLP_EN = 1, 1 << 13
CNT_WRITABLE = 0x1C07
SLP_TYP_SHIFT = 10
SLP_TYP_S5, SLP_TYP_S3 = 0, 1
"""What ``\\_S5`` and ``\\_S3`` in the DSDT name: off, and suspended to RAM."""
TIMER_FREQUENCY = 3_579_545
TIMER_BITS = 24
APM_PORT, ACPI_ENABLE, ACPI_DISABLE = 0xB2, 0xF1, 0xF0
SCI_IRQ = 9


class AcpiPm(PciDevice):
    """The power management function.  ``sci``: IRQ 9.  ``power_off()``: the guest entered S5.

    ``suspend()``: it wants to enter S3; ``wake_up()``, which may come before that is done: it is
    to be woken, after which :meth:`woken` is called.
    """

    SAVED: ClassVar[tuple[str, ...]] = (
        *PciDevice.SAVED,
        *("_status", "_enable", "_control", "_apm", "_half_seen", "_timer", "sci"),
        *("sleeping", "wakers"),
    )

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        sci: IrqLine,
        power_off: Callable[[], None],
        suspend: Callable[[], None],
    ) -> None:
        identity = Identity(VENDOR, DEVICE, BRIDGE_CLASS, REVISION, 0x1AF4, 0x1100, 1)
        super().__init__("acpi-pm", bus, identity)
        self.sci = sci
        self._clock, self._power_off, self._suspend = clock, power_off, suspend
        self.wake_up: Callable[[], None] = lambda: None
        self.sleeping = False
        """The guest has asked for S3, and was not woken since."""
        self.wakers = 0
        """What is to wake it, in bits of PM1_STS."""
        self._timer = clock.timer(self._update)
        self._status = self._enable = self._control = self._half_seen = 0
        self._apm = bytearray(2)
        self._range: Range | None = None
        self.define(0x06, 2, 0x0280, clearable=0xF900)
        self.define(PMBA, 4, 1, writable=0xFFC0)
        self.define(DEVACTB, 4, APMC_ENABLED)
        self.define(PMREGMISC, 1, 0, writable=1)
        read, write = bytewise_read(self._apm.__getitem__), bytewise_write(self._write_apm)
        bus.ports.map(APM_PORT, 2, read, write, "APM")

    def press_power_button(self) -> None:
        """The user presses the power button."""
        if not self.wake(STS_PWRBTN):
            self._raise(STS_PWRBTN)

    def alarm(self) -> None:
        """The RTC's alarm went off."""
        if self._enable & STS_RTC:
            self.wake(STS_RTC)

    def wake(self, event: int) -> bool:
        """Let a machine that sleeps go on, because of an event; False: it does not sleep."""
        sleeping = self.sleeping
        if sleeping:
            self.wakers |= event
            self.wake_up()
        return sleeping

    def woken(self, events: int) -> None:
        """The machine was reset to go on: say why."""
        self._status |= STS_WAK | events

    def reset(self) -> None:
        super().reset()
        self._status = self._enable = self._control = 0
        self.sleeping, self.wakers = False, 0
        self._half_seen = self._half()
        self._apm[:] = bytes(2)
        self._map()
        self._update()

    # -- where the registers lie -------------------------------------------------------------

    def config_written(self, offset: int, size: int) -> None:
        self._map()

    @property
    def base(self) -> int:
        """Where firmware has put the registers; 0: nowhere."""
        return self.config_dword(PMBA) & 0xFFC0 if self.config[PMREGMISC] & 1 else 0

    def _map(self) -> None:
        base = self.base
        if self._range is not None:
            if self._range.start == base:
                return
            self.bus.ports.unmap(self._range)
            self._range = None
        if base:
            try:
                self._range = self.bus.ports.map(base, BLOCK, self._read, self._write, self.name)
            except InvalidRequestError:  # somebody else is there
                self._range = None

    # -- events ------------------------------------------------------------------------------

    def _raise(self, event: int) -> None:
        self._status |= event
        self._update()

    def _half(self) -> int:
        """How often bit 23 of the timer has toggled, which is what TMR_STS tells."""
        return self.timer() >> TIMER_BITS - 1

    def timer(self) -> int:
        """Clocks of the power management timer since power-on."""
        return self._clock.now() * TIMER_FREQUENCY // SECOND

    def _update(self) -> None:
        half = self._half()
        if half != self._half_seen:
            self._half_seen = half
            self._status |= STS_TMR
        active = self._status & self._enable & EVENTS and self._control & CNT_SCI_EN
        self.sci.set(bool(active))
        if self._enable & STS_TMR:
            clocks = (half + 1) << TIMER_BITS - 1
            self._timer.arm(-(-clocks * SECOND // TIMER_FREQUENCY))
        else:
            self._timer.cancel()

    # -- registers ---------------------------------------------------------------------------

    def _read(self, offset: int, size: int) -> int:
        if PM_TMR <= offset < PM_TMR + 4:
            return (self.timer() & (1 << TIMER_BITS) - 1) >> 8 * (offset - PM_TMR)
        self._update()
        block = self._status | self._enable << 16 | self._control << 32
        return block >> 8 * offset

    def _write(self, offset: int, size: int, value: int) -> None:
        self._update()
        mask = ((1 << 8 * size) - 1) << 8 * offset
        value <<= 8 * offset
        self._status &= ~(value & mask & STATUS_BITS)
        mask, value = mask >> 16, value >> 16
        self._enable = self._enable & ~mask | value & mask & EVENTS
        mask, value = mask >> 16, value >> 16
        self._control = self._control & ~mask | value & mask & CNT_WRITABLE
        self._update()
        if value & mask & CNT_SLP_EN:
            self._sleep(self._control >> SLP_TYP_SHIFT)

    def _sleep(self, kind: int) -> None:
        if kind == SLP_TYP_S5:
            self._power_off()
        elif kind == SLP_TYP_S3:
            self.sleeping, self.wakers = True, 0
            self._suspend()

    def _write_apm(self, offset: int, value: int) -> None:
        self._apm[offset] = value
        if offset == 0 and value in {ACPI_ENABLE, ACPI_DISABLE}:
            enabled = CNT_SCI_EN if value == ACPI_ENABLE else 0
            self._control = self._control & ~CNT_SCI_EN | enabled
            self._update()

    def restored(self) -> None:
        super().restored()
        registers = (self._status, self._enable, self._control, self.wakers)
        self.require(all(0 <= value <= 0xFFFF for value in registers), "a register")
        self._map()
        self._update()

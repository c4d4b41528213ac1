"""The pair of 8259A interrupt controllers (Intel 8259A data sheet; ELCR: 82371SB, section 4.4).

::

    IRQ 0-7 ---> master 20h, 21h ---> INTR
                   ^ IR2
    IRQ 8-15 --> slave A0h, A1h           4D0h, 4D1h  ELCR: a bit per input, 1 = level-triggered

    A0=0 write  ICW1 (D4=1)  LTIM SNGL IC4      OCW2 (D4=D3=0)  R SL EOI . . level
                OCW3 (D3=1)  ESMM SMM . . P RR RIS
    A0=0 read   IRR or ISR, or the poll word
    A0=1        ICW2…ICW4 after ICW1, else OCW1: the mask (IMR)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.devices.base import Device, bytewise_read, bytewise_write
from vdisk.vm.irq import IrqLine

if TYPE_CHECKING:
    from vdisk.vm.bus import Bus

MASTER_PORT, SLAVE_PORT, ELCR_PORT = 0x20, 0xA0, 0x4D0
CASCADE = 2
SPURIOUS = 7
ELCR_MASKS = (0xF8, 0xDE)
"""IRQ 0, 1, 2, 8 and 13 are always edge-triggered."""

ICW1, ICW1_LTIM, ICW1_SNGL, ICW1_IC4 = 0x10, 0x08, 0x02, 0x01
ICW4_SFNM, ICW4_AEOI = 0x10, 0x02
OCW3, OCW3_ESMM, OCW3_SMM, OCW3_POLL, OCW3_RR, OCW3_RIS = 0x08, 0x40, 0x20, 0x04, 0x02, 0x01
NOTHING = 8
"""The priority of no request at all: lower than each of 0 (highest) to 7."""


class Pic(Device):
    """One 8259A.

    ``output``: its INT pin.  The state machine of initialisation: 0 ready, 1-3 the ICW that
    comes next less one.
    """

    SAVED: ClassVar[tuple[str, ...]] = (
        *("_irr", "_imr", "_isr", "_levels", "elcr", "_level_triggered", "_lowest", "_base"),
        *("_expected_icw", "_needs_icw4", "_single", "_read_isr", "_poll", "_special_mask"),
        *("_auto_eoi", "_rotate_on_auto_eoi", "_special_fully_nested"),
    )
    load_order = 1

    def __init__(self, name: str, elcr_mask: int, cascade: int = 0) -> None:
        self.name = name
        self.output = IrqLine()
        self._elcr_mask = elcr_mask
        self._cascade = cascade  # mask of the input that the other chip drives
        self._levels = 0
        self.elcr = 0
        self.reset()

    def reset(self) -> None:
        self.elcr = 0
        self._level_triggered = False
        self._irr = self._base = 0
        self._initialise()
        self._imr = 0xFF
        self._expected_icw = 0
        self._update()

    def _initialise(self) -> None:
        """What ICW1 does (data sheet, "Initialization Command Words"): a) to f)."""
        self._irr &= self._level_mask() & self._levels
        self._imr = self._isr = 0
        self._lowest = 7
        self._needs_icw4 = self._single = self._read_isr = self._poll = False
        self._special_mask = self._auto_eoi = self._rotate_on_auto_eoi = False
        self._special_fully_nested = False

    def _level_mask(self) -> int:
        return 0xFF if self._level_triggered else self.elcr

    # -- requests ----------------------------------------------------------------------------

    def set_input(self, number: int, level: bool) -> None:
        """Input ``number`` goes high or low.

        An edge stays latched although its line goes low again: devices pulse.  The slave's
        request does not, since it is withdrawn with its cause.
        """
        bit = 1 << number
        if level:
            if self._level_mask() & bit or not self._levels & bit:
                self._irr |= bit
            self._levels |= bit
        else:
            if (self._level_mask() | self._cascade) & bit:
                self._irr &= ~bit
            self._levels &= ~bit
        self._update()

    def _priority(self, requests: int) -> int:
        """How urgent the most urgent bit is: 0 to 7, or ``NOTHING``."""
        first = self._lowest + 1
        rotated = (requests << 8 | requests) >> (first & 7) & 0xFF
        return (rotated & -rotated).bit_length() - 1 if rotated else NOTHING

    def request(self) -> int | None:
        """The input to be served next, if one may interrupt."""
        urgent = self._priority(self._irr & ~self._imr)
        if urgent == NOTHING:
            return None
        in_service = self._isr
        if self._special_mask:
            in_service &= ~self._imr
        if self._special_fully_nested:
            in_service &= ~self._cascade
        if urgent >= self._priority(in_service):
            return None
        return urgent + self._lowest + 1 & 7

    def _update(self) -> None:
        self.output.set(self.request() is not None)

    def acknowledge(self, number: int) -> None:
        """INTA: the request is being served."""
        bit = 1 << number
        if not self._level_mask() & bit:
            self._irr &= ~bit
        if not self._auto_eoi:
            self._isr |= bit
        elif self._rotate_on_auto_eoi:
            self._lowest = number
        self._update()

    def vector(self, number: int) -> int:
        """The interrupt vector of an input."""
        return self._base | number

    # -- registers ---------------------------------------------------------------------------

    def read(self, offset: int) -> int:
        """A read of one of the two ports."""
        if self._poll:
            self._poll = False
            number = self.request()
            if number is None:
                return 0
            self.acknowledge(number)
            return 0x80 | number
        if offset:
            return self._imr
        return self._isr if self._read_isr else self._irr

    def write(self, offset: int, value: int) -> None:
        """A write of one of the two ports."""
        if offset:
            self._write_data(value)
        elif value & ICW1:
            self._level_triggered = bool(value & ICW1_LTIM)
            self._initialise()
            self._needs_icw4, self._single = bool(value & ICW1_IC4), bool(value & ICW1_SNGL)
            self._expected_icw = 1
        elif value & OCW3:
            self._write_ocw3(value)
        else:
            self._write_ocw2(value >> 5, value & 7)
        self._update()

    def _write_data(self, value: int) -> None:
        """OCW1, or the next initialization command word."""
        after_icw3 = 3 if self._needs_icw4 else 0
        if self._expected_icw == 0:
            self._imr = value
        elif self._expected_icw == 1:
            self._base = value & 0xF8
            self._expected_icw = after_icw3 if self._single else 2
        elif self._expected_icw == 2:  # who is where is wired in a PC
            self._expected_icw = after_icw3
        else:
            self._special_fully_nested = bool(value & ICW4_SFNM)
            self._auto_eoi = bool(value & ICW4_AEOI)
            self._expected_icw = 0

    def _write_ocw3(self, value: int) -> None:
        if value & OCW3_ESMM:
            self._special_mask = bool(value & OCW3_SMM)
        if value & OCW3_POLL:
            self._poll = True
        if value & OCW3_RR:
            self._read_isr = bool(value & OCW3_RIS)

    def _write_ocw2(self, command: int, level: int) -> None:
        """End of interrupt, rotation: R, SL, EOI are bits 2, 1, 0 of ``command``."""
        if command in {0, 4}:
            self._rotate_on_auto_eoi = command == 4
        elif command in {1, 5}:
            in_service = self._isr & ~self._imr if self._special_mask else self._isr
            urgent = self._priority(in_service)
            if urgent != NOTHING:
                number = urgent + self._lowest + 1 & 7
                self._isr &= ~(1 << number)
                if command == 5:
                    self._lowest = number
        elif command in {3, 7}:
            self._isr &= ~(1 << level)
            if command == 7:
                self._lowest = level
        elif command == 6:
            self._lowest = level

    def write_elcr(self, value: int) -> None:
        """Choose how inputs are triggered; those that become level-triggered follow theirs."""
        self.elcr = value & self._elcr_mask
        self._irr = self._irr & ~self.elcr | self._levels & self.elcr
        self._update()

    def restored(self) -> None:
        registers = (self._irr, self._imr, self._isr, self._levels, self.elcr, self._base)
        self.require(all(0 <= value <= 0xFF for value in registers), "a register of 9 bits")
        self.require(0 <= self._lowest <= 7 and 0 <= self._expected_icw <= 3, "a state")
        self._update()


class PicPair(Device):
    """Both controllers, as the PC wires them: an :class:`InterruptSource` for a processor.

    ``output``: the INTR line (to a processor's INTR or
    its LINT0).
    """

    SAVED: ClassVar[tuple[str, ...]] = ("slave", "master")
    name = "pic"
    load_order = 1

    def __init__(self, bus: Bus) -> None:
        self.master = Pic("pic master", ELCR_MASKS[0], cascade=1 << CASCADE)
        self.slave = Pic("pic slave", ELCR_MASKS[1])
        self.slave.output.connect(lambda level: self.master.set_input(CASCADE, level))
        self.output = self.master.output
        for port, chip in ((MASTER_PORT, self.master), (SLAVE_PORT, self.slave)):
            bus.ports.map(port, 2, bytewise_read(chip.read), bytewise_write(chip.write), chip.name)
        read, write = bytewise_read(self._read_elcr), bytewise_write(self._write_elcr)
        bus.ports.map(ELCR_PORT, 2, read, write, "ELCR")

    def reset(self) -> None:
        self.slave.reset()
        self.master.reset()

    def set_irq(self, number: int, level: bool) -> None:
        """Drive IRQ 0-15 (2 is the cascade and cannot be driven)."""
        if number >= 8:
            self.slave.set_input(number - 8, level)
        elif number != CASCADE:
            self.master.set_input(number, level)

    def pending(self) -> bool:
        """True while INTR is asserted."""
        return self.output.level

    def acknowledge(self) -> int:
        """The interrupt acknowledge cycle: gives the vector, IRQ 7 or 15 if there is no cause."""
        number = self.master.request()
        if number is None:
            return self.master.vector(SPURIOUS)
        if number != CASCADE:
            self.master.acknowledge(number)
            return self.master.vector(number)
        inner = self.slave.request()
        self.master.acknowledge(CASCADE)
        if inner is None:
            return self.slave.vector(SPURIOUS)
        self.slave.acknowledge(inner)
        return self.slave.vector(inner)

    def _read_elcr(self, offset: int) -> int:
        return (self.slave if offset else self.master).elcr

    def _write_elcr(self, offset: int, value: int) -> None:
        (self.slave if offset else self.master).write_elcr(value)

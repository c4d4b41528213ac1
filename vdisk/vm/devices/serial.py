"""The 16550A UART (National PC16550D data sheet); COM1-COM4 of a PC.

::

    +0  RBR read, THR write (DLAB: DLL)      +4  MCR  LOOP(4) OUT2 OUT1 RTS DTR
    +1  IER  modem(3) line(2) THRE(1) RX(0)  +5  LSR  FIFO error(7) TEMT THRE BI FE PE OE DR
        (DLAB: DLM)                          +6  MSR  DCD RI DSR CTS  dDCD tRI dDSR dCTS
    +2  IIR read, FCR write                  +7  SCR  scratch
    +3  LCR  DLAB(7) break(6) parity(5-3) stop(2) length(1-0)

Sending takes no time: a byte goes to the stream as it is written.  Receiving is as fast as the
guest reads; the time of four characters passes before the FIFO's time-out interrupt.

The other end is a :class:`Stream`; it hands over what arrives with :meth:`Uart.feed`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar, Protocol

from vdisk.vm.clock import SECOND
from vdisk.vm.devices.base import Device, bytewise_read, bytewise_write

if TYPE_CHECKING:
    from vdisk.vm.bus import Bus
    from vdisk.vm.clock import Clock
    from vdisk.vm.irq import IrqLine

COM_PORTS = (0x3F8, 0x2F8, 0x3E8, 0x2E8)
COM_IRQS = (4, 3, 4, 3)
RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
FCR = IIR

IER_RX, IER_THRE, IER_LINE, IER_MODEM = 1, 2, 4, 8
IIR_NONE, IIR_MODEM, IIR_THRE, IIR_RX, IIR_LINE, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFOS = 0xC0
FCR_ENABLE, FCR_CLEAR_RX, FCR_CLEAR_TX = 1, 2, 4
TRIGGER_LEVELS = (1, 4, 8, 14)
LCR_DLAB, LCR_BREAK = 0x80, 0x40
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 1, 2, 4, 8, 16
LSR_DR, LSR_OE, LSR_BI, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x10, 0x20, 0x40
LSR_ERRORS = 0x1E
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD

FIFO = 16
BACKLOG = 1 << 16
"""Bytes that may wait for the guest; a stream that has more to give waits for ``space``."""
BAUD_CLOCK = 115200  # divisor 1
_BYTES = tuple(bytes([value]) for value in range(256))


class Stream(Protocol):
    """The far end of a serial or parallel line."""

    def write(self, data: bytes) -> None:
        """Take what the guest has sent.  Called with the bus lock held: must not block."""


class Uart(Device):
    """One 16550A.  ``stream`` None: nothing is plugged in (no carrier, output is lost)."""

    SAVED: ClassVar[tuple[str, ...]] = (
        *("_ier", "_lcr", "_mcr", "_lsr", "_msr", "_scratch", "_fcr", "_divisor", "_fifo"),
        *("_backlog", "_thre_pending", "_timed_out", "_timeout", "irq"),
    )

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        irq: IrqLine,
        port: int,
        stream: Stream | None = None,
        name: str = "serial",
    ) -> None:
        self.name = name
        self.irq = irq
        self.stream = stream
        self._clock = clock
        self._fifo: deque[int] = deque(maxlen=FIFO)
        self._backlog: deque[int] = deque(maxlen=BACKLOG)
        self._timeout = clock.timer(self._character_timeout)
        self._scratch = 0
        self._divisor = 12
        self.reset()
        bus.ports.map(port, 8, bytewise_read(self._read), bytewise_write(self._write), name)

    def reset(self) -> None:
        """Master reset; what has not been received yet waits on."""
        self._ier = self._lcr = self._mcr = self._fcr = 0
        self._lsr = LSR_THRE | LSR_TEMT
        self._msr = 0
        self._msr = self._modem_inputs()
        self._fifo.clear()
        self._thre_pending = self._timed_out = False
        self._timeout.cancel()
        self._update()

    # -- the far end -------------------------------------------------------------------------

    def space(self) -> int:
        """How many bytes :meth:`feed` takes now."""
        return BACKLOG - len(self._backlog)

    def feed(self, data: bytes) -> None:
        """Bytes arrive; beyond :meth:`space` they are lost, and the guest told so (overrun)."""
        if len(data) > self.space():
            self._lsr |= LSR_OE
        self._backlog.extend(data[: self.space()])
        self._receive()

    def feed_break(self) -> None:
        """The far end sends a break (as SysRq on a serial console)."""
        self._lsr |= LSR_BI
        self._into_fifo(0)
        self._update()

    def plug(self, stream: Stream | None) -> None:
        """Connect something else, or nothing."""
        self.stream = stream
        self._modem_changed()

    def _receive(self) -> None:
        """Let what waits come in as far as there is room."""
        if not self._backlog or self._mcr & MCR_LOOP:
            return
        room = (FIFO if self._fcr & FCR_ENABLE else 1) - len(self._fifo)
        for _ in range(min(room, len(self._backlog))):
            self._into_fifo(self._backlog.popleft())
        self._update()

    def _into_fifo(self, byte: int) -> None:
        """A character has been received."""
        if len(self._fifo) >= (FIFO if self._fcr & FCR_ENABLE else 1):
            self._lsr |= LSR_OE
            if not self._fcr & FCR_ENABLE:
                self._fifo[0] = byte  # the holding register is overwritten, a full FIFO is not
        else:
            self._fifo.append(byte)
        self._lsr |= LSR_DR
        self._restart_timeout()

    def _restart_timeout(self) -> None:
        self._timed_out = False
        if self._fifo and self._fcr & FCR_ENABLE and len(self._fifo) < self._trigger():
            self._timeout.arm(self._clock.now() + 4 * self._character_time())
        elif self._timeout.deadline is not None:
            self._timeout.cancel()

    def _character_timeout(self) -> None:
        self._timed_out = True
        self._update()

    def _character_time(self) -> int:
        """ns on the line: start, data, parity and stop bits."""
        bits = 1 + 5 + (self._lcr & 3) + (self._lcr >> 3 & 1) + 1 + (self._lcr >> 2 & 1)
        return bits * SECOND * (self._divisor or 0x10000) // BAUD_CLOCK

    def _trigger(self) -> int:
        return TRIGGER_LEVELS[self._fcr >> 6] if self._fcr & FCR_ENABLE else 1

    # -- interrupts --------------------------------------------------------------------------

    def _cause(self) -> int:
        """The cause of highest priority, as IIR shows it."""
        ier = self._ier
        if ier & IER_LINE and self._lsr & LSR_ERRORS:
            return IIR_LINE
        if ier & IER_RX and self._fifo:
            if len(self._fifo) >= self._trigger():
                return IIR_RX
            if self._timed_out:
                return IIR_TIMEOUT
        if ier & IER_THRE and self._thre_pending:
            return IIR_THRE
        if ier & IER_MODEM and self._msr & 0x0F:
            return IIR_MODEM
        return IIR_NONE

    def _update(self) -> None:
        """The PC's serial adapter lets the interrupt through to the bus only while OUT2 is 1.  QEMU
        does not look at it, and systems that were made for QEMU (xv6) leave it 0."""
        self.irq.set(self._cause() != IIR_NONE and not self._mcr & MCR_LOOP)

    # -- modem lines -------------------------------------------------------------------------

    def _modem_inputs(self) -> int:
        if self._mcr & MCR_LOOP:
            mcr = self._mcr
            return (
                (MSR_CTS if mcr & MCR_RTS else 0)
                | (MSR_DSR if mcr & MCR_DTR else 0)
                | (MSR_RI if mcr & MCR_OUT1 else 0)
                | (MSR_DCD if mcr & MCR_OUT2 else 0)
            )
        return MSR_CONNECTED if self.stream is not None else 0

    def _modem_changed(self) -> None:
        inputs = self._modem_inputs()
        changed = (self._msr ^ inputs) >> 4
        deltas = changed & 0x0B
        if self._msr & ~inputs & MSR_RI:  # RI counts when it ends
            deltas |= 0x04
        self._msr = inputs | self._msr & 0x0F | deltas
        self._update()

    # -- registers ---------------------------------------------------------------------------

    def _read(self, offset: int) -> int:
        divisor = offset <= IER and self._lcr & LCR_DLAB
        if offset == LSR:
            value = self._read_lsr()
        elif divisor:
            value = self._divisor >> 8 * offset & 0xFF
        elif offset == RBR:
            value = self._read_rbr()
        elif offset == IIR:
            value = self._read_iir()
        elif offset == MSR:
            value = self._msr
            self._msr &= 0xF0
            self._update()
        else:
            value = {IER: self._ier, LCR: self._lcr, MCR: self._mcr, SCR: self._scratch}[offset]
        return value

    def _read_rbr(self) -> int:
        if not self._fifo:
            return 0
        value = self._fifo.popleft()
        if not self._fifo:
            self._lsr &= ~LSR_DR
        self._restart_timeout()
        self._receive()
        self._update()
        return value

    def _read_lsr(self) -> int:
        value = self._lsr
        if value & LSR_ERRORS:
            self._lsr &= ~LSR_ERRORS
            self._update()
        return value

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == IIR_THRE:  # reading IIR acknowledges it
            self._thre_pending = False
            self._update()
        return cause | (IIR_FIFOS if self._fcr & FCR_ENABLE else 0)

    def _write(self, offset: int, value: int) -> None:
        if offset == RBR and not self._lcr & LCR_DLAB:
            self._transmit(value)
        elif offset <= IER and self._lcr & LCR_DLAB:
            shift = 8 * offset
            self._divisor = self._divisor & ~(0xFF << shift) | value << shift
        elif offset == IER:
            if value & ~self._ier & IER_THRE:  # enabling it while the register is empty counts
                self._thre_pending = True
            self._ier = value & 0x0F
            self._update()
        elif offset == FCR:
            self._write_fcr(value)
        elif offset == MCR:
            self._mcr = value & 0x1F
            self._modem_changed()
            self._receive()
        elif offset == LCR:
            self._lcr = value
        elif offset == SCR:
            self._scratch = value

    def _transmit(self, value: int) -> None:
        if self._mcr & MCR_LOOP:
            self._into_fifo(value)
        elif self.stream is not None:
            self.stream.write(_BYTES[value])
        self._thre_pending = True
        self._update()

    def _write_fcr(self, value: int) -> None:
        if (value ^ self._fcr) & FCR_ENABLE:  # changing modes empties both FIFOs
            value |= FCR_CLEAR_RX
        self._fcr = value & 0xC9 if value & FCR_ENABLE else 0
        if value & FCR_CLEAR_RX:
            self._fifo.clear()
            self._lsr &= ~LSR_DR
        self._restart_timeout()
        self._receive()
        self._update()

    def restored(self) -> None:
        registers = (self._ier, self._lcr, self._mcr, self._lsr, self._msr, self._fcr)
        self.require(all(0 <= value <= 0xFF for value in registers), "a register of 9 bits")
        self.require(0 <= self._divisor <= 0xFFFF and 0 <= self._scratch <= 0xFF, "a register")
        self.require(all(0 <= byte <= 0xFF for byte in self._fifo), "a byte")
        self.require(all(0 <= byte <= 0xFF for byte in self._backlog), "a byte")
        if not self._lsr & LSR_DR and self._fifo:
            self._lsr |= LSR_DR

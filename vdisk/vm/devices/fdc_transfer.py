"""The execution phase of the diskette controller: sector after sector, by DMA or through the FIFO.

::

    READ    drive ---> buffer ---> channel 2, or FIFO        a sector ends: the next ID
    WRITE   channel 2, or FIFO ---> buffer ---> drive        EOT: head 1 (multi-track), or the end
    FORMAT  four bytes for each sector, which is filled      terminal count: the end, all is well

Without DMA there is no terminal count, and a transfer ends at EOT with *end of cylinder*, as on the
real one.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from vdisk.emu_blockdev import Operation, Request
from vdisk.vm.devices.base import Device
from vdisk.vm.devices.floppy_drive import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.devices.dma import Dma
    from vdisk.vm.devices.floppy_drive import FloppyDrive
    from vdisk.vm.irq import IrqLine

CHANNEL = 2
NORMAL, ABNORMAL = 0x00, 0x40  # ST0
END_OF_CYLINDER, DATA_ERROR, NO_DATA, NOT_WRITABLE, MISSING_MARK = (
    0x80,
    0x20,
    0x04,
    0x02,
    0x01,
)  # ST1
WRONG_CYLINDER, DATA_ERROR_IN_FIELD = 0x10, 0x20  # ST2
SIZE_512 = 2
ID_BYTES = 4


class Phase:
    """What the FIFO is for; numbers, as a saved state has them."""

    COMMAND, EXECUTION, RESULT = range(3)


class Kind:
    """What a transfer does."""

    READ, WRITE, VERIFY, FORMAT = range(4)


class Execution(Device):
    """The part of :class:`~vdisk.vm.devices.fdc.Fdc` that moves data."""

    MOVING: ClassVar[tuple[str, ...]] = (
        *("_phase", "_kind", "_unit", "_cylinder", "_head", "_sector", "_size", "_last"),
        *("_multi", "_fill", "_left", "_waits"),
    )

    def __init__(self, dma: Dma, irq: IrqLine, drives: list[FloppyDrive]) -> None:
        self.irq = irq
        self.drives = drives
        self._dma = dma
        self.forget()
        self._waits = False
        """A sector's bytes wait for the processor or for the DMA controller."""
        self._buffer = bytearray()
        self._place = 0
        self._epoch = 0  # what was submitted before a reset is nobody's any more
        self._next: Callable[[], None] | None = None

    @property
    @abstractmethod
    def by_dma(self) -> bool:
        """SPECIFY has not chosen the non-DMA mode."""

    @abstractmethod
    def finish(self, st0: int, st1: int = 0, st2: int = 0) -> None:
        """To the result phase."""

    @abstractmethod
    def interrupt(self) -> None:
        """Ask for the processor, if the gate lets it through."""

    def forget(self) -> None:
        """RESET#: the last transfer leaves nothing behind."""
        self._phase = self._kind = self._unit = self._last = self._fill = self._left = 0
        self._cylinder = self._head = self._sector = self._size = 0
        self._multi = False

    def stop(self) -> None:
        """A reset: nothing is on its way any more."""
        self._dma.withdraw(CHANNEL)
        self._phase, self._waits, self._next = Phase.COMMAND, False, None
        self._buffer.clear()
        self._place = 0
        self._epoch += 1

    # -- sectors -----------------------------------------------------------------------------

    def start(self, kind: int, unit: int, ids: tuple[int, int, int, int]) -> None:
        """Begin at the sector of this ID: cylinder, head, number, size."""
        self._phase, self._kind, self._unit = Phase.EXECUTION, kind, unit
        self._cylinder, self._head, self._sector, self._size = ids
        drive = self.drives[unit]
        if not drive.present:
            self.finish(ABNORMAL, MISSING_MARK)
        elif kind in (Kind.WRITE, Kind.FORMAT) and drive.protected:
            self.finish(ABNORMAL, NOT_WRITABLE)
        else:
            self._then(self._ask if kind == Kind.FORMAT else self._begin_sector)

    def _then(self, step: Callable[[], None]) -> None:
        """Go on with ``step``: a loop, since what is done at once calls from inside of it."""
        outermost = self._next is None
        self._next = step
        if not outermost:
            return
        while self._next is not None:
            now = self._next
            self._next = _busy
            now()
            if self._next is _busy:
                self._next = None

    def _find(self) -> int | None:
        """The offset of the present sector; None: the transfer has ended, for there is none."""
        drive = self.drives[self._unit]
        if not drive.present:
            self.finish(ABNORMAL, MISSING_MARK)
            return None
        if self._cylinder != drive.track:
            self.finish(ABNORMAL, NO_DATA, WRONG_CYLINDER)
            return None
        place = drive.place(self._head, self._sector) if self._size == SIZE_512 else None
        if place is None:
            self.finish(ABNORMAL, NO_DATA)
        return place

    def _begin_sector(self) -> None:
        place = self._find()
        if place is None:
            return
        if self._kind == Kind.READ:
            self._submit(Operation.READ, place, bytearray(SECTOR), self._offer)
        elif self._kind == Kind.WRITE:
            self._ask()
        else:
            self._end_sector()

    def _end_sector(self) -> None:
        """After a sector: is there another?"""
        over = self._sector == self._last and not (self._multi and self._head == 0)
        self._advance()
        if not over:
            self._then(self._begin_sector)
        elif self._kind == Kind.VERIFY:
            self.finish(NORMAL)
        else:
            self.finish(ABNORMAL, END_OF_CYLINDER)

    def _advance(self) -> None:
        """The ID that follows (data sheet, table 5-4)."""
        if self._sector != self._last:
            self._sector = (self._sector + 1) & 0xFF
            return
        self._sector = 1
        if self._multi:
            self._head ^= 1
        if not self._multi or self._head == 0:
            self._cylinder = (self._cylinder + 1) & 0xFF

    def _submit(
        self, operation: Operation, place: int, data: bytearray, then: Callable[[], None]
    ) -> None:
        disk, epoch = self.drives[self._unit].disk, self._epoch
        assert disk is not None

        def done(request: Request) -> None:
            if epoch != self._epoch:
                return
            self._buffer, self._place = data, 0
            if request.error is not None:
                self.finish(ABNORMAL, DATA_ERROR, DATA_ERROR_IN_FIELD)
            else:
                self._then(then)

        request = Request(operation, place, len(data), [memoryview(data)], done)
        if disk.submit(request):
            done(request)

    # -- from the diskette to the processor --------------------------------------------------

    def _offer(self) -> None:
        self._waits = True
        if self.by_dma:
            self._dma.request(CHANNEL, self._give)
        else:
            self.interrupt()

    def _give(self) -> None:
        """By DMA."""
        self._waits = False
        if self._dma.to_memory(CHANNEL, self._buffer):
            self._advance()
            self.finish(NORMAL)
        else:
            self._then(self._end_sector)

    def take_byte(self) -> int:
        """By the FIFO."""
        if not self._waits or self._place >= len(self._buffer):
            return 0
        value = self._buffer[self._place]
        self._place += 1
        if self._place == len(self._buffer):
            self._waits = False
            self.irq.lower()
            self._then(self._end_sector)
        return value

    # -- from the processor to the diskette --------------------------------------------------

    def _ask(self) -> None:
        self._waits = True
        self._buffer, self._place = bytearray(), 0
        if self.by_dma:
            self._dma.request(CHANNEL, self._receive)
        else:
            self.interrupt()

    @property
    def _wanted(self) -> int:
        return ID_BYTES if self._kind == Kind.FORMAT else SECTOR

    def _receive(self) -> None:
        """By DMA."""
        data, terminal = self._dma.from_memory(CHANNEL, self._wanted)
        self._buffer = bytearray(data)
        self._use_bytes(terminal)

    def give_byte(self, value: int) -> None:
        """By the FIFO."""
        if self._waits and self._kind != Kind.READ:
            self._buffer.append(value)
            if len(self._buffer) == self._wanted:
                self.irq.lower()
                self._use_bytes(terminal=False)

    def _use_bytes(self, terminal: bool) -> None:
        self._waits = False
        if self._kind == Kind.FORMAT:
            self._then(self._format_sector)
            return
        place = self._find()
        if place is not None:
            data = self._buffer.ljust(SECTOR, b"\0")
            then = self._end_at_terminal_count if terminal else self._end_sector
            self._submit(Operation.WRITE, place, bytearray(data), then)

    def _end_at_terminal_count(self) -> None:
        self._advance()
        self.finish(NORMAL)

    def _format_sector(self) -> None:
        """Fill the sector that the four bytes name; after the last the track is done."""
        self._cylinder, self._head, self._sector, self._size = self._buffer.ljust(ID_BYTES, b"\0")
        place = self._find()
        if place is not None:
            self._left -= 1
            filled = bytearray([self._fill] * SECTOR)
            self._submit(Operation.WRITE, place, filled, self._formatted)

    def _formatted(self) -> None:
        if self._left > 0:
            self._ask()
        else:
            self.finish(NORMAL)

    # -- saving ------------------------------------------------------------------------------

    def ask_again(self) -> None:
        """After loading: a sector that waited for the DMA controller goes on waiting."""
        if self._waits and self.by_dma:
            self._dma.request(CHANNEL, self._give if self._kind == Kind.READ else self._receive)


def _busy() -> None:
    """Stands for the step that is being done."""

"""A channel: two drives on one cable, and the registers that lead to them.

Both drives hear every write of a register; the one that device's DEV bit selects answers reads and
executes commands.  A drive that is not there answers with zeroes.  INTRQ of the selected drive,
unless device control's nIEN is set, is the channel's interrupt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.devices.base import Device
from vdisk.vm.devices.ide_dma import INTERRUPT, BusMaster
from vdisk.vm.devices.ide_registers import (
    BSY,
    COMMAND,
    CONTROL_HOB,
    CONTROL_NIEN,
    CONTROL_SRST,
    DEVICE,
    DEVICE_DEV,
    DEVICE_RESET,
    DRQ,
    EXECUTE_DEVICE_DIAGNOSTIC,
    READY,
    SIGNATURE_ATAPI,
    STATUS,
)

if TYPE_CHECKING:
    from vdisk.vm.clock import Clock
    from vdisk.vm.devices.base import State
    from vdisk.vm.devices.ide_drive import IdeDrive
    from vdisk.vm.irq import IrqLine


class IdeChannel(Device):
    """``irq``: IRQ 14 or 15.  ``dma``: the channel's bus master."""

    SAVED: ClassVar[tuple[str, ...]] = ("_selected", "_control", "dma")

    def __init__(self, name: str, irq: IrqLine, dma: BusMaster, clock: Clock) -> None:
        self.name = name
        self.dma = dma
        self.drives: list[IdeDrive | None] = [None, None]
        self._irq = irq
        self._selected = 0
        self._control = 0
        self._resume = clock.timer(self._resume_drives)
        self._clock = clock
        dma.started = self._dma_started
        dma.stopped = self._dma_stopped

    def attach(self, drive: IdeDrive, number: int) -> None:
        """Plug in drive 0 (master) or 1 (slave)."""
        self.drives[number] = drive
        drive.channel = self

    @property
    def drive(self) -> IdeDrive | None:
        """The selected drive."""
        return self.drives[self._selected]

    # -- the command block -------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """A read of the command block."""
        drive = self.drives[self._selected]
        if drive is None:
            return 0
        if not offset:
            return drive.data_in(size)
        if size > 1:
            return self._wide_read(offset, size)
        if offset == STATUS:
            status = drive.status
            if drive.intrq:
                drive.intrq = False
                self.interrupt_changed()
            return status
        return drive.read_register(offset, hob=bool(self._control & CONTROL_HOB))

    def _wide_read(self, offset: int, size: int) -> int:
        """Registers of one byte, read as several: what an 8-bit bus gives."""
        value = 0
        for index in range(min(size, 8 - offset)):
            value |= self.read(offset + index, 1) << 8 * index
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """A write of the command block."""
        if not offset:
            drive = self.drives[self._selected]
            if drive is not None:
                drive.data_out(size, value)
            return
        if size == 1:  # nearly always, a dozen times a command
            self._write_register(offset, value & 0xFF)
            return
        for register in range(offset, min(offset + size, 8)):
            self._write_register(register, value & 0xFF)
            value >>= 8

    def read_many(self, offset: int, size: int, count: int) -> bytes:
        """INS: the data register, mostly."""
        drive = self.drives[self._selected]
        if offset or drive is None:
            return b"".join(self.read(offset, size).to_bytes(size, "little") for _ in range(count))
        return drive.data_in_many(size, count)

    def write_many(self, offset: int, size: int, data: bytes) -> None:
        """OUTS."""
        drive = self.drives[self._selected]
        if not offset and drive is not None:
            drive.data_out_many(size, data)
            return
        for start in range(0, len(data), size):
            self.write(offset, size, int.from_bytes(data[start : start + size], "little"))

    def _write_register(self, register: int, value: int) -> None:
        self._control &= ~CONTROL_HOB
        if register == COMMAND:
            self._command(value)
            return
        if register == DEVICE:
            self._selected = int(bool(value & DEVICE_DEV))
        for drive in self.drives:
            if drive is not None:
                drive.write_register(register, value)
        if register == DEVICE:
            self.interrupt_changed()

    def _command(self, command: int) -> None:
        if command == EXECUTE_DEVICE_DIAGNOSTIC:  # for both drives, whichever is selected
            self._diagnose()
            return
        drive = self.drives[self._selected]
        if drive is None:
            return
        resets = command == DEVICE_RESET and drive.signature == SIGNATURE_ATAPI
        if drive.status & (BSY | DRQ) and not resets:
            return
        drive.intrq = False
        self.interrupt_changed()
        drive.execute(command)

    def _diagnose(self) -> None:
        self._selected = 0
        for drive in self.drives:
            if drive is not None:
                drive.device = 0
                drive.software_reset()
        if self.drives[0] is not None:
            self.drives[0].interrupt()

    # -- the control block -------------------------------------------------------------------

    def read_control(self, _offset: int, _size: int) -> int:
        """Alternate status: as status, and the interrupt stays."""
        drive = self.drives[self._selected]
        return 0 if drive is None else drive.status

    def write_control(self, _offset: int, _size: int, value: int) -> None:
        """Device control."""
        before, self._control = self._control, value & 0xFF
        if value & ~before & CONTROL_SRST:
            for drive in self.drives:
                if drive is not None:
                    drive.software_reset()
                    drive.status = BSY | READY
        elif before & ~value & CONTROL_SRST:
            self._selected = 0
            for drive in self.drives:
                if drive is not None:
                    drive.device = 0
                    drive.software_reset()
        self.interrupt_changed()

    # -- interrupts and DMA ------------------------------------------------------------------

    def interrupt_changed(self) -> None:
        """Drive the interrupt line as the selected drive asks."""
        drive = self.drives[self._selected]
        level = drive is not None and drive.intrq and not self._control & CONTROL_NIEN
        if level and not self._irq.level:
            self.dma.status |= INTERRUPT
        self._irq.set(level)

    def _dma_started(self) -> None:
        drive = self.drives[self._selected]
        if drive is not None and drive._job.startswith("dma"):
            drive.advance()

    def _dma_stopped(self) -> None:
        """Stopping in the middle gives the transfer up; memory is the driver's again."""
        for drive in self.drives:
            if drive is not None and drive._job.startswith("dma") and drive.status & BSY:
                drive.cancel()
                drive.status = READY

    # -- life --------------------------------------------------------------------------------

    def reset(self) -> None:
        self._selected = self._control = 0
        self.dma.reset()
        for drive in self.drives:
            if drive is not None:
                drive.reset()
        self.interrupt_changed()

    def save_state(self) -> State:
        drives = [None if drive is None else drive.save_state() for drive in self.drives]
        return super().save_state() | {"drives": drives}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        saved = state.get("drives")
        self.require(isinstance(saved, list) and len(saved) == 2, "drives")
        assert isinstance(saved, list)
        for drive, part in zip(self.drives, saved, strict=True):
            self.require((drive is None) == (part is None), "other drives than there are")
            if drive is not None:
                drive.load_state(part)
        self.require(self._selected in (0, 1) and 0 <= self._control < 256, "a register")
        self.interrupt_changed()
        self._resume.arm(self._clock.now())

    def _resume_drives(self) -> None:
        for drive in self.drives:
            if drive is not None:
                drive.resume()

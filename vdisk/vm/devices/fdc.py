"""The diskette controller: Intel 82077AA (data sheet 290166), at 3F0h, with IRQ 6 and DMA 2.

::

    +0 SRA  +1 SRB (r)   state of the lines      +4 MSR (r)  7 RQM  6 DIO  5 NDMA  4 busy  3-0 seeks
    +2 DOR  7-4 motors  3 DMA gate  2 -RESET     +4 DSR (w)  7 software reset
            1-0 drive                            +5 FIFO     commands, data, results
    +3 TDR  tape                                 +7 DIR (r)  7 DSKCHG       CCR (w)  1-0 data rate

    command phase    the command's bytes go into the FIFO        (RQM, then DIO says which way)
    execution phase  sectors travel by DMA, or through the FIFO  (fdc_transfer)
    result phase     ST0 ST1 ST2 C H R N come out of it

An interrupt says that results are there, or, after seeks and a reset, that SENSE INTERRUPT has
something to tell.  The head moves and the diskette turns in no time.  Data rates make no
difference; SCAN commands are refused as invalid.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.devices.fdc_transfer import ABNORMAL, MISSING_MARK, NORMAL, Execution, Kind, Phase
from vdisk.vm.devices.floppy_drive import MOST_TRACKS, FloppyDrive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.emu_blockdev import EmuBlockDevice
    from vdisk.vm.bus import Bus
    from vdisk.vm.devices.base import State
    from vdisk.vm.devices.dma import Dma
    from vdisk.vm.irq import IrqLine

BASE, IRQ = 0x3F0, 6
DRIVES = 4
FITTED = 2
"""Drives that the PC's cable has places for."""
SRA, SRB, DOR, TDR, MSR, FIFO = range(6)
DIR = 7
DOR_DRIVE, DOR_NOT_RESET, DOR_GATE = 0x03, 0x04, 0x08
DSR_RESET = 0x80
RQM, DIO, NON_DMA, BUSY = 0x80, 0x40, 0x20, 0x10  # MSR
DSKCHG = 0x80
SEEK_END, EQUIPMENT_CHECK, INVALID, READY_CHANGED = 0x20, 0x10, 0x80, 0xC0  # ST0
TWO_SIDED, READY, TRACK_0, PROTECTED = 0x08, 0x20, 0x10, 0x40  # ST3
VERSION_82077 = 0x90
IMPLIED_SEEK = 0x40  # CONFIGURE
HEAD = 0x04
MULTI_TRACK, LOCK_BIT = 0x80, 0x80
STEP_IN, RELATIVE = 0x40, 0x80
DEFAULT_CONFIGURATION = 0x20
"""The FIFO is off."""


class Fdc(Execution):
    """``disks``: in drives A and B; None: no drive."""

    SAVED: ClassVar[tuple[str, ...]] = (
        *Execution.MOVING,
        *("_dor", "_tdr", "_command", "_results", "_told", "_seeking", "_specified"),
        *("_configuration", "_locked", "_perpendicular", "irq"),
    )
    name = "fdc"

    def __init__(
        self, bus: Bus, dma: Dma, irq: IrqLine, disks: Sequence[EmuBlockDevice | None]
    ) -> None:
        places = [*disks, *[None] * (DRIVES - len(disks))]
        super().__init__(dma, irq, [FloppyDrive(disk) for disk in places])
        self._command: deque[int] = deque(maxlen=9)
        self._results: deque[int] = deque(maxlen=10)
        self._told: deque[int] = deque(maxlen=2 * DRIVES)
        """What SENSE INTERRUPT has to tell: ST0 and the track, once for each drive at most."""
        self._specified, self._configuration = [0, 0], [DEFAULT_CONFIGURATION, 0]
        self._commands: dict[int, tuple[int, Callable[[list[int]], None]]] = {
            0x02: (8, self._read_track),
            0x03: (2, self._specify),
            0x04: (1, self._sense_drive),
            0x05: (8, lambda words: self._move(Kind.WRITE, words)),
            0x06: (8, lambda words: self._move(Kind.READ, words)),
            0x07: (1, self._recalibrate),
            0x08: (0, self._sense_interrupt),
            0x09: (8, lambda words: self._move(Kind.WRITE, words)),
            0x0A: (1, self._read_id),
            0x0C: (8, lambda words: self._move(Kind.READ, words)),
            0x0D: (5, self._format),
            0x0E: (0, self._dump),
            0x0F: (2, self._seek),
            0x10: (0, lambda words: self._answer(VERSION_82077)),
            0x12: (1, self._set_perpendicular),
            0x13: (3, self._configure),
            0x14: (0, self._lock),
            0x16: (8, lambda words: self._move(Kind.VERIFY, words)),
        }
        bus.ports.map(BASE, 6, self._read, self._write, self.name)
        bus.ports.map(BASE + DIR, 1, self._read_dir, lambda *_: None, self.name)
        self.reset()

    def reset(self) -> None:
        """RESET#: held in reset until the guest writes the DOR."""
        self._dor = self._tdr = self._seeking = self._perpendicular = 0
        self._locked = False
        self._specified[:] = 0, 0
        self.forget()
        for drive in self.drives:
            drive.reset()
        self._reset_controller()

    def _reset_controller(self) -> None:
        self.stop()
        self.irq.lower()
        self._command.clear()
        self._results.clear()
        self._seeking = 0
        if not self._locked:
            self._configuration[:] = DEFAULT_CONFIGURATION, 0
        self._perpendicular &= 0x3C
        self._told.clear()
        for unit in range(DRIVES):
            self._told += (READY_CHANGED | unit, self.drives[unit].track)

    # -- registers ---------------------------------------------------------------------------

    def _read(self, offset: int, _size: int) -> int:
        if offset == FIFO:
            return self._read_fifo()
        if offset == MSR:
            return self._status()
        if offset == SRA:
            return 0x80 if self.irq.level else 0
        return {DOR: self._dor, TDR: self._tdr, SRB: 0xC0}.get(offset, 0xFF)

    def _read_dir(self, _offset: int, _size: int) -> int:
        drive = self.drives[self._dor & DOR_DRIVE]
        return DSKCHG if drive.disk is not None and (drive.changed or not drive.present) else 0

    def _status(self) -> int:
        if not self._dor & DOR_NOT_RESET:
            return 0
        status = self._seeking
        if self._phase == Phase.COMMAND:
            return status | RQM | (BUSY if self._command else 0)
        if self._phase == Phase.RESULT:
            return status | RQM | DIO | BUSY
        if self.by_dma:
            return status | BUSY
        direction = DIO if self._kind == Kind.READ else 0
        return status | BUSY | NON_DMA | (RQM | direction if self._waits else 0)

    def _write(self, offset: int, _size: int, value: int) -> None:
        value &= 0xFF
        if offset == FIFO:
            self._write_fifo(value)
        elif offset == DOR:
            before, self._dor = self._dor, value
            if before & DOR_NOT_RESET and not value & DOR_NOT_RESET:
                self._reset_controller()
            elif value & DOR_NOT_RESET and not before & DOR_NOT_RESET:
                self._reset_controller()
                self.interrupt()
        elif offset == MSR and value & DSR_RESET:
            self._reset_controller()
            self.interrupt()
        elif offset == TDR:
            self._tdr = value & 3

    def interrupt(self) -> None:
        if self._dor & DOR_GATE:
            self.irq.raise_()

    @property
    def by_dma(self) -> bool:
        return not self._specified[1] & 1

    # -- phases ------------------------------------------------------------------------------

    def _write_fifo(self, value: int) -> None:
        if not self._dor & DOR_NOT_RESET:
            return
        if self._phase == Phase.EXECUTION:
            self.give_byte(value)
        elif self._phase == Phase.COMMAND:
            self._command.append(value)
            count, carry_out = self._commands.get(self._command[0] & 0x1F, (0, self._invalid))
            if len(self._command) > count:
                words = list(self._command)
                self._command.clear()
                carry_out(words)

    def _read_fifo(self) -> int:
        if self._phase == Phase.EXECUTION:
            return self.take_byte()
        if self._phase != Phase.RESULT:
            return 0
        self.irq.lower()
        value = self._results.popleft()
        if not self._results:
            self._phase = Phase.COMMAND
        return value

    def _answer(self, *results: int) -> None:
        self._results.clear()
        self._results += results
        self._phase = Phase.RESULT

    def _invalid(self, _words: list[int]) -> None:
        self._answer(INVALID)

    def finish(self, st0: int, st1: int = 0, st2: int = 0) -> None:
        self._waits = False
        st0 |= (self._head & 1) << 2 | self._unit
        ids = (self._cylinder, self._head, self._sector, self._size)
        self._answer(st0, st1, st2, *ids)
        self.interrupt()

    # -- commands that move data -------------------------------------------------------------

    def _move(self, kind: int, words: list[int]) -> None:
        command, place, cylinder, head, sector, size, last = words[:7]
        drive = self.drives[place & DOR_DRIVE]
        drive.head = place >> 2 & 1
        self._last, self._multi = last, bool(command & MULTI_TRACK) and kind != Kind.VERIFY
        if self._configuration[0] & IMPLIED_SEEK:
            drive.step_to(cylinder)
        self.start(kind, place & DOR_DRIVE, (cylinder, head & 1, sector, size))

    def _read_track(self, words: list[int]) -> None:
        """From the index hole on."""
        self._move(Kind.READ, [words[0] & ~MULTI_TRACK, *words[1:4], 1, *words[5:]])

    def _format(self, words: list[int]) -> None:
        _, place, size, count, _, fill = words
        drive = self.drives[place & DOR_DRIVE]
        self._left, self._fill, self._multi = count, fill, False
        self.start(Kind.FORMAT, place & DOR_DRIVE, (drive.track, place >> 2 & 1, 1, size))

    def _read_id(self, words: list[int]) -> None:
        """The first ID that comes along."""
        self._unit = words[1] & DOR_DRIVE
        drive = self.drives[self._unit]
        head = words[1] >> 2 & 1
        self._cylinder, self._head, self._sector, self._size = drive.track, head, 1, 2
        found = drive.present and drive.place(head, 1) is not None
        self.finish(NORMAL if found else ABNORMAL, 0 if found else MISSING_MARK)

    # -- the others --------------------------------------------------------------------------

    def _arrive(self, unit: int, track: int, st0: int) -> None:
        """The head has moved.

        What the drive still had to tell, after a reset, is told no more: systems recalibrate at
        once and expect to hear of that first.
        """
        self.drives[unit].step_to(track)
        news = (st0 | unit, self.drives[unit].track)
        waiting = [told & DOR_DRIVE for told in itertools.islice(self._told, 0, None, 2)]
        if unit in waiting:
            place = 2 * waiting.index(unit)
            self._told[place], self._told[place + 1] = news
        else:
            self._told += news
        self._seeking |= 1 << unit
        self.interrupt()

    def _recalibrate(self, words: list[int]) -> None:
        unit = words[1] & DOR_DRIVE
        there = self.drives[unit].disk is not None
        self._arrive(unit, 0, SEEK_END | (0 if there else EQUIPMENT_CHECK | ABNORMAL))

    def _seek(self, words: list[int]) -> None:
        unit, track = words[1] & DOR_DRIVE, words[2]
        if words[0] & RELATIVE:
            now = self.drives[unit].track
            track = now + track if words[0] & STEP_IN else now - track
        self._arrive(unit, min(max(track, 0), MOST_TRACKS), SEEK_END | words[1] & HEAD)

    def _sense_interrupt(self, _words: list[int]) -> None:
        self.irq.lower()
        if not self._told:
            self._answer(INVALID)
            return
        st0, track = self._told.popleft(), self._told.popleft()
        self._seeking &= ~(1 << (st0 & DOR_DRIVE))
        self._answer(st0, track)

    def _sense_drive(self, words: list[int]) -> None:
        drive = self.drives[words[1] & DOR_DRIVE]
        st3 = words[1] & (DOR_DRIVE | HEAD) | READY | TWO_SIDED
        st3 |= TRACK_0 if drive.disk is not None and drive.track == 0 else 0
        self._answer(st3 | (PROTECTED if drive.protected else 0))

    def _specify(self, words: list[int]) -> None:
        self._specified[:] = words[1:]

    def _set_perpendicular(self, words: list[int]) -> None:
        value = words[1]
        drives = value & 0x3C if value & 0x80 else self._perpendicular & 0x3C
        self._perpendicular = drives | value & 3

    def _configure(self, words: list[int]) -> None:
        self._configuration[:] = words[2:]

    def _lock(self, words: list[int]) -> None:
        self._locked = bool(words[0] & LOCK_BIT)
        self._answer(0x10 if self._locked else 0)

    def _dump(self, _words: list[int]) -> None:
        tracks = [drive.track for drive in self.drives]
        locked = (0x80 if self._locked else 0) | self._perpendicular
        self._answer(*tracks, *self._specified, self._last, locked, *self._configuration)

    # -- saving ------------------------------------------------------------------------------

    def save_state(self) -> State:
        drives = [drive.save_state() for drive in self.drives]
        return super().save_state() | {
            "drives": drives, "buffer": bytes(self._buffer), "place": self._place
        }  # fmt: skip

    def load_state(self, state: State) -> None:
        self.stop()
        super().load_state(state)
        drives, buffer, place = (state.get(key) for key in ("drives", "buffer", "place"))
        shaped = isinstance(drives, list) and len(drives) == DRIVES and isinstance(buffer, bytes)
        self.require(shaped and len(buffer or b"") <= 512, "its drives")
        self.require(isinstance(place, int) and 0 <= place <= 512, "a place")
        for drive, saved in zip(self.drives, drives or [], strict=True):
            drive.load_state(saved)
        self._buffer, self._place = bytearray(buffer or b""), place or 0
        self.ask_again()

    def restored(self) -> None:
        numbers: tuple[int, ...] = (
            self._dor,
            self._tdr,
            self._cylinder,
            self._head,
            self._sector,
            self._size,
        )
        numbers += (self._last, self._fill, self._left, *self._command, *self._results)
        numbers += (*self._told, *self._specified, *self._configuration, self._perpendicular)
        self.require(all(isinstance(n, int) and 0 <= n <= 0xFF for n in numbers), "a register")
        self.require(0 <= self._unit < DRIVES and 0 <= self._seeking <= 0xF, "a drive")
        self.require(self._phase in range(3) and self._kind in range(4), "a phase")
        self.require(len(self._told) % 2 == 0, "a register")
        if self._phase == Phase.RESULT:
            self.require(bool(self._results), "no results")
        self.require(self._phase != Phase.EXECUTION or self._waits, "a phase")

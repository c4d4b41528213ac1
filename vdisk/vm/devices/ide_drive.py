"""What a disk and a CD-ROM drive have in common: registers, phases of data, pieces of work.

A command goes through phases (ATA/ATAPI-6, clause 9)::

    command --> BSY  a request of the disk is in work                 (submit, piece_done)
            --> DRQ  a block of data passes through the data register (begin_in, begin_out)
            --> DRDY done, or ERR                                     (finish, abort)

Each block of a data phase, and the end of each command, raises INTRQ.  A long transfer is cut into
pieces: ``step`` begins the next one and tells whether to go on at once; the callback of a request
that took longer goes on from there.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final

from vdisk.emu_blockdev import EmuBlockDevice, Operation, Request
from vdisk.vm.devices.base import Device
from vdisk.vm.devices.ide_registers import (
    ABRT,
    BSY,
    DEVICE,
    DRQ,
    ERR,
    READY,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.errors import VdiskError
    from vdisk.vm.devices.base import State
    from vdisk.vm.devices.ide_channel import IdeChannel
    from vdisk.vm.devices.ide_dma import Gathered

BUFFER: Final = 128 << 10
"""Bytes read ahead of the data register: 256 sectors, the most that a 28-bit command moves."""

_U16: Final = struct.Struct("<H")


class IdeDrive(Device):
    """One drive of a channel.

    ``signature``: what a reset leaves in the registers.  ``status``, ``error``: as the registers.
    ``now``, ``before``: registers 0 to 5 as written last, and the time before (48-bit commands).
    """

    signature: ClassVar[tuple[int, int, int, int]]

    SAVED: ClassVar[tuple[str, ...]] = (
        *("status", "error", "now", "before", "device", "intrq"),
        *("_position", "_block_end", "_limit", "_block", "_incoming", "_then", "_job"),
    )

    def __init__(self, name: str, disk: EmuBlockDevice) -> None:
        self.name = name
        self.disk = disk
        self.channel: IdeChannel | None = None
        self.status, self.error, self.device = READY, 1, 0
        self.now, self.before = [0] * 6, [0] * 6
        self.intrq = False
        """The drive asks for an interrupt."""
        self.buffer = bytearray(BUFFER)
        self._position = self._block_end = self._limit = self._block = 0
        self._incoming = False
        """The host writes the data register in this phase."""
        self._then = ""
        """What follows the data phase."""
        self._job = ""
        """What a long command does, piece by piece; "" while there is none."""
        self._token = 0
        """Number of the present request: those before it were cancelled."""
        self._gathered: Gathered | None = None
        self.set_signature()

    # -- registers ---------------------------------------------------------------------------

    def set_signature(self) -> None:
        """The registers after a reset tell what kind of drive this is (9.12)."""
        self.now[2:6] = self.signature
        self.before[:] = [0] * 6
        self.device &= 0x10

    def read_register(self, register: int, *, hob: bool) -> int:
        """Registers 1 to 7 but for status; what :data:`HOB` shows where there is one."""
        if register == 1:
            return self.error
        if register == DEVICE:
            return self.device | 0xA0
        return (self.before if hob else self.now)[register]

    def write_register(self, register: int, value: int) -> None:
        """Registers 1 to 6; both drives of a channel hear it."""
        if register == DEVICE:
            self.device = value & 0x5F
        else:
            self.before[register] = self.now[register]
            self.now[register] = value

    # -- the data register -------------------------------------------------------------------

    def data_in(self, size: int) -> int:
        """The host reads 2 or 4 bytes (others as wide as they are)."""
        position = self._position
        end = position + size
        if self._incoming or end > self._block_end:
            return self._short_in()
        if size == 2:
            value: int = _U16.unpack_from(self.buffer, position)[0]
        else:
            value = int.from_bytes(self.buffer[position:end], "little")
        self._position = end
        if end == self._block_end:
            self._block_done()
        return value

    def _short_in(self) -> int:
        """An access that is wider than what is left of the block, or outside of any phase."""
        if self._incoming or self._position >= self._block_end:
            return 0
        value = int.from_bytes(self.buffer[self._position : self._block_end], "little")
        self._position = self._block_end
        self._block_done()
        return value

    def data_out(self, size: int, value: int) -> None:
        """The host writes 2 or 4 bytes."""
        position = self._position
        end = position + size
        if not self._incoming or position >= self._block_end:
            return
        if end > self._block_end:
            end = self._block_end
            value &= (1 << 8 * (end - position)) - 1
        self.buffer[position:end] = value.to_bytes(end - position, "little")
        self._position = end
        if end == self._block_end:
            self._block_done()

    def data_in_many(self, size: int, count: int) -> bytes:
        """As so many calls of :meth:`data_in`, a block at a time."""
        parts: list[bytes] = []
        left = size * count
        while left:
            position = self._position
            length = min(self._block_end - position, left) // size * size
            if self._incoming or length <= 0:
                parts.append(self.data_in(size).to_bytes(size, "little"))
                left -= size
                continue
            parts.append(bytes(self.buffer[position : position + length]))
            self._position += length
            left -= length
            if self._position == self._block_end:
                self._block_done()
        return b"".join(parts)

    def data_out_many(self, size: int, data: bytes) -> None:
        """As so many calls of :meth:`data_out`."""
        start = 0
        while start < len(data):
            position = self._position
            length = min(self._block_end - position, len(data) - start) // size * size
            if not self._incoming or length <= 0:
                self.data_out(size, int.from_bytes(data[start : start + size], "little"))
                start += size
                continue
            self.buffer[position : position + length] = data[start : start + length]
            self._position += length
            start += length
            if self._position == self._block_end:
                self._block_done()

    def begin_in(self, length: int, block: int, then: str = "") -> None:
        """Show ``length`` bytes of the buffer in blocks, with an interrupt for each."""
        self._incoming = False
        self._begin(length, block, then)
        self.status = READY | DRQ
        self.interrupt()

    def begin_out(self, length: int, then: str, *, interrupt: bool) -> None:
        """Take a block of ``length`` bytes into the buffer."""
        self._incoming = True
        self._begin(length, length, then)
        self.status = READY | DRQ
        if interrupt:
            self.interrupt()

    def _begin(self, length: int, block: int, then: str) -> None:
        self._position, self._limit, self._block = 0, length, block
        self._block_end = min(block, length)
        self._then = then

    def _block_done(self) -> None:
        if self._position < self._limit:
            self._block_end = min(self._position + self._block, self._limit)
            self.interrupt()
            return
        self._end_phase()
        self.status = READY
        self.data_done(self._then)

    def _end_phase(self) -> None:
        self._position = self._block_end = self._limit = 0
        self._incoming = False

    # -- pieces of work ----------------------------------------------------------------------

    def advance(self) -> None:
        """Carry the job on until it waits for the disk, for the host, or is done."""
        while self.step():
            pass

    def submit(
        self,
        operation: Operation,
        offset: int = 0,
        length: int = 0,
        views: Sequence[memoryview] = (),
        *,
        fua: bool = False,
    ) -> bool:
        """Begin a piece; True where it is done and the job goes on at once."""
        self.status = BSY | READY
        self._token += 1
        request = Request(operation, offset, length, views, self._done, self._token, fua=fua)
        return self.disk.submit(request) and self._finished(request)

    def _done(self, request: Request) -> None:
        if request.context == self._token and self._finished(request):
            self.advance()

    def _finished(self, request: Request) -> bool:
        self.status = READY
        return self.piece_done(request.error)

    def cancel(self) -> None:
        """Give the present command up, after whatever is in work at the disk."""
        self._token += 1
        if self._job:
            self.disk.cancel()
        self._job, self._gathered = "", None
        self._end_phase()

    def finish(self) -> None:
        """The command is done."""
        self._job = ""
        self.status, self.error = READY, 0
        self.interrupt()

    def abort(self, error: int = ABRT) -> None:
        """The command is refused, or failed."""
        self._job = ""
        self.status, self.error = READY | ERR, error
        self.interrupt()

    def interrupt(self) -> None:
        """Raise INTRQ."""
        self.intrq = True
        if self.channel is not None:
            self.channel.interrupt_changed()

    # -- what a kind of drive does -----------------------------------------------------------

    def execute(self, command: int) -> None:
        """Begin a command that was written to the command register."""
        raise NotImplementedError

    def data_done(self, then: str) -> None:
        """A data phase is over; ``then``: what its beginner wanted next."""

    def step(self) -> bool:
        """Begin the next piece of the job; True: it is done already, go on."""
        raise NotImplementedError

    def piece_done(self, error: VdiskError | None) -> bool:
        """A piece was carried out; True: begin the next one."""
        raise NotImplementedError

    # -- life --------------------------------------------------------------------------------

    def software_reset(self) -> None:
        """SRST, a hardware reset, and diagnostics: the signature, and no command in work."""
        self.cancel()
        self.set_signature()
        self.status, self.error = READY, 1
        self.intrq = False

    def reset(self) -> None:
        self.device = 0
        self.software_reset()

    def save_state(self) -> State:
        size = self._limit if self._limit or not self._job else BUFFER
        return super().save_state() | {"buffer": bytes(self.buffer[:size])}

    def load_state(self, state: State) -> None:
        self.cancel()
        super().load_state(state)
        content = state.get("buffer", b"")
        self.require(isinstance(content, bytes) and self._limit <= len(content) <= BUFFER, "buffer")
        self.buffer[: len(content)] = content

    def restored(self) -> None:
        for register in (self.status, self.error, self.device, *self.now, *self.before):
            self.require(0 <= register < 256, "a register")
        self.require(
            0 <= self._position <= self._block_end <= self._limit <= BUFFER and self._block >= 0,
            "the data phase",
        )
        self.require(bool(self._block) or not self._limit, "blocks of no length")

    def resume(self) -> None:
        """After loading, once time goes on: begin what was in work anew."""
        if self._job and self.status & BSY:
            self.advance()

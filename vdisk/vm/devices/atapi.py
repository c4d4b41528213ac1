"""A CD-ROM drive behind an ATA register file: packet commands (ATA/ATAPI-6 9.8; MMC-4).

PACKET takes twelve bytes through the data register, a SCSI command, and answers in blocks of at
most the byte count that the host gave, or by DMA::

    PACKET --> CoD: 12 bytes --> command --> I/O: blocks of data, each with an interrupt --> done
                                    '------> DMA: all data at once ------------------------> done

The interrupt reason (sector count) says which phase it is.  A medium that comes or goes is a unit
attention and a media event; the guest may lock the tray, and is asked before it opens.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final

from vdisk.emu_blockdev import EmuBlockDevice, Operation
from vdisk.errors import InvalidRequestError
from vdisk.vm.devices import atapi_mmc as mmc
from vdisk.vm.devices import ide_registers as ata
from vdisk.vm.devices.ide_dma import DmaError
from vdisk.vm.devices.ide_drive import BUFFER, IdeDrive
from vdisk.vm.devices.ide_identify import CDROM_MODEL, FIRMWARE, Modes, identify_cdrom

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.errors import VdiskError

PACKET_LENGTH: Final = 12
NO_EVENT, EJECT_REQUEST, NEW_MEDIA, MEDIA_REMOVAL = 0, 1, 2, 3
JOBS: Final = ("", "read", "dma-read", "dma-answer")

_RECOVERS: Final = frozenset((0x03, 0x12, 0x46, 0x4A))
"""Commands that are carried out in spite of a unit attention (MMC-4 4.1.6.1)."""


class AtapiDrive(IdeDrive):
    """A CD-ROM drive; ``disk`` is its medium, or what there is of one."""

    signature = ata.SIGNATURE_ATAPI

    SAVED: ClassVar[tuple[str, ...]] = (
        *IdeDrive.SAVED,
        *("_block_number", "_left", "_piece", "_moved", "_answer", "_limit_bytes"),
        *("_dma", "_modes", "_sense", "_attention", "_event"),
    )

    def __init__(self, name: str, disk: EmuBlockDevice) -> None:
        if not disk.removable:
            raise InvalidRequestError(f"{name}: the medium of a CD-ROM drive is removable")
        super().__init__(name, disk)
        self._block_number = self._left = self._piece = self._moved = 0
        """Of a read: the next block, blocks to do, of the present piece, bytes done by DMA."""
        self._answer = 0
        """Bytes of the buffer that are the answer of the present command."""
        self._limit_bytes = 0xFFFE
        """The most that the host takes in one block of the data register."""
        self._dma = False
        self._modes = Modes()
        self._sense = list(mmc.sense(mmc.NO_SENSE, 0))
        self._attention = 0
        """Additional sense code of a unit attention that the host has not heard of."""
        self._event = NO_EVENT
        self._was_present = disk.present
        disk.on_change(self._medium_changed)
        disk.on_eject_request(self._eject_requested)

    # -- the medium --------------------------------------------------------------------------

    @property
    def blocks(self) -> int:
        """Sectors of the medium; 0: none."""
        return self.disk.size // mmc.BLOCK if self.disk.present else 0

    def _medium_changed(self) -> None:
        present = self.disk.present
        if present:
            self._attention, self._event = mmc.ASC_MEDIUM_CHANGED, NEW_MEDIA
        elif self._was_present:
            self._event = MEDIA_REMOVAL
        self._was_present = present

    def _eject_requested(self) -> None:
        self._event = EJECT_REQUEST

    # -- ATA commands ------------------------------------------------------------------------

    def execute(self, command: int) -> None:
        if command == ata.PACKET:
            self._packet()
        elif command == ata.IDENTIFY_PACKET_DEVICE:
            data = identify_cdrom(self.disk, self._modes)
            self.buffer[: len(data)] = data
            self.error = 0
            self.begin_in(len(data), len(data))
        elif command == ata.DEVICE_RESET:
            self.software_reset()
        elif command in (ata.IDENTIFY_DEVICE, ata.READ_SECTORS):
            self.set_signature()
            self.abort()
        elif command == ata.SET_FEATURES and (
            self.now[1] != 0x03 or self._modes.choose(self.now[2])
        ):
            self.finish()
        elif command == ata.CHECK_POWER_MODE:
            self.now[2] = 0xFF
            self.finish()
        elif command in (ata.STANDBY_IMMEDIATE, ata.IDLE_IMMEDIATE, ata.STANDBY, ata.IDLE):
            self.finish()
        else:
            self.abort()

    def _packet(self) -> None:
        self._dma = bool(self.now[1] & 1)
        count = self.now[4] | self.now[5] << 8
        self._limit_bytes = max(count & 0xFFFE, 2) if count else 0xFFFE
        self._reason(ata.REASON_COMMAND)
        self.error = 0
        self.begin_out(PACKET_LENGTH, "packet", interrupt=False)

    def _reason(self, value: int) -> None:
        self.now[2] = value

    def finish(self) -> None:
        self._reason(ata.REASON_COMMAND | ata.REASON_IN)
        super().finish()

    def fail(self, key: int, code: int) -> None:
        """CHECK CONDITION: the sense key is in the error register, the rest is asked for."""
        self._sense = list(mmc.sense(key, code))
        self._reason(ata.REASON_COMMAND | ata.REASON_IN)
        self.abort(key << 4 | (ata.ABRT if key == mmc.ILLEGAL_REQUEST else 0))

    # -- packet commands ---------------------------------------------------------------------

    def data_done(self, then: str) -> None:
        if then == "packet":
            self._execute_packet(bytes(self.buffer[:PACKET_LENGTH]))
        elif then == "answered":
            if self._left:
                self.advance()
            else:
                self.finish()

    def _execute_packet(self, packet: bytes) -> None:
        handler = _PACKETS.get(packet[0])
        if self._attention and packet[0] not in _RECOVERS:
            code, self._attention = self._attention, 0
            self.fail(mmc.UNIT_ATTENTION, code)
        elif handler is None:
            self.fail(mmc.ILLEGAL_REQUEST, mmc.ASC_INVALID_COMMAND)
        else:
            handler(self, packet)

    def answer(self, data: bytes | None, allocated: int) -> None:
        """Send the answer, as much of it as the host has room for; None: there is none."""
        if data is None:
            self.fail(mmc.ILLEGAL_REQUEST, mmc.ASC_INVALID_FIELD)
            return
        data = data[: min(allocated, BUFFER)]
        if not data:
            self.finish()
            return
        self.buffer[: len(data)] = data
        self._answer, self._left = len(data), 0
        if self._dma:
            self._begin_dma("dma-answer")
        else:
            self._present()

    def _begin_dma(self, job: str) -> None:
        self._job = job
        if self.channel is not None and self.channel.dma.active:
            self.advance()
        else:
            self._reason(ata.REASON_IN)
            self.status = ata.READY | ata.DRQ

    def _present(self) -> None:
        """The answer through the data register: the byte count tells each block's length."""
        self._reason(ata.REASON_IN)
        self.begin_in(self._answer, self._limit_bytes, "answered")

    def _show_count(self, count: int) -> None:
        self.now[4], self.now[5] = count & 0xFF, count >> 8 & 0xFF

    def interrupt(self) -> None:
        if self.status & ata.DRQ and not self._incoming:
            self._show_count(self._block_end - self._position)
        super().interrupt()

    def _require_medium(self) -> bool:
        if not self.blocks:
            self.fail(mmc.NOT_READY, mmc.ASC_NO_MEDIUM)
        return bool(self.blocks)

    def _test_unit_ready(self, _packet: bytes) -> None:
        if self._require_medium():
            self.finish()

    def _request_sense(self, packet: bytes) -> None:
        if self._attention:
            self._sense = list(mmc.sense(mmc.UNIT_ATTENTION, self._attention))
            self._attention = 0
        data, self._sense = bytes(self._sense), list(mmc.sense(mmc.NO_SENSE, 0))
        self.answer(data, packet[4])

    def _inquiry(self, packet: bytes) -> None:
        data: bytes | None = mmc.inquiry(CDROM_MODEL, FIRMWARE)
        if packet[1] & 1:
            data = mmc.inquiry_page(packet[2], self.disk.serial)
        self.answer(data, packet[3] << 8 | packet[4])

    def _start_stop(self, packet: bytes) -> None:
        """LoEj moves the tray: out while START is not set."""
        load, start = packet[4] & 2, packet[4] & 1
        if load and not start and self.disk.tray_locked:
            code = mmc.ASC_REMOVAL_PREVENTED if self.blocks else mmc.ASC_NO_MEDIUM
            self.fail(mmc.ILLEGAL_REQUEST if self.blocks else mmc.NOT_READY, code)
            return
        if load:
            self.disk.move_tray(out=not start)
        self.finish()

    def _prevent_removal(self, packet: bytes) -> None:
        self.disk.tray_locked = bool(packet[4] & 1)
        self.finish()

    def _read_capacity(self, _packet: bytes) -> None:
        if self._require_medium():
            self.answer(mmc.capacity(self.blocks), 8)

    def _read_10(self, packet: bytes) -> None:
        block, count = struct.unpack_from(">IxH", packet, 2)
        self._read(block, count)

    def _read_12(self, packet: bytes) -> None:
        block, count = struct.unpack_from(">II", packet, 2)
        self._read(block, count)

    def _read_cd(self, packet: bytes) -> None:
        """READ CD: user data of the only kind of sector there is."""
        block = int.from_bytes(packet[2:6], "big")
        count = int.from_bytes(packet[6:9], "big")
        if packet[9] & 0xF8 not in (0x10, 0x00) or packet[1] >> 2 & 7 not in (0, 2, 4):
            self.fail(mmc.ILLEGAL_REQUEST, mmc.ASC_INVALID_FIELD)
        else:
            self._read(block, count if packet[9] & 0x10 else 0)

    def _read(self, block: int, count: int) -> None:
        if not self._require_medium():
            return
        if block + count > self.blocks:
            self.fail(mmc.ILLEGAL_REQUEST, mmc.ASC_LBA_OUT_OF_RANGE)
            return
        if not count:
            self.finish()
            return
        self._block_number, self._left, self._moved = block, count, 0
        if self._dma:
            self._begin_dma("dma-read")
        else:
            self._job = "read"
            self.advance()

    def _seek(self, packet: bytes) -> None:
        if not self._require_medium():
            return
        if int.from_bytes(packet[2:6], "big") >= self.blocks:
            self.fail(mmc.ILLEGAL_REQUEST, mmc.ASC_LBA_OUT_OF_RANGE)
        else:
            self.finish()

    def _read_toc(self, packet: bytes) -> None:
        if self._require_medium():
            form = packet[2] & 0xF or packet[9] >> 6
            data = mmc.toc(self.blocks, form, packet[6], as_msf=bool(packet[1] & 2))
            self.answer(data, packet[7] << 8 | packet[8])

    def _get_configuration(self, packet: bytes) -> None:
        first = packet[2] << 8 | packet[3]
        data = mmc.configuration(self.blocks, first, packet[1] & 3)
        self.answer(data, packet[7] << 8 | packet[8])

    def _get_event_status(self, packet: bytes) -> None:
        if not packet[1] & 1:  # only by polling
            self.fail(mmc.ILLEGAL_REQUEST, mmc.ASC_INVALID_FIELD)
            return
        data = mmc.event_status(
            packet[4], self._event, present=bool(self.blocks), tray_open=self.disk.tray_open
        )
        if packet[4] & 0x10:
            self._event = NO_EVENT
        self.answer(data, packet[7] << 8 | packet[8])

    def _read_disc_information(self, packet: bytes) -> None:
        if self._require_medium():
            self.answer(mmc.disc_information(), packet[7] << 8 | packet[8])

    def _mechanism_status(self, packet: bytes) -> None:
        data = mmc.mechanism_status(tray_open=self.disk.tray_open)
        self.answer(data, packet[8] << 8 | packet[9])

    def _mode_sense_10(self, packet: bytes) -> None:
        self._mode_sense(packet, packet[7] << 8 | packet[8], long=True)

    def _mode_sense_6(self, packet: bytes) -> None:
        self._mode_sense(packet, packet[4], long=False)

    def _mode_sense(self, packet: bytes, allocated: int, *, long: bool) -> None:
        if packet[2] >> 6 == 3:
            self.fail(mmc.ILLEGAL_REQUEST, mmc.ASC_SAVING_UNSUPPORTED)
            return
        data = mmc.mode_pages(
            packet[2] & 0x3F, self.blocks, locked=self.disk.tray_locked, long=long
        )
        self.answer(data, allocated)

    def _set_speed(self, _packet: bytes) -> None:
        self.finish()

    # -- jobs --------------------------------------------------------------------------------

    def step(self) -> bool:
        if self._job == "read":
            self._piece = min(self._left, BUFFER // mmc.BLOCK)
            views = [memoryview(self.buffer)[: self._piece * mmc.BLOCK]]
            return self._submit_read(views)
        assert self.channel is not None
        dma = self.channel.dma
        if not dma.active:
            return False
        reading = self._job == "dma-read"
        self._piece = min(self._left, MAX_DMA_BLOCKS)
        length = self._piece * mmc.BLOCK if reading else self._answer
        try:
            if not dma.to_memory:
                raise DmaError("the driver set the other direction")
            gathered = dma.gather(self._moved if reading else 0, length)
        except DmaError:
            dma.fail()
            self.fail(mmc.ILLEGAL_REQUEST, mmc.ASC_INVALID_FIELD)
            return False
        if reading:
            self._gathered = gathered
            return self._submit_read(gathered.views)
        start = 0
        for view in gathered.views:
            view[:] = self.buffer[start : start + len(view)]
            start += len(view)
        gathered.dirtied(dma.memory)
        dma.finish(exact=gathered.exact)
        self.finish()
        return False

    def _submit_read(self, views: Sequence[memoryview]) -> bool:
        offset, length = self._block_number * mmc.BLOCK, self._piece * mmc.BLOCK
        return self.submit(Operation.READ, offset, length, views)

    def piece_done(self, error: VdiskError | None) -> bool:
        gathered, self._gathered = self._gathered, None
        if error is not None:
            if gathered is not None and self.channel is not None:
                self.channel.dma.finish(exact=True)
            if self.blocks:
                self.fail(mmc.MEDIUM_ERROR, mmc.ASC_READ_ERROR)
            else:
                self.fail(mmc.NOT_READY, mmc.ASC_NO_MEDIUM)
            return False
        self._block_number += self._piece
        self._left -= self._piece
        self._moved += self._piece * mmc.BLOCK
        if gathered is None:
            self._answer = self._piece * mmc.BLOCK
            self._present()
            return False
        assert self.channel is not None
        gathered.dirtied(self.channel.dma.memory)
        if self._left:
            return True
        self.channel.dma.finish(exact=gathered.exact)
        self.finish()
        return False

    # -- life --------------------------------------------------------------------------------

    def software_reset(self) -> None:
        super().software_reset()
        self.status = 0  # DRDY comes with the first command that is not for any drive (9.2)

    def reset(self) -> None:
        super().reset()
        self._modes.reset()
        self._sense = list(mmc.sense(mmc.NO_SENSE, 0))
        self._attention, self._event = 0, NO_EVENT
        self.disk.tray_locked = False

    def restored(self) -> None:
        super().restored()
        self.require(self._job in JOBS, "the job")
        self.require(0 <= self._block_number < 1 << 32 and 0 <= self._left < 1 << 32, "the read")
        self.require(0 <= self._piece <= MAX_DMA_BLOCKS and 0 <= self._moved < 1 << 44, "the piece")
        self.require(0 <= self._answer <= BUFFER, "the answer")
        self.require(0 < self._limit_bytes < 1 << 16, "the byte count")
        self.require(self._then in ("", "packet", "answered"), "the data phase")
        self.require(all(0 <= byte < 256 for byte in self._sense), "sense data")


MAX_DMA_BLOCKS: Final = (16 << 20) // mmc.BLOCK

_PACKETS: Final[dict[int, Callable[[AtapiDrive, bytes], None]]] = {
    0x00: AtapiDrive._test_unit_ready,
    0x03: AtapiDrive._request_sense,
    0x12: AtapiDrive._inquiry,
    0x1A: AtapiDrive._mode_sense_6,
    0x1B: AtapiDrive._start_stop,
    0x1E: AtapiDrive._prevent_removal,
    0x25: AtapiDrive._read_capacity,
    0x28: AtapiDrive._read_10,
    0x2B: AtapiDrive._seek,
    0x43: AtapiDrive._read_toc,
    0x46: AtapiDrive._get_configuration,
    0x4A: AtapiDrive._get_event_status,
    0x51: AtapiDrive._read_disc_information,
    0x5A: AtapiDrive._mode_sense_10,
    0xA8: AtapiDrive._read_12,
    0xBB: AtapiDrive._set_speed,
    0xBD: AtapiDrive._mechanism_status,
    0xBE: AtapiDrive._read_cd,
}

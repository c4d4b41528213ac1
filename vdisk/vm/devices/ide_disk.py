"""An ATA hard disk: addresses, and the commands that move sectors (ATA/ATAPI-6, clause 8).

Sectors are addressed by CHS, by 28 bits or by 48 bits; a count of 0 means 256, or 65536.  A
transfer is one of the jobs of :data:`JOBS`, done in pieces::

    pio-read    up to 128 KiB from the disk, then through the data register in blocks
    pio-write   a block through the data register, then to the disk
    dma-read, dma-write    between the disk and the memory of the PRD table, at once
    dma-trim, trim         ranges from memory, then a discard for each
    verify, flush
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final

from vdisk.emu_blockdev import MAX_REQUEST, EmuBlockDevice, Geometry, Operation
from vdisk.errors import InvalidRequestError
from vdisk.vm.devices import ide_registers as ata
from vdisk.vm.devices import ide_smart as smart
from vdisk.vm.devices.ide_dma import DmaError
from vdisk.vm.devices.ide_drive import BUFFER, IdeDrive
from vdisk.vm.devices.ide_identify import (
    LBA28_SECTORS,
    MAX_MULTIPLE,
    MAX_TRIM_BLOCKS,
    Modes,
    identify_disk,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.errors import VdiskError
    from vdisk.vm.devices.base import State

MAX_HEADS: Final = 16  # four bits of the device register
TRIM_BLOCK: Final = 512
_TRIM_RANGE: Final = struct.Struct("<Q")
_TRIM_SECTORS: Final = (1 << 48) - 1
JOBS: Final = (
    *("", "pio-read", "pio-write", "dma-read", "dma-write", "dma-trim", "trim"),
    *("verify", "flush"),
)


class AtaDisk(IdeDrive):
    """A hard disk.  ``disk``: its sectors are the drive's logical sectors."""

    signature = ata.SIGNATURE_ATA

    SAVED: ClassVar[tuple[str, ...]] = (
        *IdeDrive.SAVED,
        *("_lba", "_left", "_piece", "_moved", "_per_block", "_fua", "_extended"),
        *("_multiple", "_smart", "_modes", "_heads", "_sectors"),
    )

    def __init__(self, name: str, disk: EmuBlockDevice) -> None:
        super().__init__(name, disk)
        self.sector = disk.sector_size
        self._lba = self._left = self._piece = self._moved = 0
        """Of the job: the next sector, sectors to do, of the present piece, bytes done by DMA."""
        self._fua = self._extended = False
        self._multiple = MAX_MULTIPLE
        self._smart = True
        self._modes = Modes()
        self._per_block = 1
        """Sectors of a block of the data register."""
        self._heads = self._sectors = 0
        self._write_cache = disk.write_cache
        self._power_on()
        if self._heads > MAX_HEADS:
            raise InvalidRequestError(f"{name}: a disk with ATA registers has at most 16 heads")
        disk.on_change(self._power_on)

    def _power_on(self) -> None:
        """The translation in use is the disk's own, until the host sets another."""
        _, self._heads, self._sectors = self.disk.geometry.physical

    @property
    def current(self) -> Geometry:
        """CHS as the host addresses with it."""
        total = self.disk.size // self.sector
        cylinders = min(total // (self._heads * self._sectors), 0xFFFF)
        return Geometry(max(cylinders, 1), self._heads, self._sectors)

    # -- addresses ---------------------------------------------------------------------------

    def _take_address(self, *, extended: bool) -> bool:
        """Sector and count from the registers; False: there are no such sectors (IDNF)."""
        _, _, count, low, mid, high = self.now
        self._extended = extended
        if extended:
            _, _, count2, low2, mid2, high2 = self.before
            lba: int | None = low | mid << 8 | high << 16 | low2 << 24 | mid2 << 32 | high2 << 40
            self._left = count | count2 << 8 or 65536
        else:
            self._left = count or 256
            if self.device & ata.DEVICE_LBA:
                lba = low | mid << 8 | high << 16 | (self.device & 0xF) << 24
            else:
                lba = self.current.lba(mid | high << 8, self.device & 0xF, low)
        if lba is None or lba + self._left > self.disk.size // self.sector:
            return False
        self._lba = lba
        return True

    def _show_address(self, lba: int) -> None:
        """Put a sector's address into the registers, as after an error."""
        if self._extended:
            self.before[3:6] = lba >> 24 & 0xFF, lba >> 32 & 0xFF, lba >> 40 & 0xFF
        elif self.device & ata.DEVICE_LBA:
            self.device = self.device & 0xF0 | lba >> 24 & 0xF
        else:
            track, sector = divmod(lba, self._sectors)
            cylinder, head = divmod(track, self._heads)
            self.device = self.device & 0xF0 | head & 0xF
            lba = sector + 1 | cylinder << 8
        self.now[3:6] = lba & 0xFF, lba >> 8 & 0xFF, lba >> 16 & 0xFF

    # -- commands ----------------------------------------------------------------------------

    def execute(self, command: int) -> None:
        transfer = _TRANSFERS.get(command)
        if transfer is not None:
            self._begin_transfer(*transfer)
            return
        handler = _HANDLERS.get(command)
        if handler is None:
            self.abort()
        else:
            handler(self)

    def _begin_transfer(self, job: str, extended: bool, multiple: bool, fua: bool) -> None:
        if multiple and not self._multiple:
            self.abort()
        elif not self._take_address(extended=extended):
            self.abort(ata.IDNF)
        elif job.endswith("write") and self.disk.readonly:
            self.abort()
        else:
            self._fua, self._moved, self._job = fua, 0, job
            self._per_block = self._multiple if multiple else 1
            if job == "pio-write":
                self._ask_for_block(interrupt=False)
            elif job.startswith("dma"):
                self._begin_dma()
            else:
                self.advance()

    def _begin_dma(self) -> None:
        """At once if the driver has started its bus master first, else when it does."""
        if self.channel is not None and self.channel.dma.active:
            self.advance()
        else:
            self.status = ata.READY | ata.DRQ

    def _ask_for_block(self, *, interrupt: bool) -> None:
        """Let the host write the next block."""
        self._piece = min(self._per_block, self._left)
        self.begin_out(self._piece * self.sector, "block", interrupt=interrupt)

    def data_done(self, then: str) -> None:
        if then == "block" or (then == "more" and self._left):
            self.advance()
        elif then:
            self._job = ""

    # -- jobs --------------------------------------------------------------------------------

    def step(self) -> bool:
        job = self._job
        if job.startswith("dma"):
            return self._step_dma(job)
        offset, unit = self._lba * self.sector, self.sector
        if job == "pio-write":
            length = self._piece * unit
            views = [memoryview(self.buffer)[:length]]
            return self.submit(Operation.WRITE, offset, length, views, fua=self._fua)
        if job in ("pio-read", "verify"):
            self._piece = min(self._left, BUFFER // unit)
            length = self._piece * unit
            return self.submit(Operation.READ, offset, length, [memoryview(self.buffer)[:length]])
        if job == "trim":
            return self._step_trim()
        return self.submit(Operation.FLUSH)

    def _step_dma(self, job: str) -> bool:
        assert self.channel is not None
        dma = self.channel.dma
        if not dma.active:
            return False
        unit = TRIM_BLOCK if job == "dma-trim" else self.sector
        self._piece = min(self._left, MAX_REQUEST // unit)
        length = self._piece * unit
        try:
            if dma.to_memory != (job == "dma-read"):
                raise DmaError("the driver set the other direction")
            gathered = self._gathered = dma.gather(self._moved, length)
        except DmaError as error:
            self._dma_failed(short=error.short)
            return False
        if job == "dma-trim":
            return self._take_ranges(gathered.views)
        operation = Operation.READ if job == "dma-read" else Operation.WRITE
        return self.submit(
            operation, self._lba * self.sector, length, gathered.views, fua=self._fua
        )

    def _dma_failed(self, *, short: bool) -> None:
        """A table that ends early leaves the drive waiting, without an interrupt (section 3.1)."""
        assert self.channel is not None
        if short:
            self.channel.dma.finish(exact=True)
            self._job, self.status = "", ata.READY
        else:
            self.channel.dma.fail()
            self.abort()

    def piece_done(self, error: VdiskError | None) -> bool:
        job = self._job
        gathered, self._gathered = self._gathered, None
        if error is not None:
            self._failed(job)
            return False
        if job == "flush":
            self.finish()
            return False
        if job == "trim":
            return self._more_or_finish()
        if gathered is not None and job == "dma-read" and self.channel is not None:
            gathered.dirtied(self.channel.dma.memory)
        self._lba += self._piece
        self._left -= self._piece
        self._moved += self._piece * self.sector
        self._show_address(max(self._lba - 1, 0))
        if job == "pio-read":
            self.begin_in(self._piece * self.sector, self._per_block * self.sector, "more")
            return False
        if job == "pio-write" and self._left:
            self._ask_for_block(interrupt=True)
            return False
        if not self._left and gathered is not None and self.channel is not None:
            self.channel.dma.finish(exact=gathered.exact)
        return self._more_or_finish()

    def _more_or_finish(self) -> bool:
        if not self._left:
            self.finish()
        return bool(self._left)

    def _failed(self, job: str) -> None:
        if job.startswith("dma") and self.channel is not None:
            self.channel.dma.finish(exact=True)
        self._show_address(self._lba)
        self.abort(ata.UNC if job in ("pio-read", "dma-read", "verify") else ata.ABRT)

    # -- trim --------------------------------------------------------------------------------

    def _data_set_management(self) -> None:
        blocks = self.now[2] | self.before[2] << 8
        possible = self.disk.discard_enabled and not self.disk.readonly
        if not self.now[1] & 1 or not 0 < blocks <= MAX_TRIM_BLOCKS or not possible:
            self.abort()
            return
        self._job, self._left, self._moved = "dma-trim", blocks, 0
        self._begin_dma()

    def _take_ranges(self, views: Sequence[memoryview]) -> bool:
        """8 bytes a range: 48 bits of address, 16 of count; the buffer keeps them."""
        assert self.channel is not None and self._gathered is not None
        data = b"".join(views)
        self.buffer[: len(data)] = data
        self.channel.dma.finish(exact=self._gathered.exact)
        self._gathered = None
        self._job, self._moved, self._left = "trim", 0, len(data) // _TRIM_RANGE.size
        return True

    def _step_trim(self) -> bool:
        """Discard the next range; empty ones fill the block up."""
        while self._left:
            (entry,) = _TRIM_RANGE.unpack_from(self.buffer, self._moved)
            self._moved += _TRIM_RANGE.size
            self._left -= 1
            lba, count = entry & _TRIM_SECTORS, entry >> 48
            if not count:
                continue
            if lba + count > self.disk.size // self.sector:
                self.abort(ata.IDNF)
                return False
            return self.submit(Operation.DISCARD, lba * self.sector, count * self.sector)
        self.finish()
        return False

    # -- commands without sectors ------------------------------------------------------------

    def show(self, data: bytes) -> None:
        """One block of 512 bytes for the host to read."""
        self.buffer[: len(data)] = data
        self.error = 0
        self.begin_in(len(data), len(data))

    def _identify(self) -> None:
        self.show(
            identify_disk(self.disk, self.current, self._multiple, self._modes, smart=self._smart)
        )

    def _flush(self) -> None:
        self._job = "flush"
        self.advance()

    def _nothing(self) -> None:
        self.finish()

    def _recalibrate(self) -> None:
        self.finish()

    def _seek(self) -> None:
        self._left = 1
        count, self.now[2] = self.now[2], 1
        found = self._take_address(extended=False)
        self.now[2] = count
        if found:
            self.finish()
        else:
            self.abort(ata.IDNF)

    def _initialize_parameters(self) -> None:
        """Another translation: heads from the device register, sectors from the count."""
        if not self.now[2]:
            self.abort()
            return
        self._heads, self._sectors = (self.device & 0xF) + 1, self.now[2]
        self.finish()

    def _set_multiple(self) -> None:
        count = self.now[2]
        if count > MAX_MULTIPLE or count & (count - 1):
            self.abort()
            return
        self._multiple = count
        self.finish()

    def _check_power(self) -> None:
        self.now[2] = 0xFF  # active or idle
        self.finish()

    def _native_max(self) -> None:
        self._extended = False
        self.device |= ata.DEVICE_LBA
        self._show_address(min(self.disk.size // self.sector, LBA28_SECTORS) - 1)
        self.finish()

    def _native_max_extended(self) -> None:
        self._extended = True
        self._show_address(self.disk.size // self.sector - 1)
        self.finish()

    def _set_features(self) -> None:
        feature = self.now[1]
        if feature == 0x03:
            known = self._modes.choose(self.now[2])
        elif feature in (0x02, 0x82):  # write cache on, off
            if feature == 0x82 and self.disk.write_cache:
                self.disk.write_cache = False
                self._flush()
                return
            self.disk.write_cache, known = feature == 0x02, True
        else:  # look-ahead, reverting to defaults: as it is anyway
            known = feature in (0x55, 0xAA, 0x66, 0xCC)
        if known:
            self.finish()
        else:
            self.abort()

    def _smart_command(self) -> None:
        function = self.now[1]
        if tuple(self.now[4:6]) != smart.SMART_LBA or not (self._smart or function == smart.ENABLE):
            self.abort()
        elif function in (smart.ENABLE, smart.DISABLE):
            self._smart = function == smart.ENABLE
            self.finish()
        elif function in (smart.AUTOSAVE, smart.OFFLINE, smart.RETURN_STATUS):
            self.finish()
        else:
            self._smart_data(function)

    def _smart_data(self, function: int) -> None:
        data: bytes | None = None
        if function == smart.READ_DATA:
            data = smart.data()
        elif function == smart.READ_THRESHOLDS:
            data = smart.thresholds()
        elif function == smart.READ_LOG and self.now[2] == 1:
            data = smart.log(self.now[3])
        if data is None:
            self.abort()
        else:
            self.show(data)

    def _refuse_packet(self) -> None:
        """A packet command tells the host that this is none of those drives."""
        self.set_signature()
        self.abort()

    # -- life --------------------------------------------------------------------------------

    def reset(self) -> None:
        super().reset()
        self._power_on()
        self._multiple, self._smart = MAX_MULTIPLE, True
        self._modes.reset()
        self.disk.write_cache = self._write_cache

    def save_state(self) -> State:
        return super().save_state() | {"write_cache": self.disk.write_cache}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.disk.write_cache = bool(state.get("write_cache"))

    def restored(self) -> None:
        super().restored()
        self.require(self._job in JOBS, "the job")
        self.require(1 <= self._heads <= 255 and 1 <= self._sectors <= 255, "the translation")
        self.require(self._multiple in (0, 1, 2, 4, 8, 16), "the multiple count")
        self.require(0 <= self._left <= 65536 and 0 <= self._lba < 1 << 48, "the transfer")
        self.require(0 <= self._piece <= 65536 and 0 <= self._moved < 1 << 32, "the piece")
        self.require(self._then in ("", "block", "more"), "the data phase")
        self.require(1 <= self._per_block <= MAX_MULTIPLE, "the block")


def _transfers() -> dict[int, tuple[str, bool, bool, bool]]:
    """Commands that move sectors: (job, 48-bit, in blocks of the multiple count, FUA)."""
    table: dict[int, tuple[str, bool, bool, bool]] = {}
    for command in (ata.READ_SECTORS, ata.READ_SECTORS + 1):
        table[command] = ("pio-read", False, False, False)
    for command in (ata.WRITE_SECTORS, ata.WRITE_SECTORS + 1):
        table[command] = ("pio-write", False, False, False)
    for command in (ata.READ_VERIFY, ata.READ_VERIFY + 1):
        table[command] = ("verify", False, False, False)
    for command in (ata.READ_DMA, ata.READ_DMA + 1):
        table[command] = ("dma-read", False, False, False)
    for command in (ata.WRITE_DMA, ata.WRITE_DMA + 1):
        table[command] = ("dma-write", False, False, False)
    table[ata.READ_MULTIPLE] = ("pio-read", False, True, False)
    table[ata.WRITE_MULTIPLE] = ("pio-write", False, True, False)
    table[ata.READ_SECTORS_EXT] = ("pio-read", True, False, False)
    table[ata.WRITE_SECTORS_EXT] = ("pio-write", True, False, False)
    table[ata.READ_MULTIPLE_EXT] = ("pio-read", True, True, False)
    table[ata.WRITE_MULTIPLE_EXT] = ("pio-write", True, True, False)
    table[ata.WRITE_MULTIPLE_FUA_EXT] = ("pio-write", True, True, True)
    table[ata.READ_DMA_EXT] = ("dma-read", True, False, False)
    table[ata.WRITE_DMA_EXT] = ("dma-write", True, False, False)
    table[ata.WRITE_DMA_FUA_EXT] = ("dma-write", True, False, True)
    table[ata.READ_VERIFY_EXT] = ("verify", True, False, False)
    return table


def _handlers() -> dict[int, Callable[[AtaDisk], None]]:
    table: dict[int, Callable[[AtaDisk], None]] = {
        ata.DATA_SET_MANAGEMENT: AtaDisk._data_set_management,
        ata.READ_NATIVE_MAX: AtaDisk._native_max,
        ata.READ_NATIVE_MAX_EXT: AtaDisk._native_max_extended,
        ata.INITIALIZE_DEVICE_PARAMETERS: AtaDisk._initialize_parameters,
        ata.PACKET: AtaDisk._refuse_packet,
        ata.IDENTIFY_PACKET_DEVICE: AtaDisk._refuse_packet,
        ata.SMART: AtaDisk._smart_command,
        ata.SET_MULTIPLE_MODE: AtaDisk._set_multiple,
        ata.FLUSH_CACHE: AtaDisk._flush,
        ata.FLUSH_CACHE_EXT: AtaDisk._flush,
        ata.IDENTIFY_DEVICE: AtaDisk._identify,
        ata.SET_FEATURES: AtaDisk._set_features,
        ata.SECURITY_FREEZE_LOCK: AtaDisk._nothing,
    }
    for low in range(16):
        table[0x10 + low] = AtaDisk._recalibrate
        table[0x70 + low] = AtaDisk._seek
    for command in (ata.STANDBY_IMMEDIATE, ata.IDLE_IMMEDIATE, ata.STANDBY, ata.IDLE, ata.SLEEP):
        table[command] = AtaDisk._nothing
    for command in (0x94, 0x95, 0x96, 0x97, 0x99):  # the same, as before ATA-4
        table[command] = AtaDisk._nothing
    table[0x98] = table[ata.CHECK_POWER_MODE] = AtaDisk._check_power
    return table


_TRANSFERS: Final = _transfers()
_HANDLERS: Final = _handlers()

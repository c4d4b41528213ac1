"""int 19h and 18h: finding something to boot (BIOS Boot Specification 1.01).

Drives are tried in the order of the user's choice of kinds.  A boot sector that gives up with
int 18h makes the next one be tried; after the last one a key, or time, begins again.  The state
stands in the EBDA, since the ROM waits for keys between two steps::

    TRYING --nothing left--> ASKING --key--> TRYING
                                   --time--> a reset
    PROMPT --the key--> MENU --digit--> TRYING
    TRYING --a drive is left--> LOADING --> TRYING, or into its boot sector
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING

from vdisk.errors import VdiskError
from vdisk.vm._bios import eltorito, layout
from vdisk.vm._bios.drives import CD_SECTOR, FIRST_HARD_DISK, SECTOR, Drive, DriveKind
from vdisk.vm._bios.transfer import read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.disk import DiskService
    from vdisk.vm._bios.hardware import Hardware
    from vdisk.vm._bios.keyboard import KeyboardService
    from vdisk.vm._bios.video import VideoService

BOOT_ADDRESS, STACK = 0x7C00, 0x7C00
SIGNATURE = b"\x55\xaa"
FLAGS = 0x0202  # interrupts on
LOWEST_LOAD, LOAD_LIMIT = 0x600, layout.EBDA
MENU_KEYS, MENU_KEY_NAMES = (0x8600, 0x011B), "F12 or Esc"
RESET_CONTROL, FULL_RESET = 0xCF9, 0x06  # PIIX3: SRST and RCPU
DEFAULT_ORDER = (DriveKind.FLOPPY, DriveKind.HARD_DISK, DriveKind.CDROM)


class State(enum.IntEnum):
    """What int 19h does next."""

    STARTING = 0
    TRYING = 1
    ASKING = 2
    PROMPT = 3
    MENU = 4
    LOADING = 5


class BootService:
    """``order``: kinds of drives.  ``menu_wait``: nanoseconds for which a key brings the menu.

    ``retry_wait``: nanoseconds until a reset where nothing could be booted; None: no reset.
    """

    def __init__(
        self,
        hardware: Hardware,
        video: VideoService,
        keyboard: KeyboardService,
        disk: DiskService,
        order: Sequence[DriveKind] = DEFAULT_ORDER,
        menu_wait: int = 0,
        retry_wait: int | None = None,
    ) -> None:
        self.hw, self.video, self.keyboard, self.disk = hardware, video, keyboard, disk
        self.order, self.menu_wait, self.retry_wait = order, menu_wait, retry_wait

    def candidates(self) -> list[Drive]:
        """Drives in the order in which they are tried."""
        drives = self.hw.drives
        by_kind = {
            DriveKind.FLOPPY: drives.floppies,
            DriveKind.HARD_DISK: drives.hard_disks,
            DriveKind.CDROM: drives.cdroms,
        }
        return [drive for kind in self.order for drive in by_kind[kind]]

    def banner(self) -> None:
        """What the machine consists of."""
        ram = self.hw.low_end + self.hw.high_end - (1 << 32)
        self.video.print(f"vdisk BIOS\n\nMemory: {ram >> 20} MiB\n")
        for drive in self.hw.drives.floppies + self.hw.drives.hard_disks + self.hw.drives.cdroms:
            self.video.print(f"{describe(drive)}\n")
        self.video.print("\n")

    # -- int 19h -----------------------------------------------------------------------------

    def service(self, call: Call) -> None:
        """One step; ``wait`` while there is nothing to run."""
        call.wait, call.spin = True, True
        state = self.hw.ebda.byte(layout.BOOT_STATE)
        if state == State.STARTING:
            self._begin()
        elif state == State.TRYING:
            self._try()
        elif state == State.LOADING:
            self._boot(call)
        elif state == State.PROMPT:
            self._prompt(call)
        elif state == State.MENU:
            self._menu(call)
        else:
            self._ask(call)

    def failed(self, _call: Call) -> None:
        """int 18h: the boot sector had nothing to boot."""
        if self.hw.ebda.byte(layout.BOOT_STATE) == State.TRYING:
            self.video.print("Boot failed.\n")

    def again(self, _call: Call) -> None:
        """int 19h: a boot sector whose user has put another diskette in, perhaps."""
        if self.hw.ebda.byte(layout.BOOT_STATE) != State.STARTING:
            self.hw.ebda.set_byte(layout.BOOT_INDEX, 0)
            self._enter(State.TRYING)

    def _enter(self, state: State) -> None:
        self.hw.ebda.set_byte(layout.BOOT_STATE, state)

    def _wait(self, nanoseconds: int) -> None:
        """Set the time at which it :meth:`_is_over`."""
        self.hw.ebda.put(layout.BOOT_DEADLINE, 8, self.hw.clock.now() + nanoseconds)

    def _is_over(self) -> bool:
        return self.hw.clock.now() >= self.hw.ebda.get(layout.BOOT_DEADLINE, 8)

    def _begin(self) -> None:
        self.hw.ebda.set_byte(layout.BOOT_INDEX, 0)
        self._enter(State.TRYING)
        if self.menu_wait:
            self.video.print(f"Press {MENU_KEY_NAMES} for the boot menu.\n\n")
            self._wait(self.menu_wait)
            self._enter(State.PROMPT)

    def _prompt(self, call: Call) -> None:
        key = self.keyboard.take(plain=False)
        if key in MENU_KEYS:
            self.video.print("Boot from:\n")
            for number, drive in enumerate(self.candidates()[:9], 1):
                self.video.print(f"  {number}. {describe(drive)}\n")
            self.video.print("\n")
            self._enter(State.MENU)
        elif self._is_over():
            self._enter(State.TRYING)
        else:
            call.spin = False

    def _menu(self, call: Call) -> None:
        key = self.keyboard.take()
        choice = (key or 0) & 0xFF
        if 0x31 <= choice < 0x31 + min(len(self.candidates()), 9):
            self.hw.ebda.set_byte(layout.BOOT_INDEX, choice - 0x31)
            self._enter(State.TRYING)
        call.spin = key is not None

    def _ask(self, call: Call) -> None:
        """Any key begins again: a disk may have been inserted meanwhile."""
        if self.keyboard.take() is not None:
            self._enter(State.STARTING)
        elif self.retry_wait is not None and self._is_over():
            self.hw.outb(RESET_CONTROL, FULL_RESET)
        else:
            call.spin = False

    def _try(self) -> None:
        """Announce the next drive: what comes then may have to be made twice."""
        index, candidates = self.hw.ebda.byte(layout.BOOT_INDEX), self.candidates()
        if index < len(candidates):
            self.video.print(f"Booting from {candidates[index].kind.value}...\n")
            self._enter(State.LOADING)
            return
        self.video.print("No bootable device. Insert one and press any key.\n")
        self._wait(self.retry_wait or 0)
        self._enter(State.ASKING)

    def _boot(self, call: Call) -> None:
        index, candidates = self.hw.ebda.byte(layout.BOOT_INDEX), self.candidates()
        if index >= len(candidates):  # somebody has written to the EBDA
            self._enter(State.STARTING)
            return
        try:
            where = self._load(candidates[index])
        except VdiskError as error:
            where = f"cannot be read ({error.kind})"
        self.hw.ebda.set_byte(layout.BOOT_INDEX, min(index + 1, 255))
        self._enter(State.TRYING)
        if isinstance(where, str):
            self.video.print(f"Boot failed: {where}.\n")
        else:
            self._jump(call, *where)

    # -- loading -----------------------------------------------------------------------------

    def _load(self, drive: Drive) -> tuple[int, int] | str:
        """Load the drive's boot code: (its address, drive number), or why not."""
        disks = self.hw.drives.hard_disks
        self.disk.eltorito.deactivate()
        self.hw.ebda.set_byte(layout.FIRST_DISK, 0)
        if not drive.disk.present:
            return "no medium"
        if drive.kind is DriveKind.CDROM:
            return self._load_cdrom(drive)
        if not drive.sectors():
            return "too small"
        if drive.kind is DriveKind.HARD_DISK:
            self.hw.ebda.set_byte(layout.FIRST_DISK, disks.index(drive))
            number = FIRST_HARD_DISK
        else:
            number = self.hw.drives.floppies.index(drive)
        return self._load_sector(read(drive, 0, drive.sector_size)[:SECTOR], number)

    def _load_sector(self, sector: bytes, number: int) -> tuple[int, int] | str:
        if sector[510:] != SIGNATURE:
            return "not a bootable disk"
        self.hw.space.write(BOOT_ADDRESS, sector)
        return BOOT_ADDRESS, number

    def _load_cdrom(self, drive: Drive) -> tuple[int, int] | str:
        entry = eltorito.default_entry(drive)
        if entry is None:
            return "not a bootable CD-ROM"
        number = self.disk.eltorito.activate(self.hw.drives.cdroms.index(drive), entry)
        start = entry.first * CD_SECTOR
        if entry.media != eltorito.NO_EMULATION:
            return self._load_sector(read(drive, start, SECTOR), number)
        address, length = entry.segment << 4, entry.sectors * SECTOR
        length = min(length, max(drive.disk.size - start, 0))
        if address < LOWEST_LOAD or address + length > LOAD_LIMIT:
            return "its boot image does not fit into memory"
        self.hw.space.write(address, read(drive, start, length))
        return address, number

    def _jump(self, call: Call, address: int, number: int) -> None:
        """Make the frame with which the ROM's IRET enters the boot code."""
        for register in range(8):
            call.registers.gprs[register] = 0
        segment = 0 if address < 0x10000 else address >> 4
        call.ds = call.es = 0
        call.edx, call.esp = number, STACK - 6
        frame = struct.pack("<HHH", address - (segment << 4), segment, FLAGS)
        call.write(STACK - 6, frame)
        call.wait = False


def describe(drive: Drive) -> str:
    """A line about a drive."""
    size = drive.sectors() * drive.sector_size
    kind = drive.kind.value[0].upper() + drive.kind.value[1:]
    name = f" {drive.name}" if drive.name else ""
    return f"{kind}{name}: {readable(size) if size else 'empty'}"


def readable(size: int) -> str:
    """Bytes for people."""
    if size >= 10 << 30:
        return f"{size >> 30} GiB"
    return f"{size >> 20} MiB" if size >= 10 << 20 else f"{size >> 10} KiB"

"""A diskette drive, as its controller sees it: a head over a track, a diskette that may change.

A diskette has no image of its tracks: sectors of 512 bytes, numbered from 1, cylinder by cylinder,
head by head, in the geometry that belongs to the image's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.emu_block.diskettes import diskette_geometry
from vdisk.vm.devices.base import Device

if TYPE_CHECKING:
    from vdisk.emu_block.geometry import Geometry
    from vdisk.emu_blockdev import EmuBlockDevice

SECTOR = 512
TYPE_1200K, TYPE_1440K = 2, 4
MOST_TRACKS = 84
"""Where the head meets its stop."""


class FloppyDrive(Device):
    """``disk`` None: there is no drive at this place of the cable."""

    SAVED: ClassVar[tuple[str, ...]] = ("track", "head", "changed")
    name = "floppy drive"

    def __init__(self, disk: EmuBlockDevice | None) -> None:
        self.disk = disk
        self.reset()
        if disk is not None:
            disk.on_change(self._medium_changed)

    def _medium_changed(self) -> None:
        self.changed = True

    def reset(self) -> None:
        """Of the machine; one of the controller leaves the head where it is."""
        self.track = self.head = 0
        self.changed = True
        """Until the head has moved with a diskette in place (DSKCHG)."""

    @property
    def present(self) -> bool:
        """Whether there is a diskette in a drive."""
        return self.disk is not None and self.disk.present

    @property
    def geometry(self) -> Geometry:
        assert self.disk is not None
        return diskette_geometry(self.disk.size // SECTOR)[0]

    @property
    def type(self) -> int:
        """As in CMOS memory; 0: there is none.  One of 5¼" where such a diskette is in it."""
        if self.disk is None:
            return 0
        kind = diskette_geometry(self.disk.size // SECTOR)[1] if self.present else TYPE_1440K
        return {1: TYPE_1200K, 3: TYPE_1440K}.get(kind, kind)

    @property
    def protected(self) -> bool:
        return self.disk is None or self.disk.readonly

    def step_to(self, track: int) -> None:
        """Move the head."""
        self.track = max(0, min(track, MOST_TRACKS))
        if self.present:
            self.changed = False

    def place(self, head: int, sector: int) -> int | None:
        """The offset of a sector under the head, in bytes; None: there is none."""
        cylinders, heads, sectors = self.geometry
        if not (self.track < cylinders and head < heads and 1 <= sector <= sectors):
            return None
        offset = ((self.track * heads + head) * sectors + sector - 1) * SECTOR
        assert self.disk is not None
        return offset if offset + SECTOR <= self.disk.size else None

    def restored(self) -> None:
        self.require(0 <= self.track <= MOST_TRACKS and self.head in (0, 1), "a place of its head")

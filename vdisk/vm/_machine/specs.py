"""What a machine's disk is, in words: ``FILE[,if=ide|virtio|floppy][,snapshot=on][,…]``.

The words are those of QEMU's ``-drive`` where it has them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vdisk.emu_blockdev import ErrorPolicy, Geometry
from vdisk.errors import InvalidRequestError
from vdisk.options import OptionBag, parse_keyval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vdisk.block import BlockDevice

INTERFACES = ("ide", "virtio", "floppy")
MEDIA = ("disk", "cdrom", "floppy")
PLACES = {"ide": 4, "floppy": 2}
CDROMS_FROM = 2
"""The first place on IDE for a CD-ROM: secondary master."""


@dataclass(slots=True, kw_only=True)
class DiskSpec:
    """One drive of the machine.

    ``file``: any name that vdisk opens, or a device, which the machine then owns; None: an empty
    drive for CD-ROMs or diskettes.  ``interface``: ``ide``, ``virtio`` or ``floppy``.  ``media``:
    ``disk``, ``cdrom`` or, which follows from the interface, ``floppy``.
    ``snapshot``: writes go to a temporary overlay.  ``readonly`` None: a CD-ROM is, a disk is not.
    ``index``: IDE: 0-3, primary master to secondary slave; diskettes: 0-1, drives A and B; None:
    the next that is free.
    ``policy``, ``throttle``, ``geometry`` …: see :class:`~vdisk.emu_blockdev.EmuBlockDevice`.
    """

    file: str | BlockDevice | None = None
    interface: str = "ide"
    media: str = "disk"
    format: str | None = None
    snapshot: bool = False
    readonly: bool | None = None
    cache: str = "writeback"
    discard: bool = True
    serial: str = ""
    id: str = ""
    index: int | None = None
    sector_size: int = 512
    physical_sector_size: int | None = None
    queues: int | None = None
    policy: ErrorPolicy = field(default_factory=ErrorPolicy)
    throttle: Mapping[str, object] = field(default_factory=dict)
    geometry: Geometry | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.interface not in INTERFACES:
            raise InvalidRequestError(
                f"if={self.interface}: a disk is on ide or on virtio, or it is a floppy"
            )
        if self.interface == "floppy" and self.media == "disk":
            self.media = "floppy"
        if self.media not in MEDIA or (self.media == "floppy") != (self.interface == "floppy"):
            raise InvalidRequestError(f"media={self.media}: disk or cdrom")
        if self.media == "cdrom":
            self._check_cdrom()
        elif self.file is None and self.media == "disk":
            raise InvalidRequestError("a disk needs a file; only a CD-ROM drive may be empty")
        if self.index is not None and not 0 <= self.index < PLACES.get(self.interface, 0):
            raise InvalidRequestError(
                f"index={self.index}: an IDE drive has a place from 0 to 3, a floppy 0 or 1"
            )

    def _check_cdrom(self) -> None:
        if self.interface != "ide":
            raise InvalidRequestError("a CD-ROM drive is on ide")
        if self.readonly is False:
            raise InvalidRequestError("a CD-ROM cannot be written to")

    @property
    def removable(self) -> bool:
        """Whether its medium can be changed."""
        return self.media != "disk"

    @property
    def opens_readonly(self) -> bool:
        """Whether the image itself is opened for reading only."""
        return self.media == "cdrom" or self.snapshot or bool(self.readonly)


def parse_disk(text: str, *, media: Literal["disk", "cdrom"] = "disk") -> DiskSpec:
    """A :class:`DiskSpec` from an option's text; a comma in a name is doubled.

    Raises :class:`InvalidRequestError` for a word that does not exist or has no such value.
    """
    return disk_of_words(parse_keyval(text, implied_key="file"), media=media)


def disk_of_words(flat: Mapping[str, str], *, media: Literal["disk", "cdrom"] = "disk") -> DiskSpec:
    """As :func:`parse_disk`, of words that are taken apart already."""
    bag = OptionBag(flat, f"disk {flat.get('file', '')!r}")
    name = bag.string("file")
    spec = DiskSpec(
        file=name or None,
        interface=bag.string("if", "ide") or "ide",
        media=bag.string("media", media) or media,
        format=bag.string("format"),
        snapshot=bag.boolean("snapshot"),
        readonly=_readonly(bag),
        cache=bag.string("cache", "writeback") or "writeback",
        discard=(bag.string("discard", "unmap") or "unmap") not in {"ignore", "off"},
        serial=bag.string("serial") or "",
        id=bag.string("id") or "",
        index=bag.size("index"),
        sector_size=bag.size("logical_block_size") or 512,
        physical_sector_size=bag.size("physical_block_size"),
        queues=bag.size("num-queues"),
        policy=ErrorPolicy.parse(bag.string("rerror"), bag.string("werror")),
        throttle=_throttle(bag, flat),
        geometry=_geometry(bag),
    )
    bag.finish()
    return spec


def _readonly(bag: OptionBag) -> bool | None:
    for name in ("readonly", "read-only"):
        if name in bag:
            return bag.boolean(name)
    return None


def _throttle(bag: OptionBag, flat: Mapping[str, str]) -> dict[str, object]:
    """``throttling.iops-total=…`` and the like."""
    prefix = "throttling."
    names = [name for name in flat if name.startswith(prefix)]
    return {name.removeprefix(prefix): bag.string(name) for name in names}


def _geometry(bag: OptionBag) -> Geometry | None:
    counts = [bag.size(name) for name in ("cyls", "heads", "secs")]
    if all(count is None for count in counts):
        return None
    if any(count is None for count in counts):
        raise InvalidRequestError("a geometry is cyls, heads and secs together")
    return Geometry(*(count or 0 for count in counts)).checked()


def disk_spec(disk: str | os.PathLike[str] | DiskSpec | BlockDevice) -> DiskSpec:
    """What one item of ``Machine(disks=…)`` means: text as :func:`parse_disk` reads it, a path
    as it is."""
    if isinstance(disk, DiskSpec):
        return disk
    if isinstance(disk, str):
        return parse_disk(disk)
    if isinstance(disk, os.PathLike):
        return DiskSpec(file=os.fspath(disk))
    return DiskSpec(file=disk)


def cdrom_spec(cdrom: str | DiskSpec | None) -> DiskSpec:
    """What one item of ``Machine(cdroms=…)`` means."""
    if isinstance(cdrom, DiskSpec):
        return cdrom
    return DiskSpec(media="cdrom") if cdrom is None else parse_disk(cdrom, media="cdrom")


def floppy_spec(floppy: str | DiskSpec | None) -> DiskSpec:
    """What one item of ``Machine(floppies=…)`` means."""
    if isinstance(floppy, DiskSpec):
        return floppy
    if floppy is None:
        return DiskSpec(interface="floppy")
    return parse_disk(f"{floppy},if=floppy")

"""The drive of an emulated disk: the device in it, its tray, its size and geometry.

What the options put over a device makes a stack, which the drive owns::

    throttle             limits on what the guest does
    temporary overlay    where writes go with ``snapshot``
    the device           an image, with its chain
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, NamedTuple

from vdisk.emu_block.geometry import DiskGeometry, Geometry, guess
from vdisk.emu_block.requests import ID_LENGTH
from vdisk.errors import DeviceError, InvalidRequestError, NotFoundError, ReadOnlyError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from vdisk.block import BlockDevice

SECTOR_SIZES: Final = (512, 4096)


class Stacking(NamedTuple):
    """What is put over each device that comes into a drive."""

    readonly: bool | None
    """None: as the device is."""
    throttle: Mapping[str, object] | None
    snapshot: bool
    snapshot_directory: str | None

    def image(self, device: BlockDevice) -> BlockDevice:
        """What keeps the disk's bytes: the device, or an overlay; closed if that fails."""
        try:
            if self.readonly is False and device.readonly and not self.snapshot:
                raise ReadOnlyError("opened read-only: the disk can be read only", path=device.name)
            if self.throttle:
                self.limited(device)  # limits that cannot be are found before there is an overlay
            if self.snapshot:
                from vdisk.opening.overlay import temporary_overlay

                device = temporary_overlay(device, self.snapshot_directory)
        except BaseException:
            device.close()
            raise
        return device

    def limited(self, image: BlockDevice) -> BlockDevice:
        """The image, used no faster than it may be."""
        if not self.throttle:
            return image
        from vdisk.filters.throttle import Throttled, parse_limits

        return Throttled(image, parse_limits(self.throttle, "throttle"))


class Identity(NamedTuple):
    """What the guest is told of the disk."""

    sector_size: int
    physical_sector_size: int
    serial: str

    def check(self) -> None:
        """Raise :class:`InvalidRequestError` for what no disk can be."""
        logical, physical = self.sector_size, self.physical_sector_size
        if logical not in SECTOR_SIZES or physical < logical or physical & (physical - 1):
            raise InvalidRequestError(
                f"sectors of {logical} bytes on {physical}: a logical sector has 512 or 4096 "
                f"bytes, a physical one a power of two times as many"
            )
        if len(self.serial.encode()) > ID_LENGTH or not self.serial.isascii():
            raise InvalidRequestError(
                f"serial number {self.serial!r}: at most {ID_LENGTH} ASCII letters"
            )


class Drive(ABC):
    """A drive and the medium in it; ``lock`` is that of the bus.  None: an empty drive."""

    def __init__(
        self,
        device: BlockDevice | None,
        identity: Identity,
        stacking: Stacking,
        lock: threading.RLock,
        *,
        removable: bool,
        geometry: Geometry | None,
    ) -> None:
        identity.check()
        if device is None and not removable:
            raise InvalidRequestError("only a drive for removable media may be empty")
        self.sector_size, self.physical_sector_size, self.serial = identity
        self.removable = removable
        self.lock = lock
        self.device: BlockDevice | None = None
        """What requests go to: the image, behind the limits on its use."""
        self.image: BlockDevice | None = None
        self.size = 0
        """Bytes of the disk, whole sectors; 0 while there is no medium."""
        self.tray_open = False
        self.tray_locked = False
        """The guest has locked the tray."""
        self._stacking = stacking
        self._given_geometry = geometry.checked() if geometry else None
        self._geometry: DiskGeometry | None = None
        self._on_change: list[Callable[[], None]] = []
        self._eject_requested: list[Callable[[], None]] = []
        self._use(None if device is None else stacking.image(device))

    @abstractmethod
    def drain(self) -> None:
        """Return when no request is in work."""

    # -- the medium --------------------------------------------------------------------------

    def _use(self, image: BlockDevice | None) -> None:
        self.image = image
        self.device = None if image is None else self._stacking.limited(image)
        self._geometry = None
        self._measure()

    def _measure(self) -> None:
        size = 0 if self.device is None else self.device.size
        self.size = size // self.sector_size * self.sector_size

    @property
    def readonly(self) -> bool:
        """Whether writes are refused."""
        return bool(self._stacking.readonly) or self.device is None or self.device.readonly

    @property
    def present(self) -> bool:
        """Whether there is a medium that the guest can reach."""
        return self.device is not None and not self.tray_open

    @property
    def geometry(self) -> DiskGeometry:
        """CHS, as the partition table shows it or as disks of this size have it."""
        if self._geometry is None:
            self._geometry = guess(self.device, self._given_geometry)
        return self._geometry

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` when the size has changed, or the medium or the tray."""
        self._on_change.append(callback)

    def on_eject_request(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` when somebody wants a medium whose tray the guest has locked."""
        self._eject_requested.append(callback)

    def eject(self, *, force: bool = False) -> None:
        """Open the tray, take the medium out and close its image.

        Raises :class:`InvalidRequestError` for a disk that cannot be ejected, and
        :class:`DeviceError` while the guest has locked the tray, which it is told of.
        """
        with self.lock:
            self._check_removable()
            if self.tray_locked and not self.tray_open and not force:
                for callback in self._eject_requested:
                    callback()
                raise DeviceError("the guest has locked the tray; it was asked to eject")
            self.drain()
            device, self.tray_open, self.tray_locked = self.device, True, False
            self._use(None)
            self._changed()
        if device is not None:
            device.close()

    def insert(self, device: BlockDevice) -> None:
        """Put a medium, then owned, into the empty drive and close the tray."""
        with self.lock:
            self._check_removable()
            if self.device is not None:
                raise InvalidRequestError("there is a medium in the drive: eject it first")
            self._use(self._stacking.image(device))
            self.tray_open = False
            self._changed()

    def move_tray(self, *, out: bool) -> None:
        """As the guest does: the medium stays in the tray."""
        self._check_removable()
        if out != self.tray_open:
            self.tray_open = out
            self._changed()

    def _check_removable(self) -> None:
        if not self.removable:
            raise InvalidRequestError("this disk is not removable")

    def resize(self, size: int) -> None:
        """Make the disk ``size`` bytes long, and tell the guest."""
        with self.lock:
            if self.device is None:
                raise NotFoundError("there is no medium to resize")
            self.drain()
            self.device.truncate(size)
            self._geometry = None
            self._measure()
            self._changed()

    def reopen(self, device: BlockDevice) -> None:
        """Go on with ``device``: the same disk, opened anew after the one before was closed."""
        with self.lock:
            self.drain()
            self._use(self._stacking.image(device))

    def exchange(self, image: BlockDevice) -> BlockDevice:
        """Go on with another image of the same content (an overlay, a copy); the former one.

        The guest does not notice.
        """
        with self.lock:
            if self.image is None or image.size != self.image.size:
                raise InvalidRequestError("only an image of the same size can take over")
            self.drain()
            former = self.image
            self._use(image)
            return former

    def _changed(self) -> None:
        for callback in self._on_change:
            callback()

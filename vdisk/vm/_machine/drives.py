"""The drives of a machine: images opened, put behind controllers, changed while it runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from vdisk.emu_blockdev import EmuBlockDevice, OnError, Operation, Request
from vdisk.errors import InvalidRequestError, NoSpaceError, NotFoundError, VdiskError
from vdisk.filters.attended import Attended
from vdisk.opening import open_image
from vdisk.vm._machine.specs import CDROMS_FROM, PLACES
from vdisk.vm.monitor.control import Drive, DriveStatistics, MachineEvent, Medium

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from vdisk.block import BlockDevice
    from vdisk.vm._machine.block_jobs import BlockJob
    from vdisk.vm._machine.specs import DiskSpec

LARGEST_CHAIN = 200
"""Backing files that are listed; a longer chain is shown up to here."""


class MachineDrive:
    """One drive: what was asked for, and the disk behind the controller.

    ``place``: IDE: 0-3, primary master to secondary slave; diskettes: A 0, B 1; virtio: its
    number.
    """

    def __init__(self, spec: DiskSpec, name: str, place: int, disk: EmuBlockDevice) -> None:
        self.spec = spec
        self.name = name
        self.place = place
        self.disk = disk
        self.slot = 0  # on the PCI bus, of a virtio disk
        self.failed: Literal["ok", "failed", "nospace"] = "ok"
        self.job: BlockJob | None = None
        """What works on it at the moment."""

    @property
    def image(self) -> BlockDevice:
        """The image itself, without what is in front of it; raises where there is none."""
        image = self.disk.image
        if image is None:
            raise NotFoundError(f"there is no medium in {self.name}")
        return image.inner if isinstance(image, Attended) else image

    def check_idle(self) -> None:
        """Raise :class:`InvalidRequestError` while a job works on it."""
        if self.job is not None:
            raise InvalidRequestError(
                f"Device '{self.name}' is busy: block device is in use by block job: "
                f"{self.job.work.type}"
            )

    def changeable(self, what: str) -> str:
        """The name of its image, whose chain may be changed; raises where it may not."""
        file = self.spec.file
        if self.spec.snapshot or not isinstance(file, str) or self.disk.readonly:
            raise InvalidRequestError(f"{self.name}: only an image in a file can be {what}")
        return file

    def reopen(
        self, *, between: Callable[[], object] = lambda: None, writable_backing: int = 0
    ) -> None:
        """Close the image, whose chain :meth:`changeable` says may be, and open it anew.

        Done ``between``: what needs it closed.  The bus lock is held and no request under way.
        """
        self.image.close()
        try:
            between()
        finally:
            opened = open_file(self.spec, writable_backing)
            assert opened is not None
            self.disk.reopen(opened)

    def goes_on_in(self, filename: str, format: str) -> None:
        """Remember that it is another image from now on."""
        self.spec.file, self.spec.format, self.spec.options = filename, format, {}

    def describe(self) -> Drive:
        """As monitors show it."""
        disk = self.disk
        return Drive(
            device=self.name,
            id=self.spec.id,
            removable=disk.removable,
            locked=disk.tray_locked,
            tray_open=disk.tray_open,
            io_status=self.failed if disk.stopped else "ok",
            medium=None if disk.image is None else _medium(self.name, disk, self.image),
            statistics=_statistics(disk),
        )


class Drives:
    """All drives.  ``lock``: the bus's; ``threads``: None: as many as disks like, 0: none."""

    def __init__(
        self,
        specs: Sequence[DiskSpec],
        lock: threading.RLock,
        *,
        threads: int | None,
        emit: Callable[[MachineEvent], None],
        stop: Callable[[], None],
    ) -> None:
        self.list: list[MachineDrive] = []
        self._lock = lock
        self._threads = threads
        self._emit = emit
        self._stop = stop
        try:
            for spec, name, place in _placed(specs):
                self.list.append(MachineDrive(spec, name, place, self._open(spec, name)))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[MachineDrive]:
        return iter(self.list)

    def find(self, name: str) -> MachineDrive:
        """The drive of this name or id; raises :class:`NotFoundError`."""
        for drive in self.list:
            if name in {drive.name, drive.spec.id} - {""}:
                return drive
        known = ", ".join(drive.name for drive in self.list) or "none"
        raise NotFoundError(f"there is no drive {name!r} (there are: {known})")

    def _open(self, spec: DiskSpec, name: str) -> EmuBlockDevice:
        cdrom = spec.media == "cdrom"
        device = open_file(spec)
        options: dict[str, Any] = {} if self._threads is None else {"threads": self._threads}
        disk = EmuBlockDevice(
            device,
            sector_size=spec.sector_size,
            physical_sector_size=spec.physical_sector_size,
            serial=spec.serial,
            readonly=True if cdrom else spec.readonly,
            removable=spec.removable,
            write_cache=spec.cache not in {"writethrough", "directsync"},
            discard=spec.discard,
            policy=spec.policy,
            throttle=spec.throttle or None,
            snapshot=spec.snapshot and not cdrom,
            geometry=spec.geometry,
            lock=self._lock,
            **options,
        )
        disk.on_error = lambda request, error, action: self._failed(name, request, error, action)
        return disk

    def _failed(self, name: str, request: Request, error: VdiskError, action: OnError) -> None:
        """A request failed; where its policy is so the machine stands still."""
        full = isinstance(error, NoSpaceError)
        operation = "read" if request.operation is Operation.READ else "write"
        data = {
            "device": name, "node-name": _node(name), "operation": operation,
            "action": action.value, "nospace": full, "reason": str(error),
        }  # fmt: skip
        self._emit(MachineEvent("BLOCK_IO_ERROR", data))
        if action is OnError.STOP:
            self.find(name).failed = "nospace" if full else "failed"
            self._stop()

    # -- changes while the machine runs ------------------------------------------------------------

    def eject(self, name: str, *, force: bool = False) -> None:
        """Take the medium out."""
        drive = self.find(name)
        was_open = drive.disk.tray_open
        drive.disk.eject(force=force)
        if not was_open:
            self._tray_moved(drive, out=True)

    def insert(self, name: str, filename: str, *, format: str | None) -> None:
        """Put another medium in, in place of what is there."""
        drive = self.find(name)
        if not drive.disk.removable:
            raise InvalidRequestError(f"{name} is not a drive for removable media")
        device = open_image(filename, readonly=drive.spec.opens_readonly, format=format)
        try:
            if drive.disk.device is not None or not drive.disk.tray_open:
                self.eject(name)
            drive.disk.insert(device)
        except BaseException:
            device.close()
            raise
        drive.spec.file, drive.spec.format, drive.spec.options = filename, format, {}
        self._tray_moved(drive, out=False)

    def move_tray(self, name: str, *, out: bool, force: bool = False) -> None:
        """Open or close the tray; the medium stays in it."""
        drive = self.find(name)
        with self._lock:
            if out and drive.disk.tray_locked and not force:
                raise InvalidRequestError(f"the guest has locked the tray of {name}")
            if drive.disk.tray_open == out:
                return
            drive.disk.move_tray(out=out)
        self._tray_moved(drive, out=out)

    def _tray_moved(self, drive: MachineDrive, *, out: bool) -> None:
        data = {"device": drive.name, "id": drive.spec.id, "tray-open": out}
        self._emit(MachineEvent("DEVICE_TRAY_MOVED", data))

    def snapshot(self, name: str, filename: str, *, format: str, existing: bool) -> None:
        """Go on in an overlay ``filename`` whose backing file is what the drive has now."""
        from vdisk.formats.qcow2 import Qcow2Image, read_header
        from vdisk.opening.creating import plan_creation
        from vdisk.stores.file import FileStore

        drive = self.find(name)
        drive.check_idle()
        current = drive.image
        if format != "qcow2":
            raise InvalidRequestError(f"an overlay is a qcow2 image, not {format}")
        if not existing:
            if os.path.lexists(filename):
                raise InvalidRequestError("there is a file of this name already", path=filename)
            options = {
                "backing_file": os.path.abspath(current.name),
                "backing_fmt": getattr(current, "format_name", "raw"),
            }
            plan_creation(
                filename, current.size, format="qcow2", options=options, check_backing=False
            ).run()
        with self._lock:
            drive.disk.drain()
            current.flush()
            file = FileStore(filename, readonly=False)
            try:
                header = read_header(file)
                overlay = Qcow2Image(file, header, readonly=False, backing=current)
            except BaseException:
                file.close()
                raise
            drive.disk.exchange(overlay)
        drive.goes_on_in(filename, format)

    def resize(self, name: str, size: int) -> None:
        """Make a disk ``size`` bytes long, and tell the guest."""
        drive = self.find(name)
        drive.check_idle()
        if size <= 0:
            raise InvalidRequestError("a disk has at least one byte")
        if drive.disk.removable or drive.disk.readonly:
            raise InvalidRequestError(f"{name} cannot be written to")
        drive.disk.resize(size)

    def commit(self, name: str) -> None:
        """Write what an overlay holds into its backing file, and empty it; the guest waits."""
        from vdisk.jobs.commit import commit

        drive = self.find(name)
        drive.check_idle()
        file = drive.changeable("committed")
        if not _backing(drive.image):
            raise InvalidRequestError(f"{name} has no backing file to commit into")
        with self._lock:
            drive.disk.drain()
            drive.reopen(
                between=lambda: commit(file, format=drive.spec.format, cache=drive.spec.cache)
            )

    def resume(self) -> None:
        """Try again what failed and was kept."""
        for drive in self.list:
            drive.failed = "ok"
            drive.disk.resume()

    def drain(self) -> None:
        """Return when no request is in work."""
        for drive in self.list:
            drive.disk.drain()

    def flush(self) -> None:
        """Bring all that guests have written to the disk."""
        for drive in self.list:
            device = drive.disk.device
            if device is not None and not device.readonly:
                device.flush()

    def close(self) -> None:
        """Close all images; the first error is raised when all are closed."""
        errors: list[VdiskError] = []
        for drive in self.list:
            try:
                drive.disk.close()
            except VdiskError as error:
                errors.append(error)
        self.list = []
        if errors:
            raise errors[0]


def _placed(specs: Sequence[DiskSpec]) -> Iterator[tuple[DiskSpec, str, int]]:
    """Each drive with its name and place."""
    virtio = iter(range(len(specs)))
    places = {kind: _places(specs, kind) for kind in PLACES}
    for spec in specs:
        if spec.interface == "virtio":
            place = next(virtio)
            yield spec, f"virtio{place}", place
            continue
        place = places[spec.interface].pop(0)
        if spec.interface == "floppy":
            yield spec, f"floppy{place}", place
        else:
            kind = "cd" if spec.media == "cdrom" else "hd"
            yield spec, f"ide{place // 2}-{kind}{place % 2}", place


def _places(specs: Sequence[DiskSpec], interface: str) -> list[int]:
    """Where the drives of an interface go: as they ask for it, else the lowest that is free.

    CD-ROMs begin on the second channel, as QEMU's ``-cdrom`` does: there are systems that look for
    disks on the first and take whatever answers for one.
    """
    chosen = [spec for spec in specs if spec.interface == interface]
    wanted = [spec.index for spec in chosen]
    free = [place for place in range(PLACES[interface]) if place not in wanted]
    found = list(wanted)
    for number, spec in enumerate(chosen):
        if spec.index is None and free:
            second = [place for place in free if place >= CDROMS_FROM]
            place = (second if second and spec.media == "cdrom" else free)[0]
            free.remove(place)
            found[number] = place
    if None in found or len(set(found)) < len(found):
        raise InvalidRequestError(
            "IDE has places for four drives, each for one"
            if interface == "ide"
            else "there are two drives for diskettes, A and B"
        )
    return [place for place in found if place is not None]


def open_file(spec: DiskSpec, writable_backing: int = 0) -> BlockDevice | None:
    """The image of a drive; None: there is none.  ``writable_backing``: see ``open_image``."""
    if spec.file is None or not isinstance(spec.file, str):
        return spec.file
    return open_image(
        spec.file,
        readonly=spec.opens_readonly,
        format=spec.format,
        cache=spec.cache,
        options=spec.options,
        writable_backing=writable_backing,
    )


def _medium(name: str, disk: EmuBlockDevice, device: BlockDevice) -> Medium:
    """What is in a drive."""
    return Medium(
        filename=device.name,
        format=getattr(device, "format_name", "raw"),
        size=disk.size,
        read_only=disk.readonly,
        backing=_backing(device),
        writeback=disk.write_cache,
        node_name=_node(name),
    )


def _node(name: str) -> str:
    """What monitors call the image in the drive."""
    return f"#{name}"


def _backing(device: BlockDevice) -> list[str]:
    """The names of the images below, nearest first."""
    found: list[str] = []
    below = device.backing
    while below is not None and len(found) < LARGEST_CHAIN:
        found.append(below.name)
        below = below.backing
    return found


def _statistics(disk: EmuBlockDevice) -> DriveStatistics:
    """QMP's counters from those of the disk."""
    counted = disk.statistics
    operations, times, failed = counted.operations, counted.nanoseconds, counted.failed
    read, write, flush = Operation.READ, Operation.WRITE, Operation.FLUSH
    unmap = Operation.DISCARD
    return DriveStatistics(
        rd_bytes=counted.bytes[read],
        wr_bytes=counted.bytes[write] + counted.bytes[Operation.WRITE_ZEROES],
        unmap_bytes=counted.bytes[unmap],
        rd_operations=operations[read],
        wr_operations=operations[write] + operations[Operation.WRITE_ZEROES],
        flush_operations=operations[flush],
        unmap_operations=operations[unmap],
        failed_rd_operations=failed[read],
        failed_wr_operations=failed[write] + failed[Operation.WRITE_ZEROES],
        failed_flush_operations=failed[flush],
        failed_unmap_operations=failed[unmap],
        rd_total_time_ns=times[read],
        wr_total_time_ns=times[write] + times[Operation.WRITE_ZEROES],
        flush_total_time_ns=times[flush],
        unmap_total_time_ns=times[unmap],
    )

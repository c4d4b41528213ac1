"""What an emulated disk controller holds: a disk with a queue of requests, over any device.

A controller (IDE, virtio-blk) parses what its guest wants, and submits requests whose buffers
are slices of guest RAM.  What the page cache holds is done before :meth:`~EmuBlockDevice.submit`
returns; the rest is done by worker threads, in any order::

    controller --submit(request)--> gate --> at once? --yes--> True: request.error says how
        ^                             |          |
        |                          refused       no: False
        |                                        v
        '--- request.done(request) <--- policy <-- workers: BlockDevice.readv, writev, flush …
                                          |
                                          '-- STOP: kept until resume()

A flush begins when every write submitted before it has finished.  Everything here is done with
``lock`` held, the lock of the machine's bus, which workers take before they call ``done``; while
a worker waits for the disk it does not hold it.

Bounds: :data:`MAX_REQUESTS` requests, each of :data:`MAX_REQUEST` bytes; ``threads`` of them are
in work at once.  Data are never queued: they stay in guest RAM or on the disk.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from vdisk.emu_block.barrier import Barrier
from vdisk.emu_block.drive import Drive, Identity, Stacking
from vdisk.emu_block.geometry import DiskGeometry, Geometry, Translation
from vdisk.emu_block.policy import ErrorPolicy, OnError
from vdisk.emu_block.quick import Quick
from vdisk.emu_block.requests import (
    DISCARD,
    FLUSH,
    GET_ID,
    ID_LENGTH,
    MODIFYING,
    READ,
    WRITE,
    WRITE_ZEROES,
    Operation,
    Request,
)
from vdisk.emu_block.scatter import total
from vdisk.emu_block.statistics import Statistics
from vdisk.emu_block.workers import Workers
from vdisk.errors import (
    DeviceError,
    InvalidRequestError,
    NotFoundError,
    OutOfRangeError,
    ReadOnlyError,
    VdiskError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vdisk.block import BlockDevice

__all__ = [
    "ID_LENGTH",
    "MAX_REQUEST",
    "MAX_REQUESTS",
    "DiskGeometry",
    "EmuBlockDevice",
    "ErrorPolicy",
    "Geometry",
    "OnError",
    "Operation",
    "Request",
    "Statistics",
    "Translation",
]

MAX_REQUEST: Final = 32 << 20
"""Bytes of one request: what ATA's READ DMA EXT moves at most, more than any guest asks for."""

MAX_REQUESTS: Final = 4096
"""Requests not done yet: four full virtqueues of the largest size that guests use."""

THREADS: Final = 4
"""Requests that wait for the disk at once; more bring little even to fast disks."""


class EmuBlockDevice(Drive):
    """A disk of a machine, over ``device``, which it owns; None: an empty drive.

    ``sector_size``: logical sector, 512 or 4096 bytes; ``physical_sector_size``: what the guest
    is told to align to.  ``serial``: up to 20 characters.  ``readonly``: None, as the device is.
    ``removable``: has a tray.  ``write_cache`` False: each write is flushed before it is done.
    ``discard`` False: discarding does nothing, zeroing keeps the room.  ``policy``: about failed
    requests.  ``throttle``: options of the throttle filter, {"iops-total": …, "bps-write": …}.
    ``snapshot``: writes go to a temporary overlay, in ``snapshot_directory``.  ``geometry``:
    physical CHS (None: guessed).  ``threads``: 0 makes the disk synchronous, every request done
    when its submission returns: for machines that must run the same each time.  ``lock``: of the
    bus.  ``now``: a clock in nanoseconds, for statistics.
    """

    def __init__(
        self,
        device: BlockDevice | None,
        *,
        sector_size: int = 512,
        physical_sector_size: int | None = None,
        serial: str = "",
        readonly: bool | None = None,
        removable: bool = False,
        write_cache: bool = True,
        discard: bool = True,
        policy: ErrorPolicy | None = None,
        throttle: Mapping[str, object] | None = None,
        snapshot: bool = False,
        snapshot_directory: str | None = None,
        geometry: Geometry | None = None,
        threads: int = THREADS,
        lock: threading.RLock | None = None,
        now: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.write_cache = write_cache
        self.discard_enabled = discard
        self.policy = policy or ErrorPolicy()
        self.statistics = Statistics()
        self.on_error: Callable[[Request, VdiskError, OnError], None] | None = None
        """Called when a request failed, with what is done about it: REPORT, IGNORE, or STOP, where
        it was kept and the machine must stand still now."""
        self._now = now
        self._threads = threads
        self._quick: Quick | None = None
        super().__init__(
            device,
            Identity(sector_size, physical_sector_size or sector_size, serial),
            Stacking(readonly, throttle, snapshot, snapshot_directory),
            lock or threading.RLock(),
            removable=removable,
            geometry=geometry,
        )
        self._begin()

    def _begin(self) -> None:
        """The queue, empty."""
        self.in_flight = 0
        """Requests that are not done: in work, kept after an error, flushes that wait."""
        self._active = 0
        self._barrier = Barrier()
        self._parked: list[Request] = []
        self.stopped = False
        """Whether failed requests wait for :meth:`resume`."""
        self._idle = threading.Condition(self.lock)
        self._workers = Workers(self._threads, self._work)

    def _use(self, image: BlockDevice | None) -> None:
        super()._use(image)
        self._quick = None if self.device is None else Quick(self.device)

    # -- requests ----------------------------------------------------------------------------

    @property
    def room(self) -> bool:
        """Whether another request may be submitted before one is done."""
        return self.in_flight < MAX_REQUESTS

    def submit(self, request: Request) -> bool:
        """Begin a request; ``lock`` is held.

        True: it is done, ``request.error`` says how, and ``done`` is not called.  False:
        ``request.done(request)`` will be called, unless :meth:`cancel` comes first.
        """
        request.began = self._now()
        error = self._refusal(request)
        if error is not None:
            request.error = error
            self.statistics.invalid[request.operation] += 1
            return True
        if self._at_once(request):
            self.statistics.at_once += 1
            size, operation = request.length, request.operation
            self.statistics.add(operation, size, self._now() - request.began)
            return True
        self.in_flight += 1
        if request.operation in MODIFYING:
            self._barrier.begin_write(request)
            if self._belongs_here(request):
                return self._write_here(request)
        elif request.operation is FLUSH and self._barrier.hold_flush(request):
            return False
        return self._start(request)

    def perform(self, request: Request) -> bool:
        """Carry a request out before returning, as firmware has to; ``lock`` is held.

        Where that may take long the lock is free meanwhile, however often it was taken.
        True: it is done, ``request.error`` says how.  False: the storage failed it, and the
        machine stands still because of that; the caller asks again when it goes on.
        """
        if self.stopped:
            return False
        request.began = self._now()
        request.error = self._refusal(request)
        if request.error is not None:
            self.statistics.invalid[request.operation] += 1
            return True
        if self._at_once(request):
            return self._settle(request, None)
        here = not self._threads or self._belongs_here(request)
        error = self._carry_out(request) if here else self._carry_out_aside(request)
        return self._settle(request, error)

    def _carry_out_aside(self, request: Request) -> VdiskError | None:
        """In a thread of its own, while this one waits as :meth:`drain` does."""
        errors: list[VdiskError | None] = []

        def work() -> None:
            error = self._carry_out(request)
            with self.lock:
                errors.append(error)
                self._active -= 1
                self._idle.notify_all()

        self._active += 1
        threading.Thread(target=work, name="vdisk-firmware", daemon=True).start()
        self._idle.wait_for(lambda: errors)
        return errors[0]

    def _refusal(self, request: Request) -> VdiskError | None:
        """Why a request can never be carried out; the one gate of all of them."""
        if self.device is None or self.tray_open:
            return NotFoundError("there is no medium")
        if not self.room:
            return DeviceError("too many requests")
        operation, mask = request.operation, self.sector_size - 1
        if operation is FLUSH or operation is GET_ID:
            return None
        if (request.offset | request.length) & mask or request.offset < 0 or request.length < 0:
            return InvalidRequestError(f"{request} is not whole sectors")
        if request.offset + request.length > self.size:
            return OutOfRangeError(f"{request} reaches past the end of the disk")
        if operation is READ:
            return _unfit_buffers(request)
        if self.readonly:
            return ReadOnlyError("the disk is read-only")
        return _unfit_buffers(request) if operation is WRITE else None

    def _at_once(self, request: Request) -> bool:
        """Read what needs no waiting, answer what needs no disk; False where it is not so."""
        quick, operation = self._quick, request.operation
        if quick is None:
            return False
        if operation is READ:
            return quick.read(request.offset, request.length, request.views)
        if operation is GET_ID:
            self._give_id(request)
            return True
        return operation is DISCARD and not self.discard_enabled

    def _belongs_here(self, request: Request) -> bool:
        """Whether a write is better made in this thread than handed over."""
        if request.operation is not WRITE or request.fua or not self.write_cache:
            return False
        return self._quick is not None and self._quick.may_write(request.length, request.began)

    def _write_here(self, request: Request) -> bool:
        assert self._quick is not None
        done = self._quick.overwrite(request.offset, request.length, request.views)
        error = None if done else self._carry_out(request)
        self._quick.note_write(request.began, self._now())
        self.statistics.at_once += error is None
        return self._finish(request, error)

    def _give_id(self, request: Request) -> None:
        """The serial number: not terminated if it fills all its room."""
        data, start = self.serial.encode().ljust(ID_LENGTH, b"\0"), 0
        for view in request.views:
            part = data[start : start + len(view)]
            view[: len(part)] = part
            start += len(part)

    def _start(self, request: Request) -> bool:
        """Carry a request out, here or in a worker; True: done, and nobody was told."""
        if self._threads:
            self._active += 1
            self._workers.put(request, self._active)
            return False
        return self._finish(request, self._carry_out(request))

    def _work(self, request: Request) -> None:
        """In a worker's thread."""
        error = self._carry_out(request)
        with self.lock:
            self._active -= 1
            if self._finish(request, error) and request.done is not None:
                request.done(request)
            if not self._active:
                self._idle.notify_all()

    def _carry_out(self, request: Request) -> VdiskError | None:
        try:
            self._execute(request)
        except VdiskError as error:
            return error
        except Exception as error:  # a guest must get an answer, and other disks go on
            failure = DeviceError(f"{request} failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            return failure
        return None

    def _execute(self, request: Request) -> None:
        device = self.device
        if device is None:
            raise NotFoundError("there is no medium")
        operation = request.operation
        if operation is READ:
            device.readv(request.offset, request.views)
        elif operation is FLUSH:
            if not self.readonly:
                device.flush()
        else:
            if operation is WRITE:
                device.writev(request.offset, request.views)
            elif operation is WRITE_ZEROES:
                unmap = request.unmap and self.discard_enabled
                device.write_zeroes(request.offset, request.length, unmap=unmap)
            elif operation is DISCARD:
                device.discard(request.offset, request.length)
            if request.fua or not self.write_cache:
                device.flush()

    def _settle(self, request: Request, error: VdiskError | None) -> bool:
        """Say how a request went, by the policy; False where it shall be tried again."""
        operation = request.operation
        if error is not None:
            self.statistics.failed[operation] += 1
            action = self.policy.action(operation, error)
            self.stopped |= action is OnError.STOP
            if self.on_error is not None:
                self.on_error(request, error, action)
            if action is OnError.STOP:
                return False
            if action is OnError.IGNORE:
                error = None
        request.error = error
        if error is None:
            self.statistics.add(operation, request.length, self._now() - request.began)
        return True

    def _finish(self, request: Request, error: VdiskError | None) -> bool:
        """A submitted request was carried out; False where it is kept for another try."""
        if not self._settle(request, error):
            self._parked.append(request)
            return False
        self.in_flight -= 1
        if request.epoch is not None:
            for flush in self._barrier.end_write(request):
                self._go_on(flush)
        return True

    def _go_on(self, request: Request) -> None:
        """Start a request whose submission has long returned."""
        if self._start(request) and request.done is not None:
            request.done(request)

    # -- life --------------------------------------------------------------------------------

    def resume(self) -> None:
        """Try again what failed and was kept, in order."""
        with self.lock:
            parked, self._parked, self.stopped = self._parked, [], False
            for request in parked:
                self._go_on(request)

    def drain(self) -> None:
        """Return when no request is in work; those kept after an error stay kept.

        The lock is not held while waiting, however often the caller has taken it.
        """
        with self.lock:
            self._idle.wait_for(lambda: not self._active)

    def cancel(self) -> None:
        """What a reset of the controller does: let work end, forget the kept and the waiting.

        ``done`` is called for what was in work, and not for what was forgotten.
        """
        with self.lock:
            self.drain()
            self._parked.clear()
            self.stopped = False
            self._barrier = Barrier()
            self.in_flight = self._active

    def close(self) -> None:
        """Drain, save everything and close the device; a second call does nothing."""
        with self.lock:
            self.cancel()
            threads = self._workers.stop()
            device, self.device, self._quick, self.size = self.device, None, None, 0
            self.image = None
        for thread in threads:
            thread.join()
        if device is not None:
            device.close()


def _unfit_buffers(request: Request) -> VdiskError | None:
    """Why a read or write cannot be what it says."""
    if request.length > MAX_REQUEST:
        return InvalidRequestError(f"{request} is longer than {MAX_REQUEST} bytes")
    if total(request.views) != request.length:
        return InvalidRequestError(f"{request} has buffers of another length")
    return None

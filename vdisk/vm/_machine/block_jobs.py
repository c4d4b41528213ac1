"""Jobs on the drives of a running machine, as monitors see them (qapi/job.json, block-core.json).

A job is a thread, and a piece of work from :mod:`~vdisk.vm._machine.block_work`::

    created -> running -+-> ready -+-> waiting -> pending -> concluded -> null
                        |          |
                        '----------'-> aborting -----------> concluded -> null

``ready`` is for work that goes on keeping two images alike until somebody wants one or the other.
The bus lock is taken to put a job in front of a disk and to take it away again, with no request
under way; it is never waited for by whoever holds a job's own locks.
What does the work is imported when there is some.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from vdisk.errors import CancelledError, InvalidRequestError, NotFoundError, VdiskError
from vdisk.filters.attended import Attended
from vdisk.vm.monitor.control import BlockJobInfo, MachineEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.block import BlockDevice
    from vdisk.vm._machine.block_work import Work
    from vdisk.vm._machine.drives import Drives, MachineDrive
    from vdisk.vm.monitor.control import JobRequest, Target

WAIT_SECONDS = 0.1
"""Between two looks for what the guest has changed, while a job is ready."""


class BlockJob:
    """A job on ``drive``; ``ended(job)`` is called, once, when it is over."""

    def __init__(
        self,
        id: str,
        drive: MachineDrive,
        work: Work,
        emit: Callable[[MachineEvent], None],
        ended: Callable[[BlockJob], None],
    ) -> None:
        self.id = id
        self.drive = drive
        self.work = work
        self.status = "created"
        self._emit = emit
        self._ended = ended
        self._told = threading.Event()  # to conclude, or to end
        self._pivot = False
        self._thread = threading.Thread(target=self._main, name=f"vdisk-job-{id}", daemon=True)

    def begin(self) -> None:
        """Put the work in front of the disk, and start; the bus lock is held."""
        self._become("created")
        image = self.drive.disk.image
        assert image is not None
        self.drive.disk.exchange(Attended(image, self.work.around))
        self._thread.start()

    def info(self) -> BlockJobInfo:
        """How far it is."""
        pace = self.work.pace
        return BlockJobInfo(
            id=self.id,
            type=self.work.type,
            status="paused" if pace.paused and self.status == "running" else self.status,
            offset=pace.offset,
            length=pace.length,
            speed=pace.speed,
            paused=pace.paused,
            ready=self.status == "ready",
        )

    # -- what monitors ask for -------------------------------------------------------------------

    def complete(self) -> None:
        """Let a job that is ready go on with its target."""
        if self.status != "ready":
            raise InvalidRequestError(
                f"Job '{self.id}' in state '{self.status}' cannot accept command verb 'complete'"
            )
        self._pivot = True
        self.work.pace.hurry()  # under a low rate it might never catch up with the guest
        self._told.set()

    def cancel(self, *, force: bool = False) -> None:
        """End it.  A job that is ready leaves its target as it is then, unless forced."""
        if self.status == "ready" and not force:
            self.work.pace.hurry()
            self._told.set()
            return
        self.work.pace.cancel()
        self._told.set()

    def join(self) -> None:
        """Return when it is over."""
        self._thread.join()

    # -- in the thread ---------------------------------------------------------------------------

    def _main(self) -> None:
        error: VdiskError | None = None
        try:
            self._become("running")
            self.work.run()
            if self.work.waits:
                self._stay_ready()
            self._conclude()
        except VdiskError as caught:
            error = caught
            self._abandon()
        except Exception as caught:  # a mistake of ours: the guest's disk must be given back
            error = VdiskError(f"{type(caught).__name__}: {caught}")
            self._abandon()
        self._tell(error)
        self._become("concluded")
        self._ended(self)
        self._become("null")

    def _stay_ready(self) -> None:
        self._become("ready")
        self._emit(MachineEvent("BLOCK_JOB_READY", self._facts()))
        while not self._told.wait(WAIT_SECONDS):
            self.work.catch_up()
        self.work.pace.went(0)
        self.work.catch_up()  # what is left for the moment in which the guest waits is little

    def _conclude(self) -> None:
        pivot = self._pivot or not self.work.waits
        self._become("waiting")
        self._become("pending")
        disk = self.drive.disk
        self.work.pace.hurry()
        with disk.lock:
            disk.drain()
            self.work.catch_up()
            self._step_aside()
            self.work.conclude(pivot=pivot)

    def _abandon(self) -> None:
        self._become("aborting")
        with self.drive.disk.lock:
            self._step_aside()
            self.work.abandon()

    def _step_aside(self) -> None:
        """Take the work away from before the disk."""
        image = self.drive.disk.image
        if isinstance(image, Attended):
            self.drive.disk.exchange(image.inner)

    def _tell(self, error: VdiskError | None) -> None:
        facts = self._facts()
        if error is None:
            self._emit(MachineEvent("BLOCK_JOB_COMPLETED", facts))
        elif isinstance(error, CancelledError):
            self._emit(MachineEvent("BLOCK_JOB_CANCELLED", facts))
        else:
            failed = {"device": self.id, "operation": "write", "action": "report"}
            self._emit(MachineEvent("BLOCK_JOB_ERROR", failed))
            self._emit(MachineEvent("BLOCK_JOB_COMPLETED", {**facts, "error": str(error)}))

    def _facts(self) -> dict[str, Any]:
        pace = self.work.pace
        return {
            "device": self.id,
            "len": pace.length,
            "offset": pace.offset,
            "speed": pace.speed,
            "type": self.work.type,
        }

    def _become(self, status: str) -> None:
        self.status = status
        self._emit(MachineEvent("JOB_STATUS_CHANGE", {"id": self.id, "status": status}))


class BlockJobs:
    """All jobs that are not over, and how each kind begins; a drive has one at a time."""

    def __init__(self, drives: Drives, emit: Callable[[MachineEvent], None]) -> None:
        self._drives = drives
        self._emit = emit
        self._jobs: dict[str, BlockJob] = {}
        self._lock = threading.Lock()
        self._starting = threading.Lock()

    def stream(self, name: str, base: str | None, request: JobRequest) -> None:
        """Bring what stands in backing files, down to ``base``, into the image."""
        from vdisk.jobs.commit import depth_in_chain
        from vdisk.vm._machine.block_work import StreamWork

        def work(drive: MachineDrive) -> Work:
            depth = None if base is None else depth_in_chain(drive.image, base)
            return StreamWork(drive, depth)

        self._start(name, request, work)

    def commit(self, name: str, base: str | None, top: str | None, request: JobRequest) -> None:
        """Write the layers from ``top`` down into ``base``."""
        from vdisk.jobs.commit import depth_in_chain, is_named, length_of_chain
        from vdisk.vm._machine.block_work import CommitBelowWork, CommitWork

        def work(drive: MachineDrive) -> Work:
            image = drive.image
            above = 0 if top is None or is_named(image, top) else depth_in_chain(image, top)
            below = depth_in_chain(image, base) if base is not None else length_of_chain(image)
            if below <= above:
                raise InvalidRequestError(f"{base or name} is not below {top or name}")
            return CommitBelowWork(drive, above, below) if above else CommitWork(drive, below)

        self._start(name, request, work)

    def mirror(self, name: str, target: Target, request: JobRequest) -> None:
        """Keep a target like the disk."""
        from vdisk.vm._machine.block_work import MirrorWork

        drive = self._drives.find(name)
        if drive.spec.snapshot:
            raise InvalidRequestError(f"{name} is temporary: there is nothing to go on in")
        self._copy_to(name, target, request, MirrorWork)

    def backup(self, name: str, target: Target, request: JobRequest) -> None:
        """Copy the disk as it is now."""
        from vdisk.vm._machine.block_work import BackupWork

        self._copy_to(name, target, request, BackupWork)

    def _copy_to(
        self,
        name: str,
        target: Target,
        request: JobRequest,
        kind: Callable[[MachineDrive, BlockDevice, Target], Work],
    ) -> None:
        from vdisk.vm._machine.block_work import open_target

        drive = self._drives.find(name)
        drive.check_idle()
        device = open_target(drive.image, target, cache=drive.spec.cache)
        try:
            self._start(name, request, lambda drive: kind(drive, device, target))
        except BaseException:
            device.close()
            raise

    def _start(self, name: str, request: JobRequest, make: Callable[[MachineDrive], Work]) -> None:
        drive, id = self._drives.find(name), request.id or name
        if request.speed < 0:
            raise InvalidRequestError("Parameter 'speed' expects a non-negative value")
        with self._starting:
            self._check(drive, id)
            with drive.disk.lock:
                drive.disk.drain()
                work = make(drive)
                work.pace.speed = request.speed
                job = drive.job = BlockJob(id, drive, work, self._emit, self._over)
                with self._lock:
                    self._jobs[id] = job
                job.begin()

    def _check(self, drive: MachineDrive, id: str) -> None:
        drive.check_idle()
        if drive.disk.removable:
            raise InvalidRequestError(f"{drive.name}: jobs are for disks")
        with self._lock:
            if id in self._jobs:
                raise InvalidRequestError(f"Job ID '{id}' already in use")

    def _over(self, job: BlockJob) -> None:
        with self._lock:
            del self._jobs[job.id]
        job.drive.job = None

    def infos(self) -> list[BlockJobInfo]:
        """All of them, as monitors show them."""
        with self._lock:
            return [job.info() for job in self._jobs.values()]

    def find(self, id: str) -> BlockJob:
        """The job of this name."""
        with self._lock:
            job = self._jobs.get(id)
        if job is None:
            raise NotFoundError(f"there is no block job {id!r}")
        return job

    def close(self) -> None:
        """End all of them, and wait for it; the bus lock is not held."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel(force=True)
        for job in jobs:
            job.join()

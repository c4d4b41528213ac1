"""What a monitor needs of a machine; the machine is the :class:`MachineControl`.

All methods may be called from any thread and may wait (for a processor to stop, for a disk), so
servers call them in worker threads.  They raise :class:`~vdisk.errors.VdiskError`:
``NotFoundError`` for a drive, file or snapshot that is not there.

The names are those of QEMU's interface (qapi/run-state.json, qapi/block-core.json).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vdisk.vm.display.base import InputSink, Screen


class RunState(enum.Enum):
    """What the machine is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    """The guest sleeps (S3) until something wakes it."""
    IO_ERROR = "io-error"
    SHUTDOWN = "shutdown"
    """The guest has turned itself off, and the machine was told to stay."""
    PRELAUNCH = "prelaunch"
    SAVE_VM = "save-vm"
    RESTORE_VM = "restore-vm"
    INTERNAL_ERROR = "internal-error"


class MachineEvent(NamedTuple):
    """Something that happened: ``name`` and ``data`` of QMP.

    ``STOP``, ``RESUME``, ``POWERDOWN``, ``SUSPEND`` and ``WAKEUP`` have no data; the others::

        RESET, SHUTDOWN      guest: bool, reason: str (ShutdownCause)
        BLOCK_IO_ERROR       device: str, node-name: str, operation: read|write,
                             action: report|ignore|stop, nospace: bool, reason: str
        DEVICE_TRAY_MOVED    device: str, id: str, tray-open: bool
        BLOCK_JOB_READY, BLOCK_JOB_COMPLETED, BLOCK_JOB_CANCELLED
                             device: str (the job), type: str, len, offset, speed: int,
                             error: str (where it failed)
        BLOCK_JOB_ERROR      device: str (the job), operation: write, action: report
        JOB_STATUS_CHANGE    id: str, status: str
    """

    name: str
    data: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """The image in a drive.  ``backing``: the chain below it, nearest first; sizes in bytes."""

    filename: str
    format: str
    size: int
    read_only: bool = False
    backing: Sequence[str] = ()
    writeback: bool = True
    """False where each write is flushed before it is reported done."""
    node_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveStatistics:
    """Since power-on: requests, bytes, and nanoseconds that requests took (in sum)."""

    rd_bytes: int = 0
    wr_bytes: int = 0
    unmap_bytes: int = 0
    rd_operations: int = 0
    wr_operations: int = 0
    flush_operations: int = 0
    unmap_operations: int = 0
    failed_rd_operations: int = 0
    failed_wr_operations: int = 0
    failed_flush_operations: int = 0
    failed_unmap_operations: int = 0
    rd_total_time_ns: int = 0
    wr_total_time_ns: int = 0
    flush_total_time_ns: int = 0
    unmap_total_time_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """A disk or CD-ROM drive.  ``device``: its name (``ide1-cd0``); ``id``: of the device."""

    device: str
    id: str = ""
    removable: bool = False
    locked: bool = False
    tray_open: bool = False
    io_status: Literal["ok", "failed", "nospace"] = "ok"
    medium: Medium | None = None
    statistics: DriveStatistics = field(default_factory=DriveStatistics)


class BlockJobInfo(NamedTuple):
    """Work under way on a drive (qapi/block-core.json: BlockJobInfo).

    ``offset`` of ``length`` bytes are done; ``speed``: bytes a second, 0: any number.  ``ready``:
    it waits to be told to go on with its target, or to leave it.
    """

    id: str
    type: str
    status: str
    offset: int
    length: int
    speed: int
    paused: bool
    ready: bool


class JobRequest(NamedTuple):
    """What every block job takes.  ``id`` None: the drive's name.  ``speed``: bytes a second."""

    id: str | None = None
    speed: int = 0


class Target(NamedTuple):
    """Where a mirror or a backup goes.

    ``format`` None: the drive's, or what an existing file is found to be.  ``sync``: ``full``,
    or ``top``: without what the drive's backing files hold, which the target gets too.
    ``existing``: the file is there; otherwise it is made.
    """

    filename: str
    format: str | None = None
    sync: Literal["full", "top"] = "full"
    existing: bool = False


class VmSnapshot(NamedTuple):
    """A machine saved in its disks: as ``info snapshots`` shows it.  Times are in ns."""

    id: str
    tag: str
    vm_state_size: int
    date_seconds: int
    vm_clock_ns: int


class PciFunction(NamedTuple):
    """A function on the PCI bus.  ``irq``: None where it has no pin.

    ``ranges``: for each BAR its register's number, ``I/O`` or ``memory``, address (None: not
    decoded now) and size.
    """

    slot: int
    function: int
    name: str
    vendor: int
    device: int
    class_code: int
    irq: int | None
    ranges: Sequence[tuple[int, str, int | None, int]]


class ProcessorState(NamedTuple):
    """A processor at one moment.

    ``registers``: by lower-case name.  ``bits``: of its code segment, 16, 32 or 64.  ``code``:
    the linear address of the next instruction.  ``halted``: until an interrupt.
    """

    registers: Mapping[str, int]
    bits: int
    code: int
    halted: bool


class MachineControl(Protocol):
    """A machine to someone who controls it."""

    @property
    def name(self) -> str: ...

    @property
    def screen(self) -> Screen: ...

    @property
    def input(self) -> InputSink: ...

    def status(self) -> RunState: ...

    def stop(self) -> None:
        """Let the processors and the guest's time stand still; returns when they do."""

    def cont(self) -> None:
        """Go on; requests that failed with an error policy of ``stop`` are tried again."""

    def reset(self) -> None: ...

    def wakeup(self) -> None:
        """End the guest's sleep."""

    def powerdown(self) -> None:
        """Press the power button: the guest may shut itself down."""

    def quit(self) -> None:
        """End the machine without asking the guest."""

    def inject_nmi(self) -> None: ...

    def subscribe(self, callback: Callable[[MachineEvent], None]) -> Callable[[], None]:
        """Call ``callback`` for every event, in any thread; gives what ends that."""

    # -- disks -------------------------------------------------------------------------------

    def drives(self) -> Sequence[Drive]: ...

    def eject(self, device: str, *, force: bool = False) -> None:
        """Open the tray and take the medium out; a locked tray opens only by ``force``."""

    def insert(
        self, device: str, filename: str, *, format: str | None = None, read_only: bool = True
    ) -> None:
        """Put another medium in, taking out what is there, and close the tray."""

    def open_tray(self, device: str, *, force: bool = False) -> None: ...

    def close_tray(self, device: str) -> None: ...

    def snapshot_disk(
        self,
        device: str,
        filename: str,
        *,
        format: str = "qcow2",
        mode: Literal["existing", "absolute-paths"] = "absolute-paths",
    ) -> None:
        """Go on in a new image whose backing file is what the drive has now."""

    def resize_disk(self, device: str, size: int) -> None:
        """Make a disk ``size`` bytes long, and tell the guest."""

    def commit_disk(self, device: str) -> None:
        """Write what an overlay holds into its backing file, and empty it."""

    # -- work on disks while the guest uses them -----------------------------------------------

    def block_jobs(self) -> Sequence[BlockJobInfo]: ...

    def stream_disk(self, device: str, base: str | None, request: JobRequest) -> None:
        """Bring the content of backing files down to ``base`` (None: all) into the image."""

    def commit_layers(
        self, device: str, base: str | None, top: str | None, request: JobRequest
    ) -> None:
        """Write the layers from ``top`` (None: the image) down into ``base`` (None: the last)."""

    def mirror_disk(self, device: str, target: Target, request: JobRequest) -> None:
        """Keep a target like the disk, until it takes over or is left."""

    def backup_disk(self, device: str, target: Target, request: JobRequest) -> None:
        """Copy the disk as it is now."""

    def complete_job(self, id: str) -> None: ...

    def cancel_job(self, id: str, *, force: bool = False) -> None: ...

    def pause_job(self, id: str, *, paused: bool) -> None: ...

    def set_job_speed(self, id: str, speed: int) -> None: ...

    # -- the whole machine, saved in its disks -------------------------------------------------

    def save_vm(self, tag: str) -> None: ...

    def load_vm(self, tag: str) -> None: ...

    def delete_vm(self, tag: str) -> None: ...

    def vm_snapshots(self) -> Sequence[VmSnapshot]: ...

    # -- looking inside ------------------------------------------------------------------------

    def cpus(self) -> int:
        """How many processors there are."""

    def accelerator(self) -> str:
        """``llvm``, ``kvm`` or ``interp``."""

    def registers(self, cpu: int) -> str:
        """The registers of a processor as lines of text."""

    def processor(self, cpu: int) -> ProcessorState: ...

    def memory_size(self) -> int:
        """Bytes of RAM."""

    def read_memory(self, address: int, length: int) -> bytes:
        """Guest physical memory (RAM and ROM)."""

    def read_virtual(self, cpu: int, address: int, length: int) -> bytes:
        """Memory by the linear addresses of a processor; all of its pages have to be present."""

    def pci(self) -> Sequence[PciFunction]: ...

    def network(self) -> Sequence[str]:
        """A line for the network card, and one for each forwarded port."""

    def add_forward(self, rule: str) -> None:
        """Lead a port of the host to the guest: ``[tcp|udp]:[HOST]:PORT-[GUEST]:PORT``."""

    def remove_forward(self, place: str) -> None:
        """Take such a port back: ``[tcp|udp]:[HOST]:PORT``."""

"""A machine that is none: a screen to paint on, and notes of what was pressed and asked for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal

from vdisk.errors import AlreadyExistsError, InvalidRequestError, NotFoundError, OutOfRangeError
from vdisk.vm.display.base import Frame, TextFrame
from vdisk.vm.monitor.control import (
    BlockJobInfo,
    Drive,
    JobRequest,
    MachineEvent,
    Medium,
    PciFunction,
    ProcessorState,
    RunState,
    Target,
    VmSnapshot,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.display.rfb.wire import Rect


def pattern(width: int, height: int, seed: int = 0) -> Frame:
    """A picture with flat parts, gradients, and what looks like text."""
    rows = []
    for y in range(height):
        row = bytearray()
        for x in range(width):
            if y < height // 3:
                row += bytes((0xAA, 0, 0, 0))
            elif y < 2 * height // 3:
                row += bytes((x * 255 // width, y * 255 // height, (x + seed) & 0xFF, 0))
            else:
                lit = (x * 7 + y * 13 + x * y + seed) % 5 == 0
                row += b"\xaa\xaa\xaa\0" if lit else b"\0\0\0\0"
        rows.append(bytes(row))
    return Frame(width, height, b"".join(rows))


class FakeScreen:
    """Shows ``picture`` and ``characters``."""

    def __init__(self, picture: Frame | None = None, characters: TextFrame | None = None) -> None:
        self.picture = picture or pattern(160, 100)
        self.characters = characters
        self._generation = 0

    def generation(self) -> int:
        return self._generation

    def frame(self) -> Frame:
        return self.picture

    def text(self) -> TextFrame | None:
        return self.characters

    def show(self, picture: Frame) -> None:
        """Another picture."""
        self.picture = picture
        self._generation += 1

    def write(self, characters: TextFrame) -> None:
        """Other text."""
        self.characters = characters
        self._generation += 1

    def fill(self, rect: Rect, colour: int) -> None:
        """Paint a rectangle in 0xRRGGBB."""
        frame = self.picture
        pixels = bytearray(frame.pixels)
        for y in range(rect.y, rect.y + rect.height):
            start = (y * frame.width + rect.x) * 4
            pixels[start : start + rect.width * 4] = colour.to_bytes(4, "little") * rect.width
        self.show(Frame(frame.width, frame.height, bytes(pixels)))


class FakeInput:
    """Keeps what was pressed and moved; ``changed`` is set by everything."""

    def __init__(self) -> None:
        self.keys: list[tuple[str, bool]] = []
        self.moves: list[tuple[int, int, int]] = []
        self.buttons: list[int] = []
        self.lights = 0
        self.busy = False
        self.changed = threading.Event()

    def key(self, qcode: str, down: bool) -> None:
        self.keys.append((qcode, down))
        self.changed.set()

    def ready(self) -> bool:
        return not self.busy

    def move_pointer(self, dx: int, dy: int, wheel: int = 0) -> None:
        self.moves.append((dx, dy, wheel))
        self.changed.set()

    def set_buttons(self, buttons: int) -> None:
        self.buttons.append(buttons)
        self.changed.set()

    def leds(self) -> int:
        return self.lights

    def typed(self) -> list[str]:
        """The keys that were pressed, in order."""
        return [qcode for qcode, down in self.keys if down]


class FakeMachine:
    """A machine with a disk and a CD-ROM drive."""

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.screen = FakeScreen()
        self.input = FakeInput()
        self.state = RunState.RUNNING
        self.calls: list[str] = []
        self.snapshots: list[VmSnapshot] = []
        self.jobs: list[BlockJobInfo] = []
        self.disk = Drive(
            device="ide0-hd0",
            id="/machine/ide0-hd0",
            medium=Medium(
                filename="disk.qcow2", format="qcow2", size=1 << 20, backing=("base.raw",)
            ),
        )
        self.cdrom = Drive(
            device="ide1-cd0",
            id="/machine/ide1-cd0",
            removable=True,
            medium=Medium(filename="cd.iso", format="raw", size=1 << 16, read_only=True),
        )
        self._callbacks: list[Callable[[MachineEvent], None]] = []

    def emit(self, name: str, **data: object) -> None:
        """Let something happen."""
        fields = {key.replace("_", "-"): value for key, value in data.items()}
        for callback in list(self._callbacks):
            callback(MachineEvent(name, fields))

    def subscribe(self, callback: Callable[[MachineEvent], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def status(self) -> RunState:
        return self.state

    def stop(self) -> None:
        self.calls.append("stop")
        if self.state is RunState.RUNNING:
            self.state = RunState.PAUSED
            self.emit("STOP")

    def cont(self) -> None:
        self.calls.append("cont")
        if self.state is not RunState.RUNNING:
            self.state = RunState.RUNNING
            self.emit("RESUME")

    def reset(self) -> None:
        self.calls.append("reset")
        self.emit("RESET", guest=False, reason="host-qmp-system-reset")

    def wakeup(self) -> None:
        self.calls.append("wakeup")
        self.emit("WAKEUP")

    def powerdown(self) -> None:
        self.calls.append("powerdown")
        self.emit("POWERDOWN")

    def quit(self) -> None:
        self.calls.append("quit")
        self.emit("SHUTDOWN", guest=False, reason="host-qmp-quit")

    def inject_nmi(self) -> None:
        self.calls.append("nmi")

    def drives(self) -> list[Drive]:
        return [self.disk, self.cdrom]

    def eject(self, device: str, *, force: bool = False) -> None:
        self.open_tray(device, force=force)
        self.cdrom = self._cdrom(medium=None, tray_open=True)

    def insert(
        self, device: str, filename: str, *, format: str | None = None, read_only: bool = True
    ) -> None:
        self._find(device)
        if filename.startswith("/nope"):
            raise NotFoundError(f"cannot open: no such file: {filename}")
        medium = Medium(filename=filename, format=format or "raw", size=4096, read_only=read_only)
        self.cdrom = self._cdrom(medium=medium, tray_open=True)
        self.close_tray(device)

    def open_tray(self, device: str, *, force: bool = False) -> None:
        drive = self._find(device)
        if not drive.removable:
            raise InvalidRequestError(f"Device '{device}' is not removable")
        if drive.locked and not force:
            raise InvalidRequestError(f"Device '{device}' is locked")
        if not drive.tray_open:
            self.cdrom = self._cdrom(medium=drive.medium, tray_open=True)
            self.emit("DEVICE_TRAY_MOVED", device=device, id=drive.id, tray_open=True)

    def close_tray(self, device: str) -> None:
        drive = self._find(device)
        if drive.tray_open:
            self.cdrom = self._cdrom(medium=drive.medium, tray_open=False)
            self.emit("DEVICE_TRAY_MOVED", device=device, id=drive.id, tray_open=False)

    def _cdrom(self, *, medium: Medium | None, tray_open: bool) -> Drive:
        return Drive(
            device="ide1-cd0",
            id="/machine/ide1-cd0",
            removable=True,
            medium=medium,
            tray_open=tray_open,
        )

    def _find(self, device: str) -> Drive:
        for drive in self.drives():
            if device in (drive.device, drive.id):
                return drive
        raise NotFoundError(f"Device '{device}' not found")

    def snapshot_disk(
        self,
        device: str,
        filename: str,
        *,
        format: str = "qcow2",
        mode: Literal["existing", "absolute-paths"] = "absolute-paths",
    ) -> None:
        self._find(device)
        self.calls.append(f"snapshot {device} {filename} {format} {mode}")

    def save_vm(self, tag: str) -> None:
        if any(tag == one.tag for one in self.snapshots):
            raise AlreadyExistsError(f"there is a snapshot {tag!r}")
        number = str(len(self.snapshots) + 1)
        self.snapshots.append(VmSnapshot(number, tag, 1 << 21, 1_700_000_000, 65_004_000_000))

    def load_vm(self, tag: str) -> None:
        if not any(tag == one.tag for one in self.snapshots):
            raise NotFoundError(f"Snapshot '{tag}' does not exist in one or more devices")
        self.calls.append(f"load {tag}")

    def delete_vm(self, tag: str) -> None:
        self.load_vm(tag)
        self.snapshots = [one for one in self.snapshots if one.tag != tag]

    def vm_snapshots(self) -> list[VmSnapshot]:
        return self.snapshots

    def cpus(self) -> int:
        return 1

    def accelerator(self) -> str:
        return "interp"

    def resize_disk(self, device: str, size: int) -> None:
        self._find(device)
        self.calls.append(f"resize {device} {size}")

    def commit_disk(self, device: str) -> None:
        self._find(device)
        self.calls.append(f"commit {device}")

    def block_jobs(self) -> list[BlockJobInfo]:
        return self.jobs

    def _begin(self, type: str, device: str, request: JobRequest, *what: object) -> None:
        self._find(device)
        self.calls.append(f"{type} {device} {' '.join(map(str, what))}")
        id = request.id or device
        self.jobs.append(
            BlockJobInfo(id, type, "running", 1024, 1 << 20, request.speed, False, False)
        )

    def stream_disk(self, device: str, base: str | None, request: JobRequest) -> None:
        self._begin("stream", device, request, base)

    def commit_layers(
        self, device: str, base: str | None, top: str | None, request: JobRequest
    ) -> None:
        self._begin("commit", device, request, base, top)

    def mirror_disk(self, device: str, target: Target, request: JobRequest) -> None:
        self._begin("mirror", device, request, *target)

    def backup_disk(self, device: str, target: Target, request: JobRequest) -> None:
        self._begin("backup", device, request, *target)

    def _replace(self, id: str, **fields: Any) -> None:
        self.jobs = [job._replace(**fields) if job.id == id else job for job in self.jobs]

    def complete_job(self, id: str) -> None:
        raise InvalidRequestError(f"Job '{id}' in state 'running' cannot accept command verb")

    def cancel_job(self, id: str, *, force: bool = False) -> None:
        self.calls.append(f"cancel {id} {force}")
        self.jobs = [job for job in self.jobs if job.id != id]

    def pause_job(self, id: str, *, paused: bool) -> None:
        self._replace(id, paused=paused)

    def set_job_speed(self, id: str, speed: int) -> None:
        self._replace(id, speed=speed)

    def registers(self, cpu: int) -> str:
        return f"RIP=000000000000fff{cpu:x}\n"

    def processor(self, cpu: int) -> ProcessorState:
        return ProcessorState({"rip": 0xFFF0, "eax": 0x1234}, 16, 0xFFFF0, halted=True)

    def memory_size(self) -> int:
        return 64 << 20

    def read_memory(self, address: int, length: int) -> bytes:
        return bytes((address + i) & 0xFF for i in range(length))

    def read_virtual(self, cpu: int, address: int, length: int) -> bytes:
        if address + length > 0x3000:
            raise OutOfRangeError(f"cannot access memory at {address:#x}")
        return b"\x90" * length

    def pci(self) -> list[PciFunction]:
        ranges = [(0, "memory", 0xE0000000, 1 << 24), (1, "I/O", None, 16)]
        return [PciFunction(2, 0, "vga", 0x1234, 0x1111, 0x030000, None, ranges)]

    def network(self) -> list[str]:
        return ["net0: user", "  tcp 127.0.0.1:2222 -> the guest:22"]

    def add_forward(self, rule: str) -> None:
        self.calls.append(f"forward {rule}")

    def remove_forward(self, place: str) -> None:
        if place != "tcp::2222":
            raise NotFoundError("no such port")
        self.calls.append(f"no forward {place}")

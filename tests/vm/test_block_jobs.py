"""Block jobs under a guest that writes all the time: whatever it goes on in holds all of it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools import small_guests as guests
from tests.tools.peers import requires_peer
from vdisk.errors import InvalidRequestError, VdiskError
from vdisk.vm import Machine
from vdisk.vm.monitor import hmp
from vdisk.vm.monitor.control import JobRequest, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vdisk.vm.monitor.control import MachineEvent

pytestmark = requires_peer("nasm")
SIZE = 2 << 20
COUNTER = 0x6000
SECTORS = 32
WRITE_FOR_EVER = """
bits 16
org 0x7c00
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    mov word [0x6000], 0
again:
    mov bx, 0x6000
    inc word [bx]
    mov cl, [bx]
    and cl, 31
    add cl, 2                       ; sectors 2 to 33 of the first track
    mov ch, 0
    mov ax, 0x0301
    mov dx, 0x0080
    int 0x13
    mov al, '.'
    jnc said
    mov al, '!'
said:
    mov dx, 0x3f8
    out dx, al
    jmp again
times 510 - ($ - $$) db 0
    dw 0xaa55
"""


class Running:
    """A machine, what happened to it, and its disk: base.raw <- mid.qcow2 <- top.qcow2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        boot = guests.assemble(folder, WRITE_FOR_EVER)
        (folder / "base.raw").write_bytes(boot.ljust(SIZE // 2, b"\0").ljust(SIZE, b"b"))
        for name, below, format in (("mid", "base.raw", "raw"), ("top", "mid.qcow2", "qcow2")):
            path = folder / f"{name}.qcow2"
            backing = str(folder / below)
            vdisk.create(path, format="qcow2", backing_file=backing, backing_format=format)
            with vdisk.open(path, "r+") as image:
                image.write(SIZE // 2 + (64 << 10) * len(name), name.encode() * 20000)
        with vdisk.open(folder / "top.qcow2") as image:
            self.tail = image.read(SIZE // 2, SIZE // 2)
        self.machine = Machine(
            memory=16 << 20,
            accel=str(guests.accelerators()[-1]),
            disks=[f"{folder / 'top.qcow2'},throttling.iops-total=100000"],
        )
        self.events: list[MachineEvent] = []
        self._changed = threading.Condition()
        self.machine.subscribe(self._happened)

    def _happened(self, event: MachineEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def await_event(self, name: str) -> MachineEvent:
        """The last event of this name, once there is one."""

        def found() -> list[MachineEvent]:
            return [event for event in self.events if event.name == name]

        with self._changed:
            assert self._changed.wait_for(found, 60), self.events
            return found()[-1]

    def writes_more(self) -> None:
        self.machine.run_until(serial="." * 50, timeout=60)

    def check(self, name: str) -> None:
        """End it; this image then holds all that the guest has written."""
        self.machine.pause()
        count = int.from_bytes(self.machine.memory.read(COUNTER, 2), "little")
        assert b"!" not in self.machine.serial[0].output(0)
        self.machine.close()
        with vdisk.open(self.folder / name, format=name.rpartition(".")[2]) as image:
            for number in range(count - SECTORS + 1, count):
                at = (number % SECTORS + 1) * 512
                assert int.from_bytes(image.read(at, 2), "little") == number
            assert image.read(SIZE // 2, SIZE // 2) == self.tail
        assert name.endswith("raw") or vdisk.check(self.folder / name).clean


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    try:
        running.writes_more()
        yield running
    finally:
        running.machine.close()


def mirror(running: Running, *, to: str = "new.qcow2", sync: str = "full") -> None:
    target = Target(str(running.folder / to), to.rpartition(".")[2], sync)  # type: ignore[arg-type]
    running.machine.control.mirror_disk("ide0-hd0", target, JobRequest())


def commit(running: Running) -> None:
    running.machine.control.commit_layers("ide0-hd0", None, None, JobRequest())


@pytest.mark.parametrize(
    ("begin", "left"),
    [
        (mirror, "new.qcow2"),
        (lambda running: mirror(running, to="new.raw"), "new.raw"),
        (lambda running: mirror(running, sync="top"), "new.qcow2"),
        (commit, "base.raw"),
    ],
)
def test_it_goes_on_in_the_target(
    running: Running, begin: Callable[[Running], None], left: str
) -> None:
    begin(running)
    running.await_event("BLOCK_JOB_READY")
    running.writes_more()
    running.machine.control.complete_job("ide0-hd0")
    assert "error" not in running.await_event("BLOCK_JOB_COMPLETED").data
    (drive,) = running.machine.control.drives()
    assert drive.medium is not None and drive.medium.filename.endswith(left)
    running.writes_more()
    running.check(left)


@pytest.mark.parametrize("begin", [mirror, commit])
@pytest.mark.parametrize("force", [False, True])
def test_it_stays_where_it_is(
    running: Running, begin: Callable[[Running], None], force: bool
) -> None:
    begin(running)
    running.await_event("BLOCK_JOB_READY")
    running.machine.control.cancel_job("ide0-hd0", force=force)
    running.await_event("BLOCK_JOB_CANCELLED" if force else "BLOCK_JOB_COMPLETED")
    running.writes_more()
    running.check("top.qcow2")


@pytest.mark.parametrize("base", [None, "base.raw"])
def test_stream(running: Running, base: str | None) -> None:
    below = None if base is None else str(running.folder / base)
    running.machine.control.stream_disk("ide0-hd0", below, JobRequest())
    running.await_event("BLOCK_JOB_COMPLETED")
    (running.folder / "mid.qcow2").unlink()
    running.writes_more()
    running.check("top.qcow2")


def test_commit_of_what_is_below(running: Running) -> None:
    mid = str(running.folder / "mid.qcow2")
    running.machine.control.commit_layers("ide0-hd0", None, mid, JobRequest())
    running.await_event("BLOCK_JOB_COMPLETED")
    (running.folder / "mid.qcow2").unlink()
    running.writes_more()
    running.check("top.qcow2")


def test_a_backup_is_of_the_moment_it_begins(running: Running) -> None:
    machine, control = running.machine, running.machine.control
    machine.pause()
    drive = machine.drives.find("ide0-hd0")
    before = drive.image.read(0, SIZE)
    target = Target(str(running.folder / "copy.raw"), "raw")
    control.backup_disk("ide0-hd0", target, JobRequest(speed=100 << 10))
    machine.resume()
    running.writes_more()
    control.set_job_speed("ide0-hd0", 0)
    running.await_event("BLOCK_JOB_COMPLETED")
    assert (running.folder / "copy.raw").read_bytes() == before
    running.check("top.qcow2")


def test_nothing_else_is_done_to_the_disk_meanwhile(running: Running) -> None:
    machine = running.machine
    mirror(running)
    running.await_event("BLOCK_JOB_READY")
    elsewhere = str(running.folder / "x.qcow2")
    refused: list[Callable[[], object]] = [
        lambda: machine.control.snapshot_disk("ide0-hd0", elsewhere),
        lambda: machine.control.resize_disk("ide0-hd0", 2 * SIZE),
        lambda: machine.control.commit_disk("ide0-hd0"),
        lambda: machine.control.stream_disk("ide0-hd0", None, JobRequest("other")),
        lambda: machine.save("now"),
    ]
    for act in refused:
        with pytest.raises(InvalidRequestError, match="in use by block job: mirror"):
            act()
    running.check("top.qcow2")  # ending the machine ends the job


def test_a_target_that_fails_fails_the_job(running: Running) -> None:
    rules = running.folder / "rules"
    rules.write_text('[inject-error]\nevent = "none"\niotype = "write"\nerrno = "28"\n')
    vdisk.create(running.folder / "new.raw", SIZE)
    target = Target(f"blkdebug:{rules}:{running.folder}/new.raw", "raw", existing=True)
    running.machine.control.mirror_disk("ide0-hd0", target, JobRequest())
    assert "error" in running.await_event("BLOCK_JOB_COMPLETED").data
    assert running.await_event("BLOCK_JOB_ERROR").data["action"] == "report"
    running.writes_more()
    running.check("top.qcow2")


def test_targets_that_cannot_be(running: Running) -> None:
    control = running.machine.control
    vdisk.create(running.folder / "small.raw", SIZE - 512)
    for name, existing in (("small.raw", True), ("top.qcow2", False), ("mid.qcow2", True)):
        with pytest.raises(VdiskError):
            target = Target(str(running.folder / name), None, existing=existing)
            control.mirror_disk("ide0-hd0", target, JobRequest())
    assert not control.block_jobs()
    running.check("top.qcow2")


def test_by_a_persons_commands(running: Running) -> None:
    session = hmp.Session(running.machine.control)
    target = running.folder / "new.qcow2"
    assert session.execute(f"drive_mirror -f ide0-hd0 {target} qcow2") == ""
    running.await_event("BLOCK_JOB_READY")
    said = session.execute("info block-jobs")
    assert said.startswith("Type mirror, device ide0-hd0: Completed ")
    assert session.execute("block_job_set_speed ide0-hd0 1M") == ""
    assert "speed limit 1048576 bytes/s" in session.execute("info block-jobs")
    assert session.execute("block_job_complete ide0-hd0") == ""
    running.await_event("BLOCK_JOB_COMPLETED")
    assert session.execute("block_stream nope").startswith("Error: Cannot find device='nope'")
    deadline = time.monotonic() + 60
    while session.execute("info block-jobs") != "No active jobs\n":
        assert time.monotonic() < deadline
    running.check("new.qcow2")

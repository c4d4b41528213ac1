"""The parts of a machine that need no guest: disks in words, the serial line's far end, drives."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import vdisk
from tests.tools.patience import PATIENCE
from vdisk.emu_blockdev import OnError
from vdisk.errors import InvalidRequestError, NotFoundError, UnsupportedFeatureError
from vdisk.stores.memory import MemoryStore
from vdisk.vm._machine import accelerators
from vdisk.vm._machine.boot_choice import BootChoice
from vdisk.vm._machine.console import KEPT, MOST_INPUT, SerialConsole
from vdisk.vm._machine.drives import Drives
from vdisk.vm._machine.processor import Processor
from vdisk.vm._machine.running import Threads
from vdisk.vm._machine.sleeping import Sleep
from vdisk.vm._machine.specs import DiskSpec, disk_spec, parse_disk
from vdisk.vm.accel.base import VcpuExit
from vdisk.vm.bus import Bus
from vdisk.vm.clock import RealClock, VirtualClock
from vdisk.vm.devices.serial import Uart
from vdisk.vm.irq import IrqLine
from vdisk.vm.memory import GuestMemory

MIB = 1 << 20


# -- disks in words ------------------------------------------------------------------------------


def test_a_disk_with_all_its_words() -> None:
    spec = parse_disk(
        "a,,b.qcow2,if=virtio,format=qcow2,snapshot=on,serial=X1,id=root,discard=ignore,"
        "logical_block_size=4k,physical_block_size=8192,num-queues=2,werror=stop,rerror=ignore,"
        "cyls=10,heads=4,secs=17,throttling.iops-total=100,cache=writethrough"
    )
    assert (spec.file, spec.interface, spec.format, spec.snapshot) == (
        "a,b.qcow2", "virtio", "qcow2", True,
    )  # fmt: skip
    assert (spec.serial, spec.id, spec.discard, spec.queues) == ("X1", "root", False, 2)
    assert (spec.sector_size, spec.physical_sector_size) == (4096, 8192)
    assert (spec.policy.werror, spec.policy.rerror) == (OnError.STOP, OnError.IGNORE)
    assert spec.geometry is not None and tuple(spec.geometry) == (10, 4, 17)
    assert spec.throttle == {"iops-total": "100"} and spec.cache == "writethrough"
    assert spec.opens_readonly  # the overlay takes the writes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,if=scsi", "on ide or on virtio"),
        ("x,media=tape", "disk or cdrom"),
        ("", "only a CD-ROM drive may be empty"),
        ("x,media=cdrom,if=virtio", "a CD-ROM drive is on ide"),
        ("x,media=cdrom,readonly=off", "cannot be written"),
        ("x,index=4", "from 0 to 3"),
        ("x,if=virtio,index=0", "from 0 to 3"),
        ("x,cyls=5", "together"),
        ("x,werror=perhaps", "one of report"),
        ("x,snapshot=maybe", "snapshot"),
        ("x,spin=on", "has no option 'spin'"),
    ],
)
def test_disks_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse_disk(text)


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    assert disk_spec(tmp_path / "a,if=b").file == str(tmp_path / "a,if=b")
    assert disk_spec("disk,if=virtio").interface == "virtio"


# -- drives --------------------------------------------------------------------------------------


def drives(*specs: DiskSpec) -> Drives:
    return Drives(specs, threading.RLock(), threads=0, emit=lambda _event: None, stop=lambda: None)


def test_cdroms_begin_on_the_second_channel() -> None:
    def names(*media: str) -> list[str]:
        disk = MemoryStore(bytes(MIB))
        found = drives(
            *(DiskSpec(media=kind, file=None if kind == "cdrom" else disk) for kind in media)
        )
        names = [drive.name for drive in found]
        found.close()
        return names

    assert names("cdrom") == ["ide1-cd0"]
    assert names("cdrom", "disk", "cdrom") == ["ide1-cd0", "ide0-hd0", "ide1-cd1"]
    assert names("cdrom", "cdrom", "cdrom")[2] == "ide0-cd0"


def test_drives_have_qemus_names_and_places(tmp_path: Path) -> None:
    for name in "abcd":
        vdisk.create(tmp_path / name, MIB)
    found = drives(
        DiskSpec(file=str(tmp_path / "a"), format="raw"),
        DiskSpec(media="cdrom", index=0),
        DiskSpec(file=str(tmp_path / "b"), interface="virtio", format="raw"),
        DiskSpec(file=str(tmp_path / "c"), interface="virtio", format="raw", id="data"),
        DiskSpec(file=str(tmp_path / "d"), format="raw", readonly=True),
    )
    names = [drive.name for drive in found]
    assert names == ["ide0-hd1", "ide0-cd0", "virtio0", "virtio1", "ide1-hd0"]
    assert found.find("data").name == "virtio1"
    with pytest.raises(NotFoundError, match="there are: ide0-hd1, ide0-cd0"):
        found.find("sda")
    described = found.find("ide1-hd0").describe()
    assert described.medium is not None and described.medium.read_only
    assert described.medium.size == MIB
    assert found.find("ide0-cd0").describe().removable
    found.close()


def test_diskette_drives(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "b", 1440 << 10)
    found = drives(
        parse_disk(f"{tmp_path}/b,if=floppy,index=1,format=raw"), DiskSpec(interface="floppy")
    )
    assert [(drive.name, drive.place) for drive in found] == [("floppy1", 1), ("floppy0", 0)]
    assert all(drive.describe().removable for drive in found)
    assert not found.find("floppy1").disk.readonly
    vdisk.create(tmp_path / "c", 720 << 10)
    found.insert("floppy0", str(tmp_path / "c"), format="raw")
    assert found.find("floppy0").disk.size == 720 << 10
    assert not found.find("floppy0").disk.readonly
    found.close()
    with pytest.raises(InvalidRequestError, match="A and B"):
        drives(*[DiskSpec(interface="floppy") for _ in range(3)])
    for words in ("x,if=floppy,index=2", "x,if=floppy,media=cdrom", "x,media=floppy"):
        with pytest.raises(InvalidRequestError):
            parse_disk(words)


def test_places_are_for_one_and_there_are_four() -> None:
    with pytest.raises(InvalidRequestError, match="four drives"):
        drives(*[DiskSpec(media="cdrom") for _ in range(5)])
    with pytest.raises(InvalidRequestError, match="each for one"):
        drives(DiskSpec(media="cdrom", index=1), DiskSpec(media="cdrom", index=1))


def test_a_drive_that_cannot_be_opened_closes_the_others(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "good.qcow2", MIB, format="qcow2")
    good = DiskSpec(file=str(tmp_path / "good.qcow2"))
    with pytest.raises(NotFoundError):
        drives(good, DiskSpec(file=str(tmp_path / "missing")))
    vdisk.open(tmp_path / "good.qcow2", "r+").close()  # no lock is left


# -- the far end of a serial line ------------------------------------------------------------------


def test_what_to_boot_in_qemus_words() -> None:
    assert BootChoice.parse("dc") == BootChoice("dc")
    assert BootChoice.parse("menu=on") == BootChoice("cd", menu=True)
    choice = BootChoice.parse("order=c,once=d,menu=off,splash-time=9,reboot-timeout=0,strict=on")
    assert choice == BootChoice("c", "d", menu_ms=9, retry_ms=0, strict=True)
    assert [choice.letters(first=first) for first in (True, False)] == ["d", "c"]
    assert BootChoice.parse("reboot-timeout=-1").retry_ms is None
    assert BootChoice("n").letters(first=True) == "n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty boot order"),
        ("cc", "each once"),
        ("once=x", "boot order 'x'"),
        ("menu=perhaps", "is 'on' or 'off'"),
        ("splash-time=65536", "up to 65535"),
        ("reboot-timeout=-2", "milliseconds"),
        ("c,splash=picture.jpg", "has no option 'splash'"),
    ],
)
def test_what_cannot_be_booted(text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        BootChoice.parse(text)


class Line:
    """A console at a UART, with nothing between."""

    def __init__(self) -> None:
        self.bus, self.clock = Bus(), VirtualClock()
        self.console = SerialConsole()
        self.uart = Uart(self.bus, self.clock, IrqLine(), 0x3F8, self.console)
        self.console.connect(self.uart, self.clock)
        self.console.deliver_by(self.console.arrive)

    def receive(self) -> bytes:
        """What the guest reads."""
        data = bytearray()
        while self.bus.ports.read(0x3FD, 1) & 1:
            data.append(self.bus.ports.read(0x3F8, 1))
        return bytes(data)


def test_output_is_kept_read_and_tapped() -> None:
    line, tapped = Line(), bytearray()
    line.console.tap(tapped.extend)
    for byte in b"hello":
        line.bus.ports.write(0x3F8, 1, byte)
    assert line.console.read() == b"hello" and line.console.read() == b""
    assert line.console.output(2) == b"llo" and bytes(tapped) == b"hello"


def test_only_the_newest_output_is_kept() -> None:
    console = SerialConsole()
    console.write(b"a" * KEPT)
    console.write(b"b" * KEPT)
    assert console.position == 2 * KEPT
    assert console.output() == b"b" * KEPT
    assert console.wait_for(b"bb", 0, 0, lambda: False) == KEPT + 2


def test_waiting_finds_what_comes_in_pieces_and_gives_up() -> None:
    console = SerialConsole()
    console.write(b"log")
    timer = threading.Timer(0.05, console.write, [b"in: more"])
    timer.start()
    assert console.wait_for(b"login:", 0, PATIENCE, lambda: False) == 6
    timer.join()
    assert console.wait_for(b"never", 0, 0.01, lambda: False) is None
    assert console.wait_for(b"never", 0, None, lambda: True) is None


def test_more_input_than_the_uart_takes_waits_for_the_guest() -> None:
    line = Line()
    text = bytes(range(32, 127)) * 2000
    line.console.send(text)
    received = b""
    for _ in range(100):
        received += line.receive()
        line.clock.advance(line.clock.now() + 10_000_000)
    assert received == text


def test_a_guest_that_does_not_read_has_a_limit() -> None:
    line = Line()
    with pytest.raises(InvalidRequestError, match="does not read"):
        for _ in range(3):
            line.console.send(bytes(MOST_INPUT // 2))
    with pytest.raises(InvalidRequestError, match="no machine"):
        SerialConsole().send("x")


# -- a processor that waits ----------------------------------------------------------------------


class WaitingVcpu:
    """A vCPU that comes back with MWAIT, interrupts masked."""

    index = 0
    apic = None
    changed = False
    nmi_waits = False
    masked_interrupts_wake = False

    def __init__(self) -> None:
        self.interrupts = SimpleNamespace(pending=lambda: self.interrupted)
        self.interrupted = False

    def run(self, _budget: int | None = None) -> VcpuExit:
        return VcpuExit.MWAIT

    @property
    def interruptible(self) -> bool:
        return False

    def line_changed(self) -> bool:
        return self.changed


def waiting(**attributes: bool) -> tuple[WaitingVcpu, Processor]:
    vcpu = WaitingVcpu()
    for name, value in attributes.items():
        setattr(vcpu, name, value)
    processor = Processor(vcpu, Bus())  # type: ignore[arg-type]
    processor.execute()
    return vcpu, processor


def test_mwait_ends_when_its_line_changes() -> None:
    vcpu, processor = waiting()
    assert not processor.ready()
    vcpu.changed = True
    assert processor.ready() and processor.prepare() and not processor.halted


@pytest.mark.parametrize("wake", [False, True])
def test_masked_interrupts_end_mwait_where_it_says_so(wake: bool) -> None:
    vcpu, processor = waiting(masked_interrupts_wake=wake)
    assert not processor.ready()
    vcpu.interrupted = True
    assert processor.ready() is wake


def test_mwait_is_looked_at_less_and_less_often_and_ends_in_the_end() -> None:
    _, processor = waiting()
    times = []
    while not processor.ready():
        patience = processor.patience()
        assert patience is not None
        times.append(patience)
    assert times[:-1] == sorted(times[:-1]) and times[0] < 1e-4 and 0.5 < sum(times) < 2
    assert processor.patience() is None
    processor.execute()
    assert processor.patience() == times[0]


def test_a_saved_wait_goes_on() -> None:
    vcpu, processor = waiting()
    again = Processor(vcpu, Bus())  # type: ignore[arg-type]
    again.load_state(processor.save_state())
    assert not again.ready() and again.patience() is not None
    vcpu.changed = True
    assert again.ready()


# -- threads of processors -------------------------------------------------------------------------


class BrokenVcpu:
    """A vCPU that raises what it never should."""

    index = 0
    interrupts = None
    apic = None
    error = ""

    def run(self, _budget: int | None = None) -> VcpuExit:
        raise ZeroDivisionError("surprise")

    def request_exit(self) -> None:
        """It is not running."""


def test_a_mistake_in_a_processor_is_reported_and_leaves_nothing_hanging() -> None:
    bus, reported = Bus(), []
    processor = Processor(BrokenVcpu(), bus)  # type: ignore[arg-type]
    told = threading.Event()

    def report(_processor: Processor, result: VcpuExit) -> None:
        reported.append(result)
        told.set()

    threads = Threads([processor], bus, RealClock(bus.lock), report, {})
    threads.resume()
    assert told.wait(PATIENCE)
    threads.pause()
    threads.close()
    assert reported == [VcpuExit.ERROR]
    assert processor.vcpu.error == "ZeroDivisionError: surprise"


# -- accelerators --------------------------------------------------------------------------------


def test_the_recompiler_says_which_hosts_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    there = accelerators.os.uname()
    other = type(there)((*there[:4], "aarch64"))
    monkeypatch.setattr(accelerators.os, "uname", lambda: other)
    with pytest.raises(UnsupportedFeatureError, match="not aarch64; there is interp"):
        accelerators.make("llvm", GuestMemory(MIB), Bus())
    accelerators.make("interp", GuestMemory(MIB), Bus()).close()


# -- sleep (S3) ----------------------------------------------------------------------------------


class SleepyBoard:
    """What :class:`Sleep` needs of a board, and one processor."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.power = SimpleNamespace(sleeping=False, wakers=0, wake_up=lambda: None)
        self.processor = SimpleNamespace(
            asleep=False, reset=self._reset, wake=SimpleNamespace(notify=lambda: None)
        )
        self.said: list[str] = []
        self.sleep = Sleep(
            self,  # type: ignore[arg-type]
            [self.processor],  # type: ignore[list-item]
            lambda event: self.said.append(event.name),
        )

    def _reset(self) -> None:
        self.processor.asleep = False

    def wake(self) -> None:
        self.power.sleeping, self.power.wakers = False, 0


def test_a_machine_falls_asleep_once_and_if_it_still_wants_to() -> None:
    board = SleepyBoard()
    board.sleep.begin()  # a reset has come between
    assert not board.sleep.asleep
    with pytest.raises(InvalidRequestError, match="not in suspended state"):
        board.sleep.check()
    board.power.sleeping = True
    board.sleep.check()
    board.sleep.begin()
    board.sleep.begin()
    assert board.sleep.asleep and board.said == ["SUSPEND"]
    board.power.wake_up()
    assert not board.sleep.asleep and board.said == ["SUSPEND", "WAKEUP"]


def test_what_wakes_a_machine_before_it_sleeps_is_not_lost() -> None:
    board = SleepyBoard()
    board.power.sleeping = True
    board.power.wakers = 0x400
    board.power.wake_up()
    assert board.said == []
    board.sleep.begin()
    assert board.said == ["SUSPEND", "WAKEUP"] and not board.sleep.asleep

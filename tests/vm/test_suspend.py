"""Linux suspends to RAM (ACPI's S3) and goes on, by all that wakes it, with either firmware."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools import bootable, guests
from tests.tools import small_guests as small
from tests.tools.peers import requires_peer
from vdisk.errors import InvalidRequestError
from vdisk.vm import Machine
from vdisk.vm.monitor.control import RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.monitor.control import MachineEvent

pytestmark = [requires_peer("qemu-img", "apt-get", "dpkg-deb"), pytest.mark.timeout(600)]
MIB = 1 << 20
BOOT_SECONDS, PATIENCE = 300, 60
MODULES = (*guests.DISK_MODULES, "virtio_net")
SYSLINUX = f"DEFAULT linux\nLABEL linux\nLINUX vmlinuz\nINITRD initrd.gz\nAPPEND {guests.APPEND}\n"
ALARM_SECONDS = 3600
ALARM = f"echo +{ALARM_SECONDS} > /sys/class/rtc/rtc0/wakealarm"


class Sleeper:
    """A shell in a machine that can be put to sleep."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.events: list[str] = []
        machine.subscribe(self._heard)
        self.shell = guests.Shell(machine, PATIENCE)

    def _heard(self, event: MachineEvent) -> None:
        self.events.append(event.name)

    def suspend(self) -> None:
        """Let the guest sleep; what it says when it wakes up is :meth:`awake`'s."""
        self.machine.serial[0].send("echo mem > /sys/power/state; echo woken '=' $?\n")
        self.until(RunState.SUSPENDED)

    def until(self, state: RunState) -> None:
        """Wait for the machine to come to this."""
        deadline = time.monotonic() + PATIENCE
        while self.machine.state is not state:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def awake(self) -> None:
        """The guest has gone on, and finds its disks and processors."""
        self.machine.run_until(serial="woken = 0", timeout=PATIENCE)
        assert self.machine.state is RunState.RUNNING
        assert self.shell.run("nproc").startswith("2\n")
        self.shell.run("echo 3 > /proc/sys/vm/drop_caches")
        for name in ("vda", "sda"):
            assert self.shell.run(f"dd if=/dev/{name} bs=7 count=1").startswith("content")


def linux(tmp_path: Path, **options: object) -> Machine:
    guest, disks = guests.guest(modules=MODULES), []
    for interface in ("virtio", "ide"):
        image = tmp_path / f"{interface}.qcow2"
        if not image.exists():
            vdisk.create(image, 16 * MIB, format="qcow2")
            with vdisk.open(image, "r+") as device:
                device.write(0, b"content")
        disks.append(f"{image},if={interface}")
    return Machine(
        memory=192 * MIB, accel="llvm", cpus=2, kernel=guest.kernel, initrd=guest.initrd,
        append=guests.APPEND, network="user", disks=disks, **options,
    )  # type: ignore[arg-type]  # fmt: skip


def test_what_wakes_linux(tmp_path: Path) -> None:
    with linux(tmp_path) as machine:
        sleeper = Sleeper(machine)
        sleeper.shell.start(BOOT_SECONDS)
        assert "[deep]" in sleeper.shell.run("cat /sys/power/mem_sleep")
        with pytest.raises(InvalidRequestError, match="not in suspended state"):
            machine.wake_up()
        by_hand: list[Callable[[], None]] = [
            machine.wake_up,
            machine.press_power_button,
            lambda: machine.press_keys("spc"),
        ]
        for wake in by_hand:
            sleeper.suspend()
            wake()
            sleeper.awake()
        sleeper.shell.run(ALARM)
        sleeper.suspend()
        with machine.bus.lock:
            machine.board.rtc._base += ALARM_SECONDS  # an hour later
        sleeper.awake()
        assert sleeper.events.count("SUSPEND") == sleeper.events.count("WAKEUP") == 4
        assert "RESET" not in sleeper.events
        said = sleeper.shell.run("dmesg")
        assert said.count("ACPI: PM: Waking up from system sleep state S3") == 4
        assert "unchecked MSR access" not in said
        sleeper.shell.power_off()


def test_a_sleeping_machine_is_stopped_saved_loaded_and_reset(tmp_path: Path) -> None:
    with linux(tmp_path) as machine:
        sleeper = Sleeper(machine)
        sleeper.shell.start(BOOT_SECONDS)
        sleeper.suspend()
        machine.pause()
        assert machine.state is RunState.PAUSED
        machine.resume()
        assert machine.state is RunState.SUSPENDED
        machine.save("asleep")
        machine.wake_up()
        sleeper.awake()
        machine.load("asleep")
        assert machine.state is RunState.SUSPENDED
        machine.wake_up()
        sleeper.awake()
        sleeper.suspend()
        machine.reset()
        assert machine.state is RunState.RUNNING
        sleeper.shell.start(BOOT_SECONDS)
    with linux(tmp_path) as machine:
        machine.load("asleep")
        machine.resume()
        assert machine.state is RunState.SUSPENDED
        machine.wake_up()
        Sleeper(machine).awake()


@requires_peer("syslinux", "mformat", "mcopy", small.SEABIOS)
def test_seabios_resumes_linux(tmp_path: Path) -> None:
    guest = guests.guest(modules=MODULES)
    files = {"vmlinuz": Path(guest.kernel), "initrd.gz": Path(guest.initrd)}
    disk = bootable.syslinux_disk(tmp_path, SYSLINUX, files)
    with Machine(
        memory=192 * MIB, accel="llvm", bios=small.SEABIOS, disks=[f"{disk},format=raw,snapshot=on"]
    ) as machine:
        sleeper = Sleeper(machine)
        sleeper.shell.start(BOOT_SECONDS)
        sleeper.suspend()
        machine.wake_up()
        machine.run_until(serial="woken = 0", timeout=PATIENCE)
        assert "Waking up from system sleep state S3" in sleeper.shell.run("dmesg")
        sleeper.shell.power_off()

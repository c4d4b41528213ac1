"""Linux on the whole machine: several processors, saved and loaded live, the same boot twice."""

from __future__ import annotations

from pathlib import Path

import pytest

import vdisk
from tests.tools import ext4, guests, peers
from tests.tools.peers import requires_peer
from vdisk.vm import Machine
from vdisk.vm.monitor.control import RunState

pytestmark = [
    requires_peer("qemu-img", "apt-get", "dpkg-deb", *ext4.TOOLS),
    pytest.mark.timeout(600),
]
MIB = 1 << 20
BOOT_SECONDS, COMMAND_SECONDS = 300, 60


def test_two_processors_saved_and_loaded_while_they_work(tmp_path: Path) -> None:
    guest = guests.guest()
    image = tmp_path / "disk.qcow2"
    vdisk.create(image, 16 * MIB, format="qcow2")
    with Machine(
        memory=192 * MIB,
        cpus=2,
        accel="llvm",
        kernel=guest.kernel,
        initrd=guest.initrd,
        append=guests.APPEND,
        disks=[f"{image},if=virtio"],
    ) as machine:
        shell = guests.Shell(machine, COMMAND_SECONDS).start(BOOT_SECONDS)
        assert shell.run("nproc").startswith("2\n")
        shell.run("echo before > /tmp/file; echo before | dd of=/dev/vda conv=fsync")
        machine.save("live")
        shell.run("echo after > /tmp/file; echo after! | dd of=/dev/vda conv=fsync")
        machine.load("live")
        assert shell.run("cat /tmp/file").startswith("before\n")
        shell.run("echo 3 > /proc/sys/vm/drop_caches")
        assert shell.run("dd if=/dev/vda bs=6 count=1").startswith("before")
        shell.power_off()
        assert machine.state is RunState.SHUTDOWN
    peers.run("qemu-img", "check", image)


@guests.on_demand
@pytest.mark.parametrize("interface", ["virtio", "ide"])
def test_saved_in_the_middle_of_its_boot(tmp_path: Path, interface: str) -> None:
    """The kernel has begun, its drivers have not: it boots on, twice, in two machines."""
    guest, image = guests.guest(), tmp_path / "disk.qcow2"
    vdisk.create(image, 16 * MIB, format="qcow2")
    with vdisk.open(image, "r+") as device:
        device.write(0, b"content")
    name = {"virtio": "vda", "ide": "sda"}[interface]

    def machine() -> Machine:
        return Machine(
            memory=192 * MIB, accel="llvm", kernel=guest.kernel, initrd=guest.initrd,
            append="console=ttyS0 panic=-1", disks=[f"{image},if={interface}"],
        )  # fmt: skip

    def boots_on(found: Machine) -> None:
        shell = guests.Shell(found, COMMAND_SECONDS).start(BOOT_SECONDS)
        assert shell.run(f"dd if=/dev/{name} bs=7 count=1").startswith("content")

    with machine() as first:
        first.run_until(serial="Memory: ", timeout=BOOT_SECONDS)
        first.save("early")
        boots_on(first)
        first.load("early")
        boots_on(first)
    with machine() as second:
        second.load("early")
        boots_on(second)
        said = second.serial[0].output()
        assert b"Memory: " not in said and b"Run /init" in said
    peers.run("qemu-img", "check", image)


@guests.on_demand
def test_a_session_is_recorded_and_repeated(tmp_path: Path) -> None:
    """Commands typed at their moments: the same words, after the same number of instructions."""
    guest, journal, image = guests.guest(), str(tmp_path / "journal"), tmp_path / "disk.raw"
    ext4.make(image, 16 * MIB, "disk", {"there": b"content\n"})

    def machine(replay: str | None) -> Machine:
        return Machine(
            memory=192 * MIB, accel="llvm", deterministic=True, replay=replay, reboot=False,
            kernel=guest.kernel, initrd=guest.initrd, append=guests.APPEND,
            disks=[f"{image},if=virtio,format=raw,snapshot=on"],
        )  # fmt: skip

    def footprint(found: Machine) -> tuple[object, ...]:
        statistics = found.statistics()
        return found.serial[0].output(), statistics["instructions"], statistics["uptime_ns"]

    with machine(None) as first:
        shell = guests.Shell(first, COMMAND_SECONDS).start(BOOT_SECONDS)
        assert "content" in shell.run("mount -t ext4 /dev/vda /mnt; cat /mnt/there; date")
        shell.run("head -c 100000 /dev/urandom > /mnt/new; md5sum /mnt/new; umount /mnt")
        shell.power_off()
        first.save_journal(journal)
        expected = footprint(first)
    with machine(journal) as second:
        second.run_until(timeout=2 * BOOT_SECONDS)
        assert footprint(second) == expected


def test_the_same_boot_twice() -> None:
    guest = guests.guest()
    seen = []
    for _ in range(2):
        with Machine(
            memory=192 * MIB, accel="llvm", deterministic=True, kernel=guest.kernel,
            initrd=guest.initrd, append=guests.APPEND + " nokaslr",
        ) as machine:  # fmt: skip
            seen.append(machine.run_until(serial=guests.READY, timeout=BOOT_SECONDS))
    assert seen[0] == seen[1]

"""Linux on the whole machine: several processors, saved and loaded live, the same boot twice."""

from __future__ import annotations

from pathlib import Path

import pytest

import vdisk
from tests.tools import guests, peers
from tests.tools.peers import requires_peer
from vdisk.vm import Machine
from vdisk.vm.monitor.control import RunState

pytestmark = [requires_peer("qemu-img", "apt-get", "dpkg-deb"), pytest.mark.timeout(600)]
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

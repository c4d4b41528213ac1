"""Linux on the whole machine: to a shell, disks read and written, saved, powered off."""

from __future__ import annotations

from pathlib import Path

import pytest

import vdisk
from tests.tools import peers
from tests.tools.linux_guest import READY, Linux
from tests.tools.peers import requires_peer
from vdisk.vm import Machine
from vdisk.vm.monitor.control import RunState

pytestmark = pytest.mark.timeout(300)  # a whole operating system, on a busy machine perhaps
MIB = 1 << 20
PATIENCE = 100
APPEND = "console=ttyS0 quiet cryptomgr.notests"


def command(machine: Machine, line: str) -> str:
    """What the guest's shell prints for a command."""
    machine.serial[0].send(line + "; echo fi''nished\n")
    return machine.run_until(serial="finished", timeout=PATIENCE).decode("utf-8", "replace")


@requires_peer("mke2fs", "qemu-img", "busybox")
def test_a_shell_two_disks_and_power_off(tmp_path: Path) -> None:
    linux = Linux()
    for name in ("virtio", "ide"):
        raw = tmp_path / f"{name}.raw"
        with raw.open("wb") as file:
            file.truncate(16 * MIB)
        peers.run("mke2fs", "-q", "-t", "ext4", raw)
        vdisk.create(tmp_path / f"{name}.qcow2", format="qcow2", backing_file=str(raw),
                     backing_format="raw")  # fmt: skip
    with Machine(
        memory=256 * MIB,
        cpus=2,
        accel="llvm",
        kernel=str(linux.kernel),
        initrd=str(linux.initrd(tmp_path / "initrd")),
        append=APPEND,
        disks=[f"{tmp_path}/virtio.qcow2,if=virtio", f"{tmp_path}/ide.qcow2"],
    ) as machine:
        machine.run_until(serial=READY, timeout=PATIENCE)
        assert "\n2\r" in command(machine, "nproc")
        for device in ("vda", "sda"):
            command(machine, f"mkdir /mnt/{device}; mount /dev/{device} /mnt/{device}")
            command(machine, f"echo kept-{device} > /mnt/{device}/file; sync")
            assert f"kept-{device}\r" in command(machine, f"cat /mnt/{device}/file")
        command(machine, "umount /mnt/*; echo 3 > /proc/sys/vm/drop_caches")
        machine.save("live")
        command(machine, "mount /dev/vda /mnt/vda; rm /mnt/vda/file; umount /mnt/vda")
        machine.load("live")
        found = command(machine, "mount /dev/vda /mnt/vda; cat /mnt/vda/file; umount /mnt/vda")
        assert "kept-vda\r" in found
        machine.serial[0].send("poweroff -f\n")
        assert machine.wait(PATIENCE)
        assert machine.state is RunState.SHUTDOWN
    for name in ("virtio", "ide"):
        peers.run("qemu-img", "check", tmp_path / f"{name}.qcow2")
    with vdisk.open(tmp_path / "ide.qcow2") as disk:
        blocks = disk.read(0, 16 * MIB)
    assert b"kept-sda\n" in blocks


def test_the_same_boot_twice(tmp_path: Path) -> None:
    linux = Linux()
    initrd = linux.initrd(tmp_path / "initrd")
    seen = []
    for _ in range(2):
        with Machine(
            memory=128 * MIB, accel="llvm", deterministic=True, kernel=str(linux.kernel),
            initrd=str(initrd), append=APPEND + " nokaslr",
        ) as machine:  # fmt: skip
            boot = machine.run_until(serial=READY, timeout=PATIENCE)
            seen.append(boot)
    assert seen[0] == seen[1]

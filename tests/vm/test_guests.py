"""Debian's kernels on our processor and disks: file systems, and what a killed guest leaves."""

from __future__ import annotations

import hashlib
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

import vdisk
from tests.tools import bootable, debian, ext4, guests, nbd_server, qemu
from tests.tools.debian_disk import debian_disk, file_system
from tests.tools.peers import requires_peer
from vdisk.nbd_server import Export, Server
from vdisk.vm import Machine
from vdisk.vm.monitor.control import RunState

pytestmark = [
    requires_peer("qemu-img", "apt-get", "dpkg-deb", *ext4.TOOLS),
    pytest.mark.timeout(600),
]
MIB = 1 << 20
MEMORY = 192 * MIB
SIZE = 48 * MIB
FILE_SIZE = 3 * MIB + 12345
BOOT_SECONDS = 300
COMMAND_SECONDS = 120
CLUSTER = 64 << 10


class Disk(NamedTuple):
    """An ext4 that the guest finds by its ``label``, with a file ``there`` in it.

    ``machine``: as the machine takes it; ``image``: what holds it afterwards.
    """

    label: str
    machine: str
    image: Path
    format: str
    there: bytes


def content(seed: str) -> bytes:
    return random.Random(seed).randbytes(FILE_SIZE)


def raw_disk(folder: Path, name: str) -> Path:
    path = folder / f"{name}.raw"
    ext4.make(path, SIZE, name, {"there": content(name)})
    return path


def qcow2_disk(folder: Path, name: str) -> Path:
    raw, path = raw_disk(folder, name), folder / f"{name}.qcow2"
    vdisk.convert(raw, path, target_format="qcow2")
    return path


def chain(folder: Path) -> tuple[Path, list[Path]]:
    """Three images, each over the one before, whose file systems have one file more each."""
    raw = raw_disk(folder, "chain")
    base = folder / "chain-0.qcow2"
    vdisk.convert(raw, base, target_format="qcow2")
    images = [base]
    for level in (1, 2):
        ext4.add(raw, f"level{level}", content(f"level{level}"))
        image = folder / f"chain-{level}.qcow2"
        vdisk.create(image, format="qcow2", backing_file=images[-1].name, backing_format="qcow2")
        write_differences(raw, image)
        images.append(image)
    return images[-1], images[:-1]


def write_differences(raw: Path, image: Path) -> None:
    data = raw.read_bytes()
    with vdisk.open(image, "r+") as device:
        for offset in range(0, SIZE, CLUSTER):
            new = data[offset : offset + CLUSTER]
            if device.read(offset, len(new)) != new:
                device.write(offset, new)


def digest(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def use(shell: guests.Shell, disk: Disk) -> bytes:
    """Read the file that is there, and write another, made of it; what that must hold."""
    shell.run(f"mount -t ext4 LABEL={disk.label} /mnt")
    assert digest(disk.there) in shell.run("md5sum /mnt/there")
    shell.run("cat /mnt/there /bin/busybox > /mnt/written; sync; rm /mnt/there")
    shell.run("umount /mnt")
    return disk.there + (debian.unpacked("busybox-static") / "bin" / "busybox").read_bytes()


def check_disk(disk: Disk, written: bytes, folder: Path) -> None:
    """The image is sound, and so is the file system in it, which holds what was written."""
    if disk.format == "qcow2":
        report = qemu.check(disk.image)
        assert not report.get("leaks") and not report.get("corruptions")
    raw = folder / f"{disk.label}.checked"
    qemu.img("convert", "-f", disk.format, "-O", "raw", disk.image, raw)
    ext4.check(raw)
    assert ext4.read(raw, "written") == written
    assert "there" not in ext4.names(raw)


def test_linux_reads_and_writes_ext4_on_every_kind_of_disk(tmp_path: Path) -> None:
    guest = guests.guest()
    top, below = chain(tmp_path)
    untouched = [digest(path.read_bytes()) for path in below]
    virtio, served = qcow2_disk(tmp_path, "virtio"), qcow2_disk(tmp_path, "exported")
    ide, ide_raw = qcow2_disk(tmp_path, "ide"), raw_disk(tmp_path, "idedisk")
    with ExitStack() as stack:
        uri = stack.enter_context(exported(served))
        disks = [
            Disk("virtio", f"{virtio},if=virtio", virtio, "qcow2", content("virtio")),
            Disk("chain", f"{top},if=virtio", top, "qcow2", content("chain")),
            Disk("exported", f"{uri},if=virtio", served, "qcow2", content("exported")),
            Disk("ide", f"{ide},if=ide", ide, "qcow2", content("ide")),
            Disk("idedisk", f"{ide_raw},if=ide,format=raw", ide_raw, "raw", content("idedisk")),
        ]
        machine = stack.enter_context(
            Machine(
                memory=MEMORY,
                kernel=guest.kernel,
                initrd=guest.initrd,
                append=guests.APPEND,
                disks=[disk.machine for disk in disks],
                accel="llvm",
                reboot=False,
            )
        )
        shell = guests.Shell(machine, COMMAND_SECONDS).start(BOOT_SECONDS)
        assert "processor\t: 0" in shell.run("cat /proc/cpuinfo")
        written = {disk.label: use(shell, disk) for disk in disks}
        assert {"level1", "level2"} <= set(shell.run(listing("chain")).split())
        shell.power_off()
    for disk in disks:
        check_disk(disk, written[disk.label], tmp_path)
    assert untouched == [digest(path.read_bytes()) for path in below]


def listing(label: str) -> str:
    return f"mount -t ext4 LABEL={label} /mnt; ls /mnt; umount /mnt"


def serving(device: vdisk.BlockDevice) -> Server:
    return Server([Export("", device)])


WRITE_FOREVER = (
    "mount -t ext4 /dev/{device} /mnt; n=0; while n=$((n+1)); do "
    "dd if=/mnt/there of=/mnt/file$((n%12)).$n bs=64k conv=fsync 2>/dev/null && "
    'echo "synced" file$((n%12)).$n; rm -f /mnt/file$((n%12)).$((n-12)); done\n'
)


@pytest.mark.parametrize(
    ("device", "interface"),
    [("vda", "virtio"), pytest.param("sda", "ide", marks=guests.on_demand)],
)
def test_a_killed_guest_loses_nothing_that_it_fsynced(
    tmp_path: Path, device: str, interface: str
) -> None:
    image = qcow2_disk(tmp_path, "killed")
    synced = killed_after(f"{image},if={interface}", WRITE_FOREVER.format(device=device), count=9)
    report = qemu.img("check", "-f", "qcow2", image, check=False)
    assert report.returncode in {0, 3}, report.stdout  # clusters may have leaked, no more
    raw = tmp_path / "killed.checked"
    qemu.img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    assert ext4.replay_journal(raw)
    ext4.check(raw)
    for name in synced:
        assert ext4.read(raw, name) == content("killed")


def killed_after(disk: str, command: str, *, count: int) -> list[str]:
    """Run ``command`` in a machine, kill that after so many files: their names."""
    guest = guests.guest()
    words = [sys.executable, "-m", "vdisk.cli.vm", "run", "--accel", "llvm", "--memory", "192M"]
    words += ["--kernel", guest.kernel, "--initrd", guest.initrd, "--append", guests.APPEND]
    words += ["--serial", "stdio", "--display", "none", "--no-reboot", "--disk", disk]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            read_until(process.stdout, guests.READY)
            read_until(process.stdout, "Enter 'help'")  # the shell, which has its terminal now
            process.stdin.write(command.encode())
            process.stdin.flush()
            names = [read_until(process.stdout, r"synced (file[\d.]+)\r?$") for _ in range(count)]
        finally:
            process.send_signal(signal.SIGKILL)
    return names


def read_until(stream: object, pattern: str) -> str:
    said = []
    for line in stream:  # type: ignore[attr-defined]
        said.append(line.decode(errors="replace").rstrip("\n"))
        if match := re.search(pattern, said[-1]):
            return match.group(1) if match.groups() else match.group()
    raise AssertionError("\n".join(said[-20:]))


@guests.on_demand
@pytest.mark.parametrize(
    ("flavour", "machine_name"),
    [
        pytest.param(guests.I686, "i686", id="686"),
        pytest.param(guests.GENERIC, "x86_64", id="generic"),
    ],
)
def test_larger_kernels_reach_their_shell(
    tmp_path: Path, flavour: guests.Flavour, machine_name: str
) -> None:
    guest = guests.guest(flavour)
    disk = raw_disk(tmp_path, "disk")
    with Machine(
        memory=MEMORY,
        kernel=guest.kernel,
        initrd=guest.initrd,
        append=guests.APPEND,
        disks=[f"{disk},if=virtio,format=raw"],
        accel="llvm",
        reboot=False,
    ) as machine:
        shell = guests.Shell(machine, COMMAND_SECONDS).start(BOOT_SECONDS)
        assert machine_name in shell.run("uname -m")
        assert digest(content("disk")) in shell.run(
            "mount -t ext4 /dev/vda /mnt; md5sum /mnt/there"
        )
        shell.power_off()


@guests.on_demand
@pytest.mark.timeout(1200)
@requires_peer("debootstrap", "grub-mkimage", str(bootable.GRUB))
@pytest.mark.parametrize("interface", ["virtio", "ide"])
@pytest.mark.parametrize("kind", ["image", "export", "chain"])
def test_an_installed_debian_reaches_its_login(tmp_path: Path, kind: str, interface: str) -> None:
    """By its own boot sector and GRUB; its root is found by its label."""
    disk, below = tmp_path / "debian.qcow2", [debian_disk()]
    if kind == "chain":
        below.append(tmp_path / "middle.qcow2")
        overlay(below[1], below[0])
    overlay(disk, below[-1])
    untouched = [file_digest(path) for path in below]
    with ExitStack() as stack:
        name = stack.enter_context(exported(disk)) if kind == "export" else str(disk)
        machine = Machine(
            memory=2 * MEMORY, disks=[f"{name},if={interface}"], accel="llvm", reboot=False
        )
        said = use_debian(stack.enter_context(machine))
    check_debian(disk, said, tmp_path)
    assert untouched == [file_digest(path) for path in below]


def overlay(image: Path, below: Path) -> None:
    vdisk.create(image, format="qcow2", backing_file=str(below), backing_format="qcow2")


@contextmanager
def exported(image: Path) -> Iterator[str]:
    """An NBD export of an image: its URI."""
    with vdisk.open(image, "r+") as device, nbd_server.running(lambda: serving(device)) as server:
        yield server.uri


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def use_debian(machine: Machine) -> str:
    """Log in, write a file, power off as its users do: the MD5 of what was written."""
    shell = guests.Shell(machine, COMMAND_SECONDS).log_in(2 * BOOT_SECONDS)
    assert "bookworm" in shell.run("cat /etc/os-release")
    shell.run("dd if=/dev/urandom of=/root/file bs=1M count=8; sync")
    said = shell.run("md5sum /root/file").split()[0]
    machine.serial[0].send("systemctl poweroff\n")
    machine.run_until(timeout=BOOT_SECONDS)
    assert machine.state is RunState.SHUTDOWN
    return said


def check_debian(disk: Path, digest_said: str, folder: Path) -> None:
    """The image is sound, its file system was unmounted, and what was written is there."""
    qemu.check(disk)
    found = file_system(disk, folder)
    ext4.check(found)
    assert digest(ext4.read(found, "root/file")) == digest_said


@guests.on_demand
def test_linux_reads_and_writes_a_diskette(tmp_path: Path) -> None:
    """Its driver asks the controller what it is, and moves whole cylinders by DMA."""
    guest = guests.guest(guests.GENERIC, modules=["floppy"])
    before = random.Random(82077).randbytes(bootable.DISKETTE)
    image = tmp_path / "floppy.img"
    image.write_bytes(before)
    with Machine(
        memory=MEMORY,
        kernel=guest.kernel,
        initrd=guest.initrd,
        append=guests.APPEND,
        floppies=[f"{image},format=raw"],
        accel="llvm",
        reboot=False,
    ) as machine:
        shell = guests.Shell(machine, COMMAND_SECONDS).start(BOOT_SECONDS)
        assert "post-1991 82077" in shell.run("dmesg | grep FDC")
        assert digest(before) in shell.run("md5sum /dev/fd0")
        shell.run("dd if=/dev/fd0 of=/tmp/x bs=1k count=100 skip=1")
        shell.run("dd if=/tmp/x of=/dev/fd0 bs=1k seek=501; sync")
        shell.power_off()
    expected = before[: 501 << 10] + before[1 << 10 : 101 << 10] + before[601 << 10 :]
    assert image.read_bytes() == expected

"""/dev/nbdN of a real Linux: its module ``nbd`` as the client of vdisk's server, told by vdisk.

All of it happens inside a guest of QEMU's (Debian's kernel and Python), so it needs no module and
no privilege here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tools import guests, python_guest
from tests.tools.peers import requires_peer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.tools.guests import Shell

pytestmark = [
    guests.on_demand,
    requires_peer("qemu-system-x86_64", "apt-get", "dpkg-deb"),
    pytest.mark.timeout(900),
]
BOOT_SECONDS, COMMAND_SECONDS = 300, 120
SECTORS = 16 << 11
URI = "'nbd+unix:///?socket=/tmp/socket'"
HOW = pytest.mark.parametrize("how", ["netlink", "ioctl"])


@pytest.fixture(scope="module")
def booted() -> Iterator[Shell]:
    with python_guest.running(("nbd", "ext4"), BOOT_SECONDS) as shell:
        shell.timeout = COMMAND_SECONDS
        shell.run("dd if=/dev/urandom of=/tmp/content bs=1M count=16")
        yield shell


@pytest.fixture
def shell(booted: Shell) -> Iterator[Shell]:
    """With a disk that nobody serves yet; afterwards nothing is left of what was tried."""
    booted.run("cp /tmp/content /tmp/disk")
    yield booted
    booted.run("umount /mnt; vdisk-nbd disconnect nbd0", check=False)
    wait_for_size(booted, 0)
    booted.run("kill -9 $(cat /tmp/pid); rm -f /tmp/socket /tmp/pid", check=False)


def serve(shell: Shell, *words: str) -> None:
    options = " ".join(("--fork --pid-file /tmp/pid -k /tmp/socket -f raw", *words))
    shell.run(f"vdisk-nbd serve {options} /tmp/disk")


def connect(shell: Shell, *words: str) -> None:
    said = shell.run(f"vdisk-nbd connect --device /dev/nbd0 {' '.join(words)} {URI}")
    assert "/dev/nbd0" in said.splitlines()
    wait_for_size(shell, SECTORS)


def wait_for_size(shell: Shell, sectors: int) -> None:
    """The kernel says so a moment after it was told."""
    shell.run(
        f"for n in $(seq 100); do [ $(cat /sys/block/nbd0/size) = {sectors} ] && break; sleep 0.1;"
        f" done; [ $(cat /sys/block/nbd0/size) = {sectors} ]"
    )


def attribute(shell: Shell, name: str) -> str:
    return shell.run(f"cat /sys/block/nbd0/{name}").splitlines()[0]


@HOW
def test_a_disk_with_a_file_system(shell: Shell, how: str) -> None:
    serve(shell, "--discard=unmap")
    connect(shell, "--how", how)
    assert attribute(shell, "ro") == "0"
    shell.run("cmp /dev/nbd0 /tmp/content")
    shell.run("mke2fs -F /dev/nbd0 > /dev/null && mount -t ext4 /dev/nbd0 /mnt")
    shell.run("head -c 5000000 /tmp/content > /mnt/file && umount /mnt")
    shell.run("vdisk-nbd disconnect /dev/nbd0")
    wait_for_size(shell, 0)
    connect(shell, "--how", how, "--block-size", "1024")
    assert attribute(shell, "queue/logical_block_size") == "1024"
    shell.run("mount -t ext4 -o ro /dev/nbd0 /mnt")
    shell.run("head -c 5000000 /tmp/content | cmp - /mnt/file && umount /mnt")
    shell.run("cmp /dev/nbd0 /tmp/disk")
    shell.run("vdisk-nbd disconnect nbd0")
    wait_for_size(shell, 0)


@HOW
def test_what_is_read_only_stays_so(shell: Shell, how: str) -> None:
    serve(shell, "-r")
    connect(shell, "--how", how)
    assert attribute(shell, "ro") == "1"
    shell.run("! dd if=/dev/zero of=/dev/nbd0 bs=4096 count=1 conv=fsync")
    shell.run("cmp /dev/nbd0 /tmp/content && cmp /tmp/disk /tmp/content")


@HOW
def test_several_connections(shell: Shell, how: str) -> None:
    serve(shell)
    connect(shell, "--how", how, "--connections", "3")
    shell.run("cmp /dev/nbd0 /tmp/content")
    # The connected sockets of the server have its path, and state 3 (SS_CONNECTED).
    assert shell.run("grep -c ' 03 .*/tmp/socket' /proc/net/unix").startswith("3\n")
    shell.run("dd if=/tmp/content of=/dev/nbd0 bs=4096 seek=7 count=999 conv=fsync,notrunc")
    shell.run("dd if=/tmp/content of=/tmp/disk.2 bs=4096 count=999 && cp /tmp/content /tmp/other")
    shell.run("dd if=/tmp/disk.2 of=/tmp/other bs=4096 seek=7 conv=notrunc")
    shell.run("cmp /tmp/other /tmp/disk")


@HOW
def test_the_server_is_gone(shell: Shell, how: str) -> None:
    serve(shell)
    connect(shell, "--how", how, "--timeout", "2")
    shell.run("kill -9 $(cat /tmp/pid)")
    # With an error, or nothing at all where the device ended with its process.
    said = shell.run("dd if=/dev/nbd0 of=/dev/null bs=4096 count=1", check=False)
    assert "1+0 records in" not in said


def test_what_is_refused(shell: Shell) -> None:
    serve(shell)
    connect(shell)
    for how in ("netlink", "ioctl"):
        said = shell.run(f"! vdisk-nbd connect --how {how} --device /dev/nbd0 {URI}")
        assert "in use" in said or "busy" in said, said
    said = shell.run(f"! vdisk-nbd connect --how ioctl --device /dev/nbd77 {URI}")
    assert "nbd77" in said and "Traceback" not in said, said


def test_a_device_that_is_made_for_it(shell: Shell) -> None:
    """There are 16 devices at first; netlink knows no such end."""
    serve(shell)
    said = shell.run(f"vdisk-nbd connect --how netlink --device /dev/nbd77 {URI}")
    assert "/dev/nbd77" in said.splitlines()
    shell.run("cmp /dev/nbd77 /tmp/content && vdisk-nbd disconnect /dev/nbd77")
    assert "Traceback" not in shell.run("vdisk-nbd disconnect /dev/nbd77", check=False)

"""Devices made by ioctl: what the kernel is told, in which order, and what becomes of failures.

The kernel is a fake, a function in place of ``ioctl``, and so are /dev and /sys.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.tools.hostile_server import HostileServer, honest
from tests.tools.leftovers import no_new_descriptors
from tests.tools.nbd_pair import MemoryDisk
from tests.tools.patience import PATIENCE
from vdisk.errors import DeviceError, InvalidRequestError, NotFoundError, UnsupportedFeatureError
from vdisk.nbd.connect import ClientSettings
from vdisk.nbd.uri import parse_uri
from vdisk.nbd.wire import TransmissionFlag
from vdisk.stores._nbd import kernel_ioctl as ioctls
from vdisk.stores._nbd.handshake import Server
from vdisk.stores._nbd.kernel import Device
from vdisk.stores._nbd.tls import TlsSettings

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20


class FakeKernel:
    """Remembers what it is told.  ``failures``: errno by request, or by (device, request)."""

    def __init__(self, folder: Path, devices: int = 3) -> None:
        (folder / "dev").mkdir()
        for number in range(devices):
            (folder / "dev" / f"nbd{number}").touch()
            (folder / "sys/block" / f"nbd{number}").mkdir(parents=True)
        self.places = ioctls.Places(folder)
        self.folder = folder
        self.told: list[tuple[str, int, int | bytes]] = []
        self.failures: dict[int | tuple[str, int], int] = {}
        self.sockets: list[socket.socket] = []
        self.disconnected = threading.Event()

    def use(self, number: int) -> None:
        (self.folder / "sys/block" / f"nbd{number}" / "pid").write_text("1\n")

    def ioctl(self, descriptor: int, request: int, argument: int | bytes) -> object:
        device = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        self.told.append((device, request, argument))
        failure = self.failures.get(request) or self.failures.get((device, request))
        if failure:
            raise OSError(failure, os.strerror(failure))
        if request == ioctls.NBD_SET_SOCK:
            assert isinstance(argument, int)
            self.sockets.append(socket.socket(fileno=os.dup(argument)))
        elif request == ioctls.NBD_DO_IT:
            assert self.disconnected.wait(PATIENCE)
        elif request == ioctls.NBD_DISCONNECT:
            self.disconnected.set()
        elif request == ioctls.NBD_CLEAR_SOCK:
            self.forget()
        return 0

    def forget(self) -> None:
        for each in self.sockets:
            each.close()
        self.sockets.clear()

    def names(self) -> list[tuple[str, int | bytes]]:
        known = {
            value: name for name, value in vars(ioctls).items() if name.startswith(("NBD_", "BLK"))
        }
        return [(known[request], argument) for _device, request, argument in self.told]


def server_at(uri: str) -> Server:
    plain = ClientSettings(meta_contexts=(), structured_replies=False, extended_headers=False)
    return Server(parse_uri(uri), plain, TlsSettings())


def test_what_the_kernel_is_told(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    kernel.use(0)
    disk = MemoryDisk.of(SIZE)
    with HostileServer(honest(disk)) as hosted:
        device = Device(block_size=1024, timeout=30, connections=2)
        with ioctls.attach(server_at(hosted.uri), device, kernel.places, kernel.ioctl) as attached:
            assert attached.path == str(tmp_path / "dev" / "nbd1")
            assert hosted.connections == 2
            names = kernel.names()
            assert [name for name, _ in names] == [
                *["NBD_SET_SOCK"] * 2,
                "NBD_SET_BLKSIZE",
                "NBD_SET_SIZE_BLOCKS",
                "NBD_SET_FLAGS",
                "NBD_SET_TIMEOUT",
            ]
            assert dict(names[2:]) == {
                "NBD_SET_BLKSIZE": 1024,
                "NBD_SET_SIZE_BLOCKS": 1024,
                "NBD_SET_FLAGS": int(disk.info.flags | TransmissionFlag.NBD_FLAG_HAS_FLAGS),
                "NBD_SET_TIMEOUT": 30,
            }
            running = threading.Thread(target=attached.run)
            running.start()
            # What the kernel would do with its connections.
            connection = kernel.sockets[1]
            connection.sendall(
                b"\x25\x60\x95\x13" + bytes(4) + b"cookie!!" + bytes(8) + b"\0\0\2\0"
            )
            reply = b""
            while len(reply) < 16 + 512:
                reply += connection.recv(4096)
            assert reply == b"\x67\x44\x66\x98\0\0\0\0cookie!!" + bytes(512)
            ioctls.disconnect(1, kernel.places, kernel.ioctl)
            running.join(PATIENCE)
            assert not running.is_alive()
            assert kernel.names()[-1][0] == "NBD_CLEAR_SOCK"


@pytest.mark.parametrize("how", [errno.EBUSY, errno.EINVAL], ids=["by ioctl", "by netlink"])
def test_a_device_taken_meanwhile_is_passed_over(tmp_path: Path, how: int) -> None:
    kernel = FakeKernel(tmp_path)
    kernel.failures[("nbd0", ioctls.NBD_SET_SOCK)] = how
    with HostileServer(honest(MemoryDisk.of(SIZE))) as hosted:
        place = server_at(hosted.uri)
        with ioctls.attach(place, Device(), kernel.places, kernel.ioctl) as attached:
            assert attached.path.endswith("nbd1")
        with pytest.raises(DeviceError, match="in use"):
            ioctls.attach(place, Device(number=0), kernel.places, kernel.ioctl)


def test_a_kernel_without_flags_is_kept_from_writing(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    kernel.failures[ioctls.NBD_SET_FLAGS] = errno.ENOTTY
    disk = MemoryDisk.of(SIZE, flags=TransmissionFlag.NBD_FLAG_READ_ONLY)
    with (
        HostileServer(honest(disk)) as hosted,
        ioctls.attach(server_at(hosted.uri), Device(), kernel.places, kernel.ioctl),
    ):
        assert ("BLKROSET", b"\1\0\0\0") in kernel.names()


@pytest.mark.parametrize(
    "request_", [ioctls.NBD_SET_BLKSIZE, ioctls.NBD_SET_SIZE_BLOCKS, ioctls.NBD_SET_TIMEOUT]
)
def test_a_refusal_leaves_nothing_behind(tmp_path: Path, request_: int) -> None:
    kernel = FakeKernel(tmp_path)
    kernel.failures[request_] = errno.EPERM
    with no_new_descriptors(), HostileServer(honest(MemoryDisk.of(SIZE))) as hosted:
        with pytest.raises(DeviceError, match="not permitted"):
            ioctls.attach(server_at(hosted.uri), Device(), kernel.places, kernel.ioctl)
        with pytest.raises(InvalidRequestError, match="power of 2"):
            ioctls.attach(
                server_at(hosted.uri), Device(block_size=700), kernel.places, kernel.ioctl
            )
        assert kernel.told[-1][1] in (ioctls.NBD_CLEAR_SOCK, ioctls.NBD_SET_SOCK)


def test_the_server_may_leave_first(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    with HostileServer(honest(MemoryDisk.of(SIZE))) as hosted:
        for number, expected in ((errno.EPIPE, None), (errno.EIO, DeviceError)):
            kernel.failures[ioctls.NBD_DO_IT] = number
            place = server_at(hosted.uri)
            with ioctls.attach(place, Device(), kernel.places, kernel.ioctl) as attached:
                if expected is None:
                    attached.run()
                else:
                    with pytest.raises(expected):
                        attached.run()
                assert kernel.names()[-1][0] == "NBD_CLEAR_SOCK"


def test_systems_without_devices(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, devices=0)
    place = server_at("nbd+unix:///?socket=/nowhere")
    with pytest.raises(UnsupportedFeatureError, match="modprobe nbd"):
        ioctls.attach(place, Device(), kernel.places, kernel.ioctl)
    with pytest.raises(NotFoundError):
        ioctls.disconnect(7, kernel.places, kernel.ioctl)
    assert kernel.told == []

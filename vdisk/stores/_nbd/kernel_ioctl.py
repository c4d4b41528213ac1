"""The older way to hand a connection to the Linux kernel: ioctls on /dev/nbdN (linux/nbd.h).

For kernels whose module ``nbd`` has no netlink family (before 4.12), and places where netlink is
out of reach, as in many containers.  Here somebody has to stay: NBD_DO_IT returns when the device
is disconnected, and the device is there as long as it runs::

    with attach(server, device) as attached:
        print(attached.path)
        attached.run()              # until NBD_DISCONNECT, or the server is gone

Sizes and flags are told before; each connection is one NBD_SET_SOCK.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Final

from vdisk.errors import DeviceError, UnsupportedFeatureError, from_os_error
from vdisk.nbd.wire import TransmissionFlag
from vdisk.stores._nbd.kernel import block_size_for, open_for_kernel

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from typing import Self

    Ioctl = Callable[[int, int, int | bytes], object]

    from vdisk.nbd.session import Session
    from vdisk.stores._nbd.handshake import Server
    from vdisk.stores._nbd.kernel import Device

NBD_SET_SOCK: Final = 0xAB00
NBD_SET_BLKSIZE: Final = 0xAB01
NBD_DO_IT: Final = 0xAB03
NBD_CLEAR_SOCK: Final = 0xAB04
NBD_CLEAR_QUE: Final = 0xAB05
NBD_SET_SIZE_BLOCKS: Final = 0xAB07
NBD_DISCONNECT: Final = 0xAB08
NBD_SET_TIMEOUT: Final = 0xAB09
NBD_SET_FLAGS: Final = 0xAB0A
BLKROSET: Final = 0x125D

INT: Final = Struct("=i")

MOST_DEVICES: Final = 4096
"""Devices looked at for a free one: the module makes 16, and no system asks for more than that."""


class Places:
    """Where a system has its devices; of a test, somewhere else."""

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self.devices = Path(root, "dev")
        self.blocks = Path(root, "sys/block")

    def path(self, number: int) -> str:
        return str(self.devices / f"nbd{number}")

    def free(self) -> list[int]:
        """The numbers of the devices that nobody uses: those in use have a "pid"."""
        found = []
        for number in range(MOST_DEVICES):
            if not (self.devices / f"nbd{number}").exists():
                break
            if not (self.blocks / f"nbd{number}" / "pid").exists():
                found.append(number)
        return found


class DeviceFile:
    """/dev/nbdN, opened.  ``ioctl``: that of ``fcntl``."""

    def __init__(self, path: str, ioctl: Ioctl) -> None:
        self.path = path
        self._ioctl = ioctl
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise from_os_error(error, path=path, operation="open the device") from error
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, request: int, argument: int | bytes = 0) -> None:
        self._ioctl(self._fd, request, argument)

    def attach(self, session: Session, device: Device, sockets: Sequence[socket.socket]) -> None:
        """Tell the kernel all about an export; raises ``OSError``, EBUSY if it is in use."""
        size = block_size_for(session, device)
        blocks = session.export.size // size
        for each in sockets:
            self._give(each)
        try:
            self._do(NBD_SET_BLKSIZE, size)
            self._do(NBD_SET_SIZE_BLOCKS, blocks)
            self._set_flags(session)
            self._do(NBD_SET_TIMEOUT, device.timeout)
        except OSError:
            self._do(NBD_CLEAR_SOCK)
            raise
        self._sockets = list(sockets)

    def _give(self, connected: socket.socket) -> None:
        try:
            self._do(NBD_SET_SOCK, connected.fileno())
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # What Linux says of a device that netlink has connected (6.1).
            raise OSError(errno.EBUSY, "in use, by netlink") from error

    def _set_flags(self, session: Session) -> None:
        try:
            self._do(NBD_SET_FLAGS, int(session.export.flags))
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
            # A kernel that knows no flags (before 3.9) can at least be kept from writing.
            read_only = TransmissionFlag.NBD_FLAG_READ_ONLY in session.export.flags
            self._do(BLKROSET, INT.pack(read_only))

    def run(self) -> None:
        """Be the device's process, until it is disconnected or its server is gone."""
        try:
            self._do(NBD_DO_IT)
        except OSError as error:
            # EPIPE: the server left first.  EBADR, ESHUTDOWN: we were disconnected.
            if error.errno not in (errno.EPIPE, errno.EBADR, errno.ESHUTDOWN, errno.EINTR):
                raise from_os_error(error, path=self.path, operation="be a device") from error
        finally:
            with contextlib.suppress(OSError):
                self._do(NBD_CLEAR_QUE)
            with contextlib.suppress(OSError):
                self._do(NBD_CLEAR_SOCK)

    def disconnect(self) -> None:
        """Take the device away from its server: the process that runs it ends."""
        try:
            self._do(NBD_CLEAR_QUE)
            self._do(NBD_DISCONNECT)
            self._do(NBD_CLEAR_SOCK)
        except OSError as error:
            raise from_os_error(error, path=self.path, operation="disconnect") from error

    def close(self) -> None:
        """Close the device, and the connections that were given to it."""
        if self._sockets:
            with contextlib.suppress(OSError):
                self._do(NBD_CLEAR_SOCK)
        os.close(self._fd)
        for each in self._sockets:
            each.close()


def attach(
    server: Server,
    device: Device,
    places: Places | None = None,
    ioctl: Ioctl | None = None,
) -> DeviceFile:
    """Connect to a server and make a device of the export, to be :meth:`~DeviceFile.run`."""
    places = places or Places()
    ioctl = ioctl or _system_ioctl()
    numbers = places.free() if device.number is None else [device.number]
    if not numbers:
        raise UnsupportedFeatureError(
            "there is no free /dev/nbdN, or this kernel has no nbd module: modprobe nbd"
        )
    session, sockets = open_for_kernel(server, device)
    with contextlib.ExitStack() as stack:
        for each in sockets:
            stack.enter_context(each)
        for number in numbers:
            attached = DeviceFile(places.path(number), ioctl)
            if _attached(attached, session, device, sockets):
                stack.pop_all()
                return attached
        raise DeviceError(
            "in use already", path=attached.path, errno=errno.EBUSY, operation="connect"
        )


def _attached(
    attached: DeviceFile, session: Session, device: Device, sockets: Sequence[socket.socket]
) -> bool:
    """Whether the device took the connections; if not, somebody else has it, and it is closed."""
    try:
        attached.attach(session, device, sockets)
    except OSError as error:
        attached.close()
        if error.errno == errno.EBUSY:
            return False
        raise from_os_error(error, path=attached.path, operation="connect") from error
    except BaseException:
        attached.close()
        raise
    return True


def disconnect(
    number: int,
    places: Places | None = None,
    ioctl: Ioctl | None = None,
) -> None:
    """Take /dev/nbdN away from its server."""
    path = (places or Places()).path(number)
    with DeviceFile(path, ioctl or _system_ioctl()) as device:
        device.disconnect()


def _system_ioctl() -> Ioctl:
    try:
        from fcntl import ioctl
    except ImportError as error:
        raise UnsupportedFeatureError("only Linux makes block devices of NBD exports") from error

    def call(descriptor: int, request: int, argument: int | bytes) -> object:
        return ioctl(descriptor, request, argument)

    return call

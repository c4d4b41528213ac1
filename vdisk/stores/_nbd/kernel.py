"""Handing a connection to the Linux kernel, which makes a block device of it: /dev/nbdN.

The kernel speaks the transmission phase (simple replies only); who connects and negotiates is a
program, which then tells it by generic netlink (linux/nbd-netlink.h)::

    nlmsghdr      length:32  type:16 (of the family "nbd")  flags:16  sequence:32  port:32
    genlmsghdr    command:8  version:8  reserved:16
    attributes    length:16  type:16  payload, padded to 4 bytes; some contain attributes

All integers are in the machine's own order.  The family's number is asked of the controller
first; a kernel without the module ``nbd`` does not know it.  The older way is in
:mod:`vdisk.stores._nbd.kernel_ioctl`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING, Final, NamedTuple

from vdisk.errors import (
    DeviceError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedFeatureError,
    from_os_error,
)
from vdisk.nbd.session import TlsMode
from vdisk.nbd.wire import TransmissionFlag
from vdisk.stores._nbd.handshake import open_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vdisk.nbd.session import Session
    from vdisk.stores._nbd.handshake import Server

NETLINK_GENERIC: Final = 16
NLM_F_REQUEST: Final = 1
NLM_F_ACK: Final = 4
NLMSG_ERROR: Final = 2
NLA_F_NESTED: Final = 1 << 15
NLA_TYPE_MASK: Final = 0x3FFF

GENL_ID_CTRL: Final = 0x10
CTRL_CMD_GETFAMILY: Final = 3
CTRL_ATTR_FAMILY_ID: Final = 1
CTRL_ATTR_FAMILY_NAME: Final = 2

NBD_GENL_VERSION: Final = 1
NBD_CMD_CONNECT: Final = 1
NBD_CMD_DISCONNECT: Final = 2
NBD_ATTR_INDEX: Final = 1
NBD_ATTR_SIZE_BYTES: Final = 2
NBD_ATTR_BLOCK_SIZE_BYTES: Final = 3
NBD_ATTR_TIMEOUT: Final = 4
NBD_ATTR_SERVER_FLAGS: Final = 5
NBD_ATTR_CLIENT_FLAGS: Final = 6
NBD_ATTR_SOCKETS: Final = 7
NBD_ATTR_DEAD_CONN_TIMEOUT: Final = 8
NBD_SOCK_ITEM: Final = 1
NBD_SOCK_FD: Final = 1

MESSAGE: Final = Struct("=IHHII")
GENERIC: Final = Struct("=BBH")
ATTRIBUTE: Final = Struct("=HH")
U16: Final = Struct("=H")
U32: Final = Struct("=I")
U64: Final = Struct("=Q")
ERROR: Final = Struct("=i")

_LARGEST_MESSAGE: Final = 1 << 16
_TIMEOUT: Final = 10.0
"""Seconds: the kernel answers when it has done what it was asked."""

KERNEL_BLOCK_SIZES: Final = (512, os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096)
"""The kernel takes block sizes from a sector to a page."""


class Device(NamedTuple):
    """How the kernel is to use an export.

    ``number``: N of /dev/nbdN; None: a free one.  ``block_size``: None: what the server prefers.
    ``timeout``: seconds until a request that has no answer fails; 0: never.
    ``dead_timeout``: seconds that requests wait for a lost connection to be replaced.
    """

    number: int | None = None
    block_size: int | None = None
    timeout: int = 0
    dead_timeout: int = 0
    connections: int = 1


# -- messages, pure --------------------------------------------------------------------------


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    length = ATTRIBUTE.size + len(payload)
    return ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def message(family: int, command: int, sequence: int, attributes: Sequence[bytes]) -> bytes:
    """A request that is to be acknowledged."""
    body = GENERIC.pack(command, NBD_GENL_VERSION, 0) + b"".join(attributes)
    flags = NLM_F_REQUEST | NLM_F_ACK
    return MESSAGE.pack(MESSAGE.size + len(body), family, flags, sequence, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence, payload) of each message; raises ValueError when they are cut off."""
    position = 0
    while position + MESSAGE.size <= len(data):
        length, kind, _, sequence, _ = MESSAGE.unpack_from(data, position)
        if length < MESSAGE.size or position + length > len(data):
            raise ValueError("a netlink message that is cut off")
        yield kind, sequence, data[position + MESSAGE.size : position + length]
        position += length + -length % 4


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type; raises ValueError when they are cut off."""
    found: dict[int, bytes] = {}
    position = 0
    while position + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, position)
        if length < ATTRIBUTE.size or position + length > len(data):
            raise ValueError("a netlink attribute that is cut off")
        found[kind & NLA_TYPE_MASK] = data[position + ATTRIBUTE.size : position + length]
        position += length + -length % 4
    return found


def connect_attributes(session: Session, device: Device, sockets: Sequence[int]) -> list[bytes]:
    """What NBD_CMD_CONNECT says."""
    items = b"".join(
        attribute(NBD_SOCK_ITEM | NLA_F_NESTED, attribute(NBD_SOCK_FD, U32.pack(descriptor)))
        for descriptor in sockets
    )
    found = [] if device.number is None else [attribute(NBD_ATTR_INDEX, U32.pack(device.number))]
    found += [
        attribute(NBD_ATTR_SIZE_BYTES, U64.pack(session.export.size)),
        attribute(NBD_ATTR_BLOCK_SIZE_BYTES, U64.pack(block_size_for(session, device))),
        attribute(NBD_ATTR_SERVER_FLAGS, U64.pack(int(session.export.flags))),
        attribute(NBD_ATTR_TIMEOUT, U64.pack(device.timeout)),
        attribute(NBD_ATTR_DEAD_CONN_TIMEOUT, U64.pack(device.dead_timeout)),
        attribute(NBD_ATTR_SOCKETS | NLA_F_NESTED, items),
    ]
    return found


def block_size_for(session: Session, device: Device) -> int:
    """The block size that the device gets; raises for one that the kernel or the server refuses."""
    least, most = KERNEL_BLOCK_SIZES
    minimum = session.block_sizes.minimum
    if minimum > most:
        raise UnsupportedFeatureError(
            f"the server wants blocks of {minimum} bytes, and the kernel has none above {most}"
        )
    if device.block_size is None:
        return max(minimum, least)
    size = device.block_size
    if not max(minimum, least) <= size <= most or size & (size - 1):
        raise InvalidRequestError(
            f"the block size is a power of 2 from {max(minimum, least)} to {most}, not {size}"
        )
    return size


# -- talking to the kernel -------------------------------------------------------------------


class Kernel:
    """The kernel's side of ``nbd``; raises UnsupportedFeatureError where it has none."""

    def __init__(self) -> None:
        family = getattr(socket, "AF_NETLINK", None)
        if family is None:
            raise UnsupportedFeatureError("only Linux makes block devices of NBD exports")
        self._socket = socket.socket(family, socket.SOCK_RAW, NETLINK_GENERIC)
        self._socket.settimeout(_TIMEOUT)
        self._sequence = 0
        try:
            self._family = self._find_family()
        except BaseException:
            self._socket.close()
            raise

    def _find_family(self) -> int:
        name = attribute(CTRL_ATTR_FAMILY_NAME, b"nbd\0")
        try:
            found = self._call(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, [name])
            (number,) = U16.unpack(found[CTRL_ATTR_FAMILY_ID])
        except (NotFoundError, KeyError, StructError) as error:
            raise UnsupportedFeatureError(
                "this kernel has no nbd module, or not loaded it: modprobe nbd"
            ) from error
        return int(number)

    def connect(self, session: Session, device: Device, sockets: Sequence[int]) -> int:
        """Make a device of connected sockets, which the kernel keeps; its number."""
        words = connect_attributes(session, device, sockets)
        found = self._call(self._family, NBD_CMD_CONNECT, words)
        if NBD_ATTR_INDEX in found:
            return int(U32.unpack(found[NBD_ATTR_INDEX])[0])
        if device.number is None:
            raise DeviceError("the kernel does not say which device it made")
        return device.number

    def disconnect(self, index: int) -> None:
        """Take a device away from its server."""
        number = attribute(NBD_ATTR_INDEX, U32.pack(index))
        self._call(self._family, NBD_CMD_DISCONNECT, [number])

    def _call(self, family: int, command: int, words: Sequence[bytes]) -> dict[int, bytes]:
        """Send a request; the attributes of the reply, once it is acknowledged."""
        self._sequence += 1
        found: dict[int, bytes] = {}
        try:
            self._socket.send(message(family, command, self._sequence, words))
            while True:
                for kind, sequence, payload in messages(self._socket.recv(_LARGEST_MESSAGE)):
                    if sequence != self._sequence:
                        continue
                    if kind == NLMSG_ERROR:
                        _check(payload)
                        return found
                    found |= attributes(payload[GENERIC.size :])
        except ValueError as error:
            raise DeviceError(f"the kernel sent {error}") from error
        except OSError as error:
            raise from_os_error(error, path="nbd", operation="talk to the kernel") from error

    def close(self) -> None:
        self._socket.close()


def _check(payload: bytes) -> None:
    """NLMSG_ERROR: 0 acknowledges, others are negative errno numbers."""
    (number,) = ERROR.unpack_from(payload)
    if number:
        raise OSError(-number, os.strerror(-number))


def connect_device(server: Server, device: Device) -> int:
    """Connect to a server and make a device of the export; its number.

    ``server.settings`` ask for simple replies, and nothing the kernel does not speak.
    """
    with contextlib.ExitStack() as stack:
        kernel = Kernel()
        stack.callback(kernel.close)
        session, sockets = open_for_kernel(server, device)
        for each in sockets:
            stack.enter_context(each)
        return kernel.connect(session, device, [each.fileno() for each in sockets])


def open_for_kernel(server: Server, device: Device) -> tuple[Session, list[socket.socket]]:
    """What was agreed on, and connections in the transmission phase that nobody else uses."""
    if server.tls.mode is not TlsMode.OFF:
        raise UnsupportedFeatureError("the kernel does not encrypt: use nbd:// without TLS")
    first = open_session(server)
    sockets = [first.channel.detach()]
    try:
        if TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN in first.session.export.flags:
            for _ in range(device.connections - 1):
                sockets.append(open_session(server).channel.detach())
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return first.session, sockets


def has_netlink() -> bool:
    """Whether this kernel's nbd is told by netlink."""
    try:
        Kernel().close()
    except (UnsupportedFeatureError, DeviceError, OSError):
        return False
    return True


def disconnect_device(index: int) -> None:
    """Take /dev/nbdN away from its server."""
    kernel = Kernel()
    try:
        kernel.disconnect(index)
    finally:
        kernel.close()

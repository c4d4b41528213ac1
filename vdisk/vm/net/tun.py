"""TAP devices of the Linux kernel: a file from which an Ethernet card's frames are read, and to
which they are written (Documentation/networking/tuntap.rst; numbers of ``linux/if_tun.h``).

::

    struct ifreq: 0 name (16)   16 flags (16)

With IFF_VNET_HDR each frame has virtio-net's header, of the length that TUNSETVNETHDRSZ sets:
then checksums and segmentation may be left to whoever needs them done, if anybody does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from vdisk.errors import (
    DeviceError,
    InvalidRequestError,
    UnsupportedFeatureError,
    VdiskError,
    from_os_error,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

DEVICE: Final = "/dev/net/tun"
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
TUNGETFEATURES, TUNGETIFF = 0x800454CF, 0x800454D2
IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
LONGEST_NAME: Final = 15

_IFREQ: Final = struct.Struct("16sH22x")
_GONE: Final = (errno.EBADFD, errno.ENODEV)


class TapGoneError(DeviceError):
    """The interface was deleted while it was in use."""

    kind = "tap-gone"


class Tap:
    """An open TAP.  ``name``: of the interface.  ``vnet_hdr``: frames have virtio-net's header.

    Takes ``descriptor`` over, which does not block from now on.
    """

    def __init__(self, descriptor: int, name: str, *, vnet_hdr: bool, largest: int) -> None:
        os.set_blocking(descriptor, False)
        self.name, self.vnet_hdr = name, vnet_hdr
        self._descriptor = descriptor
        self._header = bytearray(10 if vnet_hdr else 0)
        self._frame = memoryview(bytearray(largest + 1))
        if vnet_hdr:
            self.set_header_length(len(self._header))

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    def set_header_length(self, length: int) -> None:
        """Bytes of the header before each frame, 10 or 12; raises :class:`TapGoneError`."""
        self._set(TUNSETVNETHDRSZ, struct.pack("i", length))
        self._header = bytearray(length)

    def set_offloads(self, offloads: int) -> None:
        """What may be left undone in frames that are read: TUN_F_…; raises TapGoneError."""
        self._set(TUNSETOFFLOAD, offloads)

    def _set(self, request: int, value: int | bytes) -> None:
        try:
            fcntl.ioctl(self._descriptor, request, value)
        except OSError as error:
            raise TapGoneError(f"cannot set it up: {error.strerror}", path=self.name) from error

    def read(self) -> tuple[bytes, bytes] | None:
        """Header and frame; None: there is none.  A frame that is too large comes empty.

        Raises :class:`TapGoneError`.
        """
        try:
            length = os.readv(self._descriptor, [self._header, self._frame])
        except BlockingIOError:
            return None
        except OSError as error:
            raise TapGoneError(f"cannot read: {error.strerror}", path=self.name) from error
        length -= len(self._header)
        fits = 0 < length < len(self._frame)
        return bytes(self._header), bytes(self._frame[: length if fits else 0])

    def write(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Write a frame, its header first where there is one; False: there is no room now.

        What the kernel does not take is lost: where the interface is down, say.  Raises
        :class:`TapGoneError`.
        """
        try:
            os.writev(self._descriptor, parts)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _GONE:
                raise TapGoneError(f"cannot write: {error.strerror}", path=self.name) from error
        return True


def create(name: str, *, vnet_hdr: bool | None, largest: int) -> Tap:
    """Open the interface ``name``, made if there is none; empty: the kernel finds a name.

    ``vnet_hdr`` None: if the kernel can.  Raises :class:`VdiskError`.
    """
    if len(name.encode()) > LONGEST_NAME or any(one in name for one in "/ :\0"):
        raise InvalidRequestError(f"ifname={name}: an interface has a name of 1 to 15 characters")
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, path=DEVICE, operation="open") from error
    try:
        headers = _with_headers(_features(descriptor), vnet_hdr)
        flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if headers else 0)
        found = fcntl.ioctl(descriptor, TUNSETIFF, _IFREQ.pack(name.encode() or b"tap%d", flags))
        return Tap(descriptor, _name(found), vnet_hdr=headers, largest=largest)
    except OSError as error:
        os.close(descriptor)
        raise _refused(error, name) from error
    except BaseException:
        os.close(descriptor)
        raise


def adopt(descriptor: int, *, vnet_hdr: bool | None, largest: int) -> Tap:
    """A TAP that somebody else has opened; a duplicate of ``descriptor`` is used.

    Raises :class:`VdiskError`.
    """
    try:
        found = fcntl.ioctl(descriptor, TUNGETIFF, bytes(_IFREQ.size))
    except OSError as error:
        raise InvalidRequestError(f"fd={descriptor} is no open TAP: {error.strerror}") from error
    flags = int(_IFREQ.unpack(found)[1])
    if not flags & IFF_TAP or not flags & IFF_NO_PI:
        raise InvalidRequestError(f"fd={descriptor} is not a TAP with IFF_TAP and IFF_NO_PI")
    if vnet_hdr is not None and vnet_hdr != bool(flags & IFF_VNET_HDR):
        raise InvalidRequestError(
            f"vnet_hdr: the TAP of fd={descriptor} was opened with the other setting"
        )
    own = os.dup(descriptor)
    try:
        return Tap(own, _name(found), vnet_hdr=bool(flags & IFF_VNET_HDR), largest=largest)
    except BaseException:
        os.close(own)
        raise


def _features(descriptor: int) -> int:
    return int(struct.unpack("I", fcntl.ioctl(descriptor, TUNGETFEATURES, bytes(4)))[0])


def _with_headers(features: int, wanted: bool | None) -> bool:
    able = bool(features & IFF_VNET_HDR)
    if wanted and not able:
        raise UnsupportedFeatureError("vnet_hdr=on: this kernel's TAPs have no IFF_VNET_HDR")
    return able if wanted is None else wanted


def _name(ifreq: bytes) -> str:
    return ifreq[:16].partition(b"\0")[0].decode(errors="replace")


def _refused(error: OSError, name: str) -> VdiskError:
    """Why an interface could not be had, in words that help."""
    reasons = {
        errno.EPERM: "a TAP needs the capability CAP_NET_ADMIN, or has to be yours "
        "(ip tuntap add dev NAME mode tap user YOU)",
        errno.EBUSY: "another program uses it",
        errno.EINVAL: "it is there already and is no TAP, or one with multi_queue",
    }
    why = reasons.get(error.errno or 0, error.strerror or str(error))
    return DeviceError(why, path=name or "tap", operation="open", errno=error.errno)

"""The byte-range locks by which QEMU and vdisk keep out of each other's images.

QEMU takes open-file-description locks on single bytes of an image, far below any data
(byte numbers, not content)::

    100 + n    held shared by whoever uses permission n
    200 + n    held shared by whoever does not let others use permission n

A newcomer that wants permission n tests that nobody holds byte 200 + n; one that will not share
n tests that nobody holds byte 100 + n.  Permissions: 0 consistent read, 1 write, 2 write
unchanged, 3 resize.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from typing import TYPE_CHECKING

from vdisk.errors import ImageLockedError

if TYPE_CHECKING:
    from collections.abc import Iterable

try:
    import fcntl

    _SET = fcntl.F_OFD_SETLK
    _GET = fcntl.F_OFD_GETLK
except (ImportError, AttributeError):  # not Linux: QEMU does not lock there either
    fcntl = None  # type: ignore[assignment]

CONSISTENT_READ = 0
WRITE = 1
RESIZE = 3

_USED = 100
_NOT_SHARED = 200
_ALL = 200  # bytes from _USED on, in which all of these are
_NAMES = {CONSISTENT_READ: "consistent read", WRITE: "write", RESIZE: "resize"}
_FLOCK = struct.Struct("@hhqqi")  # struct flock with 64-bit offsets
_NO_LOCKS_HERE = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})


def lock_image(fd: int, path: str, *, writable: bool) -> None:
    """Hold ``fd`` the way QEMU's tools do: a writer alone, readers together.

    The locks last until :func:`unlock_image`, or until the last descriptor of this opening is
    closed.
    Raises :class:`ImageLockedError` when someone's use excludes this one.
    """
    if fcntl is None:
        return
    used = (CONSISTENT_READ, WRITE, RESIZE) if writable else (CONSISTENT_READ,)
    not_shared = (WRITE, RESIZE)
    try:
        for byte in (*(_USED + n for n in used), *(_NOT_SHARED + n for n in not_shared)):
            _set(fd, fcntl.F_RDLCK, byte)
        _refuse_if_held(fd, path, used, _NOT_SHARED, "is in use and not shared for")
        _refuse_if_held(fd, path, not_shared, _USED, "is open elsewhere for")
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:  # a file system without locks: as QEMU, go on
            raise


def unlock_image(fd: int) -> None:
    """Give back all that :func:`lock_image` took.

    Closing the descriptor is not enough: a child process that is being started has a copy of it
    from ``fork`` until ``exec``, and for as long would keep the image locked against its owner.
    """
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            _set(fd, fcntl.F_UNLCK, _USED, _ALL)


def _set(fd: int, kind: int, first: int, count: int = 1) -> None:
    fcntl.fcntl(fd, _SET, _FLOCK.pack(kind, 0, first, count, 0))


def _refuse_if_held(fd: int, path: str, permissions: Iterable[int], base: int, state: str) -> None:
    for permission in permissions:
        request = _FLOCK.pack(fcntl.F_WRLCK, 0, base + permission, 1, 0)
        answer = _FLOCK.unpack(fcntl.fcntl(fd, _GET, request))
        if answer[0] != fcntl.F_UNLCK:
            raise ImageLockedError(
                f"the image {state} {_NAMES[permission]}: is another process using it? "
                "Stop that process, or read anyway with force_share (-U, --force-share)",
                path=path,
                operation="open",
            )

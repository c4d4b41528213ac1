"""The errors that leave the library: all of them are :class:`VdiskError`.

Each error has a stable ``kind`` (what a program tests), a message (what a person reads), and
context: the file, the byte offset and the operation, where there are any.  ``errno`` is the
number a block device would answer with; the NBD server and the emulated disks pass it on.
"""

import errno as _errno


class VdiskError(Exception):
    """Base of every error raised by vdisk on bad input, a bad request or a failed device.

    ``path``: the image or device concerned.  ``offset``: bytes, in that file.
    ``operation``: "read", "open", "check"…  ``errno``: nearest errno value.
    """

    kind = "error"
    default_errno = _errno.EIO

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        offset: int | None = None,
        operation: str | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.offset = offset
        self.operation = operation
        self.errno = self.default_errno if errno is None else errno

    @property
    def reason(self) -> str:
        """What is wrong, of a file that is known to who reads it."""
        return self.message if self.offset is None else f"{self.message} (at {self.offset:#x})"

    def __str__(self) -> str:
        if self.operation == "open" and self.path is not None:  # in the words of QEMU's tools
            return f"Could not open '{self.path}': {self.reason}"
        where = [] if self.path is None else [self.path]
        if self.offset is not None:
            where.append(f"offset {self.offset:#x}")
        prefix = ", ".join(where)
        return f"{prefix}: {self.message}" if prefix else self.message


class FormatError(VdiskError):
    """The bytes are not an image of the named format, or of any known one."""

    kind = "format"
    default_errno = _errno.EINVAL


class CorruptImageError(VdiskError):
    """The image breaks a rule of its format; the message names the rule."""

    kind = "corrupt"


class UnsupportedFeatureError(VdiskError):
    """The image or the request needs something that is not there (an unknown feature bit…)."""

    kind = "unsupported"
    default_errno = _errno.ENOTSUP


class InvalidRequestError(VdiskError):
    """The caller asked for something that can never work: a bad option, size or name."""

    kind = "invalid"
    default_errno = _errno.EINVAL


class OutOfRangeError(InvalidRequestError):
    """The request reaches past the end of the device."""

    kind = "range"


class ReadOnlyError(VdiskError):
    """A write to a device that was opened read-only."""

    kind = "read-only"
    default_errno = _errno.EPERM


class ClosedError(VdiskError):
    """Any request to a device after its ``close()``."""

    kind = "closed"
    default_errno = _errno.EBADF


class NotFoundError(VdiskError):
    """No such file, snapshot, bitmap, export or secret."""

    kind = "not-found"
    default_errno = _errno.ENOENT


class AlreadyExistsError(VdiskError):
    """A file, snapshot or bitmap of this name is there already."""

    kind = "exists"
    default_errno = _errno.EEXIST


class ImageLockedError(VdiskError):
    """Another process (QEMU or vdisk) holds the image in a way that excludes this use."""

    kind = "locked"
    default_errno = _errno.EAGAIN


class DeviceError(VdiskError):
    """The device under the image failed a request; ``errno`` says how."""

    kind = "io"


class NoSpaceError(DeviceError):
    """The device under the image is full (``ENOSPC``, ``EDQUOT`` or ``EFBIG``)."""

    kind = "no-space"
    default_errno = _errno.ENOSPC


class AuthenticationError(VdiskError):
    """A passphrase, key or certificate was refused or is missing."""

    kind = "authentication"
    default_errno = _errno.EACCES


class CancelledError(VdiskError):
    """A progress callback or an interrupt stopped a job; its target is not complete."""

    kind = "cancelled"
    default_errno = _errno.ECANCELED


_FULL = frozenset({_errno.ENOSPC, _errno.EDQUOT, _errno.EFBIG})


def from_os_error(
    error: OSError, *, path: str, operation: str, offset: int | None = None
) -> VdiskError:
    """Translate an ``OSError`` of a file at ``path`` into the error to raise ``from`` it."""
    number = error.errno or _errno.EIO
    message = error.strerror or str(error)
    if operation != "open":
        message = f"cannot {operation}: {message}"
    kind: type[VdiskError] = DeviceError
    if number in _FULL:
        kind = NoSpaceError
    elif number == _errno.ENOENT:
        kind = NotFoundError
    elif number == _errno.EEXIST:
        kind = AlreadyExistsError
    return kind(message, path=path, offset=offset, operation=operation, errno=number)

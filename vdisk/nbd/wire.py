"""The NBD wire: numbers, layouts and strings, named as the specification names them.

Source: NetworkBlockDevice/nbd, doc/proto.md, and its branch extension-ext-header for what says
"extended".  All integers are big-endian and unsigned.

Handshake phase::

    S: NBDMAGIC  IHAVEOPT  flags:16                  C: flags:32
    C: IHAVEOPT  option:32  length:32  data[length]              (repeated: option haggling)
    S: NBD_REP_MAGIC  option:32  reply:32  length:32  data[length]

Transmission phase::

    C: NBD_REQUEST_MAGIC           flags:16 type:16 cookie:64 offset:64 length:32 [payload]
    C: NBD_EXTENDED_REQUEST_MAGIC  flags:16 type:16 cookie:64 offset:64 length:64 [payload]
    S: NBD_SIMPLE_REPLY_MAGIC      error:32 cookie:64                             [payload]
    S: NBD_STRUCTURED_REPLY_MAGIC  flags:16 type:16 cookie:64 length:32           [payload]
    S: NBD_EXTENDED_REPLY_MAGIC    flags:16 type:16 cookie:64 offset:64 length:64 [payload]

A simple reply does not say how long it is: only the request tells whether data follows.  Structured
and extended replies are chunks that carry their own length; the last of a reply has
``NBD_REPLY_FLAG_DONE``.
"""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag, unique
from struct import Struct
from typing import Final

from vdisk.errors import InvalidRequestError

NBD_DEFAULT_PORT: Final = 10809

NBDMAGIC: Final = 0x4E42444D41474943
"""``INIT_PASSWD``, the first eight bytes a server ever sends."""
IHAVEOPT: Final = 0x49484156454F5054
"""Marks the newstyle handshake, and each option a client sends."""
CLISERV_MAGIC: Final = 0x00420281861253
"""In the place of IHAVEOPT: an oldstyle server."""
NBD_REP_MAGIC: Final = 0x3E889045565A9

NBD_REQUEST_MAGIC: Final = 0x25609513
NBD_EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71
NBD_SIMPLE_REPLY_MAGIC: Final = 0x67446698
NBD_STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
NBD_EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C


class HandshakeFlag(IntFlag):
    """What the server offers in its greeting (16 bits)."""

    NBD_FLAG_FIXED_NEWSTYLE = 1 << 0
    NBD_FLAG_NO_ZEROES = 1 << 1


class ClientFlag(IntFlag):
    """What the client takes of that offer (32 bits)."""

    NBD_FLAG_C_FIXED_NEWSTYLE = 1 << 0
    NBD_FLAG_C_NO_ZEROES = 1 << 1


class TransmissionFlag(IntFlag):
    """What an export can do (16 bits): sent with its size."""

    NBD_FLAG_HAS_FLAGS = 1 << 0
    NBD_FLAG_READ_ONLY = 1 << 1
    NBD_FLAG_SEND_FLUSH = 1 << 2
    NBD_FLAG_SEND_FUA = 1 << 3
    NBD_FLAG_ROTATIONAL = 1 << 4
    NBD_FLAG_SEND_TRIM = 1 << 5
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6
    NBD_FLAG_SEND_DF = 1 << 7
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8
    NBD_FLAG_SEND_RESIZE = 1 << 9
    NBD_FLAG_SEND_CACHE = 1 << 10
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11
    NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12


@unique
class Option(IntEnum):
    NBD_OPT_EXPORT_NAME = 1
    NBD_OPT_ABORT = 2
    NBD_OPT_LIST = 3
    NBD_OPT_PEEK_EXPORT = 4  # withdrawn: a server answers NBD_REP_ERR_UNSUP
    NBD_OPT_STARTTLS = 5
    NBD_OPT_INFO = 6
    NBD_OPT_GO = 7
    NBD_OPT_STRUCTURED_REPLY = 8
    NBD_OPT_LIST_META_CONTEXT = 9
    NBD_OPT_SET_META_CONTEXT = 10
    NBD_OPT_EXTENDED_HEADERS = 11


NBD_REP_FLAG_ERROR: Final = 1 << 31


@unique
class OptionReply(IntEnum):
    NBD_REP_ACK = 1
    NBD_REP_SERVER = 2
    NBD_REP_INFO = 3
    NBD_REP_META_CONTEXT = 4
    NBD_REP_ERR_UNSUP = NBD_REP_FLAG_ERROR + 1
    NBD_REP_ERR_POLICY = NBD_REP_FLAG_ERROR + 2
    NBD_REP_ERR_INVALID = NBD_REP_FLAG_ERROR + 3
    NBD_REP_ERR_PLATFORM = NBD_REP_FLAG_ERROR + 4
    NBD_REP_ERR_TLS_REQD = NBD_REP_FLAG_ERROR + 5
    NBD_REP_ERR_UNKNOWN = NBD_REP_FLAG_ERROR + 6
    NBD_REP_ERR_SHUTDOWN = NBD_REP_FLAG_ERROR + 7
    NBD_REP_ERR_BLOCK_SIZE_REQD = NBD_REP_FLAG_ERROR + 8
    NBD_REP_ERR_TOO_BIG = NBD_REP_FLAG_ERROR + 9
    NBD_REP_ERR_EXT_HEADER_REQD = NBD_REP_FLAG_ERROR + 10


@unique
class Info(IntEnum):
    NBD_INFO_EXPORT = 0
    NBD_INFO_NAME = 1
    NBD_INFO_DESCRIPTION = 2
    NBD_INFO_BLOCK_SIZE = 3


@unique
class Command(IntEnum):
    NBD_CMD_READ = 0
    NBD_CMD_WRITE = 1
    NBD_CMD_DISC = 2
    NBD_CMD_FLUSH = 3
    NBD_CMD_TRIM = 4
    NBD_CMD_CACHE = 5
    NBD_CMD_WRITE_ZEROES = 6
    NBD_CMD_BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    NBD_CMD_FLAG_FUA = 1 << 0
    NBD_CMD_FLAG_NO_HOLE = 1 << 1
    NBD_CMD_FLAG_DF = 1 << 2
    NBD_CMD_FLAG_REQ_ONE = 1 << 3
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4
    NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5


NBD_REPLY_FLAG_DONE: Final = 1 << 0
NBD_REPLY_TYPE_FLAG_ERROR: Final = 1 << 15


@unique
class ReplyType(IntEnum):
    """What the payload of a structured or extended reply chunk is."""

    NBD_REPLY_TYPE_NONE = 0
    NBD_REPLY_TYPE_OFFSET_DATA = 1
    NBD_REPLY_TYPE_OFFSET_HOLE = 2
    NBD_REPLY_TYPE_BLOCK_STATUS = 5
    NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6
    NBD_REPLY_TYPE_ERROR = NBD_REPLY_TYPE_FLAG_ERROR + 1
    NBD_REPLY_TYPE_ERROR_OFFSET = NBD_REPLY_TYPE_FLAG_ERROR + 2


class AllocationState(IntFlag):
    """Status flags of the context ``base:allocation``."""

    NBD_STATE_HOLE = 1 << 0
    NBD_STATE_ZERO = 1 << 1


BASE_ALLOCATION: Final = "base:allocation"
QEMU_ALLOCATION_DEPTH: Final = "qemu:allocation-depth"
"""Status: 0 unallocated, 1 in the top image, n in its (n-1)th backing file."""
QEMU_DIRTY_BITMAP: Final = "qemu:dirty-bitmap:"
"""Followed by the name of a bitmap.  Status: bit 0 set where it is dirty."""


@unique
class ErrorValue(IntEnum):
    """The only error numbers of the protocol, equal on every platform."""

    NBD_EPERM = 1
    NBD_EIO = 5
    NBD_ENOMEM = 12
    NBD_EINVAL = 22
    NBD_ENOSPC = 28
    NBD_EOVERFLOW = 75
    NBD_ENOTSUP = 95
    NBD_ESHUTDOWN = 108

    @classmethod
    def from_errno(cls, number: int) -> ErrorValue:
        """The value a server sends for one of its own system's errno numbers."""
        return _FROM_ERRNO.get(number, cls.NBD_EIO)

    @classmethod
    def from_wire(cls, number: int) -> ErrorValue:
        """A received value; one that is not of the protocol counts as NBD_EINVAL."""
        return _FROM_WIRE.get(number, cls.NBD_EINVAL)

    @property
    def errno(self) -> int:
        """This system's errno number for it."""
        return _TO_ERRNO[self]


_TO_ERRNO: Final = {
    ErrorValue.NBD_EPERM: errno.EPERM,
    ErrorValue.NBD_EIO: errno.EIO,
    ErrorValue.NBD_ENOMEM: errno.ENOMEM,
    ErrorValue.NBD_EINVAL: errno.EINVAL,
    ErrorValue.NBD_ENOSPC: errno.ENOSPC,
    ErrorValue.NBD_EOVERFLOW: errno.EOVERFLOW,
    ErrorValue.NBD_ENOTSUP: errno.ENOTSUP,
    ErrorValue.NBD_ESHUTDOWN: errno.ESHUTDOWN,
}
_FROM_ERRNO: Final = {number: value for value, number in _TO_ERRNO.items()} | {
    errno.EACCES: ErrorValue.NBD_EPERM,
    errno.EROFS: ErrorValue.NBD_EPERM,
    errno.EDQUOT: ErrorValue.NBD_ENOSPC,
    errno.EFBIG: ErrorValue.NBD_ENOSPC,
    errno.EOPNOTSUPP: ErrorValue.NBD_ENOTSUP,
}
_FROM_WIRE: Final = {int(value): value for value in ErrorValue}


# --- layouts, handshake phase ---------------------------------------------------------------

GREETING: Final = Struct(">QQH")
"""NBDMAGIC, IHAVEOPT, HandshakeFlag."""
GREETING_MAGICS: Final = Struct(">QQ")
OLDSTYLE_EXPORT: Final = Struct(">QI124x")
"""Export size, transmission flags, after NBDMAGIC and CLISERV_MAGIC."""
CLIENT_FLAGS: Final = Struct(">I")
OPTION_HEADER: Final = Struct(">QII")
"""IHAVEOPT, Option, length of data."""
OPTION_REPLY_HEADER: Final = Struct(">QIII")
"""NBD_REP_MAGIC, Option, OptionReply, length of data."""
EXPORT_NAME_REPLY: Final = Struct(">QH")
"""Export size, TransmissionFlag; then 124 zeroes unless NBD_FLAG_C_NO_ZEROES."""
EXPORT_NAME_ZEROES: Final = 124
INFO_EXPORT: Final = Struct(">HQH")
"""NBD_INFO_EXPORT, export size, TransmissionFlag."""
INFO_BLOCK_SIZE: Final = Struct(">HIII")
"""NBD_INFO_BLOCK_SIZE, minimum and preferred block size, maximum payload size."""
UINT16: Final = Struct(">H")
UINT32: Final = Struct(">I")
UINT64: Final = Struct(">Q")

# --- layouts, transmission phase --------------------------------------------------------------

REQUEST: Final = Struct(">IHHQQI")
"""Magic, CommandFlag, Command, cookie, offset, length."""
EXTENDED_REQUEST: Final = Struct(">IHHQQQ")
SIMPLE_REPLY: Final = Struct(">IIQ")
"""Magic, ErrorValue, cookie."""
STRUCTURED_REPLY: Final = Struct(">IHHQI")
"""Magic, reply flags, ReplyType, cookie, length of payload."""
EXTENDED_REPLY: Final = Struct(">IHHQQQ")
"""Magic, reply flags, ReplyType, cookie, offset of the request, length of payload."""
OFFSET_HOLE: Final = Struct(">QI")
"""Offset, hole size."""
ERROR_HEAD: Final = Struct(">IH")
"""ErrorValue, length of the message that follows."""
DESCRIPTOR: Final = Struct(">II")
"""Of NBD_REPLY_TYPE_BLOCK_STATUS, after a 32-bit context id: length of the extent, status."""
BLOCK_STATUS_EXT_HEAD: Final = Struct(">II")
"""Context id, number of descriptors."""
DESCRIPTOR_EXT: Final = Struct(">QQ")
"""Of NBD_REPLY_TYPE_BLOCK_STATUS_EXT: length of the extent, status."""


# --- strings ------------------------------------------------------------------------------------

MAX_STRING: Final = 4096
"""Bytes: names, queries, messages "MUST be no longer than 4096 bytes"."""


def encode_string(text: str) -> bytes:
    """UTF-8 bytes of one of our own strings.  Raises InvalidRequestError when it cannot be sent."""
    try:
        data = text.encode("utf-8")
        _check_string(data)
    except ValueError as error:
        raise InvalidRequestError(f"not a string of the protocol: {error}") from error
    return data


def encode_message(text: str) -> bytes:
    """UTF-8 bytes of a message for people: what cannot be sent is replaced or cut off."""
    data = text.replace("\0", "").encode("utf-8", "replace")[:MAX_STRING]
    return data.decode("utf-8", "ignore").encode("utf-8")


def decode_string(data: bytes | bytearray | memoryview) -> str:
    """The text of a received string.  Raises ValueError when it breaks the rules of one."""
    _check_string(data)
    return str(data, "utf-8")


def _check_string(data: bytes | bytearray | memoryview) -> None:
    if len(data) > MAX_STRING:
        raise ValueError(f"a string of {len(data)} bytes, longer than {MAX_STRING}")
    if 0 in data:
        raise ValueError("a string with a NUL in it")

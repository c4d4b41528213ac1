"""The payloads of reply chunks, as a client receives them.

::

    OFFSET_DATA        offset:64  data                     READ
    OFFSET_HOLE        offset:64  hole size:32             READ
    BLOCK_STATUS       context id:32  { length:32 status:32 }           BLOCK_STATUS, structured
    BLOCK_STATUS_EXT   context id:32  count:32  { length:64 status:64 } BLOCK_STATUS, extended
    NONE               nothing                             any
    ERROR              error:32  message length:16  message             any
    ERROR_OFFSET       error:32  message length:16  message  offset:64  any with a range

:func:`bounds` tells from a header whether a chunk may be there and how long; the parsers are
total: they return a value or raise ``ValueError``.
"""

from __future__ import annotations

from typing import Final

from vdisk.nbd.session import HeaderStyle
from vdisk.nbd.wire import (
    BLOCK_STATUS_EXT_HEAD,
    DESCRIPTOR,
    DESCRIPTOR_EXT,
    ERROR_HEAD,
    OFFSET_HOLE,
    UINT32,
    UINT64,
    Command,
    ErrorValue,
    ReplyType,
    decode_string,
)

Extents = tuple[tuple[int, int], ...]

SHORTEST_ERROR: Final = ERROR_HEAD.size


def bounds(
    kind: int | None, command: int, request_length: int, style: HeaderStyle, descriptors: int
) -> range | None:
    """The payload lengths a chunk of type *kind* may have in a reply to *command*.

    ``None`` where the type has no place at all.  *descriptors*: at most so many extents.
    """
    if kind == ReplyType.NBD_REPLY_TYPE_NONE:
        return range(1)
    if command == Command.NBD_CMD_READ:
        if kind == ReplyType.NBD_REPLY_TYPE_OFFSET_DATA:
            return range(UINT64.size + 1, UINT64.size + request_length + 1)
        if kind == ReplyType.NBD_REPLY_TYPE_OFFSET_HOLE:
            return range(OFFSET_HOLE.size, OFFSET_HOLE.size + 1)
    extended = style is HeaderStyle.EXTENDED
    due = (
        ReplyType.NBD_REPLY_TYPE_BLOCK_STATUS_EXT
        if extended
        else ReplyType.NBD_REPLY_TYPE_BLOCK_STATUS
    )
    if command != Command.NBD_CMD_BLOCK_STATUS or kind != due:
        return None
    head = BLOCK_STATUS_EXT_HEAD.size if extended else UINT32.size
    each = DESCRIPTOR_EXT.size if extended else DESCRIPTOR.size
    return range(head + each, head + each * descriptors + 1, each)


def parse_hole(payload: memoryview) -> tuple[int, int]:
    """(offset, length) of NBD_REPLY_TYPE_OFFSET_HOLE."""
    offset, length = OFFSET_HOLE.unpack(payload)
    if not length:
        raise ValueError("a hole of no bytes")
    return offset, length


def parse_error(kind: int, payload: memoryview) -> tuple[ErrorValue, str, int | None]:
    """(error, message, offset in the export) of an error chunk of any type, known or not."""
    number, length = ERROR_HEAD.unpack_from(payload)
    if not number:
        raise ValueError("an error chunk without error")
    rest = payload[ERROR_HEAD.size :]
    if length > len(rest):
        raise ValueError("an error message longer than its chunk")
    message = decode_string(rest[:length])
    offset = None
    if kind == ReplyType.NBD_REPLY_TYPE_ERROR_OFFSET:
        if len(rest) < length + UINT64.size:
            raise ValueError("an error chunk without its offset")
        (offset,) = UINT64.unpack_from(rest, length)
    return ErrorValue.from_wire(number), message, offset


def parse_block_status(
    kind: int, payload: memoryview, request_length: int, *, one: bool
) -> tuple[int, Extents]:
    """(context id, extents) of a status chunk whose length :func:`bounds` allowed."""
    if kind == ReplyType.NBD_REPLY_TYPE_BLOCK_STATUS_EXT:
        number, count = BLOCK_STATUS_EXT_HEAD.unpack_from(payload)
        extents: Extents = tuple(DESCRIPTOR_EXT.iter_unpack(payload[BLOCK_STATUS_EXT_HEAD.size :]))
        if count != len(extents):
            raise ValueError(f"{len(extents)} extents counted as {count}")
    else:
        (number,) = UINT32.unpack_from(payload)
        extents = tuple(DESCRIPTOR.iter_unpack(payload[UINT32.size :]))
    _check_extents(extents, request_length, one=one)
    return number, extents


def _check_extents(extents: Extents, request_length: int, *, one: bool) -> None:
    if not all(length for length, _ in extents):
        raise ValueError("an extent of no bytes")
    before_last = sum(length for length, _ in extents[:-1])
    if before_last >= request_length and before_last:
        raise ValueError("extents after the end of the request")
    if one and (len(extents) != 1 or extents[0][0] > request_length):
        raise ValueError("more than the one extent asked for")

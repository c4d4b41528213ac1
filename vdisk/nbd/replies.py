"""Builders of reply messages, in the three header styles.

Each returns a list of buffers to send in order; data is passed through, never copied.  A reply to
a request in the simple style is one message; in the others it is a series of chunks with the same
cookie, the last of which is flagged *done*::

    READ           OFFSET_DATA | OFFSET_HOLE ...          in any order, together the whole range
    BLOCK_STATUS   BLOCK_STATUS or BLOCK_STATUS_EXT ...   one for each context
    others         NONE, or a simple reply (structured style: shorter by 4 bytes)
    any            ERROR, ERROR_OFFSET

These functions trust their arguments; :class:`~vdisk.nbd.server_transmission.ServerTransmission`
checks them.
"""

from __future__ import annotations

from itertools import chain
from struct import pack
from typing import TYPE_CHECKING, Final

from vdisk.nbd.session import HeaderStyle
from vdisk.nbd.wire import (
    BLOCK_STATUS_EXT_HEAD,
    ERROR_HEAD,
    EXTENDED_REPLY,
    NBD_EXTENDED_REPLY_MAGIC,
    NBD_REPLY_FLAG_DONE,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
    OFFSET_HOLE,
    SIMPLE_REPLY,
    STRUCTURED_REPLY,
    UINT32,
    UINT64,
    Command,
    CommandFlag,
    ErrorValue,
    ReplyType,
    encode_message,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vdisk.nbd.events import Request

Buffer = bytes | bytearray | memoryview

MAX_UINT32: Final = 2**32 - 1


def simple(request: Request, error: int = 0) -> bytes:
    return SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, error, request.cookie)


def chunk_header(
    style: HeaderStyle, request: Request, kind: ReplyType, length: int, *, done: bool
) -> bytes:
    """The header of a structured or extended chunk with *length* bytes of payload."""
    flags = NBD_REPLY_FLAG_DONE if done else 0
    if style is HeaderStyle.EXTENDED:
        return EXTENDED_REPLY.pack(
            NBD_EXTENDED_REPLY_MAGIC, flags, kind, request.cookie, request.offset, length
        )
    return STRUCTURED_REPLY.pack(NBD_STRUCTURED_REPLY_MAGIC, flags, kind, request.cookie, length)


def success(style: HeaderStyle, request: Request) -> list[Buffer]:
    """The reply to a command whose reply has no payload."""
    if style is HeaderStyle.EXTENDED or request.command == Command.NBD_CMD_READ:
        return [chunk_header(style, request, ReplyType.NBD_REPLY_TYPE_NONE, 0, done=True)]
    return [simple(request)]


def read_data(
    style: HeaderStyle, request: Request, offset: int, data: Buffer, *, done: bool
) -> list[Buffer]:
    """Bytes of a read: the simple reply of all of it, or one chunk."""
    if style is HeaderStyle.SIMPLE:
        return [simple(request), data]
    kind = ReplyType.NBD_REPLY_TYPE_OFFSET_DATA
    header = chunk_header(style, request, kind, UINT64.size + len(data), done=done)
    return [header + UINT64.pack(offset), data]


def read_hole(
    style: HeaderStyle, request: Request, offset: int, length: int, *, done: bool
) -> list[Buffer]:
    kind = ReplyType.NBD_REPLY_TYPE_OFFSET_HOLE
    header = chunk_header(style, request, kind, OFFSET_HOLE.size, done=done)
    return [header + OFFSET_HOLE.pack(offset, length)]


def error_reply(
    style: HeaderStyle,
    request: Request,
    error: ErrorValue,
    message: str = "",
    *,
    offset: int | None = None,
    done: bool = True,
) -> list[Buffer]:
    """An error: with *offset*, where in the export it is; the simple style has neither text."""
    if style is HeaderStyle.SIMPLE:
        return [simple(request, error)]
    text = encode_message(message)
    payload = ERROR_HEAD.pack(error, len(text)) + text
    kind = ReplyType.NBD_REPLY_TYPE_ERROR
    if offset is not None:
        kind = ReplyType.NBD_REPLY_TYPE_ERROR_OFFSET
        payload += UINT64.pack(offset)
    return [chunk_header(style, request, kind, len(payload), done=done) + payload]


def block_status(
    style: HeaderStyle,
    request: Request,
    context_id: int,
    extents: Sequence[tuple[int, int]],
    *,
    done: bool,
) -> list[Buffer]:
    """One context's extents, (length, status flags) each, as :func:`fit_extents` left them."""
    numbers = chain.from_iterable(extents)
    if style is HeaderStyle.EXTENDED:
        kind = ReplyType.NBD_REPLY_TYPE_BLOCK_STATUS_EXT
        payload = BLOCK_STATUS_EXT_HEAD.pack(context_id, len(extents))
        payload += pack(f">{2 * len(extents)}Q", *numbers)
    else:
        kind = ReplyType.NBD_REPLY_TYPE_BLOCK_STATUS
        payload = UINT32.pack(context_id) + pack(f">{2 * len(extents)}I", *numbers)
    return [chunk_header(style, request, kind, len(payload), done=done), payload]


def fit_extents(
    style: HeaderStyle,
    request: Request,
    extents: Iterable[tuple[int, int]],
    limit: int,
) -> list[tuple[int, int]]:
    """As many of *extents*, from the request's offset on, as its reply may hold.

    Neighbours with equal status are merged.  The list ends with the extent that reaches the end
    of the request, after *limit* extents, at the first with NBD_CMD_FLAG_REQ_ONE (cut at the end
    of the request), and at one too long for 32 bits where the style has no more.
    """
    one = bool(request.flags & CommandFlag.NBD_CMD_FLAG_REQ_ONE)
    longest = MAX_UINT32 if style is not HeaderStyle.EXTENDED else 2**64 - 1
    fitted: list[tuple[int, int]] = []
    covered = 0
    for length, status in _merged(extents):
        if covered >= request.length or len(fitted) == (1 if one else limit):
            break
        kept = min(length, request.length) if one else length
        if kept > longest:
            # Stay on a 64 KiB boundary, the largest minimum block size there is.
            fitted.append((longest & ~0xFFFF, status))
            break
        fitted.append((kept, status))
        covered += kept
    return fitted


def _merged(extents: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    run = 0
    run_status = 0
    for length, status in extents:
        if run and status != run_status:
            yield run, run_status
            run = 0
        run += length
        run_status = status
    if run:
        yield run, run_status

"""The data of options and of option replies: one builder and one parser for each layout.

Client to server::

    EXPORT_NAME               name
    INFO, GO                  name length:32  name  count:16  { information request:16 }
    LIST/SET_META_CONTEXT     name length:32  name  count:32  { query length:32  query }

Server to client::

    NBD_REP_SERVER            name length:32  name  description
    NBD_REP_INFO              type:16  then by type:
                              EXPORT size:64 flags:16 | NAME name | DESCRIPTION text |
                              BLOCK_SIZE minimum:32 preferred:32 maximum payload:32
    NBD_REP_META_CONTEXT      id:32  name
    NBD_REP_ERR_*             message

Every parser takes all bytes of its field and is total: it returns a value or raises ``ValueError``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import InvalidRequestError
from vdisk.nbd.session import BlockSizes, MetaContext
from vdisk.nbd.wire import (
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    UINT16,
    UINT32,
    Info,
    TransmissionFlag,
    decode_string,
    encode_string,
)

if TYPE_CHECKING:
    from collections.abc import Collection
    from struct import Struct


class _Fields:
    """Takes fields off the front of *data*."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def integer(self, layout: Struct) -> int:
        value: int = layout.unpack(self._take(layout.size))[0]
        return value

    def string(self, length: int) -> str:
        return decode_string(self._take(length))

    def rest(self) -> bytes:
        return self._take(len(self._data) - self._position)

    def end(self) -> None:
        left = len(self._data) - self._position
        if left:
            raise ValueError(f"{left} bytes too many")

    def _take(self, length: int) -> bytes:
        end = self._position + length
        if end > len(self._data):
            raise ValueError(f"{end - len(self._data)} bytes too short")
        taken = self._data[self._position : end]
        self._position = end
        return taken


# --- options --------------------------------------------------------------------------------------


class ExportQuery(NamedTuple):
    """Data of NBD_OPT_INFO and NBD_OPT_GO; information requests we do not know are left out."""

    name: str
    requests: frozenset[Info]


class MetaContextQuery(NamedTuple):
    """Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT."""

    name: str
    queries: tuple[str, ...]


_KNOWN_INFO = frozenset(int(info) for info in Info)


def build_export_query(query: ExportQuery) -> bytes:
    name = encode_string(query.name)
    return b"".join(
        [
            UINT32.pack(len(name)),
            name,
            UINT16.pack(len(query.requests)),
            *(UINT16.pack(request) for request in sorted(query.requests)),
        ]
    )


def parse_export_query(data: bytes) -> ExportQuery:
    fields = _Fields(data)
    name = fields.string(fields.integer(UINT32))
    requests = [fields.integer(UINT16) for _ in range(fields.integer(UINT16))]
    fields.end()
    return ExportQuery(
        name, frozenset(Info(number) for number in requests if number in _KNOWN_INFO)
    )


def build_meta_context_query(query: MetaContextQuery) -> bytes:
    name = encode_string(query.name)
    parts = [UINT32.pack(len(name)), name, UINT32.pack(len(query.queries))]
    for text in map(encode_string, query.queries):
        parts += [UINT32.pack(len(text)), text]
    return b"".join(parts)


def parse_meta_context_query(data: bytes) -> MetaContextQuery:
    fields = _Fields(data)
    name = fields.string(fields.integer(UINT32))
    # A wrong count cannot make this loop long: each query takes four bytes of the data or fails.
    queries = tuple(fields.string(fields.integer(UINT32)) for _ in range(fields.integer(UINT32)))
    fields.end()
    return MetaContextQuery(name, queries)


def match_meta_contexts(
    queries: Collection[str], available: Collection[str], *, wildcards: bool
) -> tuple[str, ...]:
    """The contexts of *available* that *queries* name, in the order of *available*.

    With *wildcards* (NBD_OPT_LIST_META_CONTEXT) a query that ends in a colon stands for all that
    begin with it (``base:``, ``qemu:``, ``qemu:dirty-bitmap:``), and no query at all for
    everything.  Unknown names select nothing.  Raises ``ValueError`` on a query without namespace.
    """
    for query in queries:
        namespace, colon, _ = query.partition(":")
        if not (namespace and colon):
            raise ValueError(f"the query {query!r} names no namespace")
    if wildcards and not queries:
        return tuple(available)
    exact = frozenset(queries)
    prefixes = tuple(query for query in queries if query.endswith(":")) if wildcards else ()
    return tuple(name for name in available if name in exact or name.startswith(prefixes))


# --- option replies -------------------------------------------------------------------------------


def build_server(name: str, description: str) -> bytes:
    encoded = encode_string(name)
    return UINT32.pack(len(encoded)) + encoded + encode_string(description)


def parse_server(data: bytes) -> tuple[str, str]:
    """(name, description) of an NBD_REP_SERVER."""
    fields = _Fields(data)
    name = fields.string(fields.integer(UINT32))
    return name, decode_string(fields.rest())


def build_meta_context(context: MetaContext) -> bytes:
    return UINT32.pack(context.id) + encode_string(context.name)


def parse_meta_context(data: bytes) -> MetaContext:
    fields = _Fields(data)
    return MetaContext(fields.integer(UINT32), decode_string(fields.rest()))


class InfoExport(NamedTuple):
    size: int
    flags: TransmissionFlag


class InfoName(NamedTuple):
    name: str


class InfoDescription(NamedTuple):
    description: str


def build_info_export(info: InfoExport) -> bytes:
    return INFO_EXPORT.pack(Info.NBD_INFO_EXPORT, info.size, info.flags)


def build_info_name(name: str) -> bytes:
    return UINT16.pack(Info.NBD_INFO_NAME) + encode_string(name)


def build_info_description(description: str) -> bytes:
    return UINT16.pack(Info.NBD_INFO_DESCRIPTION) + encode_string(description)


def build_info_block_sizes(sizes: BlockSizes) -> bytes:
    return INFO_BLOCK_SIZE.pack(
        Info.NBD_INFO_BLOCK_SIZE, sizes.minimum, sizes.preferred, sizes.maximum
    )


InfoItem = InfoExport | InfoName | InfoDescription | BlockSizes


def parse_info(data: bytes) -> InfoItem | None:
    """The item of an NBD_REP_INFO, or ``None`` for a type the specification does not know."""
    fields = _Fields(data)
    kind = fields.integer(UINT16)
    if kind == Info.NBD_INFO_EXPORT:
        _, size, flags = INFO_EXPORT.unpack(_exactly(data, INFO_EXPORT))
        return InfoExport(size, TransmissionFlag(flags))
    if kind == Info.NBD_INFO_BLOCK_SIZE:
        _, minimum, preferred, maximum = INFO_BLOCK_SIZE.unpack(_exactly(data, INFO_BLOCK_SIZE))
        return _received_block_sizes(minimum, preferred, maximum)
    if kind == Info.NBD_INFO_NAME:
        return InfoName(decode_string(fields.rest()))
    if kind == Info.NBD_INFO_DESCRIPTION:
        return InfoDescription(decode_string(fields.rest()))
    return None


def _received_block_sizes(minimum: int, preferred: int, maximum: int) -> BlockSizes:
    try:
        return BlockSizes(minimum, preferred, maximum)
    except InvalidRequestError as error:
        raise ValueError(str(error)) from error


def _exactly(data: bytes, layout: Struct) -> bytes:
    if len(data) != layout.size:
        raise ValueError(f"{len(data)} bytes where {layout.size} belong")
    return data

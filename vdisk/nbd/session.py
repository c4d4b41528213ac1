"""What an export is, and what client and server have agreed on when transmission starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from vdisk.errors import InvalidRequestError
from vdisk.nbd.wire import TransmissionFlag, encode_string

MAX_EXPORT_SIZE = 2**63 - 1
"""Bytes: what a signed 64-bit file offset reaches, on every system."""


class HeaderStyle(Enum):
    """Which messages the transmission phase is made of; each style includes what the last could."""

    SIMPLE = "simple"
    STRUCTURED = "structured"
    EXTENDED = "extended"


class HandshakeStyle(Enum):
    """The three versions of the handshake, oldest first."""

    OLDSTYLE = "oldstyle"
    NEWSTYLE = "newstyle"
    FIXED_NEWSTYLE = "fixed newstyle"


class TlsMode(Enum):
    """A server's NOTLS, SELECTIVETLS and FORCEDTLS; a client's never, if possible, always."""

    OFF = "off"
    ALLOW = "allow"
    REQUIRE = "require"


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """The size constraints of an export, bytes (specification: "Size constraints").

    The defaults are what holds when a server advertises nothing.  Raises InvalidRequestError on
    values no server may advertise.
    """

    minimum: int = 1
    preferred: int = 4096
    maximum: int = 2**25

    def __post_init__(self) -> None:
        if not (1 <= self.minimum <= 2**16 and _is_power_of_2(self.minimum)):
            raise InvalidRequestError(
                f"minimum block size {self.minimum} is no power of 2 up to 65536"
            )
        if self.preferred < max(self.minimum, 512) or not _is_power_of_2(self.preferred):
            raise InvalidRequestError(
                f"preferred block size {self.preferred} is no power of 2 from"
                f" {max(self.minimum, 512)}"
            )
        if not self.preferred <= self.maximum < 2**32:
            raise InvalidRequestError(
                f"maximum payload {self.maximum} is not in {self.preferred}..2^32-1"
            )


def _is_power_of_2(value: int) -> bool:
    return value & (value - 1) == 0


DEFAULT_BLOCK_SIZES = BlockSizes()


class MetaContext(NamedTuple):
    """A selected metadata context; ``id`` is how this connection's replies name it."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """An export, as a server offers it and as a client learns about it.

    A server sets in ``flags`` what the export can do; flags that depend on the negotiation
    (NBD_FLAG_HAS_FLAGS, NBD_FLAG_SEND_DF, NBD_FLAG_BLOCK_STATUS_PAYLOAD) are the machine's to add.

    ``block_sizes``: the constraints advertised, ``None`` for none.
    ``meta_contexts``: the names a client may select.
    ``tls_required``: the export is TLS-only on a server where TLS is optional.
    ``block_sizes_required``: refuse a client that does not promise to obey ``block_sizes``.
    """

    name: str
    size: int
    flags: TransmissionFlag = field(default=TransmissionFlag(0))
    description: str = ""
    block_sizes: BlockSizes | None = None
    meta_contexts: tuple[str, ...] = ()
    tls_required: bool = False
    block_sizes_required: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_EXPORT_SIZE:
            raise InvalidRequestError(f"an export of {self.size} bytes")
        for text in (self.name, self.description, *self.meta_contexts):
            encode_string(text)

    @property
    def read_only(self) -> bool:
        return TransmissionFlag.NBD_FLAG_READ_ONLY in self.flags


@dataclass(frozen=True, slots=True)
class Session:
    """The outcome of a handshake: all the transmission phase needs to know.

    ``export.flags`` are the transmission flags as sent.  ``block_sizes`` are the constraints in
    force: the advertised ones, or the defaults.  ``tls``: the connection was upgraded.
    """

    export: ExportInfo
    headers: HeaderStyle = HeaderStyle.SIMPLE
    meta_contexts: tuple[MetaContext, ...] = ()
    tls: bool = False

    @property
    def block_sizes(self) -> BlockSizes:
        return self.export.block_sizes or DEFAULT_BLOCK_SIZES

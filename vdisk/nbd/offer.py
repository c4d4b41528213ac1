"""What a server tells of an export at the end of the option haggling.

The program says what an export can do; some flags say what the two sides agreed on, and those are
added here.  NBD_OPT_INFO and NBD_OPT_GO are answered by pieces of information, NBD_INFO_*; in the
older NBD_OPT_EXPORT_NAME there are only size and flags (doc/proto.md, "Transmission flags" and
"Option reply types").
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from vdisk.nbd import options
from vdisk.nbd.session import ExportInfo, HeaderStyle, MetaContext, Session
from vdisk.nbd.wire import Info, TransmissionFlag

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_AGREED_FLAGS: Final = (
    TransmissionFlag.NBD_FLAG_SEND_DF | TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD
)


class Offer(NamedTuple):
    """An export to a client that negotiated ``headers`` and selected ``contexts`` of it."""

    export: ExportInfo
    headers: HeaderStyle
    contexts: tuple[MetaContext, ...]

    @property
    def flags(self) -> TransmissionFlag:
        """The transmission flags, as they are sent."""
        flags = (self.export.flags & ~_AGREED_FLAGS) | TransmissionFlag.NBD_FLAG_HAS_FLAGS
        if TransmissionFlag.NBD_FLAG_SEND_WRITE_ZEROES not in flags:
            flags &= ~TransmissionFlag.NBD_FLAG_SEND_FAST_ZERO
        if self.headers is not HeaderStyle.SIMPLE:
            flags |= TransmissionFlag.NBD_FLAG_SEND_DF
        if self.headers is HeaderStyle.EXTENDED and self.contexts:
            flags |= TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD
        return flags

    def information(self, requests: Collection[Info], *, asking: bool) -> Iterable[bytes]:
        """The data of each NBD_REP_INFO; ``asking``: the client does not use the export yet."""
        export, flags = self.export, self.flags
        if asking and self.headers is HeaderStyle.EXTENDED:
            # Whether or not contexts are selected yet: a client asks what is possible.
            flags |= TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD
        yield options.build_info_export(options.InfoExport(export.size, flags))
        if Info.NBD_INFO_NAME in requests:
            yield options.build_info_name(export.name)
        if Info.NBD_INFO_DESCRIPTION in requests and export.description:
            yield options.build_info_description(export.description)
        if export.block_sizes is not None:
            yield options.build_info_block_sizes(export.block_sizes)

    def session(self, *, tls: bool) -> Session:
        """What the handshake comes to if the client takes the offer."""
        export = replace(self.export, flags=self.flags)
        return Session(export, self.headers, self.contexts, tls)

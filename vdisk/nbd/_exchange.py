"""The client's view of one option: what it was sent with, and what its replies have said so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vdisk.errors import VdiskError
from vdisk.nbd import options
from vdisk.nbd.session import BlockSizes, ExportInfo, MetaContext
from vdisk.nbd.wire import Option, OptionReply, encode_string

if TYPE_CHECKING:
    from collections.abc import Callable

OptionData = options.ExportQuery | options.MetaContextQuery | str | None
"""What goes with an option: see :data:`DATA`."""

DATA: Final[dict[Option, type]] = {
    Option.NBD_OPT_EXPORT_NAME: str,
    Option.NBD_OPT_INFO: options.ExportQuery,
    Option.NBD_OPT_GO: options.ExportQuery,
    Option.NBD_OPT_LIST_META_CONTEXT: options.MetaContextQuery,
    Option.NBD_OPT_SET_META_CONTEXT: options.MetaContextQuery,
}
"""The options that have data."""


def encode(data: OptionData) -> bytes:
    """An option's data as they are sent."""
    match data:
        case options.ExportQuery():
            return options.build_export_query(data)
        case options.MetaContextQuery():
            return options.build_meta_context_query(data)
        case str():
            return encode_string(data)
        case None:
            return b""


class Exchange:
    """One option that was sent."""

    def __init__(self, option: Option, data: OptionData) -> None:
        self.option = option
        self.data = data
        self.replies = 0
        self.bytes = 0
        self.exports: list[tuple[str, str]] = []
        self.contexts: list[MetaContext] = []
        self._info: dict[type, Any] = {}

    @property
    def export_name(self) -> str:
        """The export the option is about."""
        if isinstance(self.data, options.ExportQuery | options.MetaContextQuery):
            return self.data.name
        return self.data or ""

    def take(self, reply: int, data: bytes) -> None:
        """A reply that is not the final one; raises ValueError when this option has none such."""
        reader = _REPLIES.get((self.option, reply))
        if reader is None:
            raise ValueError(f"reply {reply} to {self.option.name}")
        reader(self, data)

    def _take_server(self, data: bytes) -> None:
        self.exports.append(options.parse_server(data))

    def _take_context(self, data: bytes) -> None:
        self.contexts.append(options.parse_meta_context(data))

    def _take_info(self, data: bytes) -> None:
        item = options.parse_info(data)
        if item is not None:
            self._info[type(item)] = item

    def described_export(self) -> ExportInfo:
        """The export that the replies to NBD_OPT_INFO or GO describe; raises ValueError."""
        export = self._info.get(options.InfoExport)
        if export is None:
            raise ValueError("NBD_REP_ACK without NBD_INFO_EXPORT")
        name = self._info.get(options.InfoName, options.InfoName(self.export_name))
        description = self._info.get(options.InfoDescription, options.InfoDescription(""))
        sizes = self._info.get(BlockSizes)
        try:
            return ExportInfo(name.name, export.size, export.flags, description.description, sizes)
        except VdiskError as error:
            raise ValueError(str(error)) from error


_REPLIES: Final[dict[tuple[int, int], Callable[[Exchange, bytes], None]]] = {
    (Option.NBD_OPT_LIST, OptionReply.NBD_REP_SERVER): Exchange._take_server,
    (Option.NBD_OPT_INFO, OptionReply.NBD_REP_INFO): Exchange._take_info,
    (Option.NBD_OPT_GO, OptionReply.NBD_REP_INFO): Exchange._take_info,
    (Option.NBD_OPT_LIST_META_CONTEXT, OptionReply.NBD_REP_META_CONTEXT): Exchange._take_context,
    (Option.NBD_OPT_SET_META_CONTEXT, OptionReply.NBD_REP_META_CONTEXT): Exchange._take_context,
}
"""The replies an option may have before its final one."""

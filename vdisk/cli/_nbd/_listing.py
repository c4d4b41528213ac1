"""``serve -L``: the exports of a server that runs already, told as qemu-nbd tells them.

The lines are those of qemu-nbd 9; ``vdisk-nbd list`` tells the same in nbdinfo's way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.cli._nbd._exports import printable
from vdisk.errors import InvalidRequestError
from vdisk.nbd.session import HeaderStyle
from vdisk.nbd.wire import TransmissionFlag

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from vdisk.nbd.session import ExportInfo

_FLAGS = {
    TransmissionFlag.NBD_FLAG_READ_ONLY: "readonly",
    TransmissionFlag.NBD_FLAG_SEND_FLUSH: "flush",
    TransmissionFlag.NBD_FLAG_SEND_FUA: "fua",
    TransmissionFlag.NBD_FLAG_ROTATIONAL: "rotational",
    TransmissionFlag.NBD_FLAG_SEND_TRIM: "trim",
    TransmissionFlag.NBD_FLAG_SEND_WRITE_ZEROES: "zeroes",
    TransmissionFlag.NBD_FLAG_SEND_DF: "df",
    TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN: "multi",
    TransmissionFlag.NBD_FLAG_SEND_RESIZE: "resize",
    TransmissionFlag.NBD_FLAG_SEND_CACHE: "cache",
    TransmissionFlag.NBD_FLAG_SEND_FAST_ZERO: "fast-zero",
    TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD: "block-status-payload",
}


def list_exports(args: Namespace) -> int:
    """Print what the server offers that -k, or -b and -p, name."""
    from vdisk.cli._nbd._exports import server_at
    from vdisk.stores._nbd.handshake import describe_exports

    if args.images:
        raise InvalidRequestError("-L lists what a server offers already: name no image")
    answer = describe_exports(server_at(args, _place(args)))
    print("\n".join(_lines(answer.result, answer.negotiated.headers)))
    return 0


def _place(args: Namespace) -> str:
    """The URI of the server, from the options that say where one listens."""
    from vdisk.nbd.uri import NbdUri, Transport
    from vdisk.nbd.wire import NBD_DEFAULT_PORT

    if len([*args.socket, *args.vsock, *(args.bind or ())]) > 1:
        raise InvalidRequestError("-L asks one server: give one of -k, -b and --vsock")
    if args.socket:
        return str(NbdUri(Transport.UNIX, socket=args.socket[0]))
    if args.vsock:
        return str(NbdUri(Transport.VSOCK, port=args.vsock[0]))
    port = NBD_DEFAULT_PORT if args.port is None else args.port
    return str(NbdUri(host=args.bind[0] if args.bind else "localhost", port=port))


def _lines(exports: Sequence[ExportInfo], headers: HeaderStyle) -> Iterator[str]:
    yield f"exports available: {len(exports)}"
    for export in exports:
        yield f" export: '{printable(export.name)}'"
        if export.description:
            yield f"  description: {printable(export.description)}"
        yield f"  size:  {export.size}"
        names = [name for flag, name in _FLAGS.items() if flag in export.flags]
        yield f"  flags: 0x{int(export.flags):x} ( {' '.join([*names, ''])})"
        if export.block_sizes is not None:
            yield f"  min block: {export.block_sizes.minimum}"
            yield f"  opt block: {export.block_sizes.preferred}"
            yield f"  max block: {export.block_sizes.maximum}"
        bits = 64 if headers is HeaderStyle.EXTENDED else 32
        yield f"  transaction size: {bits}-bit"
        if export.meta_contexts:
            yield f"  available meta contexts: {len(export.meta_contexts)}"
            yield from (f"   {printable(context)}" for context in export.meta_contexts)

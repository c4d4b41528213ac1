"""Exports described as nbdinfo describes them, for people and as JSON.

Field names, their order and the tabs are those of nbdinfo 1.14, so that what reads its output
reads ours.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from vdisk.cli.colour import Colour, Painter
from vdisk.nbd.session import HandshakeStyle, HeaderStyle
from vdisk.nbd.wire import TransmissionFlag

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from vdisk.cli.options import Parser
    from vdisk.nbd.connect import Negotiated
    from vdisk.nbd.session import ExportInfo
    from vdisk.nbd.uri import NbdUri
    from vdisk.stores._nbd.handshake import Server
    from vdisk.stores._nbd.tls import TlsSettings

_STYLES = {
    HandshakeStyle.OLDSTYLE: "oldstyle",
    HandshakeStyle.NEWSTYLE: "newstyle",
    HandshakeStyle.FIXED_NEWSTYLE: "newstyle-fixed",
}
_PACKETS = {
    HeaderStyle.SIMPLE: "simple",
    HeaderStyle.STRUCTURED: "structured",
    HeaderStyle.EXTENDED: "extended",
}
_FLAGS = {
    "is_rotational": TransmissionFlag.NBD_FLAG_ROTATIONAL,
    "is_read_only": TransmissionFlag.NBD_FLAG_READ_ONLY,
    "can_block_status_payload": TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD,
    "can_cache": TransmissionFlag.NBD_FLAG_SEND_CACHE,
    "can_df": TransmissionFlag.NBD_FLAG_SEND_DF,
    "can_fast_zero": TransmissionFlag.NBD_FLAG_SEND_FAST_ZERO,
    "can_flush": TransmissionFlag.NBD_FLAG_SEND_FLUSH,
    "can_fua": TransmissionFlag.NBD_FLAG_SEND_FUA,
    "can_multi_conn": TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN,
    "can_trim": TransmissionFlag.NBD_FLAG_SEND_TRIM,
    "can_zero": TransmissionFlag.NBD_FLAG_SEND_WRITE_ZEROES,
}


def add_credentials(parser: Parser) -> None:
    """--object, --tls-creds, --tls-hostname: TLS said as qemu-nbd has it, not in the URI."""
    from vdisk.cli.options import add_objects

    add_objects(parser)
    parser.add_argument(
        "--tls-creds", metavar="ID", help="require TLS, with credentials that --object defines"
    )
    parser.add_argument(
        "--tls-hostname", metavar="NAME", help="the name that the server's certificate is for"
    )


def add_server(parser: Parser, help: str = "the export") -> None:
    """The server: a URI, or ``[ CMD ARG… ]``; and how to use TLS there."""
    add_credentials(parser)
    parser.take_rest("server", "URI", help=f'{help}; or "[ CMD ARG… ]", a server to be started')


@contextlib.contextmanager
def named_server(args: Namespace) -> Iterator[str]:
    """The URI that the arguments name; what they say to start runs meanwhile."""
    from vdisk.errors import InvalidRequestError

    words: list[str] = args.server
    if words[:1] == ["["] and words[-1] == "]":
        from vdisk.cli._nbd._activation import served

        with served(words[1:-1]) as uri:
            yield uri
    elif len(words) == 1:
        yield words[0]
    else:
        raise InvalidRequestError("one server, please: a URI or [ CMD ARG… ]")


def place_of(args: Namespace, name: str) -> tuple[NbdUri, TlsSettings]:
    """The server and export that an argument names, and how to use TLS there."""
    from dataclasses import replace

    from vdisk.cli.options import secrets
    from vdisk.options import split_secrets
    from vdisk.stores._nbd.address import parse_name
    from vdisk.stores._nbd.tls import credentials_of, settings_for

    uri = parse_name(name)
    if args.tls_hostname is not None:
        uri = replace(uri, tls_hostname=args.tls_hostname)
    if args.tls_creds is None:
        return uri, settings_for(uri)
    passphrases, objects = split_secrets(secrets(args))
    return uri, settings_for(uri, credentials_of(args.tls_creds, objects, passphrases))


def server_at(args: Namespace, name: str) -> Server:
    """The server and export of that URI."""
    from vdisk.nbd.connect import ClientSettings
    from vdisk.stores._nbd.handshake import Server

    uri, tls = place_of(args, name)
    return Server(uri, ClientSettings(export=uri.export, tls=tls.mode), tls)


def plain_server(name: str, reason: str) -> Server:
    """The server and export that an argument names, for simple replies without TLS.

    ``reason``: why there can be none.
    """
    from vdisk.errors import UnsupportedFeatureError
    from vdisk.nbd.connect import ClientSettings
    from vdisk.stores._nbd.address import parse_name
    from vdisk.stores._nbd.handshake import Server
    from vdisk.stores._nbd.tls import TlsSettings, settings_for

    uri = parse_name(name)
    if settings_for(uri).context is not None:
        raise UnsupportedFeatureError(f"{reason}: name the server without TLS", path=name)
    settings = ClientSettings(
        export=uri.export, meta_contexts=(), structured_replies=False, extended_headers=False
    )
    return Server(uri, settings, TlsSettings())


def add_display(parser: Parser) -> None:
    """--json, --content, --color: what is shown of an export, and how."""
    from vdisk.cli.colour import add_colour

    parser.add_argument("--json", action="store_true", help="as JSON, like nbdinfo --json")
    parser.add_argument(
        "--content",
        action="store_true",
        default=None,
        help="say what file(1) makes of the first bytes (default, but not for a list)",
    )
    parser.add_argument("--no-content", dest="content", action="store_false", help="do not read")
    add_colour(parser)


def show(
    args: Namespace,
    server: Server,
    exports: Sequence[ExportInfo],
    negotiated: Negotiated,
    *,
    content: bool,
) -> None:
    """Print a server's description, as the options of :func:`add_display` say.

    ``content``: look into the exports unless the options say otherwise.
    """
    from dataclasses import replace

    look = content if args.content is None else args.content
    described = []
    for export in exports:
        uri, found = replace(server.uri, export=export.name), None
        if look:
            from vdisk.cli._nbd._content import content_of

            found = content_of(uri, server.tls)
        described.append(_fields(uri, export, found))
    if args.json:
        print(_json(described, negotiated))
        return
    tls = "with" if negotiated.tls else "without"
    packets = _PACKETS[negotiated.headers]
    lines = [f"protocol: {_STYLES[negotiated.style]} {tls} TLS, using {packets} packets"]
    for fields in described:
        lines += _lines(fields, Painter(args))
    print("\n".join(lines))


def printable(text: str) -> str:
    """What a server sent, for a terminal: control characters are spelled out."""
    return "".join(c if c.isprintable() or c == " " else ascii(c)[1:-1] for c in text)


def _lines(fields: dict[str, Any], painter: Painter) -> Iterator[str]:
    import json

    name = printable(json.dumps(fields["export-name"], ensure_ascii=False))
    yield painter.paint(f"export={name}:", Colour.STRONG)
    head = {
        "description": fields.get("description"),
        "export-size": _both_ways(fields["export-size"]),
        "content": fields.get("content"),
        "uri": fields["uri"],
    }
    for key, value in head.items():
        if value:
            yield painter.paint(f"\t{key}: {printable(value)}", Colour.STRONG)
    for key, value in fields.items():
        if isinstance(value, list):
            yield painter.paint(f"\t{key}:", Colour.FAINT)
            yield from (painter.paint(f"\t\t{printable(item)}", Colour.FAINT) for item in value)
        elif isinstance(value, bool):
            yield f"\t{key}: " + painter.paint(*_ANSWERS[value])
        elif key.startswith("block_size_"):
            yield f"\t{key}: {_both_ways(value)}"


def _both_ways(size: int) -> str:
    """In bytes, and shorter where that is exact."""
    shown = short_size(size)
    return str(size) if shown == str(size) else f"{size} ({shown})"


_ANSWERS = {True: ("true", Colour.GOOD), False: ("false", Colour.BAD)}


def _fields(uri: NbdUri, export: ExportInfo, content: str | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"export-name": export.name}
    if export.description:
        fields["description"] = export.description
    if content:
        fields["content"] = content
    fields["uri"] = str(uri)
    if export.meta_contexts:
        fields["contexts"] = list(export.meta_contexts)
    fields |= {key: flag in export.flags for key, flag in _FLAGS.items()}
    if export.block_sizes is not None:
        fields["block_size_minimum"] = export.block_sizes.minimum
        fields["block_size_preferred"] = export.block_sizes.preferred
        fields["block_size_maximum"] = export.block_sizes.maximum
    return fields | {"export-size": export.size, "export-size-str": short_size(export.size)}


def _json(exports: list[dict[str, Any]], negotiated: Negotiated) -> str:
    import json

    server: dict[str, Any] = {
        "protocol": _STYLES[negotiated.style],
        "TLS": negotiated.tls,
        "structured": negotiated.headers is not HeaderStyle.SIMPLE,
        "extended": negotiated.headers is HeaderStyle.EXTENDED,
        "exports": exports,
    }
    return json.dumps(server, indent="\t", ensure_ascii=False)


def short_size(size: int) -> str:
    """Exactly ``size``, in the largest unit that needs no fraction."""
    units = "KMGTPE"
    for index in range(len(units), 0, -1):
        if size and size % 1024**index == 0:
            return f"{size // 1024**index}{units[index - 1]}"
    return str(size)


def can(export: ExportInfo, negotiated: Negotiated) -> dict[str, bool]:
    """What ``--can`` and ``--is`` test, by name."""
    known = {key.partition("_")[2].replace("_", "-"): flag for key, flag in _FLAGS.items()}
    answers = {name: flag in export.flags for name, flag in known.items()}
    return answers | {
        "connect": True,
        "read": True,
        "write": not export.read_only,
        "tls": negotiated.tls,
        "structured-reply": negotiated.headers is not HeaderStyle.SIMPLE,
        "extended-headers": negotiated.headers is HeaderStyle.EXTENDED,
    }


_SYNONYMS = {
    "eh": "extended-headers",
    "extended-header": "extended-headers",
    "fastzero": "fast-zero",
    "multiconn": "multi-conn",
    "readonly": "read-only",
    "sr": "structured-reply",
    "structured": "structured-reply",
    "structured-replies": "structured-reply",
}


def name_of(question: str) -> str:
    """What ``--can`` and ``--is`` ask for, as :func:`can` spells it."""
    word = question.lower().replace(" ", "-").replace("_", "-")
    return _SYNONYMS.get(word, word)

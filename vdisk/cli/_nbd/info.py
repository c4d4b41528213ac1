"""Show what an NBD export is and what its server can do with it.

--can, --is and --has are one option, and --cannot, --isnt and --hasnt are its opposite.  They print
nothing: the exit status is 0 for yes, 2 for no, 1 for an error.  --list and --map are the commands
of those names, as options for who knows nbdinfo.

Examples:
  vdisk-nbd info nbd://example.com/disk
  vdisk-nbd info --size nbd://example.com/disk
  vdisk-nbd info --can trim nbd://example.com/disk && echo "it discards"
  vdisk-nbd info -- [ qemu-nbd -r -f qcow2 disk.qcow2 ]
"""

from __future__ import annotations

from argparse import SUPPRESS
from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from argparse import Namespace, _MutuallyExclusiveGroup

    from vdisk.cli.options import Parser
    from vdisk.nbd.connect import Negotiated
    from vdisk.nbd.session import ExportInfo

NO = 2
"""The exit status that means no."""


def configure(parser: Parser) -> None:
    from vdisk.cli._nbd._exports import add_display, add_server

    add_display(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--size", action="store_true", help="the size in bytes, and nothing else")
    what.add_argument("--uri", action="store_true", help="the full URI, and nothing else")
    what.add_argument(
        "--can",
        "--is",
        "--has",
        metavar="WHAT",
        help="test: block-status-payload, cache, connect, df, extended-headers, fast-zero, flush, "
        "fua, multi-conn, read, read-only, rotational, structured-reply, tls, trim, write, zero",
    )
    what.add_argument("--cannot", "--isnt", "--hasnt", metavar="WHAT", help="test for the opposite")
    what.add_argument("-L", "--list", action="store_true", help="all exports of the server")
    _add_map(parser, what)
    add_server(parser)


def _add_map(parser: Parser, what: _MutuallyExclusiveGroup) -> None:
    from vdisk.nbd.wire import BASE_ALLOCATION

    what.add_argument(
        "--map",
        dest="context",
        action="store_const",
        const=BASE_ALLOCATION,
        help=f"what its parts hold; --map=CONTEXT: as another metadata context than "
        f"{BASE_ALLOCATION} tells",
    )
    what.add_argument("--map-context", dest="context", help=SUPPRESS)
    parser.with_value("--map", "--map-context")
    parser.add_argument("--totals", action="store_true", help="with --map: how much of each")


def run(args: Namespace) -> int:
    from vdisk.cli._nbd._exports import named_server, server_at, show
    from vdisk.stores._nbd.handshake import describe_export

    if args.totals and args.context is None:
        raise InvalidRequestError("--totals are those of a --map")
    if args.context is not None or args.list:
        return _other_command(args)
    with named_server(args) as name:
        server = server_at(args, name)
        export, negotiated = describe_export(server)
        if args.can is not None:
            return 0 if _answer(args.can, export, negotiated) else NO
        if args.cannot is not None:
            return NO if _answer(args.cannot, export, negotiated) else 0
        if args.size:
            print(export.size)
        elif args.uri:
            print(_quoted(str(server.uri)) if args.json else server.uri)
        else:
            show(args, server, [export], negotiated, content=True)
    return 0


def _other_command(args: Namespace) -> int:
    if args.list:
        from vdisk.cli._nbd.list import run
    else:
        from vdisk.cli._nbd.map import run
    return run(args)


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)


def _answer(question: str, export: ExportInfo, negotiated: Negotiated) -> bool:
    from vdisk.cli._nbd._exports import can, name_of

    answers = can(export, negotiated)
    found = answers.get(name_of(question))
    if found is None:
        known = ", ".join(sorted(answers))
        raise InvalidRequestError(f"nobody knows about {question!r}, only about {known}")
    return found

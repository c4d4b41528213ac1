"""Show what an NBD export is and what its server can do with it.

--can and --is print nothing: the exit status is 0 for yes, 2 for no, 1 for an error.

Examples:
  vdisk-nbd info nbd://example.com/disk
  vdisk-nbd info --size nbd://example.com/disk
  vdisk-nbd info --can trim nbd://example.com/disk && echo "it discards"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser

NO = 2
"""The exit status that means no."""


def configure(parser: Parser) -> None:
    from vdisk.cli._nbd._exports import add_credentials

    parser.add_argument("--json", action="store_true", help="as JSON, like nbdinfo --json")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--size", action="store_true", help="the size in bytes, and nothing else")
    what.add_argument(
        "--can",
        "--has",
        metavar="WHAT",
        help="test: cache, connect, df, fast-zero, flush, fua, multi-conn, read, "
        "structured-reply, trim, write, zero",
    )
    what.add_argument("--is", dest="is_", metavar="WHAT", help="test: read-only, rotational or tls")
    add_credentials(parser)
    parser.add_argument("uri", help="the export")


def run(args: Namespace) -> int:
    from vdisk.cli._nbd._exports import can, server_of, show
    from vdisk.stores._nbd.handshake import describe_export

    server = server_of(args)
    export, negotiated = describe_export(server)
    question = args.can or args.is_
    if question is not None:
        answers = can(export, negotiated)
        if question not in answers:
            known = ", ".join(sorted(answers))
            raise InvalidRequestError(f"nobody knows about {question!r}, only about {known}")
        return 0 if answers[question] else NO
    if args.size:
        print(export.size)
    else:
        show(server.uri, [export], negotiated, as_json=args.json)
    return 0

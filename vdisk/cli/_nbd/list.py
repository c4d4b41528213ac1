"""List the exports of an NBD server.

Examples:
  vdisk-nbd list nbd://example.com
  vdisk-nbd list --json nbd+unix:///?socket=/run/nbd.sock
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser


def configure(parser: Parser) -> None:
    from vdisk.cli._nbd._exports import add_display, add_server

    add_display(parser)
    add_server(parser, "the server, whose export is of no interest")


def run(args: Namespace) -> int:
    from vdisk.cli._nbd._exports import named_server, server_at, show
    from vdisk.stores._nbd.handshake import describe_exports

    with named_server(args) as name:
        server = server_at(args, name)
        answer = describe_exports(server)
        show(args, server, answer.result, answer.negotiated, content=False)
    return 0

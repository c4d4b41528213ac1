"""The options of ``vdisk-nbd serve``, by topic."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from vdisk.cli.options import add_objects
from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.cli.options import Parser
    from vdisk.nbd_serving.limits import ServerLimits


def add_listening(parser: Parser) -> None:
    group = parser.add_argument_group("where it listens (default: TCP on localhost, port 10809)")
    group.add_argument("-p", "--port", type=int, metavar="PORT", help="TCP port; 0: any free one")
    group.add_argument(
        "-b",
        "--bind",
        action="append",
        metavar="ADDRESS",
        help="TCP address, '*' for all (default localhost); may be repeated",
    )
    group.add_argument(
        "-k", "--socket", action="append", default=[], metavar="PATH", help="a unix socket"
    )
    group.add_argument(
        "--vsock",
        type=int,
        action="append",
        default=[],
        metavar="PORT",
        help="an AF_VSOCK port, for virtual machines",
    )
    group.add_argument(
        "--selinux-label", metavar="LABEL", help="the SELinux context of the listening sockets"
    )


def add_images(parser: Parser) -> None:
    group = parser.add_argument_group("what is served")
    group.add_argument("-f", "--format", metavar="FORMAT", help="format of the images")
    group.add_argument(
        "--image-opts",
        action="store_true",
        help="IMAGE is a list of options: driver=qcow2,file.filename=…",
    )
    group.add_argument(
        "--no-backing", action="store_true", help="refuse images that lead to other files"
    )
    group.add_argument("-r", "--read-only", action="store_true", help="allow reading only")
    group.add_argument(
        "-s",
        "--snapshot",
        action="store_true",
        help="leave the image as it is: writes go to a temporary file",
    )
    group.add_argument(
        "-l",
        "--load-snapshot",
        metavar="SNAPSHOT",
        help="serve an internal snapshot, read-only: its id or name, or "
        "snapshot.id=ID,snapshot.name=NAME",
    )
    group.add_argument(
        "--snapshots",
        action="store_true",
        help="serve every internal snapshot too, as NAME@SNAPSHOT",
    )
    group.add_argument(
        "-o", "--offset", metavar="BYTES", default="0", help="serve from this offset on"
    )
    group.add_argument("--size", metavar="BYTES", help="serve only so much from the offset on")
    group.add_argument(
        "-P", "--partition", type=int, metavar="NUMBER", help="serve one partition (MBR or GPT)"
    )


def add_exports(parser: Parser) -> None:
    group = parser.add_argument_group("how it is offered")
    group.add_argument(
        "-x",
        "--export-name",
        metavar="NAME",
        help="name of the export (default: empty; with several images: their files' names)",
    )
    group.add_argument(
        "--default", default="", metavar="NAME", help="the export for clients that name none"
    )
    group.add_argument("-D", "--description", default="", metavar="TEXT", help="what it is")
    group.add_argument(
        "-A",
        "--allocation-depth",
        action="store_true",
        help="offer the context qemu:allocation-depth",
    )
    group.add_argument(
        "-B",
        "--bitmap",
        action="append",
        default=[],
        metavar="NAME",
        help="offer a dirty bitmap as qemu:dirty-bitmap:NAME",
    )
    group.add_argument("--iops", type=float, default=0, metavar="N", help="requests a second")
    group.add_argument(
        "--bps", metavar="BYTES", help="bytes a second, of each export (suffixes K, M, G)"
    )


def add_writing(parser: Parser) -> None:
    group = parser.add_argument_group("how it is written")
    group.add_argument(
        "--cache",
        default=None,
        metavar="MODE",
        help="none, writeback (default), writethrough, directsync or unsafe",
    )
    group.add_argument("-n", "--nocache", action="store_true", help="the same as --cache=none")
    group.add_argument(
        "--aio",
        choices=("threads", "native", "io_uring"),
        help="accepted as qemu-nbd has it; the fastest way is found by itself",
    )
    group.add_argument(
        "--discard",
        choices=("ignore", "off", "unmap", "on"),
        default="ignore",
        help="what trimming does (default: nothing)",
    )
    group.add_argument(
        "--detect-zeroes",
        choices=("off", "on", "unmap"),
        default="off",
        help="turn writes of zeroes into zeroing; unmap: which may give room back",
    )
    group.add_argument(
        "--copy-on-read",
        action="store_true",
        help="keep in the image what is read from its backing file",
    )


def add_access(parser: Parser) -> None:
    group = parser.add_argument_group("who may connect")
    add_objects(parser)
    group.add_argument("--tls-creds", metavar="ID", help="credentials that --object defines")
    group.add_argument(
        "--tls-authz", metavar="ID", help="an authz-simple object: the name clients must have"
    )
    group.add_argument(
        "--tls",
        choices=("off", "allow", "require"),
        help="whether clients use TLS (default with credentials: require)",
    )
    group.add_argument(
        "--tls-certificates",
        metavar="DIRECTORY",
        help="with server-cert.pem, server-key.pem, ca-cert.pem",
    )
    group.add_argument(
        "--tls-no-verify", action="store_true", help="clients need no certificate of their own"
    )
    group.add_argument("--tls-psk", metavar="DIRECTORY", help="with keys.psk (Python 3.13)")
    group.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="RULE",
        help="uid:NUMBER, cn:NAME or dn:NAME; may be repeated, one must fit",
    )
    group.add_argument(
        "--allow-export",
        action="append",
        default=[],
        metavar="EXPORT=RULE",
        help="the same, for one export",
    )


def add_running(parser: Parser) -> None:
    group = parser.add_argument_group("how it runs")
    group.add_argument(
        "-t",
        "--persistent",
        action="store_true",
        help="go on when the last client has left (the default here, unlike qemu-nbd)",
    )
    group.add_argument("--one-shot", action="store_true", help="end when the last client has left")
    group.add_argument(
        "-e",
        "--shared",
        type=int,
        default=0,
        metavar="N",
        help="clients at once, others wait; 0: any number (default, qemu-nbd: 1)",
    )
    group.add_argument("--fork", action="store_true", help="go to the background when ready")
    group.add_argument("--pid-file", metavar="PATH", help="write the process id when ready")
    group.add_argument("--log-file", metavar="PATH", help="append messages to a file")
    group.add_argument("-v", "--verbose", action="store_true", help="tell more")
    group.add_argument("-q", "--quiet", action="store_true", help="tell only what went wrong")
    group.add_argument("--metrics", metavar="HOST:PORT", help="serve counters to Prometheus")
    group.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a bound on clients; '--limit help' lists them",
    )


def add_elsewhere(parser: Parser) -> None:
    """Letters of qemu-nbd that do not serve: listing, and what is a subcommand here."""
    parser.add_argument(
        "-L",
        "--list",
        action="store_true",
        help="list what the server at -k, or -b and -p, offers, in qemu-nbd's words",
    )
    parser.add_argument(
        "--tls-hostname", metavar="NAME", help="with -L: the name that its certificate is for"
    )
    for flags, instead in (
        (("-c", "--connect"), "vdisk-nbd connect"),
        (("-d", "--disconnect"), "vdisk-nbd disconnect"),
    ):
        parser.add_argument(
            *flags, action=_Elsewhere, nargs="?", const=instead, help=argparse.SUPPRESS
        )
    # Trace points are QEMU's own; what a user wants of them is told in another way.
    instead = "-v, --log-file and --metrics"
    parser.add_argument(
        "-T", "--trace", action=_Elsewhere, nargs="?", const=instead, help=argparse.SUPPRESS
    )


class _Elsewhere(argparse.Action):
    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        _values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        raise InvalidRequestError(f"{option_string} is done by '{self.const}'")


def parse_limits(settings: Sequence[str]) -> ServerLimits:
    """``--limit NAME=VALUE``…; ``help`` prints the names and leaves with exit status 0."""
    from vdisk.nbd_serving.limits import ServerLimits
    from vdisk.units import parse_size

    defaults = ServerLimits()
    known = {field.name.replace("_", "-"): field for field in fields(ServerLimits)}
    if any(setting in ("help", "?") for setting in settings):
        for name, field in known.items():
            print(f"{name}={getattr(defaults, field.name)}")
        raise SystemExit(0)
    changed: dict[str, Any] = {}
    for setting in settings:
        name, _equals, value = setting.partition("=")
        if name not in known:
            raise InvalidRequestError(f"there is no limit {name!r}; '--limit help' lists them")
        try:
            in_seconds = name.endswith("seconds")
            changed[known[name].name] = float(value) if in_seconds else parse_size(value)
        except ValueError as error:
            raise InvalidRequestError(f"--limit {setting}: {error}") from error
    return ServerLimits(**changed)

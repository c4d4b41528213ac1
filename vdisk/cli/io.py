"""Read and write an image by commands, as qemu-io does.

Without -c commands are read from standard input; the command "help" explains them.

Examples:
  vdisk io -c "write -P 0xaa 0 64k" -c "read -P 0xaa 0 64k" disk.qcow2
  vdisk io disk.qcow2 < script
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from vdisk.cli.options import add_source, image_name, secrets

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator

    from vdisk.cli._io.session import Session, Settings
    from vdisk.cli.options import Parser

PROMPT = "vdisk io> "


def configure(parser: Parser) -> None:
    add_source(parser)
    parser.add_argument(
        "-c",
        "--cmd",
        dest="commands",
        action="append",
        default=[],
        metavar="COMMAND",
        help="run a command instead of reading commands from standard input",
    )
    parser.add_argument("-r", "--read-only", action="store_true", help="open read-only")
    parser.add_argument(
        "-s", "--snapshot", action="store_true", help="keep changes in a temporary overlay"
    )
    parser.add_argument(
        "-C", "--copy-on-read", action="store_true", help="keep what is read from backing files"
    )
    parser.add_argument("-n", "--nocache", action="store_true", help="the same as -t none")
    parser.add_argument(
        "-t",
        "--cache",
        metavar="MODE",
        help="none, writeback (default), writethrough, directsync or unsafe",
    )
    parser.add_argument(
        "-d", "--discard", default="unmap", metavar="MODE", help="unmap (default) or ignore"
    )
    parser.add_argument(
        "-i",
        "--aio",
        default="threads",
        metavar="MODE",
        help="threads, native or io_uring: accepted for qemu-io's scripts",
    )
    for flags, destination in ((("-k", "--native-aio"), "k"), (("-m", "--misalign"), "m")):
        parser.add_argument(
            *flags, dest=destination, action="store_true", help="accepted for qemu-io's scripts"
        )
    parser.add_argument(
        "-T", "--trace", metavar="PATTERN", help="accepted for qemu-io's scripts: there is none"
    )
    parser.add_argument("image", nargs="?", help="image to open; the command 'open' does it too")


def run(args: Namespace) -> int:
    from vdisk.cli._io.arguments import CommandFailed
    from vdisk.cli._io.opening import Opener
    from vdisk.cli._io.session import Session, complain
    from vdisk.opening import Backing

    opener = Opener(secrets(args), Backing.REFUSE if args.no_backing else Backing.FOLLOW)
    with Session(opener, image_opts=args.image_opts) as session:
        try:
            if args.image is not None:
                session.open(_settings(args))
        except CommandFailed as error:
            complain(error.message)
            return 1
        return 0 if _run_lines(session, args.commands or _prompted()) else 1


def _settings(args: Namespace) -> Settings:
    """How to open the image, from the options of the command line."""
    from vdisk.cli._io.session import Settings
    from vdisk.cli._io.upkeep import cache_mode, check_aio_mode, discard_mode

    cache = cache_mode(args.cache or ("none" if args.nocache else "writeback"))
    check_aio_mode(args.aio)
    name = image_name(args, args.image, args.format)
    return Settings(
        name=name if isinstance(name, str) else None,
        format=args.format,
        readonly=args.read_only,
        snapshot=args.snapshot,
        copy_on_read=args.copy_on_read,
        force_share=args.force_share,
        cache=cache,
        discard=discard_mode(args.discard),
        options={} if isinstance(name, str) else name,
    )


def _prompted() -> Iterator[str]:
    """The lines of standard input, each asked for; a terminal can edit and recall them."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() uses it from here on
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            return


def _run_lines(session: Session, lines: Iterable[str]) -> bool:
    """Run every line, also after one that failed; True if none did."""
    from vdisk.cli._io.table import QuitRequested, run_line

    succeeded = True
    try:
        for line in lines:
            succeeded &= run_line(session, line)
            session.report_finished()
    except QuitRequested:
        pass
    return succeeded

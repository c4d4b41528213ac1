"""List, create, apply or delete the internal snapshots of an image.

Examples:
  vdisk snapshot -c before-upgrade disk.qcow2
  vdisk snapshot -l disk.qcow2
  vdisk snapshot -a before-upgrade disk.qcow2
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.cli.options import add_quiet, add_source, as_qcow2, open_source
from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable

    from vdisk.cli.options import Parser
    from vdisk.formats._qcow2.snapshots import SnapshotInfo
    from vdisk.formats.qcow2 import Qcow2Image


def configure(parser: Parser) -> None:
    add_source(parser)
    add_quiet(parser)
    parser.add_argument("-l", dest="list", action="store_true", help="list them (the default)")
    parser.add_argument("-c", dest="create", metavar="NAME", help="create one")
    parser.add_argument("-a", dest="apply", metavar="SNAPSHOT", help="make the disk what it was")
    parser.add_argument("-d", dest="delete", metavar="SNAPSHOT", help="delete one")
    parser.add_argument("image", help="the image")


def run(args: Namespace) -> int:
    changes = [each is not None for each in (args.create, args.apply, args.delete)]
    if sum(changes) + args.list > 1:
        raise InvalidRequestError("-l, -c, -a and -d exclude each other: one at a time")
    with open_source(args, args.image, readonly=not any(changes)) as device:
        if not any(changes) and getattr(device, "format_name", "") != "qcow2":
            return 0  # a format without snapshots has none
        image = as_qcow2(device, "internal snapshots")
        if any(changes):
            _change(args, image)
        elif (snapshots := image.snapshots()) and not args.quiet:
            print(listing(snapshots))
    return 0


def _change(args: Namespace, image: Qcow2Image) -> None:
    if args.create is not None:
        image.create_snapshot(args.create)
    elif args.apply is not None:
        image.apply_snapshot(args.apply)
    else:
        image.delete_snapshot(_to_delete(image, args.delete))


def _to_delete(image: Qcow2Image, tag: str) -> str:
    """The id of the snapshot that ``-d`` means: unlike ``-a``, qemu-img takes names first here."""
    return next((each.id for each in image.snapshots() if each.name == tag), tag)


def listing(snapshots: Iterable[SnapshotInfo]) -> str:
    """A table of ``snapshots``, qemu-img's, but as wide as their names need."""
    from vdisk.cli.output import table

    headings = ("ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT")
    rows = [_row(snapshot) for snapshot in snapshots]
    return "Snapshot list:\n" + table(
        headings, rows, right="VM SIZE,DATE,VM CLOCK,ICOUNT", least=_LEAST_WIDTHS, gap=" "
    )


_LEAST_WIDTHS = (9, 16, 8, 19, 12, 10)


def _row(snapshot: SnapshotInfo) -> tuple[str, ...]:
    import time

    from vdisk.units import format_size

    clock, milliseconds = divmod(snapshot.vm_clock_nsec // 1_000_000, 1000)
    minutes, seconds = divmod(clock, 60)
    hours, minutes = divmod(minutes, 60)
    return (
        snapshot.id,
        snapshot.name,
        format_size(snapshot.vm_state_size),
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.date_sec)),
        f"{hours:02}:{minutes:02}:{seconds:02}.{milliseconds:03}",
        "" if snapshot.icount is None else str(snapshot.icount),
    )

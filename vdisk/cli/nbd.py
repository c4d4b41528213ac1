"""``vdisk-nbd``, the command: disks served to a network, and used over one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vdisk.cli.program import Program

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = Program(
    name="vdisk-nbd",
    package="vdisk.cli._nbd",
    commands={
        "bench": "measure how fast an NBD server answers",
        "connect": "make an export a /dev/nbdN of this system",
        "copy": "copy between NBD servers, files and pipes, as nbdcopy does",
        "disconnect": "take a /dev/nbdN away from its server",
        "dump": "print what an export holds, as nbddump does",
        "info": "show what an export is, as nbdinfo does",
        "list": "list the exports of a server",
        "map": "show what the parts of an export hold",
        "serve": "serve images to NBD clients",
    },
    operands="IMAGE|URI…",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``vdisk-nbd`` with ``arguments`` (None: of this process); returns the exit status."""
    return PROGRAM.main(arguments)


if __name__ == "__main__":
    sys.exit(main())

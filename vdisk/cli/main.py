"""``vdisk``, the command: disk images made, looked at, changed and copied."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vdisk.cli.program import Program

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = Program(
    name="vdisk",
    package="vdisk.cli",
    commands={
        "amend": "change the options of an existing image",
        "bench": "measure how fast an image is read or written",
        "bitmap": "add, remove, clear, enable, disable or merge dirty bitmaps",
        "check": "find and repair errors in an image's tables",
        "commit": "write an overlay's changes into its backing file",
        "compare": "tell whether two images hold the same content",
        "convert": "copy an image into another format",
        "create": "make a new image",
        "dd": "copy blocks from one image to another",
        "info": "show what an image is",
        "io": "read and write an image by commands, as qemu-io does",
        "map": "show where an image's data lies",
        "measure": "tell how large a new image would be",
        "rebase": "give an overlay another backing file",
        "resize": "grow or shrink an image",
        "snapshot": "list, create, apply or delete internal snapshots",
    },
    operands="IMAGE…",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``vdisk`` with ``arguments`` (None: of this process); returns the exit status."""
    return PROGRAM.main(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""``vdisk-vm``, the command: machines that boot disk images."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

from vdisk.cli.program import Program

if TYPE_CHECKING:
    from collections.abc import Sequence

GARBAGE = 50_000
"""Objects more than there were before somebody looks for cycles that nobody needs.  A start makes
nearly as many, which all stay; with Python's 700 that would be a tenth of it."""
PROGRAM = Program(
    name="vdisk-vm",
    package="vdisk.cli._vm",
    commands={
        "run": "boot disk images, CD-ROMs or a kernel, and show the machine",
        "screenshot": "boot them, and write a picture of the screen",
    },
    operands="IMAGE…",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``vdisk-vm`` with ``arguments`` (None: of this process); returns the exit status."""
    gc.set_threshold(GARBAGE)
    return PROGRAM.main(arguments)


if __name__ == "__main__":
    sys.exit(main())

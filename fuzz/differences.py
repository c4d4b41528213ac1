"""Where vdisk and qemu-img are meant to say different things of the same bytes, and why.

A difference is accepted if what was compared is ``about``, and each side's message has the words
given here.  The verdicts are those of :mod:`fuzz.targets.qcow2_qemu`.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Difference(NamedTuple):
    """``ours`` and ``theirs``: regular expressions that the messages have to match."""

    about: str
    ours: str
    theirs: str
    reason: str


NOTHING = r"\A\Z"

DIFFERENCES = [
    Difference(
        "open",
        NOTHING,
        r"(?i)bitmap",
        "QEMU does not open an image whose bitmaps are broken; vdisk refuses to write to it, "
        "and reads the disk, which needs no bitmaps",
    ),
    Difference(
        "open",
        NOTHING,
        r"(?i)snapshot",
        "QEMU reads the snapshot table when it opens an image; vdisk when it is asked for it",
    ),
    Difference(
        "open",
        NOTHING,
        r"Header extension too large",
        "the length in the marker that ends the extensions means nothing to vdisk",
    ),
    Difference(
        "open",
        r"past the end of the file .*truncated",
        NOTHING,
        "QEMU takes what is missing of a truncated image for zeroes; vdisk says that it is missing",
    ),
    Difference(
        "open",
        r"header extension .* reaches past the header area",
        NOTHING,
        "the same of a file that ends inside its header",
    ),
    Difference(
        "open",
        r"table does not begin at a cluster boundary behind the header",
        NOTHING,
        "QEMU reads the header as a table if the header says that it is one",
    ),
    Difference(
        "open",
        r"the backing file name does not lie inside the first cluster",
        NOTHING,
        "QEMU takes a name of no bytes for no name, wherever it stands",
    ),
    Difference(
        "open",
        r"data-file-raw is set without an external data file",
        NOTHING,
        "the specification excludes the one without the other; QEMU overlooks it",
    ),
    Difference(
        "open",
        r"a raw external data file and a backing file exclude each other",
        NOTHING,
        "the specification has a raw data file hold every byte of the disk; QEMU refuses the two "
        "together only when it makes an image",
    ),
    Difference(
        "read",
        r"past the end of the file",
        NOTHING,
        "QEMU reads an L2 table behind the end of the file as zeroes; vdisk calls it corrupt",
    ),
    Difference(
        "check",
        r"COPIED flag is set without a host cluster",
        r"No errors were found",
        "QEMU looks at this flag in allocated entries only",
    ),
    Difference(
        "check",
        r"a zero cluster in a version 2 image",
        r"No errors were found",
        "QEMU finds it when the cluster is read: its check does not look",
    ),
]


def accepted(about: str, ours: str, theirs: str) -> Difference | None:
    """The difference that explains two messages, if one does."""
    for known in DIFFERENCES:
        fits = re.search(known.ours, ours) and re.search(known.theirs, theirs)
        if known.about == about and fits:
            return known
    return None

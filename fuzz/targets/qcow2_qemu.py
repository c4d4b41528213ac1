"""Any image: vdisk opens, reads and judges it as qemu-img does, or says why not; ≤ 256 MiB, ≤ 2 s.

Held against each other: whether the image opens; the bytes of the disk, or that they cannot be
read; whether a check finds it sound.  What differs on purpose is in :mod:`fuzz.differences`.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fuzz.differences import accepted
from fuzz.images import BACKING, context, small_images
from fuzz.limits import limited
from fuzz.qcow2_fields import change_image
from fuzz.store import SmallDisk
from tests.tools import peers
from vdisk.errors import VdiskError
from vdisk.formats.qcow2 import DRIVER

if TYPE_CHECKING:
    import random

    from vdisk.formats.qcow2 import Qcow2Image

LONGEST = 64 << 10
LIMITED = False
SECTOR = 512
LARGEST = 1 << 20
"""Bytes of the largest disk that is read."""

LEFT_OUT = ("data file", "encrypted", "subclusters")
"""Seeds that need another file or a passphrase on the command line, or are too large."""
CLEAN, ERRORS, LEAKS = 0, 2, 3
"""What ``qemu-img check`` exits with when it could check."""


class Verdict(NamedTuple):
    """What one of the two says.  The texts are empty where all is well.

    ``content``: None if it was not read.  ``sound``: a check finds nothing; None if it failed.
    """

    refusal: str = ""
    content: bytes | None = None
    failure: str = ""
    sound: bool | None = None
    findings: str = ""


def seeds() -> dict[str, bytes]:
    return {name: data for name, data in small_images().items() if name not in LEFT_OUT}


def mutate(data: bytes, rng: random.Random) -> bytes:
    return change_image(data, rng)


def run(data: bytes) -> None:
    with limited():
        ours = our_verdict(data)
    if ours is None:
        return
    theirs = their_verdict(data)
    problem = compare(ours, theirs)
    assert problem is None, problem


def our_verdict(data: bytes) -> Verdict | None:
    """None for an image that is not to be compared."""
    try:
        image = DRIVER.open(SmallDisk(data), context(data))
    except VdiskError as error:
        return Verdict(refusal=str(error))
    with image:
        if image.size > LARGEST or image.header.external_data or image.encryption is not None:
            return None
        if image.header.backing_file not in (None, "base"):
            return None
        if image.header.backing_format not in (None, "raw"):
            return None
        sound, findings = _check(image)
        try:
            return Verdict("", image.read(0, image.size), "", sound, findings)
        except VdiskError as error:
            return Verdict("", None, str(error), sound, findings)


def _check(image: Qcow2Image) -> tuple[bool | None, str]:
    try:
        result = image.check()
    except VdiskError as error:
        return None, str(error)
    found = "; ".join(finding.message for finding in result.findings)
    return not result.leaks + result.corruptions + result.check_errors, found


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A directory with the backing file, gone when the process ends."""
    made = tempfile.TemporaryDirectory(prefix="vdisk-fuzz-")
    Path(made.name, "base").write_bytes(BACKING)
    return made


def their_verdict(data: bytes) -> Verdict:
    path, target = Path(_folder().name, "image"), Path(_folder().name, "content")
    path.write_bytes(data)
    opened = peers.run("qemu-img", "info", "-f", "qcow2", path, check=False)
    if opened.returncode:
        return Verdict(refusal=opened.stderr.decode(errors="replace"))
    read = peers.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, target, check=False)
    checked = peers.run("qemu-img", "check", "-f", "qcow2", path, check=False)
    said = (checked.stdout + checked.stderr).decode(errors="replace")
    code = checked.returncode
    sound = code == CLEAN if code in (CLEAN, ERRORS, LEAKS) else None
    if read.returncode:
        return Verdict("", None, read.stderr.decode(errors="replace"), sound, said)
    return Verdict("", target.read_bytes(), "", sound, said)


def compare(ours: Verdict, theirs: Verdict) -> str | None:
    """What differs and is not known to; None if nothing does."""
    if bool(ours.refusal) != bool(theirs.refusal):
        return _unless_known("open", ours.refusal, theirs.refusal)
    if ours.refusal:
        return None
    if (ours.content is None) != (theirs.content is None):
        return _unless_known("read", ours.failure, theirs.failure)
    if not _same_content(ours.content, theirs.content):
        return _unless_known("content", ours.findings, theirs.findings)
    if bool(ours.sound) != bool(theirs.sound):  # a check that fails finds no soundness either
        return _unless_known("check", ours.findings, theirs.findings)
    return None


def _same_content(ours: bytes | None, theirs: bytes | None) -> bool:
    """All whole sectors are equal: of the last part of one, QEMU 7.2 shows nothing."""
    if ours is None or theirs is None:
        return ours is theirs
    return ours[: len(ours) // SECTOR * SECTOR] == theirs[: len(theirs) // SECTOR * SECTOR]


def _unless_known(about: str, ours: str, theirs: str) -> str | None:
    if accepted(about, ours, theirs) is not None:
        return None
    return f"{about}: vdisk says {ours or 'nothing'!r}, qemu-img {theirs or 'nothing'!r}"

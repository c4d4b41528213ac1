"""Disks that a loss of power may leave of a guest's qcow2 image, and whether they are right."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

from tests.tools import qemu
from tests.tools.allowed import Allowed
from vdisk.filters.writelog import SECTOR, Cuts, WriteLog
from vdisk.formats import OpenContext
from vdisk.formats.qcow2 import DRIVER, read_header

if TYPE_CHECKING:
    from pathlib import Path

    from vdisk.stores.memory import MemoryStore


class Logged(Protocol):
    """A guest that has lived: ``initial``, its image's file before; ``size``, bytes of its disk.

    ``log``: what its image's file was told, with marks of what the guest did and was told.
    """

    initial: bytes
    log: WriteLog
    size: int


def check_disk(disk: MemoryStore, allowed: Allowed, path: Path, thorough: bool) -> None:
    marked = read_header(disk).incompatible_features & 1
    if thorough and not marked:
        path.write_bytes(disk.content())
        assert qemu.img("check", "-f", "qcow2", path, check=False).returncode in (0, 3)
    with DRIVER.open(disk, OpenContext(readonly=False)) as image:
        allowed.check(image)
        image.write(0, b"alive".ljust(SECTOR))
        assert image.read(0, 5) == b"alive"
        image.close()
    if thorough:
        path.write_bytes(disk.content())
        code = qemu.img("check", "-f", "qcow2", path, check=False).returncode
        assert code == 0 or (code == 3 and not marked)


def try_cuts(guest: Logged, path: Path, count: int, seed: int) -> int:
    """Try cuts at ``count`` points of the guest's log; how many disks were tried."""
    rng = random.Random(seed)
    entries = guest.log.entries
    cuts, allowed = Cuts(guest.initial, entries), Allowed(guest.size)
    tried = told = 0
    for position in sorted(rng.sample(range(len(entries) + 1), min(count, len(entries) + 1))):
        cuts.advance(position)
        for entry in entries[told:position]:
            if isinstance(entry.label, tuple):  # a mark
                allowed.happen(entry.label)
        told = position
        disks = [cuts.whole(), cuts.torn(rng), cuts.torn(rng)]
        if cuts.pending:
            one = rng.randrange(cuts.pending)
            disks.append(cuts.whole([number == one for number in range(cuts.pending)]))
            disks.append(cuts.whole([number != one for number in range(cuts.pending)]))
        for number, disk in enumerate(disks):
            check_disk(disk, allowed, path, thorough=(tried + number) % 7 == 0)
        tried += len(disks)
    return tried

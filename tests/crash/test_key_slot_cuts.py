"""Every cut while passphrases change: one that opens the volume before and after always does.

Adding, replacing and erasing; of a LUKS volume and of the one inside a qcow2 image.  A passphrase
that was told to be there is there, one that was told to be gone is gone, and the data is readable.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from vdisk.errors import AuthenticationError
from vdisk.filters.writelog import Cuts, WriteLog
from vdisk.formats import OpenContext, luks, qcow2
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from vdisk.block import BlockDevice

SIZE = 64 << 10
SECRETS = {"first": b"one", "second": b"two", "third": b"three"}
PREFIX = {"luks": "", "qcow2": "encrypt."}
DRIVERS: dict[str, Any] = {"luks": luks.DRIVER, "qcow2": qcow2.DRIVER}

STEPS: list[tuple[dict[str, Any], set[str]]] = [
    ({"state": "active", "new-secret": "second"}, {"first", "second"}),
    ({"state": "inactive", "old-secret": "first"}, {"second"}),
    ({"state": "active", "new-secret": "first", "keyslot": 3}, {"first", "second"}),
    ({"state": "inactive", "keyslot": 3}, {"second"}),
]
"""What is amended, and the passphrases that open the volume then."""


def make(format: str) -> MemoryStore:
    file, prefix = MemoryStore(), PREFIX[format]
    options = {f"{prefix}key-secret": "first", f"{prefix}iter-time": 0}
    if format == "qcow2":
        options["encrypt.format"] = "luks"
        options["cluster_size"] = 4096
    DRIVERS[format].create(file, SIZE, options, SECRETS)
    return file


def open_with(format: str, file: BlockDevice, secret: str, *, readonly: bool = True) -> Any:
    options = {f"{PREFIX[format]}key-secret": secret}
    context = OpenContext(readonly=readonly, options=options, secrets=SECRETS)
    return DRIVERS[format].open(file, context)


def opens(format: str, content: bytes, secret: str) -> bool:
    try:
        with open_with(format, MemoryStore(content), secret) as image:
            assert image.read(0, 4) == b"kept"
    except AuthenticationError:
        return False
    return True


@pytest.mark.parametrize("format", DRIVERS)
def test_cuts(format: str) -> None:
    file, prefix = make(format), PREFIX[format]
    with open_with(format, file, "first", readonly=False) as image:
        image.write(0, b"kept")
    content = file.content()
    log = WriteLog(MemoryStore(content))
    image = open_with(format, log, "first", readonly=False)
    states, since = [{"first"}], [0]
    for change, passphrases in STEPS:
        dashed = {f"{prefix}{name}": value for name, value in change.items()}
        if change["state"] == "active":
            dashed[f"{prefix}iter-time"] = 0
        image.amend(dashed)
        states.append(passphrases)
        since.append(len(log.entries))
    rng, cuts = random.Random(1), Cuts(content, log.entries)
    for position in range(len(log.entries) + 1):
        cuts.advance(position)
        done = max(number for number, start in enumerate(since) if start <= position)
        possible = states[done : done + 2]
        for disk in cuts.all(4) or cuts.some(rng, 4):
            for secret in ("first", "second"):
                there = opens(format, disk.content(), secret)
                assert there in {secret in state for state in possible}, (position, secret)
    assert len(log.entries) > 10

"""A guest behind a disk controller loses nothing that it flushed, whenever it is cut off.

Its writes are in flight together, with the flush behind them in the same queue: what was submitted
before a flush is stable when the flush has returned.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools import images, qemu
from tests.tools.allowed import Allowed
from tests.tools.cuts import try_cuts
from tests.tools.disks import Slow
from tests.tools.guest import GUESTS, data_of, live
from tests.tools.peers import requires_peer
from vdisk.filters.writelog import WriteLog
from vdisk.formats import OpenContext
from vdisk.formats.qcow2 import DRIVER
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_peer("qemu-img")

SIZE = 600 * 512


class LoggedGuest:
    """A guest whose image's file is a write log."""

    def __init__(self, kind: str, seed: int) -> None:
        store = MemoryStore()
        images.create(store, SIZE, cluster_size=4096)
        self.size = SIZE
        self.initial = store.content()
        self.log = WriteLog(store)
        image = DRIVER.open(self.log, OpenContext(readonly=False))
        guest = GUESTS[kind](Slow(image, seed))
        live(guest, random.Random(seed), 12, self._tell, self._acknowledged)
        guest.disk.close()
        self._acknowledged()

    def _tell(self, _kind: str, offset: int, length: int, seed: int) -> None:
        self.log.mark(("write", offset, data_of(seed, length)))

    def _acknowledged(self) -> None:
        self.log.mark(("acknowledged",))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", GUESTS)
def test_every_cut_keeps_what_was_flushed(tmp_path: Path, kind: str, seed: int) -> None:
    guest = LoggedGuest(kind, seed)
    assert try_cuts(guest, tmp_path / "cut.qcow2", 40, seed) > 50


@pytest.mark.parametrize("kind", GUESTS)
def test_killed_in_mid_write(tmp_path: Path, kind: str) -> None:
    path, size = tmp_path / "disk.qcow2", 4 << 20
    vdisk.create(path, size, format="qcow2", options={"cluster_size": 4096})
    allowed, rng = Allowed(size), random.Random(kind)
    for turn in range(4):
        words = [sys.executable, "-m", "tests.tools.guest", kind, str(path), str(turn)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(rng.uniform(0.05, 0.3))
            process.kill()
            for line in [first, *process.stdout]:
                _happen(allowed, line)
        assert qemu.img("check", "-f", "qcow2", path, check=False).returncode in (0, 3)
        with vdisk.open(path, "r+") as disk:
            content = disk.read(0, size)
        allowed.check_content(content)
        allowed.adopt(content)


def _happen(allowed: Allowed, line: str) -> None:
    """One line of the guest's; the last one may have been cut off."""
    words = line.split()
    if line.endswith("\n") and words[0] == "acknowledged":
        allowed.on_acknowledged()
    elif line.endswith("\n") and words[0] == "write":
        offset, length, seed = map(int, words[1:])
        allowed.on_write(offset, data_of(seed, length))

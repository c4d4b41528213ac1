"""Processes that want the same image, some of which are killed while they have it.

Laws: one process at a time writes the image and none reads it meanwhile, to which
:mod:`tests.tools.contender` sees; a killed one holds nobody up; what was written is not lost.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import vdisk
from tests.tools import images, peers, qemu

if TYPE_CHECKING:
    import random
    from pathlib import Path

SIZE = 2 << 20
TOGETHER = 4
"""Processes at once."""


class Contended(NamedTuple):
    """How often the image was written, read and found locked, and processes killed."""

    written: int
    read: int
    locked: int
    killed: int


def contend(path: Path, rng: random.Random, seconds: float, *, kills: int) -> Contended:
    """Processes want the new image at ``path``; one is killed every so many ``seconds``."""
    images.create(path, SIZE, cluster_size=4096)
    path.with_name(f"{path.name}.witness").touch()
    end = (kills + 1) * seconds
    running = [_contender(path, end, rng.randrange(1 << 30)) for _ in range(TOGETHER)]
    said, killed = b"", 0
    try:
        for number in range(kills):
            victim = running.pop(0)
            assert victim.stdout is not None
            said += victim.stdout.read(1)  # it contends
            time.sleep(rng.uniform(0.5, 1) * seconds)
            victim.kill()
            said += victim.communicate(timeout=peers.TIMEOUT)[0]
            killed += 1
            left = end * (kills - number) / (kills + 1)
            running.append(_contender(path, left, rng.randrange(1 << 30)))
        for process in running:
            output, errors = process.communicate(timeout=peers.TIMEOUT)
            assert process.returncode == 0, errors.decode()
            said += output
    finally:
        for process in running:
            process.kill()
            process.communicate()
    found = Contended(said.count(b"W"), said.count(b"R"), said.count(b"L"), killed)
    _look(path, found)
    return found


def _contender(path: Path, seconds: float, seed: int) -> subprocess.Popen[bytes]:
    words = ["-m", "tests.tools.contender", str(path), str(seconds), str(seed)]
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )


def _look(path: Path, found: Contended) -> None:
    """A process may have been killed between writing the counter and saying so."""
    with vdisk.open(path, "r+", format="qcow2") as disk:  # nobody holds it any more
        counter = int.from_bytes(disk.read(0, 8), "big")
    assert found.written <= counter <= found.written + found.killed
    assert qemu.img("check", path, check=False).returncode in (0, 3)

"""Two at once: threads on one image, processes for one image, a server killed under load.

Laws: every reader gets what was written last to where it reads, snapshots are of one moment and
never change; one process at a time writes an image, none reads it meanwhile, and a killed one
holds nobody up; what a server acknowledged as stable is there after it was killed, what it did
not is old or new in every sector.  And in the end vdisk and qemu-img find nothing wrong.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools import images, qemu
from tests.tools.contending import TOGETHER, contend
from tests.tools.hammer import Hammer, often_switching
from tests.tools.killing import BATCH, Killing
from tests.tools.peers import requires_peer
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_peer("qemu-img")

THREADS: dict[str, dict[str, Any]] = {
    "default": {},
    "small clusters": {"cluster_size": 4096},
    "very small clusters": {"cluster_size": 512},
    "subclusters": {"cluster_size": 131072, "extended_l2": True},
    "lazy refcounts": {"cluster_size": 4096, "lazy_refcounts": True},
    "1-bit refcounts": {"cluster_size": 4096, "refcount_bits": 1},
    "version 2": {"cluster_size": 4096, "compat": "0.10"},
}
SECONDS = 1.5


@pytest.mark.parametrize("name", THREADS)
def test_threads(tmp_path: Path, name: str) -> None:
    path, options = tmp_path / "image.qcow2", THREADS[name]
    images.create(path, 8 << 20, **options)
    snapshots = options.get("refcount_bits") != 1
    with (
        images.open_image(path, l2_cache_size=1 << 16, refcount_cache_size=1 << 16) as image,
        often_switching(),
    ):
        resizing = options.get("compat") != "0.10"
        if resizing:
            image.add_bitmap("writes", 4096)
        hammer = Hammer(image, 1, snapshots=snapshots, resizing=resizing)
        least = {"requests": 51, "snapshots": int(snapshots), "resizes": int(resizing)}
        hammer.run(SECONDS, least)
    assert hammer.counts["requests"] > 50
    assert (hammer.counts.get("snapshots", 0) > 0) == snapshots
    assert (hammer.counts.get("resizes", 0) > 0) == resizing
    qemu.check(path)
    with images.open_image(path, readonly=True) as image:
        assert image.read(0, image.size) == hammer.model
        hammer.image = image
        hammer.check_bitmaps()


class NeverCut(MemoryStore):
    """A file that must not be truncated: another thread may be writing behind its end."""

    def _truncate(self, size: int) -> None:
        raise AssertionError(f"truncated to {size}")


@pytest.mark.parametrize("name", THREADS)
def test_guest_writes_do_not_truncate_the_file(name: str) -> None:
    file = MemoryStore()
    images.create(file, 8 << 20, **THREADS[name])
    with images.open_image(NeverCut(file.content())) as image:
        for offset in range(0, image.size, image.size // 16):
            image.write(offset, b"somewhere else")
            image.flush()


# -- processes -------------------------------------------------------------------------------------


def test_processes(tmp_path: Path) -> None:
    """Four want the image for a while; one of them is killed every now and then."""
    found = contend(tmp_path / "image.qcow2", random.Random(1), 0.8, kills=3)
    assert found.written >= TOGETHER
    assert found.read >= TOGETHER
    assert found.killed == 3


# -- a server that is killed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "options"),
    [("qcow2", {}), ("qcow2", {"cluster_size": 4096, "lazy_refcounts": True}), ("raw", {})],
)
def test_a_server_killed_under_load(tmp_path: Path, format: str, options: dict[str, Any]) -> None:
    trial = Killing(tmp_path / "image", 4 << 20, 1, format, **options)
    for _ in range(4):
        trial.round()
    assert trial.answered > 4 * BATCH
    assert trial.flushes >= 4

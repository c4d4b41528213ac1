"""Every cut while bitmaps change: each is what it was, what it is to be, or says it is neither.

The disks that a cut can leave are torn at sector boundaries and reordered between flushes.  Each
of them opens with its header intact, and qemu-img finds nothing wrong but leaks.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools import images, qemu
from tests.tools.bitmaps import ranges
from tests.tools.peers import requires_peer
from vdisk.filters.writelog import SECTOR, Cuts, WriteLog
from vdisk.formats import OpenContext
from vdisk.formats._qcow2 import layout
from vdisk.formats.qcow2 import DRIVER
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from vdisk.formats.qcow2 import Qcow2Image

pytestmark = requires_peer("qemu-img")

SIZE = 1 << 20
BASE = "a-name-that-is-longer-than-the-header-extension-of-bitmaps.raw"
HEADERS: dict[str, dict[str, Any]] = {
    "one sector": {"cluster_size": 512},
    "several sectors": {"cluster_size": 4096},
    "a backing file": {"cluster_size": 4096, "backing_file": BASE, "backing_fmt": "raw"},
    "a backing file of no known format": {"cluster_size": 4096, "backing_file": BASE},
    "an extension across sectors": {"cluster_size": 4096},
}
CROSSING_NAMES = 21
"""So many more feature names, and the extension's fields lie in two sectors."""


def open_cut(file: MemoryStore | WriteLog, *, readonly: bool = False) -> Qcow2Image:
    return DRIVER.open(file, OpenContext(readonly=readonly))


def state(image: Qcow2Image) -> dict[str, object]:
    return {
        one.name: "in-use" if "in-use" in one.flags else (one.flags, tuple(ranges(image, one.name)))
        for one in image.bitmaps()
    }


class Life:
    """Bitmaps being changed on a logged file; ``states`` in order, each marked in the log."""

    def __init__(self, store: MemoryStore) -> None:
        self.initial = store.content()
        self.log = WriteLog(store)
        self.image = open_cut(self.log)
        self.states: list[dict[str, object]] = [state(self.image)]

    def do(self, method: str, *arguments: Any, **options: Any) -> None:
        getattr(self.image, method)(*arguments, **options)
        self.states.append(state(self.image))
        self.log.mark(len(self.states) - 1)

    def live(self) -> None:
        self.do("add_bitmap", "b", 512)
        self.do("write", 0, b"x" * 5000)
        self.do("add_bitmap", "c", 1024, enabled=False)
        self.do("merge_bitmap", "c", [(SIZE // 2, 100_000)])
        self.do("write", SIZE // 4, b"x" * 512)
        self.do("save_bitmaps")
        self.do("clear_bitmap", "c")
        self.do("resize", 4 * SIZE)
        self.do("remove_bitmap", "c")
        self.do("disable_bitmap", "b")
        self.do("resize", SIZE)
        self.do("remove_bitmap", "b")
        self.do("add_bitmap", "b", 4096)
        self.image.close()


def check_disk(disk: MemoryStore, life: Life, done: int) -> None:
    """The cut came after ``done`` changes were complete; one more may have been under way."""
    with open_cut(disk, readonly=True) as image:
        assert image.header.backing_file == life.image.header.backing_file
        assert image.header.backing_format == life.image.header.backing_format
        found = state(image)
    possible = life.states[done : done + 2]
    names = [set(one) for one in possible]
    assert set(found) in names or not found, (found, possible)
    for name, value in found.items():
        assert value == "in-use" or value in [one.get(name) for one in possible]


def check_with_qemu(disk: MemoryStore, path: Path) -> None:
    path.write_bytes(disk.content())
    assert qemu.img("check", "-f", "qcow2", path, check=False).returncode in (0, 3)


def try_cuts(life: Life, path: Path) -> int:
    rng = random.Random(1)
    cuts, done, tried = Cuts(life.initial, life.log.entries), 0, 0
    for position in range(len(life.log.entries) + 1):
        cuts.advance(position)
        if position and life.log.entries[position - 1].label is not None:
            done = life.log.entries[position - 1].label  # type: ignore[assignment]
        for disk in [cuts.whole(), *(cuts.torn(rng) for _ in range(8 if cuts.pending else 0))]:
            check_disk(disk, life, done)
            if tried % 23 == 0:
                check_with_qemu(disk, path)
            tried += 1
    return tried


@pytest.mark.parametrize("name", HEADERS)
def test_images_made_here(tmp_path: Path, name: str) -> None:
    (tmp_path / BASE).write_bytes(bytes(SIZE))
    store = MemoryStore()
    images.create(store, SIZE, **HEADERS[name])
    if "across" in name:
        with open_cut(store) as image:
            for bit in range(40, 40 + CROSSING_NAMES):
                image.header.feature_names[0, bit] = "time travel"
            image._core.header_file.save()
        store = MemoryStore(store.content())
    life = Life(store)
    life.live()
    position = life.image.header.to_bytes().index(layout.EXT_BITMAPS.to_bytes(4, "big"))
    assert (position % SECTOR in (488, 496)) == ("across" in name)
    assert try_cuts(life, tmp_path / "cut.qcow2") > 300


@pytest.mark.parametrize("options", [{}, {"backing_file": BASE, "backing_fmt": "raw"}])
def test_images_made_by_qemu(tmp_path: Path, options: dict[str, Any]) -> None:
    """QEMU puts the backing file's name where the bitmaps' extension is to be."""
    (tmp_path / BASE).write_bytes(bytes(SIZE))
    path = tmp_path / "image.qcow2"
    qemu.create(path, SIZE, cluster_size=4096, **options)
    life = Life(MemoryStore(path.read_bytes()))
    life.live()
    assert try_cuts(life, path) > 300

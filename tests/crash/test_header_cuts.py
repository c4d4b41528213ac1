"""Every cut while the header changes that spans several sectors: it is the old one or the new one.

Names of every length come and go beside bitmaps; the version and features change.  Whatever a cut
leaves of the writes is read back, and every field but the feature names, which only explain, is
as before or as after the change that was under way.  A change whose writes fail leaves the header
as it was, at every cut too.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools import images, qemu
from tests.tools.peers import requires_peer
from vdisk.errors import VdiskError
from vdisk.filters.faults import Effect, Faults, InjectError, IoType, Where
from vdisk.filters.writelog import Cuts, WriteLog
from vdisk.formats import OpenContext
from vdisk.formats.qcow2 import DRIVER, Qcow2Image, read_header
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vdisk.block import BlockDevice
    from vdisk.formats import ChildRequest

pytestmark = requires_peer("qemu-img")

SIZE = 1 << 20
MOST = 64
"""Disks tried at one point of the log."""

LONG, LONGER = "long-" * 60 + "name", "longer" * 150
HEADERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a backing file": {"backing_file": "base", "backing_fmt": "raw"},
    "a long name": {"backing_file": LONG, "backing_fmt": "qcow2"},
    "no format": {"backing_file": "base"},
    "2 KiB clusters": {"cluster_size": 2048, "backing_file": "base", "backing_fmt": "raw"},
    "a data file": {"data_file": "data-file"},
}


def open_child(request: ChildRequest) -> BlockDevice | None:
    return None if request.name is None else MemoryStore(bytes(SIZE))


def open_file(file: BlockDevice) -> Qcow2Image:
    return DRIVER.open(file, OpenContext(readonly=False, open_child=open_child))


def fields(disk: MemoryStore) -> dict[str, Any]:
    """What a header says, but for where things stand and what features are called."""
    found = dict(vars(read_header(disk)))
    del found["feature_names"], found["name_offset"]
    return found


def change_backing(name: str | None, format: str | None) -> Callable[[Qcow2Image], None]:
    def change(image: Qcow2Image) -> None:
        if not image.header.external_data:
            image.change_backing(name, format)

    return change


CHANGES: dict[str, Callable[[Qcow2Image], None]] = {
    "short name": change_backing("b", "raw"),
    "long name": change_backing(LONG, "qcow2"),
    "bitmap": lambda image: image.add_bitmap("b"),
    "another long name": change_backing(LONG.upper(), "raw"),
    "longer name": change_backing(LONGER[:700], "raw"),
    "format only": change_backing(LONGER[:700], "host_device"),
    "no format": change_backing(LONGER[:700], None),
    "no bitmap": lambda image: image.remove_bitmap("b"),
    "none": change_backing(None, None),
    "back again": change_backing("base", "raw"),
    "bitmap beside a name": lambda image: image.add_bitmap("b"),
    "without it": change_backing(None, None),
}


class Life:
    """Headers of an image, in order; the position of the log from which each holds."""

    def __init__(self, content: bytes) -> None:
        self.initial = content
        self.log = WriteLog(MemoryStore(content))
        self.faults = Faults(self.log)
        self.image = open_file(self.faults)
        self.states = [fields(MemoryStore(content))]
        self.since = [0]

    def note(self) -> None:
        self.states.append(fields(self.log.inner))  # type: ignore[arg-type]
        self.since.append(len(self.log.entries))

    def try_cuts(self, path: Path) -> int:
        rng, tried = random.Random(1), 0
        cuts = Cuts(self.initial, self.log.entries)
        for position in range(len(self.log.entries) + 1):
            cuts.advance(position)
            done = max(n for n, since in enumerate(self.since) if since <= position)
            for disk in cuts.all(MOST) or cuts.some(rng, MOST):
                self._check(disk, self.states[done : done + 2], path if tried % 97 == 0 else None)
                tried += 1
        return tried

    def _check(self, disk: MemoryStore, possible: list[dict[str, Any]], path: Path | None) -> None:
        found = fields(disk)
        assert any(_is(found, state) for state in possible), (found, possible)
        if path is not None:
            path.write_bytes(disk.content())
            name = qemu.img_json("info", path).get("backing-filename")
            assert name == found["backing_file"]


def _is(found: dict[str, Any], state: dict[str, Any]) -> bool:
    """Equal but for the places of tables, which change in between, and the dirty bit."""
    names = ["version", "backing_file", "backing_format", "data_file_name", "size", "additional"]
    before = [state[name] for name in names]
    return [found[name] for name in names] == before and (
        (found["bitmaps"] is None) == (state["bitmaps"] is None)
    )


def image_with(options: dict[str, Any]) -> bytes:
    store = MemoryStore()
    images.create(store, SIZE, **{"cluster_size": 4096, **options})
    return store.content()


@pytest.mark.parametrize("name", HEADERS)
def test_cuts_of_changes(tmp_path: Path, name: str) -> None:
    life = Life(image_with(HEADERS[name]))
    for change in CHANGES.values():
        change(life.image)
        life.note()
    life.image.close()
    assert life.try_cuts(tmp_path / "image.qcow2") > 100


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_cuts_of_a_change_of_version(tmp_path: Path, compat: str) -> None:
    life = Life(image_with({"compat": compat, "backing_file": LONG, "backing_fmt": "raw"}))
    for wanted in ("1.1", "0.10", "1.1"):
        life.image.amend({"compat": wanted})
        life.note()
    life.image.close()
    assert life.try_cuts(tmp_path / "image.qcow2") > 10


def test_images_of_others(tmp_path: Path) -> None:
    """QEMU puts the name directly behind the extensions."""
    path = tmp_path / "image.qcow2"
    (tmp_path / "base").write_bytes(bytes(SIZE))
    qemu.create(path, SIZE, cluster_size=4096, backing_file="base", backing_fmt="raw")
    life = Life(path.read_bytes())
    for change in CHANGES.values():
        change(life.image)
        life.note()
    life.image.close()
    assert life.try_cuts(path) > 100


@pytest.mark.parametrize("effect", Effect)
@pytest.mark.parametrize("number", range(5))
def test_a_change_that_fails_is_taken_back(tmp_path: Path, number: int, effect: Effect) -> None:
    """At every cut while it fails and is taken back, and when it has been."""
    for change in (change for name, change in CHANGES.items() if "bitmap" not in name):
        life = Life(image_with(HEADERS["a long name"]))
        where = Where(iotypes=frozenset({IoType.WRITE}), skip=number, once=True)
        life.faults.set_rules(InjectError(where=where, effect=effect))
        try:
            change(life.image)
        except VdiskError:
            life.faults.set_rules()
            assert _is(fields(life.log.inner), life.states[0])  # type: ignore[arg-type]
            life.image.write(0, b"goes on")
            life.image.flush()
            life.note()
            stable = len(life.log.entries)
            change(life.image)
            life.note()
            life.since[1] = stable
        else:
            life.note()
        life.image.close()
        # While the change fails, the new header may be there for a moment.
        life.states.insert(1, life.states[-1])
        life.since.insert(1, life.since[1])
        assert life.try_cuts(tmp_path / "image.qcow2") > 5

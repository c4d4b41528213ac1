"""What a disk may hold after a crash, sector by sector: the model of every test that has one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.filters.writelog import SECTOR

if TYPE_CHECKING:
    from collections.abc import Collection

    from vdisk.formats.qcow2 import Qcow2Image

ZERO = bytes(SECTOR)


class Allowed:
    """What each sector may hold after a crash: its acknowledged content or anything newer.

    ``latest``: each sector as the disk shows it.  ``sizes``: bytes the disk may have.
    ``snapshots``: content by id; those in ``doubtful`` may be there or not.
    """

    def __init__(self, size: int) -> None:
        self.latest = [ZERO] * (size // SECTOR)
        self.allowed: list[set[bytes]] = [{ZERO} for _ in self.latest]
        self.sizes = {size}
        self.snapshots: dict[str, bytes] = {}
        self.doubtful: set[str] = set()

    def happen(self, event: tuple[Any, ...]) -> None:
        """Take note of what a guest did: ("write", offset, data), ("acknowledged",)…

        An operation is noted before it is begun, and that it is stable ("acknowledged", "taken",
        "resized"…) when it has returned.
        """
        getattr(self, "on_" + event[0])(*event[1:])

    def on_write(self, offset: int, data: bytes) -> None:
        for position in range(0, len(data), SECTOR):
            sector = (offset + position) // SECTOR
            self.latest[sector] = data[position : position + SECTOR]
            self.allowed[sector].add(self.latest[sector])

    def on_acknowledged(self) -> None:
        self.allowed = [{content} for content in self.latest]

    def on_stable(self, offset: int, length: int) -> None:
        for sector in range(offset // SECTOR, (offset + length) // SECTOR):
            self.allowed[sector] = {self.latest[sector]}

    def on_resize(self, size: int) -> None:
        self.sizes.add(size)
        self.latest += [ZERO] * (size // SECTOR - len(self.latest))
        self.allowed += [{ZERO} for _ in range(len(self.latest) - len(self.allowed))]
        for sector in range(size // SECTOR, len(self.latest)):
            self.latest[sector] = ZERO
            self.allowed[sector].add(ZERO)

    def on_resized(self, size: int) -> None:
        self.sizes = {size}
        self.on_acknowledged()

    def on_snapshot(self, tag: str) -> None:
        self.snapshots[tag] = b"".join(self.latest)[: max(self.sizes)]
        self.doubtful.add(tag)

    def on_taken(self, tag: str) -> None:
        self.doubtful.discard(tag)
        self.on_acknowledged()

    def on_delete(self, tag: str) -> None:
        self.doubtful.add(tag)

    def on_deleted(self, tag: str) -> None:
        self.snapshots.pop(tag, None)
        self.doubtful.discard(tag)
        self.on_acknowledged()

    def on_apply(self, tag: str) -> None:
        self.on_write(0, self.snapshots[tag])

    def on_applied(self, tag: str) -> None:
        self.on_acknowledged()

    def check(self, image: Qcow2Image) -> None:
        """Hold a disk, and its snapshots, against what may be there."""
        assert image.size in self.sizes
        self.check_content(image.read(0, image.size))
        there = {snapshot.id for snapshot in image.snapshots()}
        assert set(self.snapshots) - self.doubtful <= there <= set(self.snapshots)
        for tag in there:
            with image.open_snapshot(tag) as view:
                assert view.read(0, view.size) == self.snapshots[tag][: view.size], tag

    def check_content(self, content: bytes) -> None:
        for sector in range(len(content) // SECTOR):
            found = content[sector * SECTOR : (sector + 1) * SECTOR]
            assert found in self.allowed[sector], f"sector {sector:#x}"

    def adopt(self, content: bytes, snapshots: Collection[str] = ()) -> None:
        """What was found after a crash, and checked, is how it is from now on."""
        self.sizes = {len(content)}
        self.latest = [content[at : at + SECTOR] for at in range(0, len(content), SECTOR)]
        self.snapshots = {tag: self.snapshots[tag] for tag in snapshots}
        self.doubtful.clear()
        self.on_acknowledged()

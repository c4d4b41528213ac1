"""What bitmaps are after a cut, after a failed write, and after programs that know none."""

from __future__ import annotations

import contextlib

import pytest

from tests.tools import images
from tests.tools.bitmaps import (
    KIB,
    MIB,
    SIZE,
    copy_of,
    new_image,
    ranges,
    reader,
    reopened,
)
from vdisk import errors
from vdisk.formats._qcow2 import layout
from vdisk.formats.qcow2 import Qcow2Image
from vdisk.stores.memory import MemoryStore


def test_an_image_that_was_not_closed_has_inconsistent_bitmaps() -> None:
    image = new_image()
    image.add_bitmap("b")
    image.add_bitmap("disabled", enabled=False)
    assert [one.flags for one in reader(image).bitmaps()] == [("auto",), ()]
    image.write(0, b"x")
    assert [one.flags for one in image.bitmaps()] == [("auto",), ()]
    crashed = images.open_image(copy_of(image))
    assert [one.flags for one in crashed.bitmaps()] == [("in-use", "auto"), ()]
    for change in (
        crashed.clear_bitmap,
        crashed.enable_bitmap,
        crashed.disable_bitmap,
        crashed.dirty_ranges,
    ):
        with pytest.raises(errors.CorruptImageError, match="inconsistent"):
            change("b")
    with pytest.raises(errors.CorruptImageError, match="inconsistent"):
        crashed.merge_bitmap("b", [])
    crashed.write(MIB, b"x")
    crashed.resize(2 * SIZE)
    crashed = reopened(crashed)
    assert [one.flags for one in crashed.bitmaps()] == [("in-use", "auto"), ()]
    crashed.remove_bitmap("b")
    with reopened(crashed) as crashed:
        assert [one.name for one in crashed.bitmaps()] == ["disabled"]


def test_saving_makes_the_file_true_until_the_next_write() -> None:
    image = new_image()
    image.add_bitmap("b")
    image.write(0, b"x")
    image.save_bitmaps()
    assert reader(image).bitmaps()[0].flags == ("auto",)
    assert ranges(reader(image)) == [(0, 64 * KIB)]
    image.write(MIB, b"x")
    assert reader(image).bitmaps()[0].flags == ("in-use", "auto")
    image.close()


def test_bitmaps_of_a_program_that_knows_none_are_taken_for_absent() -> None:
    image = new_image()
    image.add_bitmap("b")
    image.header.autoclear_features &= ~layout.BITMAPS
    image._core.header_file.save()
    foreign = images.open_image(copy_of(image))
    assert foreign.bitmaps() == []
    foreign.add_bitmap("b", 512)
    with reopened(foreign) as foreign:
        assert foreign.bitmaps() == [("b", 512, ("auto",))]


class FailingStore(MemoryStore):
    """Keeps a copy of itself before each write, and fails the one it is told to.

    ``fail_late``: what was to be written is there all the same.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.copies: list[bytes] = []
        self.fail_at = -1
        self.fail_late = False

    def _write(self, offset: int, view: memoryview) -> None:
        self.copies.append(self.content())
        fails = len(self.copies) - 1 == self.fail_at
        if self.fail_late or not fails:
            super()._write(offset, view)
        if fails:
            raise errors.DeviceError("told to fail", path=self.name)


CHANGES = {
    "add": lambda image: image.add_bitmap("new", 512),
    "remove": lambda image: image.remove_bitmap("b"),
    "clear": lambda image: image.clear_bitmap("b"),
    "disable": lambda image: image.disable_bitmap("b"),
    "merge": lambda image: image.merge_bitmap("b", [(0, SIZE)]),
    "resize: shrink": lambda image: image.resize(SIZE // 2),
    "resize: grow": lambda image: image.resize(20 * SIZE),  # larger tables
    "write and save": lambda image: (image.write(0, b"x"), image.save_bitmaps()),
}


def image_with_two_bitmaps() -> FailingStore:
    image = new_image(cluster_size=4096)
    image.write(0, b"x" * MIB)
    image.add_bitmap("b", 4096)
    image.add_bitmap("other", 4096, enabled=False)
    image.merge_bitmap("b", [(MIB, 8192)])
    image.merge_bitmap("other", [(2 * MIB, 8192)])
    image.close()
    return FailingStore(copy_of(image).content())


def state(image: Qcow2Image) -> dict[str, object]:
    """All bitmaps, "in-use" for those whose content does not count."""
    return {
        one.name: "in-use" if "in-use" in one.flags else (one.flags, tuple(ranges(image, one.name)))
        for one in image.bitmaps()
    }


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_after_any_cut_a_bitmap_is_old_or_new_or_says_that_it_is_neither(change: str) -> None:
    file = image_with_two_bitmaps()
    image = images.open_image(file)
    before = state(image)
    CHANGES[change](image)
    image.flush()
    after = state(image)
    assert len(file.copies) >= 4
    for content in [*file.copies, file.content()]:
        with images.open_image(MemoryStore(content), readonly=True) as cut:
            check_state(cut, before, after)
            if "resize" not in change:
                assert state(cut)["other"] == before["other"]
    image.close()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_change_that_fails_leaves_what_was_there(change: str, late: bool) -> None:
    file = image_with_two_bitmaps()
    probe = FailingStore(file.content())
    image = images.open_image(probe)
    before = state(image)
    CHANGES[change](image)
    after, writes = state(image), len(probe.copies)
    image.close()
    for fail_at in range(writes):
        failing = FailingStore(file.content())
        failing.fail_at, failing.fail_late = fail_at, late
        image = images.open_image(failing)
        with contextlib.suppress(errors.DeviceError):
            CHANGES[change](image)
        check_state(image, before, after)
        image.flush()
        check_state(reader(image), before, after)
        assert not reader(image).check().corruptions
        image.write(SIZE // 4, b"x" * 8192)
        assert set(state(reader(image))) in (set(before), set(after))
        image = reopened(image)
        assert set(state(image)) in (set(before), set(after))
        image.add_bitmap("afterwards")
        image.close()


def check_state(image: Qcow2Image, before: dict[str, object], after: dict[str, object]) -> None:
    found = state(image)
    assert set(found) in (set(before), set(after))
    for name, value in found.items():
        assert value in (before.get(name), after.get(name), "in-use")

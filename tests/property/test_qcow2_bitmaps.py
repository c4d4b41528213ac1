"""The life of dirty bitmaps against sets of chunks.

Law: a bitmap holds exactly the chunks that were written while it was enabled, or merged into it;
and the image is sound in the end.
"""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.tools.bitmaps import (
    is_sound,
    new_image,
    ranges,
    reader,
    reopened,
)
from vdisk import errors
from vdisk.formats.qcow2 import Qcow2Image


class BitmapLife(RuleBasedStateMachine):
    """Bitmaps against sets of chunks."""

    image: Qcow2Image | None = None

    @initialize(
        cluster_size=st.sampled_from([512, 4096, 65536]),
        sectors=st.integers(1, 9000),
        lazy=st.booleans(),
    )
    def start(self, cluster_size: int, sectors: int, lazy: bool) -> None:
        self.image = new_image(sectors * 512, cluster_size=cluster_size, lazy_refcounts=lazy)
        self.model: dict[str, tuple[int, bool, set[int]]] = {}
        self.snapshots: list[str] = []

    def teardown(self) -> None:
        if self.image is not None:
            self.reopen()
            self.agrees()
            assert is_sound(self.image)
            self.image.close()

    def range(self, where: float, length: int) -> tuple[int, int]:
        start = int(where * (self.image.size - 1))
        return start, min(length, self.image.size - start)

    def record(self, start: int, length: int) -> None:
        for granularity, enabled, chunks in self.model.values():
            if enabled and length:
                last = (start + length - 1) // granularity
                chunks |= set(range(start // granularity, last + 1))

    names = st.sampled_from("abc")
    ranges = st.tuples(
        st.floats(0, 1), st.sampled_from([0, 1, 512, 5000, 65536, 300_000, 2_000_000])
    )

    @rule(range=ranges, how=st.sampled_from(["write", "write_zeroes", "discard"]))
    def change(self, range: tuple[float, int], how: str) -> None:
        start, length = self.range(*range)
        if how == "write":
            self.image.write(start, random.Random(start).randbytes(length))
        else:
            getattr(self.image, how)(start, length)
        self.record(start, length)

    @rule(name=names, shift=st.integers(9, 31), enabled=st.booleans())
    def add(self, name: str, shift: int, enabled: bool) -> None:
        if name in self.model:
            with pytest.raises(errors.AlreadyExistsError):
                self.image.add_bitmap(name, 1 << shift, enabled=enabled)
        else:
            self.image.add_bitmap(name, 1 << shift, enabled=enabled)
            self.model[name] = (1 << shift, enabled, set())

    @precondition(lambda self: self.model)
    @rule(data=st.data(), what=st.sampled_from(["remove", "clear", "enable", "disable"]))
    def alter(self, data: st.DataObject, what: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        getattr(self.image, f"{what}_bitmap")(name)
        granularity, enabled, chunks = self.model.pop(name)
        if what == "clear":
            chunks = set()
        elif what != "remove":
            enabled = what == "enable"
        if what != "remove":
            self.model[name] = (granularity, enabled, chunks)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def merge(self, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from(sorted(self.model)))
        target = data.draw(st.sampled_from(sorted(self.model)))
        self.image.merge_bitmap(target, self.image.dirty_ranges(source))
        fine, _enabled, chunks = self.model[source]
        coarse, _enabled, merged = self.model[target]
        for chunk in list(chunks):
            end = min((chunk + 1) * fine, self.image.size)
            merged |= set(range(chunk * fine // coarse, (end - 1) // coarse + 1))

    @rule(sectors=st.integers(1, 9000))
    def resize(self, sectors: int) -> None:
        self.image.resize(sectors * 512)
        for granularity, _enabled, chunks in self.model.values():
            chunks -= {chunk for chunk in chunks if chunk * granularity >= sectors * 512}

    @rule()
    def snapshot(self) -> None:
        self.snapshots.append(str(len(self.snapshots)))
        self.image.create_snapshot(f"snapshot {len(self.snapshots)}")

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(1, len(self.snapshots)))
        self.image.apply_snapshot(f"snapshot {number}")
        for granularity, _enabled, chunks in self.model.values():
            chunks -= {chunk for chunk in chunks if chunk * granularity >= self.image.size}
        self.record(0, self.image.size)

    @rule()
    def save(self) -> None:
        self.image.save_bitmaps()
        with reader(self.image) as other:
            self.agrees(other)

    @rule()
    def reopen(self) -> None:
        self.image = reopened(self.image)

    @invariant()
    def agrees(self, image: Qcow2Image | None = None) -> None:
        image = image or self.image
        if image is None:
            return
        assert {one.name: (one.granularity, "auto" in one.flags) for one in image.bitmaps()} == {
            name: (granularity, enabled) for name, (granularity, enabled, _) in self.model.items()
        }
        for name, (granularity, _enabled, chunks) in self.model.items():
            found = ranges(image, name)
            assert all(sum(one) < other[0] for one, other in itertools.pairwise(found))
            covered = {
                chunk
                for start, length in found
                for chunk in range(start // granularity, -(-(start + length) // granularity))
            }
            assert covered == chunks
            assert sum(length for _start, length in found) == sum(
                min((chunk + 1) * granularity, image.size) - chunk * granularity for chunk in chunks
            )


TestBitmapLife = BitmapLife.TestCase

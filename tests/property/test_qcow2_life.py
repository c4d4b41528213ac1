"""The life of a qcow2 image against a plain ``bytearray``.

Law: whatever is done to an image, it reads as the model does, its snapshots as the model did
when they were taken, and in the end qemu-img finds nothing wrong and the same content.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.tools import images, qemu
from tests.tools.peers import requires_peer
from vdisk.stores.places import Places

if TYPE_CHECKING:
    from vdisk.formats.qcow2 import Qcow2Image

MAX_SIZE = 6 << 20
SHORT_RANGES = st.tuples(st.floats(0, 1), st.sampled_from([1, 511, 512, 4096, 10_000]))
RANGES = st.one_of(
    SHORT_RANGES,
    st.tuples(st.floats(0, 1), st.sampled_from([65536, 70_000, 300_000, 1 << 21])),
)
SEEDS = st.integers(0, 1 << 32)


class Qcow2Life(RuleBasedStateMachine):
    """Rules are the image's operations; the model is one ``bytearray`` and one a snapshot."""

    image: Qcow2Image | None = None
    places: Places | None = None
    """What is remembered of ``image``, from one step to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vdisk-life-"))
        self.path = self.folder / "image.qcow2"
        self.snapshots: dict[str, bytes] = {}

    @initialize(
        name=st.sampled_from(sorted(images.CONFIGURATIONS)),
        sectors=st.integers(1, 6000),
        backing=st.sampled_from([None, "raw", "qcow2"]),
        external=st.booleans(),
        seed=SEEDS,
    )
    def start(
        self, name: str, sectors: int, backing: str | None, external: bool, seed: int
    ) -> None:
        self.options = dict(images.CONFIGURATIONS[name])
        size = sectors * 512
        self.model = bytearray(size)
        if backing is not None:
            self._make_backing(backing, size, seed)
        if external and self.options.get("compat") != "0.10":
            data_file = self.folder / "data.raw"
            data_file.touch()
            self.options["data_file"] = str(data_file)
        self.version = 2 if self.options.get("compat") == "0.10" else 3
        images.create(self.path, size, **self.options)
        self.image = images.open_image(self.path)
        self.places = Places(self.image)

    def _make_backing(self, format: str, size: int, seed: int) -> None:
        length = max(size + random.Random(seed).choice([0, 512, -512 * 9, 65536]), 512)
        content = random.Random(seed).randbytes(length)
        base = self.folder / f"base.{format}"
        if format == "raw":
            base.write_bytes(content)
        else:
            images.create(base, length, cluster_size=4096)
            with images.open_image(base) as image:
                image.write(0, content)
        self.model[: min(size, length)] = content[:size]
        self.options |= {"backing_file": str(base), "backing_fmt": format}

    # -- helpers ---------------------------------------------------------------------------------

    def _span(self, where: tuple[float, int]) -> tuple[int, int]:
        size = len(self.model)
        offset = min(int(where[0] * size), size - 1)
        return offset, min(where[1], size - offset)

    @property
    def _open(self) -> Qcow2Image:
        assert self.image is not None
        return self.image

    @property
    def _snapshots_possible(self) -> bool:
        return "data_file" not in self.options and self.options.get("refcount_bits", 16) > 2

    # -- rules -----------------------------------------------------------------------------------

    @rule(where=RANGES, seed=SEEDS)
    def write(self, where: tuple[float, int], seed: int) -> None:
        offset, length = self._span(where)
        data = random.Random(seed).randbytes(length)
        half = length // 2
        self._open.writev(offset, [data[:half], data[half:]])
        self.model[offset : offset + length] = data

    @rule(where=RANGES, unmap=st.booleans())
    def write_zeroes(self, where: tuple[float, int], unmap: bool) -> None:
        offset, length = self._span(where)
        self._open.write_zeroes(offset, length, unmap=unmap)
        self.model[offset : offset + length] = bytes(length)

    @rule(where=RANGES)
    def discard(self, where: tuple[float, int]) -> None:
        offset, length = self._span(where)
        self._open.discard(offset, length)
        if self.version == 2 and "backing_file" in self.options:
            return  # cannot say "zero", so it keeps what was there
        unit, end = self._open.cluster_size, offset + length
        first = -(-offset // unit) * unit
        last = end if end == len(self.model) else end // unit * unit
        if first < last:
            self.model[first:last] = bytes(last - first)

    @rule(where=SHORT_RANGES, seed=SEEDS)
    @precondition(lambda self: "data_file" not in self.options)
    def write_compressed(self, where: tuple[float, int], seed: int) -> None:
        unit = self._open.cluster_size
        offset = self._span(where)[0] // unit * unit
        if offset + unit > len(self.model):
            return
        data = (random.Random(seed).randbytes(48) * (unit // 48 + 1))[:unit]
        compressed = self._open.compress_cluster(data)
        assert compressed is not None
        self._open.write_compressed(offset, compressed)
        self.model[offset : offset + unit] = data

    @rule(where=RANGES)
    def read(self, where: tuple[float, int]) -> None:
        offset, length = self._span(where)
        assert self._open.read(offset, length) == self.model[offset : offset + length]

    @rule()
    def flush(self) -> None:
        self._open.flush()

    @rule()
    def reopen(self) -> None:
        self._open.close()
        qemu.check(self.path)
        self.image = images.open_image(self.path, l2_cache_size=2 << 16)
        self.places = Places(self.image)

    @rule(state=st.binary(max_size=20))
    @precondition(lambda self: self._snapshots_possible and len(self.snapshots) < 4)
    def create_snapshot(self, state: bytes) -> None:
        taken = self._open.create_snapshot(f"after {len(self.snapshots)}", vm_state=state)
        self.snapshots[taken.id] = bytes(self.model)
        with self._open.open_snapshot(taken.id) as view:
            assert view.read_vm_state(0, len(state)) == state

    @rule(pick=st.integers(0, 100))
    @precondition(lambda self: bool(self.snapshots))
    def apply_snapshot(self, pick: int) -> None:
        tag = sorted(self.snapshots)[pick % len(self.snapshots)]
        self._open.apply_snapshot(tag)
        self.model[:] = self.snapshots[tag]

    @rule(pick=st.integers(0, 100))
    @precondition(lambda self: bool(self.snapshots))
    def delete_snapshot(self, pick: int) -> None:
        tag = sorted(self.snapshots)[pick % len(self.snapshots)]
        self._open.delete_snapshot(tag)
        del self.snapshots[tag]

    @rule(
        sectors=st.integers(1, MAX_SIZE // 512),
        mode=st.sampled_from(["off", "metadata", "falloc", "full"]),
    )
    @precondition(lambda self: self.version > 2 or not self.snapshots)
    def resize(self, sectors: int, mode: str) -> None:
        size = sectors * 512
        self._open.resize(size, mode if size > len(self.model) else "off")
        self.model = self.model[:size] + bytes(max(size - len(self.model), 0))

    @rule(bits=st.sampled_from([4, 8, 16, 32, 64]), lazy=st.booleans())
    @precondition(lambda self: self.version > 2)
    def amend(self, bits: int, lazy: bool) -> None:
        self._open.amend({"refcount_bits": bits, "lazy_refcounts": lazy})
        self.options["refcount_bits"] = bits

    # -- laws ------------------------------------------------------------------------------------

    @invariant()
    def map_is_gapless(self) -> None:
        if self.image is None:
            return
        position = 0
        for extent in self.image.map():
            assert extent.start == position and extent.length > 0
            position = extent.end
        assert position == self.image.size == len(self.model)

    @invariant()
    def places_are_where_the_bytes_are(self) -> None:
        if self.image is None or self.places is None:
            return
        size = len(self.model)
        with self.image.hold():
            self.places.refresh()
            for offset in range(0, size, size // 41 + 1):
                length = min(512, size - offset)
                found = self.places.find(offset, length)
                if found is not None:
                    content = os.pread(found[0], length, found[1])
                    assert content.ljust(length, b"\0") == self.model[offset : offset + length]

    @invariant()
    def snapshots_are_as_taken(self) -> None:
        if self.image is None:
            return
        assert [s.id for s in self.image.snapshots()] == sorted(self.snapshots, key=int)
        for tag, content in self.snapshots.items():
            with self.image.open_snapshot(tag) as view:
                assert view.read(0, view.size) == content

    def teardown(self) -> None:
        try:
            if self.image is not None:
                assert self.image.read(0, self.image.size) == self.model
                self.image.close()
                qemu.check(self.path)
                expected = self.folder / "expected.raw"
                expected.write_bytes(self.model)
                qemu.compare(self.path, expected, "-f", "qcow2", "-F", "raw")
        finally:
            shutil.rmtree(self.folder)


@requires_peer("qemu-img")
def test_life() -> None:
    count = settings.default.max_examples if settings.default else 30
    steps = int(os.environ.get("VDISK_TEST_STEPS", "25"))
    run_state_machine_as_test(
        Qcow2Life, settings=settings(max_examples=count, stateful_step_count=steps)
    )

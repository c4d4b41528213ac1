"""Check and repair: what is counted, what is said of damage, what a repair may and may not do."""

from __future__ import annotations

import random
import resource
import time
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import damage, images
from vdisk.errors import (
    CancelledError,
    CorruptImageError,
    DeviceError,
    InvalidRequestError,
    ReadOnlyError,
    UnsupportedFeatureError,
)
from vdisk.formats import OpenContext
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.census import MAX_CLUSTERS, Census
from vdisk.formats._qcow2.entries import EntryRules
from vdisk.formats._qcow2.findings import MAX_FINDINGS, Report
from vdisk.formats._qcow2.header import Header
from vdisk.formats._qcow2.scan import L2Table, TableScanner
from vdisk.formats._qcow2.tables import words_to_bytes
from vdisk.formats.qcow2 import DRIVER, Qcow2Image, read_header
from vdisk.stores.file import FileStore
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from vdisk.formats._qcow2.check import CheckResult

COPIED = layout.COPIED


def opened(content: bytes | MemoryStore, *, readonly: bool = True) -> Qcow2Image:
    store = MemoryStore(content) if isinstance(content, bytes) else content
    return DRIVER.open(store, OpenContext(readonly=readonly, repairing=True))


def check(content: bytes) -> CheckResult:
    with opened(content) as image:
        return image.check()


def repaired(content: bytes, *repair: str) -> tuple[CheckResult, bytes]:
    store = MemoryStore(content)
    with opened(store, readonly=False) as image:
        result = image.check(repair=repair or ("leaks", "errors"))
    return result, store.content()


def disk(content: bytes) -> bytes | None:
    """What the image's disk holds; None where that cannot be read."""
    with opened(content) as image:
        try:
            return image.read(0, image.size)
        except CorruptImageError:
            return None


# -- counting --------------------------------------------------------------------------------------

RUNS = st.lists(
    st.tuples(st.integers(0, 299), st.integers(1, 300), st.sampled_from([1, 2, 255, 256, 70000])),
    max_size=12,
)


@given(RUNS)
def test_a_census_counts(runs: list[tuple[int, int, int]]) -> None:
    census, model = Census(300), Counter[int]()
    for first, length, references in runs:
        end = min(first + length, 300)
        census.add(first, end, references)
        model.update(dict.fromkeys(range(first, end), references))
    expected = [model[cluster] for cluster in range(320)]
    assert list(census.counts(0, 320)) == expected
    assert [census.count(cluster) for cluster in range(300)] == expected[:300]
    assert list(census.used()) == sorted(model)
    assert census.end() == max(model, default=-1) + 1


def test_a_census_of_an_endless_file_is_refused() -> None:
    with pytest.raises(UnsupportedFeatureError):
        Census(MAX_CLUSTERS + 1)


def naive_count(words: list[int], bits: int, clusters: int, references: int) -> list[int]:
    counts = [0] * clusters
    for entry in words:
        if entry & layout.COMPRESSED:
            shift = 62 - (bits - 8)
            offset = entry & ((1 << shift) - 1)
            sectors = (entry >> shift) & ((1 << (bits - 8)) - 1)
            last = ((offset >> 9) + sectors) * 512 + 511
            touched = range(offset >> bits, (last >> bits) + 1)
        elif entry & layout.OFFSET_MASK:
            offset = entry & layout.OFFSET_MASK
            touched = range(offset >> bits, (offset + (1 << bits) - 1 >> bits) + 1)
        else:
            continue
        for cluster in touched:
            if cluster < clusters:
                counts[cluster] += references
    return counts


@st.composite
def l2_words(draw: st.DrawFn) -> list[int]:
    """Entries of a table of 4096 B clusters in a file of 600: runs, holes, all sorts of entries."""
    words: list[int] = []
    while len(words) < 512:
        length = draw(st.sampled_from([1, 1, 3, 30, 128, 512]))
        kind = draw(st.sampled_from(["run", "empty", "zero", "shared", "packed", "odd"]))
        first = draw(st.integers(1, 590)) * 4096
        if kind == "run":
            words += [first + n * 4096 | COPIED for n in range(length)]
        elif kind == "shared":
            words += [first + n * 4096 for n in range(length)]
        elif kind == "packed":
            words += [layout.COMPRESSED | 2 << 58 | first + n * 1500 for n in range(length)]
        elif kind == "odd":
            words.append(draw(st.integers(0, (1 << 64) - 1)))
        else:
            words += [layout.ZERO if kind == "zero" else 0] * length
    return words[:512]


@given(l2_words(), st.integers(1, 300))
def test_a_table_is_counted_as_one_by_one(words: list[int], references: int) -> None:
    header = Header()
    header.cluster_bits = 12
    census = Census(600)
    scanner = TableScanner(census, EntryRules(header, 600 * 4096), Report())
    scanner.scan(L2Table(words_to_bytes(array("Q", words)), 4096, 0, references, 0))
    expected = naive_count(words, 12, 600, references)
    # Where a compressed cluster's offset has more than 56 bits, what it touches is anybody's guess.
    far = [w for w in words if w & layout.COMPRESSED and w & (1 << 58) - 1 >= 1 << 56]
    if not far:
        assert list(census.counts(0, 600)) == expected


@pytest.mark.parametrize("name", images.CONFIGURATIONS)
@pytest.mark.parametrize("snapshot", [False, True], ids=["", "snapshot"])
def test_sound_images_are_clean(name: str, snapshot: bool) -> None:
    options = dict(images.CONFIGURATIONS[name])
    bits = options.get("refcount_bits", 16)
    options.setdefault("cluster_size", 65536)
    content = damage.sample(snapshot=snapshot and bits > 1, compressed=bits > 2, **options)
    result = check(content)
    assert result.clean, result.findings
    assert result.allocated_clusters >= 17
    assert result.image_end_offset <= len(content) + options["cluster_size"]


def test_bitmaps_are_counted() -> None:
    store = MemoryStore(damage.sample())
    with opened(store, readonly=False) as image:
        image.add_bitmap("b")
        image.write(0, b"x" * 65536)
    assert check(store.content()).clean


def test_an_encryption_header_is_counted() -> None:
    header_clusters = 3
    metadata = damage.Metadata(damage.sample(compressed=False))
    clean = check(bytes(metadata.content))
    assert clean.clean
    store = MemoryStore(bytes(metadata.content))
    with opened(store) as image:  # the region alone, whatever it holds
        image.header.crypto = (image.file.size, header_clusters * 4096)
        store.truncate(image.file.size + header_clusters * 4096)
        result = image.check()
    assert result.corruptions == header_clusters  # referenced, but not yet counted in the file


# -- what is said ----------------------------------------------------------------------------------

WORDS = {
    "refcount zero": "refcount 0, but 1 references",
    "a leaked cluster": "refcount 1, but 0 references",
    "COPIED unset in L2": "the COPIED flag is unset in 1 table entries",
    "L1 entry not aligned": "the L2 table's offset",
    "L1 entry past the end": "past the end of the file",
    "L2 entry with reserved bits": "reserved bits are set",
    "compressed and COPIED": "COPIED flag is set on a compressed cluster",
    "refcount block not aligned": "of the refcount table is not cluster-aligned",
    "two blocks in one cluster": "other uses",
    "no refcount table": "no refcount table",
    "truncated": "past the end of the file",
}


@pytest.mark.parametrize("name", WORDS)
def test_findings_say_what_is_wrong(name: str) -> None:
    result = check(damage.damaged(damage.sample(), name))
    assert any(WORDS[name] in finding.message for finding in result.findings), result.findings
    assert all(str(finding).startswith(finding.kind) for finding in result.findings)


def test_findings_are_bounded_numbers_are_not() -> None:
    metadata = damage.Metadata(damage.sample(cluster_size=16384))
    metadata.set_word(metadata.l1, metadata.host(4) | COPIED)  # data taken for a table
    result = check(bytes(metadata.content))
    assert result.corruptions > 2000
    assert len(result.findings) == MAX_FINDINGS


def test_invalid_subclusters_are_found() -> None:
    metadata = damage.Metadata(damage.sample(extended_l2=True, cluster_size=16384))
    metadata.set_word(metadata.entry(1) + 8, 1 << 32 | 1)
    metadata.set_word(metadata.entry(50) + 8, 1)
    result, _ = repaired(bytes(metadata.content))
    assert result.corruptions == 2
    words = " ".join(finding.message for finding in result.remaining)
    assert "both allocated and zero" in words
    assert "allocated in no cluster" in words


def test_zero_clusters_in_version_2_are_found() -> None:
    metadata = damage.Metadata(damage.sample(compat="0.10"))
    metadata.change_entry(2, lambda old: old | layout.ZERO)
    result, _ = repaired(bytes(metadata.content))
    assert result.corruptions == 1
    assert "version 2" in result.remaining[0].message


# -- external data files ---------------------------------------------------------------------------


def test_external_data_is_not_counted(tmp_path: Path) -> None:
    path, data = tmp_path / "image.qcow2", tmp_path / "data"
    data.write_bytes(b"")
    images.create(path, 1 << 20, data_file=str(data))
    with images.open_image(path) as image:
        image.write(0, b"x" * 200_000)
        assert image.check().clean
        assert image.check().allocated_clusters == 4
    metadata = damage.Metadata(path.read_bytes())
    metadata.change_entry(1, lambda _old: COPIED | 5 << 16)
    metadata.change_entry(2, lambda old: old & ~COPIED)
    path.write_bytes(metadata.content)
    with images.open_image(path, readonly=True) as image:
        result = image.check()
    assert result.corruptions == 2
    assert "is not the guest offset 0x10000" in result.findings[0].message
    assert "COPIED flag is missing" in result.findings[1].message


# -- repair ----------------------------------------------------------------------------------------

UNMENDABLE = {
    "L1 entry not aligned",
    "L2 entry not aligned",
    "compressed past the end",
    "snapshot table past the end",
    "snapshot table not aligned",
    "snapshot's L1 table not aligned",
    "snapshot's L1 table past the end",
    "snapshot's L1 table too long",
    "snapshot with too much extra data",
}

GARBAGE = {"refcount block as L2 table", "refcount table as L2 table", "data as L2 table"}
"""Bytes that are no table, taken for one: what its entries then say is anything."""

SAMPLES: dict[str, dict[str, Any]] = {
    "small clusters": {"cluster_size": 1024},
    "64-bit refcounts": {"refcount_bits": 64},
    "4-bit refcounts": {"refcount_bits": 4},
    "v2": {"compat": "0.10"},
    "subclusters": {"extended_l2": True, "cluster_size": 16384},
}

ELSEWHERE_HARMLESS = ("zero cluster", "a leaked", "as L2 table", "one L2 table", "a snapshot too")
"""Damages that are others, or none, in version 2 and in images with subclusters."""

CASES = [
    (name, made)
    for made in SAMPLES
    for name in (*damage.DAMAGES, *damage.SNAPSHOT_DAMAGES)
    if made not in ("v2", "subclusters") or not any(word in name for word in ELSEWHERE_HARMLESS)
]


@pytest.mark.parametrize(("name", "made"), CASES)
def test_each_damage_is_found_and_mended(name: str, made: str) -> None:
    content = damage.damaged(damage.sample(snapshot=True, **SAMPLES[made]), name)
    assert not check(content).clean
    before = disk(content)
    result, mended = repaired(content)
    if name in UNMENDABLE or (name in GARBAGE and result.corruptions):
        assert result.remaining
        assert not check(mended).clean
    else:
        assert result.clean, result.remaining
        assert result.corruptions_fixed + result.leaks_fixed
        assert check(mended).clean
        assert before is None or disk(mended) == before


def test_what_cannot_be_understood_keeps_its_clusters() -> None:
    """An unaligned entry meant something: the leaked clusters may be it."""
    content = damage.damaged(damage.sample(), "L1 entry not aligned")
    leaks = check(content).leaks
    assert leaks > 10
    for repair in (("leaks",), ("leaks", "errors")):
        result, mended = repaired(content, *repair)
        assert result.leaks == leaks
        assert result.leaks_fixed == 0
        metadata = damage.Metadata(mended)
        metadata.change_l1(lambda old: old - 512)
        assert check(bytes(metadata.content)).clean


def test_leaks_alone_leave_errors() -> None:
    metadata = damage.Metadata(damage.sample())
    metadata.set_refcount(metadata.cluster_of(metadata.host(2)), 0)
    metadata.change_entry(3, lambda _old: 0)
    result, mended = repaired(bytes(metadata.content), "leaks")
    assert (result.leaks, result.leaks_fixed, result.corruptions_fixed) == (0, 1, 0)
    assert result.corruptions == check(mended).corruptions == 2  # the count, and COPIED beside it


def test_the_owner_of_a_shared_cluster_keeps_its_bytes() -> None:
    """A data cluster taken for an L2 table: the repair must not write 'mended' entries into it."""
    content = damage.damaged(damage.sample(), "data as L2 table")
    with opened(content) as image:
        owned = image.read(0, 12 * 4096)
    _, mended = repaired(content)
    with opened(mended) as image:
        assert image.read(0, 12 * 4096) == owned


def test_a_refcount_that_cannot_hold_the_references_stays_reported() -> None:
    metadata = damage.Metadata(damage.sample(refcount_bits=1, compressed=False))
    metadata.change_entry(2, lambda _old: metadata.word(metadata.entry(3)))
    result, _ = repaired(bytes(metadata.content))
    assert result.corruptions == 1
    assert "refcount 1, but 2 references" in result.remaining[0].message


def test_broken_bitmaps_are_removed() -> None:
    store = MemoryStore(damage.sample())
    with opened(store, readonly=False) as image:
        image.add_bitmap("sound")
        image.add_bitmap("broken")
        directory = image.header.bitmaps
    assert directory is not None
    metadata = damage.Metadata(store.content())
    second = directory[2] + 32  # entries of 24 bytes and a name of 5 or 6
    metadata.set_word(metadata.word(second), 0x123)
    result, mended = repaired(bytes(metadata.content))
    assert result.clean, result.remaining
    with opened(mended) as image:
        assert [bitmap.name for bitmap in image.bitmaps()] == ["sound"]
    metadata.content[directory[2] + 18 : directory[2] + 20] = b"\xff\xff"  # the first name's length
    result, mended = repaired(bytes(metadata.content))
    assert result.clean, result.remaining
    with opened(mended) as image:
        assert image.bitmaps() == []


def test_an_outdated_snapshot_table_is_rewritten() -> None:
    metadata = damage.Metadata(damage.sample(snapshot=True))
    table = metadata.snapshot_table
    tail = metadata.content[table + 40 + 24 : table + 4096 - 24 + 24]
    metadata.content[table + 36 : table + 40] = bytes(4)  # no extra data: no disk size
    metadata.content[table + 40 : table + 40 + len(tail)] = tail
    result, mended = repaired(bytes(metadata.content))
    assert result.clean, result.remaining
    assert "lacks the size of its disk" in result.findings[0].message
    with opened(mended) as image:
        (snapshot,) = image.snapshots()
        assert (snapshot.name, snapshot.disk_size) == ("before", image.size)


def test_devices_that_cannot_grow_are_repaired_inside() -> None:
    content = damage.damaged(damage.sample(), "refcount block missing")
    before = disk(content)
    store = MemoryStore(content + bytes(1 << 20), growable=False)
    with opened(store, readonly=False) as image:
        assert image.check(repair=("errors", "leaks")).clean
    assert disk(store.content()) == before


# -- the marks -------------------------------------------------------------------------------------


def marked(content: bytes, bits: int) -> bytes:
    metadata = damage.Metadata(content)
    metadata.set_word(72, metadata.word(72) | bits)
    return bytes(metadata.content)


def test_marks_go_when_the_image_is_clean() -> None:
    content = marked(damage.sample(), layout.DIRTY | layout.CORRUPT)
    assert check(content).clean
    result, mended = repaired(content)
    assert result.clean
    assert not read_header(MemoryStore(mended)).incompatible_features


def test_marks_stay_while_it_is_not() -> None:
    broken = damage.damaged(damage.sample(), "L2 entry not aligned")
    both = layout.DIRTY | layout.CORRUPT
    _, mended = repaired(marked(broken, both))
    assert read_header(MemoryStore(mended)).incompatible_features == both
    store = MemoryStore(marked(broken, both))
    with opened(store, readonly=False) as image:
        image.check()  # repairs nothing
    assert read_header(MemoryStore(store.content())).incompatible_features == both


def test_corrupt_images_open_for_writing_only_for_repair() -> None:
    content = marked(damage.sample(), layout.CORRUPT)
    with pytest.raises(CorruptImageError, match="check -r all"):
        DRIVER.open(MemoryStore(content), OpenContext(readonly=False))
    DRIVER.open(MemoryStore(content), OpenContext(readonly=True)).close()
    opened(content, readonly=False).close()


def test_dirty_images_are_repaired_on_the_way_to_writing() -> None:
    content = damage.damaged(damage.sample(lazy_refcounts=True), "refcount zero")
    store = MemoryStore(marked(content, layout.DIRTY))
    with DRIVER.open(store, OpenContext(readonly=False)) as image:
        assert not image.dirty
        image.write(0, b"x" * 100_000)
    assert check(store.content()).clean


def test_dirty_images_beyond_repair_are_refused_and_stay_dirty() -> None:
    content = marked(damage.damaged(damage.sample(), "L2 entry not aligned"), layout.DIRTY)
    store = MemoryStore(content)
    with pytest.raises(CorruptImageError, match="not closed cleanly"):
        DRIVER.open(store, OpenContext(readonly=False))
    assert read_header(MemoryStore(store.content())).incompatible_features & layout.DIRTY


# -- requests --------------------------------------------------------------------------------------


def test_repairs_are_named_and_need_a_writable_image() -> None:
    content = damage.sample()
    with opened(content) as image, pytest.raises(ReadOnlyError):
        image.check(repair={"leaks"})
    with opened(content, readonly=False) as image, pytest.raises(InvalidRequestError):
        image.check(repair={"everything"})


def test_progress_reaches_the_end_and_can_cancel() -> None:
    told: list[tuple[int, int]] = []
    with opened(damage.sample(), readonly=False) as image:
        image.check(progress=lambda *where: told.append(where))
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}

    def cancel(_done: int, _total: int) -> None:
        raise CancelledError("enough")

    with opened(damage.sample()) as image, pytest.raises(CancelledError):
        image.check(progress=cancel)


class BadSpot(MemoryStore):
    """A store that cannot read one cluster."""

    bad = -1

    def _read_into(self, offset: int, view: memoryview) -> None:
        if offset <= self.bad < offset + len(view):
            raise DeviceError("a scratch", path=self.name, offset=offset)
        super()._read_into(offset, view)


def test_what_cannot_be_read_is_an_error_and_frees_nothing() -> None:
    content = damage.sample()
    store = BadSpot(content)
    store.bad = damage.Metadata(content).l2
    with opened(store, readonly=False) as image:
        result = image.check(repair={"leaks", "errors"})
    assert result.check_errors == 1
    assert result.leaks > 10
    assert result.leaks_fixed == 0
    assert store.content() == content


@pytest.mark.parametrize("what", ["snapshot table", "bitmap directory", "table of bitmap 'b'"])
def test_snapshots_and_bitmaps_that_cannot_be_read_are_not_dropped(what: str) -> None:
    store = BadSpot()
    images.create(store, 1 << 20, cluster_size=512)
    with images.open_image(store) as image:
        image.create_snapshot("kept")
        image.add_bitmap("b", 512)
        image.write(0, b"recorded")
    content = store.content()
    copy = BadSpot(content)
    with opened(copy, readonly=False) as image:
        assert image.header.bitmaps is not None
        directory = image.header.bitmaps[2]
        copy.bad = {
            "snapshot table": image.header.snapshots_offset,
            "bitmap directory": directory,
            "table of bitmap 'b'": int.from_bytes(content[directory : directory + 8], "big"),
        }[what]
        result = image.check(repair={"leaks", "errors"})
    assert result.check_errors
    assert f"the {what} cannot be read" in result.findings[0].message
    copy.bad = -1
    assert copy.content() == content


@pytest.mark.parametrize("repair", [{"leaks"}, {"leaks", "errors"}])
@pytest.mark.parametrize("past", [1, 200])
def test_a_repair_unsets_counts_past_the_end_of_the_file(repair: set[str], past: int) -> None:
    """Another program, or a cut, left them; when the file grows they are leaks."""
    store = MemoryStore()
    images.create(store, 1 << 20, cluster_size=512, refcount_bits=64)
    with images.open_image(store) as image:
        image.write(0, b"data" * 128 * 70)
        refcounts = image._core.refcounts
        end = store.size // 512 + past
        while refcounts.allocate(1)[0] < end:
            pass
    content = store.content()
    assert len(content) < end * 512
    with opened(content) as image:
        before = image.read(0, image.size)
    mended = MemoryStore(content)
    with opened(mended, readonly=False) as image:
        assert image.check(repair=repair).clean
        refcounts = image._core.refcounts
        assert refcounts.last_used() < -(-mended.size // 512)
        assert image.read(0, image.size) == before


# -- hostile images --------------------------------------------------------------------------------


def test_a_huge_sparse_file_costs_little(tmp_path: Path) -> None:
    """4 TiB of holes, entries strewn all over it."""
    path = tmp_path / "image.qcow2"
    metadata = damage.Metadata(damage.sample(cluster_size=65536, compressed=False))
    rng = random.Random(1)
    for index in range(8192):
        metadata.set_word(metadata.l2 + index * 8, rng.randrange(1 << 26) << 16 | COPIED)
    path.write_bytes(metadata.content)
    with path.open("r+b") as file:
        file.truncate(4 << 40)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with DRIVER.open(FileStore(path), OpenContext(repairing=True)) as image:
        result = image.check()
    assert result.corruptions > 8000
    assert time.process_time() - started < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10


def test_circles_end() -> None:
    """Every L1 entry names one table, whose every entry is the table itself."""
    metadata = damage.Metadata(damage.sample())
    entry = metadata.l2 | COPIED
    for index in range(int.from_bytes(metadata.content[36:40], "big")):
        metadata.change_l1(lambda _old: entry, index)
    for index in range(512):
        metadata.change_entry(index, lambda _old: entry)
    result, mended = repaired(bytes(metadata.content))
    assert result.corruptions_fixed
    assert result.clean, result.remaining
    assert check(mended).clean


def test_a_table_past_the_end_is_not_written_there() -> None:
    metadata = damage.Metadata(damage.sample(snapshot=True))
    damage.SNAPSHOT_DAMAGES["snapshot's L1 table past the end"](metadata)
    damage.DAMAGES["L1 entry with reserved bits"](metadata)
    result, mended = repaired(bytes(metadata.content))
    assert result.corruptions == 1  # nobody knows where the snapshot's table is
    assert len(mended) <= len(metadata.content) + 16 * metadata.cluster_size


@given(st.data())
def test_random_bytes_in_the_metadata(data: st.DataObject) -> None:
    """Every check ends with a result; every repair with a clean image or with what remains."""
    made = data.draw(st.sampled_from(list(SAMPLES)))
    metadata = damage.Metadata(damage.sample(snapshot=True, **SAMPLES[made]))
    places = [metadata.l1, metadata.l2, metadata.refcount_table, metadata.refcount_block]
    places += [metadata.snapshot_table, metadata.word(metadata.snapshot_table)]
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.sampled_from(places)) + data.draw(st.integers(0, 120))
        metadata.content[place] = data.draw(st.integers(0, 255))
    result, mended = repaired(bytes(metadata.content))
    again = check(mended)
    assert (again.corruptions, again.leaks) == (result.corruptions, result.leaks)
    assert again.clean or again.findings

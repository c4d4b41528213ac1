"""Laws of the jobs on random disks.

- ``convert`` between any two formats, with any options, preserves content, and what the source's
  map calls zero stays zero in the target's.
- ``commit`` and ``rebase`` preserve the disk in the top image.
- ``measure`` names no less than the file then has.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import vdisk
from tests.tools import images
from vdisk.jobs.commit import commit
from vdisk.jobs.compare import compare
from vdisk.jobs.convert import convert
from vdisk.jobs.measure import measure
from vdisk.jobs.rebase import rebase

MAX_SECTORS = 4000

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["data", "data", "zero bytes", "zeroes", "discard"]),
        st.floats(0, 1),
        st.sampled_from([1, 512, 4096, 65536, 100_000, 1 << 20]),
        st.integers(1, 255),
    ),
    max_size=6,
)
"""What happens to a disk: (how, where, bytes, which byte)."""

SIZES = st.integers(1, MAX_SECTORS).map(lambda sectors: sectors * 512)
OPTIONS = st.sampled_from([images.CONFIGURATIONS[name] for name in sorted(images.CONFIGURATIONS)])
FORMATS = st.one_of(
    st.just(("raw", {})),
    st.tuples(st.just("qcow2"), OPTIONS),  # type: ignore[arg-type]
)

HOW = st.fixed_dictionaries(
    {},
    optional={
        "sparse_size": st.sampled_from([0, 512, 4096, 65536, 1 << 20]),
        "workers": st.integers(1, 4),
        "out_of_order": st.booleans(),
        "copy_offload": st.booleans(),
        "salvage": st.booleans(),
    },
)


def make(path: Path, size: int, format: str, changes: list[Any], **options: Any) -> None:
    """An image of this format that has lived a little."""
    vdisk.create(path, size, format=format, **options)
    change(path, format, changes)


def change(path: Path, format: str, changes: list[Any]) -> None:
    with vdisk.open(path, "r+", format=format) as image:
        for how, where, wanted, byte in changes:
            offset = int(where * (image.size - 1))
            length = min(wanted, image.size - offset)
            if how == "data":
                image.write(offset, bytes([byte]) * length)
            elif how == "zero bytes":
                image.write(offset, bytes(length))
            elif how == "zeroes":
                image.write_zeroes(offset, length)
            else:
                image.discard(offset, length)


def content(path: Path, format: str) -> bytes:
    with vdisk.open(path, format=format) as image:
        return image.read(0, image.size)


def zero_clusters(path: Path, format: str, unit: int) -> set[int]:
    """The whole units that the map calls zero."""
    with vdisk.open(path, format=format) as image:
        found: set[int] = set()
        for extent in image.map():
            if extent.reads_zero:
                last = -(-extent.end // unit) if extent.end == image.size else extent.end // unit
                found |= set(range(-(-extent.start // unit), last))
        return found


@given(size=SIZES, source=FORMATS, target=FORMATS, changes=CHANGES, how=HOW)
def test_convert_preserves_content_and_zeroes(
    size: int, source: Any, target: Any, changes: list[Any], how: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        first, second = Path(name, "first"), Path(name, "second")
        make(first, size, source[0], changes, options=source[1])
        convert(
            str(first),
            str(second),
            format=source[0],
            target_format=target[0],
            options=target[1],
            **how,
        )
        assert content(second, target[0]) == content(first, source[0])
        if how.get("sparse_size") != 0:
            unit = max(target[1].get("cluster_size", 65536), 65536)
            before = zero_clusters(first, source[0], unit)
            if target[0] == "raw":  # whose first block is always there
                before.discard(0)
            assert before <= zero_clusters(second, target[0], unit)


@given(
    size=SIZES,
    changes=CHANGES,
    options=OPTIONS,
    compression=st.sampled_from(["zlib", "zstd"]),
    workers=st.integers(1, 3),
)
def test_compressed_images_hold_the_same(
    size: int, changes: list[Any], options: dict[str, Any], compression: str, workers: int
) -> None:
    if options.get("compat") == "0.10":
        compression = "zlib"
    with tempfile.TemporaryDirectory() as name:
        first, second, third = (Path(name, each) for each in ("first", "second", "third"))
        make(first, size, "raw", changes)
        convert(
            str(first),
            str(second),
            format="raw",
            target_format="qcow2",
            options={**options, "compression_type": compression},
            compress=True,
            workers=workers,
        )
        convert(str(second), str(third), format="qcow2")
        assert third.read_bytes() == first.read_bytes()


@given(sizes=st.tuples(SIZES, SIZES), changes=st.tuples(CHANGES, CHANGES), format=FORMATS)
def test_convert_into_an_image_that_exists_overwrites_all_of_it(
    sizes: tuple[int, int], changes: tuple[list[Any], list[Any]], format: Any
) -> None:
    with tempfile.TemporaryDirectory() as name:
        first, second = Path(name, "first"), Path(name, "second")
        make(first, min(sizes), "raw", changes[0])
        make(second, max(sizes), format[0], changes[1], options=format[1])
        rest = content(second, format[0])[min(sizes) :]
        convert(str(first), str(second), format="raw", target_format=format[0], target_exists=True)
        assert content(second, format[0]) == first.read_bytes() + rest


@given(
    sizes=st.tuples(SIZES, SIZES, SIZES),
    changes=st.tuples(CHANGES, CHANGES, CHANGES),
    options=st.tuples(OPTIONS, OPTIONS, OPTIONS),
    deep=st.booleans(),
)
def test_commit_preserves_the_disk(
    sizes: tuple[int, ...], changes: tuple[list[Any], ...], options: tuple[Any, ...], deep: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        chain = make_chain(Path(name), sizes, changes, options)
        before = content(chain[2], "qcow2")
        commit(str(chain[2]), format="qcow2", base=str(chain[0]) if deep else None)
        target = content(chain[0 if deep else 1], "qcow2")
        assert target[: len(before)] == before
        assert content(chain[2], "qcow2") == before


def make_chain(
    folder: Path, sizes: tuple[int, ...], changes: tuple[list[Any], ...], options: tuple[Any, ...]
) -> list[Path]:
    """Images over one another, the first at the bottom."""
    paths: list[Path] = []
    for number, (size, changed, chosen) in enumerate(zip(sizes, changes, options, strict=True)):
        over: dict[str, Any] = {}
        if paths:
            over = {"backing_file": os.fspath(paths[-1]), "backing_format": "qcow2"}
        paths.append(folder / f"layer{number}")
        make(paths[-1], size, "qcow2", changed, options=chosen, **over)
    return paths


@given(
    sizes=st.tuples(SIZES, SIZES, SIZES, SIZES),
    changes=st.tuples(CHANGES, CHANGES, CHANGES, CHANGES),
    options=st.tuples(OPTIONS, OPTIONS, OPTIONS),
    onto=st.sampled_from(["base", "nothing", "another"]),
)
def test_rebase_preserves_the_disk(
    sizes: tuple[int, ...], changes: tuple[list[Any], ...], options: tuple[Any, ...], onto: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        chain = make_chain(Path(name), sizes[:3], changes[:3], options)
        another = Path(name, "another")
        make(another, sizes[3], "raw", changes[3])
        before = content(chain[2], "qcow2")
        backing = {"base": str(chain[0]), "nothing": "", "another": str(another)}[onto]
        rebase(
            str(chain[2]),
            backing,
            format="qcow2",
            backing_format={"base": "qcow2", "nothing": None, "another": "raw"}[onto],
        )
        assert content(chain[2], "qcow2") == before


@given(size=SIZES, changes=CHANGES, target=FORMATS)
def test_measure_is_enough(size: int, changes: list[Any], target: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        first, second = Path(name, "first"), Path(name, "second")
        make(first, size, "raw", changes)
        measured = measure(str(first), target_format=target[0], options=target[1])
        convert(str(first), str(second), format="raw", target_format=target[0], options=target[1])
        assert second.stat().st_size <= measured.required <= measured.fully_allocated


@given(size=SIZES, formats=st.tuples(FORMATS, FORMATS), changes=st.tuples(CHANGES, CHANGES))
def test_compare_finds_the_first_sector_that_differs(
    size: int, formats: Any, changes: tuple[list[Any], list[Any]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        first, second = Path(name, "first"), Path(name, "second")
        make(first, size, formats[0][0], changes[0], options=formats[0][1])
        make(second, size, formats[1][0], changes[1], options=formats[1][1])
        one, other = content(first, formats[0][0]), content(second, formats[1][0])
        sectors = range(0, size, 512)
        expected = next((s for s in sectors if one[s : s + 512] != other[s : s + 512]), None)
        with (
            vdisk.open(first, format=formats[0][0]) as left,
            vdisk.open(second, format=formats[1][0]) as right,
        ):
            assert compare(left, right).offset == expected

"""measure: which clusters count, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vdisk
from vdisk.block import Extent, Kind
from vdisk.errors import InvalidRequestError
from vdisk.jobs.measure import allocated_bytes, measure
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20),
    kinds=st.lists(st.sampled_from(list(Kind)), min_size=20, max_size=20),
    cluster=st.sampled_from([1, 4, 16]),
)
def test_counts_each_cluster_with_data_once(
    lengths: list[int], kinds: list[Kind], cluster: int
) -> None:
    extents, start, touched = [], 0, set()
    for length, kind in zip(lengths, kinds, strict=False):
        extents.append(Extent(start, length, kind))
        if kind in (Kind.DATA, Kind.COMPRESSED):
            touched |= {at // cluster for at in range(start, start + length)}
        start += length
    assert allocated_bytes(extents, cluster) == len(touched) * cluster


def test_a_source_or_a_size(tmp_path: Path) -> None:
    device = MemoryStore(b"x" * 65536)
    assert measure(device).required == 65536
    assert measure(size=1000).required == 1024
    with pytest.raises(InvalidRequestError):
        measure()
    with pytest.raises(InvalidRequestError):
        measure(device, size=5)


def test_options_are_checked() -> None:
    for options in ({"cluster_size": 1000}, {"nonesuch": 1}):
        with pytest.raises(InvalidRequestError):
            measure(size=1 << 20, target_format="qcow2", options=options)


def test_too_large_an_l1_table_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="image size is too large"):
        measure(size=1 << 40, target_format="qcow2", options={"cluster_size": 512})


@pytest.mark.parametrize(
    ("target_format", "options", "expected"),
    [
        ("luks", {"key-secret": "s"}, (1075810304, 1075810304)),
        ("luks", {"key-secret": "s", "cipher-alg": "aes-128"}, (1074794496, 1074794496)),
        (
            "qcow2",
            {"encrypt.format": "luks", "encrypt.key-secret": "s"},
            (2490368, 1076232192),
        ),
    ],
)
def test_encryption_headers_count(
    target_format: str, options: dict[str, str], expected: tuple[int, int]
) -> None:
    """What qemu-img 7.2 answers. It is not asked here, because on a busy machine it answers
    "Unable to get accurate CPU usage" instead."""
    result = measure(size=1 << 30, target_format=target_format, options=options)
    assert result[:2] == expected


def test_bitmaps_take_room(tmp_path: Path) -> None:
    name = str(tmp_path / "image")
    vdisk.create(name, 1 << 30, format="qcow2")
    assert measure(name, target_format="qcow2").bitmaps == 0
    assert measure(name, target_format="raw").bitmaps is None
    assert measure(name, target_format="qcow2", options={"compat": "0.10"}).bitmaps is None
    with vdisk.open(name, "r+") as image:
        image.add_bitmap("b")  # type: ignore[attr-defined]
    # Data, table and directory: a cluster each.
    assert measure(name, target_format="qcow2").bitmaps == 3 * 65536

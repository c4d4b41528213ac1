"""Quorums: what is written, who is believed, and when nobody is."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

import vdisk
from vdisk.block import BlockDevice, Kind
from vdisk.errors import DeviceError, InvalidRequestError
from vdisk.filters.faults import Faults, InjectError, IoType, Where
from vdisk.filters.quorum import VOTED_AT_ONCE, Quorum, QuorumSettings
from vdisk.stores.file import FileStore
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 3 << 20


def stores(count: int = 3) -> list[MemoryStore]:
    return [MemoryStore(SIZE) for _ in range(count)]


def failing(store: BlockDevice, iotype: IoType, number: int = errno.ENOSPC) -> Faults:
    return Faults(store, [InjectError(where=Where(iotypes=frozenset({iotype})), errno=number)])


def test_all_children_are_written() -> None:
    children = stores()
    disk = Quorum(children, QuorumSettings(2))
    disk.write(1000, b"text")
    disk.write_zeroes(0, 512)
    disk.flush()
    assert {bytes(child.read(0, 2000)) for child in children} == {disk.read(0, 2000)}
    assert not disk.failures


def test_the_majority_is_believed_and_the_minority_written_anew() -> None:
    children = stores()
    for child in children:
        child.write(0, b"A" * SIZE)
    children[1].write(VOTED_AT_ONCE - 1, b"BB")
    disk = Quorum(children, QuorumSettings(2))
    assert disk.read(0, SIZE) == b"A" * SIZE
    assert disk.outvoted == {1: 2}  # the difference lies in two of the parts that are voted on
    assert children[1].read(VOTED_AT_ONCE - 1, 2) == b"BB"
    repairing = Quorum(children, QuorumSettings(2, rewrite=True))
    assert repairing.read(0, SIZE) == b"A" * SIZE
    assert children[1].read(0, SIZE) == b"A" * SIZE


def test_too_few_agree() -> None:
    children = stores()
    for number, child in enumerate(children):
        child.write(512, bytes([number]))
    disk = Quorum(children, QuorumSettings(2))
    with pytest.raises(DeviceError, match="only 1 of 3 children agree, and 2 have to"):
        disk.read(512, 1)
    assert disk.read(0, 512) == bytes(512)


def test_a_child_that_fails_is_done_without() -> None:
    children = stores()
    disk = Quorum([children[0], failing(children[1], IoType.WRITE), children[2]], QuorumSettings(2))
    disk.write(0, b"kept")
    assert disk.failures == {1: 1}
    assert children[0].read(0, 4) == children[2].read(0, 4) == b"kept"
    assert disk.read(0, 4) == b"kept"


def test_the_commonest_error_is_reported() -> None:
    first, second, third = stores()
    disk = Quorum(
        [
            failing(first, IoType.WRITE, errno.EIO),
            failing(second, IoType.WRITE),
            failing(third, IoType.WRITE),
        ],
        QuorumSettings(1),
    )
    with pytest.raises(vdisk.VdiskError) as caught:
        disk.write(0, b"lost")
    assert caught.value.errno == errno.ENOSPC


def test_the_first_that_can_be_read_is_believed() -> None:
    first, second, third = stores()
    second.write(0, b"2")
    third.write(0, b"3")
    disk = Quorum([failing(first, IoType.READ), second, third], QuorumSettings(1, fifo=True))
    assert disk.read(0, 1) == b"2"
    assert disk.failures == {0: 1}
    alone = Quorum([failing(first, IoType.READ)], QuorumSettings(1, fifo=True))
    with pytest.raises(vdisk.VdiskError):
        alone.read(0, 1)


def test_two_that_must_agree() -> None:
    first, second = stores(2)
    disk = Quorum([first, second], QuorumSettings(2, blkverify=True))
    disk.write(0, b"same")
    assert disk.read(0, 4) == b"same"
    second.write(1, b"X")
    with pytest.raises(DeviceError, match="the two children differ"):
        disk.read(0, 4)


def test_what_all_call_zero_is_zero(tmp_path: Path) -> None:
    children = [FileStore(tmp_path / name, readonly=False, create=True) for name in "abc"]
    for child in children:
        child.truncate(SIZE)
    children[0].write(65536, b"x" * 65536)
    children[1].write(131072, b"x" * 65536)
    disk = Quorum(children, QuorumSettings(2))
    found = [(extent.start, extent.length, extent.kind) for extent in disk.map(4096, 1 << 20)]
    assert found == [
        (4096, 61440, Kind.ZERO),
        (65536, 131072, Kind.DATA),
        (196608, (1 << 20) + 4096 - 196608, Kind.ZERO),
    ]
    assert list(disk.map(SIZE, 0)) == []
    disk.close()


@pytest.mark.parametrize(
    ("count", "settings", "wrong"),
    [
        (0, QuorumSettings(1), "needs children"),
        (3, QuorumSettings(4), "between 1 and the number of children, 3"),
        (3, QuorumSettings(0), "between 1 and"),
        (3, QuorumSettings(2, blkverify=True), "exactly two files"),
        (2, QuorumSettings(2, blkverify=True, rewrite=True), "rewrite-corrupted"),
        (2, QuorumSettings(2, fifo=True, rewrite=True), "rewrite-corrupted"),
    ],
)
def test_quorums_that_cannot_be(count: int, settings: QuorumSettings, wrong: str) -> None:
    with pytest.raises(InvalidRequestError, match=wrong):
        Quorum(stores(count), settings)


def test_children_of_different_sizes() -> None:
    with pytest.raises(InvalidRequestError, match="different sizes"):
        Quorum([MemoryStore(512), MemoryStore(1024)], QuorumSettings(1))


def options(folder: Path, **more: Any) -> dict[str, Any]:
    children = [
        {"driver": "qcow2", "file": {"driver": "file", "filename": str(folder / n)}} for n in "abc"
    ]
    return {"driver": "quorum", "children": children, "vote-threshold": 2, **more}


def test_by_name(tmp_path: Path) -> None:
    for name in "abc":
        vdisk.create(tmp_path / name, 1 << 20, format="qcow2")
    with vdisk.open(options(tmp_path), "r+") as disk:
        disk.write(0, b"everywhere")
    for name in "abc":
        with vdisk.open(tmp_path / name) as image:
            assert image.read(0, 10) == b"everywhere"
    numbered = options(tmp_path)
    numbered["children"] = {str(n): node for n, node in enumerate(numbered["children"])}
    with vdisk.open(numbered) as disk:
        assert disk.read(0, 10) == b"everywhere"


@pytest.mark.parametrize(
    "wrong",
    [
        {"children": {"1": {}}},
        {"children": "a"},
        {"children": ["a"]},
        {"vote-threshold": None},
        {"read-pattern": "last"},
        {"sheep": 1},
    ],
)
def test_options_that_cannot_be(wrong: dict[str, Any], tmp_path: Path) -> None:
    for name in "abc":
        vdisk.create(tmp_path / name, 1 << 20, format="qcow2")
    given = options(tmp_path, **wrong)
    if given["vote-threshold"] is None:
        del given["vote-threshold"]
    with pytest.raises(InvalidRequestError):
        vdisk.open(given)
    with vdisk.open(tmp_path / "a", "r+"):  # nothing is left open, or locked
        pass

"""Two devices held against each other: every difference is found and named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import vdisk
from vdisk.errors import DeviceError, InvalidRequestError
from vdisk.filters.faults import Faults, InjectError, IoType, Where
from vdisk.filters.verify import Verify
from vdisk.opening import open_image
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20


def test_both_are_written_and_read() -> None:
    raw, test = MemoryStore(bytes(SIZE)), MemoryStore(bytes(SIZE), name="test")
    with Verify(raw, test) as both:
        both.write(100, b"same")
        both.write_zeroes(4096, 4096)
        both.flush()
        both.truncate(SIZE // 2)
        assert both.read(98, 8) == b"\0\0same\0\0"
        assert raw.content() == test.content()
        assert both.size == SIZE // 2
    assert raw.closed and test.closed


def test_the_first_byte_that_differs_is_named() -> None:
    raw, test = MemoryStore(bytes(SIZE)), MemoryStore(bytes(SIZE), name="test")
    test.write(1000, b"\x01\x02")
    both = Verify(raw, test)
    assert both.read(0, 1000) == bytes(1000)
    with pytest.raises(DeviceError, match="0x01 where 0x00 should be") as caught:
        both.read(0, 2000)
    assert (caught.value.path, caught.value.offset) == ("test", 1000)


@pytest.mark.parametrize("faulty", ["raw", "test"])
def test_an_error_of_one_only_is_an_error(faulty: str) -> None:
    stores = {name: MemoryStore(bytes(SIZE), name=name) for name in ("raw", "test")}
    once = InjectError(where=Where(iotypes=frozenset({IoType.WRITE}), once=True))
    stores[faulty] = Faults(stores[faulty], [once])  # type: ignore[assignment]
    both = Verify(stores["raw"], stores["test"])
    with pytest.raises(DeviceError, match=f"write failed on {faulty} but not on"):
        both.write(0, b"x")


def test_an_error_of_both_is_that_error() -> None:
    stores = [Faults(MemoryStore(bytes(SIZE)), [InjectError(errno=28)]) for _ in range(2)]
    with pytest.raises(DeviceError) as caught:
        Verify(*stores).read(0, 1)
    assert caught.value.errno == 28


def test_different_sizes_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="cannot be the same"):
        Verify(MemoryStore(bytes(1024)), MemoryStore(bytes(512)))


def test_a_name_opens_a_file_and_an_image(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk.raw", SIZE)
    vdisk.create(tmp_path / "disk.qcow2", SIZE, format="qcow2")
    name = f"blkverify:{tmp_path}/disk.raw:{tmp_path}/disk.qcow2"
    with open_image(name, format="raw", readonly=False) as device:
        device.write(5000, b"in both")
    assert (tmp_path / "disk.raw").read_bytes()[5000:5007] == b"in both"
    with open_image(tmp_path / "disk.qcow2", format="qcow2", readonly=False) as image:
        assert image.read(5000, 7) == b"in both"
        image.write(5000, b"!")
    with (
        open_image(name, format="raw") as device,
        pytest.raises(DeviceError, match="differs from"),
    ):
        device.read(0, SIZE)


@pytest.mark.parametrize("name", ["blkverify:", "blkverify:a", "blkverify::b", "blkverify:a:"])
def test_names_that_lead_nowhere(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="form"):
        open_image(name)

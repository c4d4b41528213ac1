"""The device that keeps nothing."""

from __future__ import annotations

import pytest

from vdisk.block import Kind
from vdisk.errors import InvalidRequestError, OutOfRangeError
from vdisk.opening import open_image
from vdisk.stores.null import DEFAULT_SIZE, NullStore


def test_reads_are_zeroes_whatever_was_written() -> None:
    device = NullStore(1 << 20)
    device.write(0, b"gone")
    device.write_zeroes(0, 10)
    device.discard(0, 10)
    device.flush()
    buffer = bytearray(b"????")
    device.read_into(0, buffer)
    assert buffer == bytes(4)
    with pytest.raises(OutOfRangeError):
        device.write(1 << 20, b"x")


def test_each_request_takes_its_time() -> None:
    slept: list[float] = []
    device = NullStore(1 << 20, latency=0.5, sleep=slept.append)
    device.read(0, 1)
    device.write(0, b"x")
    device.flush()
    assert slept == [0.5] * 3


@pytest.mark.parametrize(("driver", "zeroes"), [("null-co", "on"), ("null-aio", "off")])
def test_options(driver: str, zeroes: str) -> None:
    tree = {"driver": driver, "size": "64k", "latency-ns": "10", "read-zeroes": zeroes}
    with open_image({"driver": "raw", "file": tree}) as device:
        assert device.size == 65536
        (extent,) = device.map()
        assert extent.kind is (Kind.ZERO if zeroes == "on" else Kind.DATA)


def test_a_name() -> None:
    with open_image("null-co://", format="raw", readonly=False) as device:
        assert device.size == DEFAULT_SIZE
        device.write(0, b"x")


@pytest.mark.parametrize(
    "name", ["null-co:", "null-co://x", {"driver": "null-co", "size": 1 << 63}]
)
def test_what_cannot_be(name: str | dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        open_image(name)
